/* config_test.c - every way a setting can be wrong, and the one line it gives. */
#include "tests/unit/unit.h"
#include "common/config.h"
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct settings {
    char *listen_client;
    uint64_t threads;
    uint64_t any_number;
    bool tracing;
    struct config_list workers;
    char *log_format;
    char *short_name;
};

#define FIELD(member) .key = #member, .offset = offsetof(struct settings, member)

static const struct config_field fields_[] = {
    {FIELD(listen_client), .type = CONFIG_STRING, .default_value = "tcp://127.0.0.1:5555", .help = "where clients connect"},
    {FIELD(threads), .type = CONFIG_UINT, .default_value = "2", .min = 1, .max = 64, .help = "more use more cores"},
    {FIELD(any_number), .type = CONFIG_UINT},
    {FIELD(tracing), .type = CONFIG_BOOL, .default_value = "false"},
    {FIELD(workers), .type = CONFIG_LIST, .default_value = "a, b", .max = 3},
    {FIELD(log_format), .type = CONFIG_STRING, .default_value = "text", .choices = "text|json"},
    {FIELD(short_name), .type = CONFIG_STRING, .max = 10},
};

static enum status check(const void *user)
{
    const struct settings *settings = user;
    if (settings->tracing && settings->threads > 8)
        return STATUS_FAIL(STATUS_INVALID, "tracing needs threads of at most 8");
    return STATUS_OK;
}

static const struct config_program program_ = {
    .name = "roost-router",
    .summary = "routes requests",
    .fields = fields_,
    .field_count = sizeof fields_ / sizeof fields_[0],
    .settings_size = sizeof(struct settings),
    .check = check,
};

static char folder_[] = "/tmp/config_test.XXXXXX";
static struct settings settings_;

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder_) && chdir(folder_) == 0 ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    unlink("router.yaml");
    unlink("out");
    unlink("err");
    return chdir("/") == 0 && rmdir(folder_) == 0 ? 0 : -1;
}

static int clean(void **state)
{
    (void)state;
    config_free(&program_, &settings_);
    memset(&settings_, 0, sizeof settings_);
    return 0;
}

static void write_file(const char *bytes, size_t size)
{
    FILE *file = fopen("router.yaml", "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    fclose(file);
}

static void check_good(const char *yaml)
{
    write_file(yaml, strlen(yaml));
    assert_ok(config_read_file(&program_, "router.yaml", &settings_));
}

/* The whole message, after "router.yaml:". */
static void check_bad(const char *yaml, const char *expected)
{
    write_file(yaml, strlen(yaml));
    if (config_read_file(&program_, "router.yaml", &settings_) == STATUS_OK)
        fail_msg("accepted: %s", yaml);
    assert_memory_equal(status_detail(), "router.yaml:", 12);
    assert_string_equal(status_detail() + 12, expected);
    assert_null(strchr(status_detail(), '\n'));
    clean(NULL);
}

/* ---- files ---- */

static void test_file_sets_values(void **state)
{
    (void)state;
    check_good("# comment\nlisten_client: tcp://*:1\nthreads: 64\nany_number: 18446744073709551615\ntracing: Yes\n"
               "workers:\n  - x\n  - 'y, z'\nlog_format: json\nshort_name: \"\"\n");
    assert_string_equal(settings_.listen_client, "tcp://*:1");
    assert_true(settings_.threads == 64);
    assert_true(settings_.any_number == UINT64_MAX);
    assert_true(settings_.tracing);
    assert_int_equal(settings_.workers.count, 2);
    assert_string_equal(settings_.workers.items[0], "x");
    assert_string_equal(settings_.workers.items[1], "y, z");
    assert_string_equal(settings_.log_format, "json");
    assert_string_equal(settings_.short_name, "");
    check_good("workers: []\nthreads: 1\n"); /* over the values of before */
    assert_int_equal(settings_.workers.count, 0);
    assert_true(settings_.threads == 1);
    assert_string_equal(settings_.log_format, "json");
}

static void test_file_without_settings(void **state)
{
    (void)state;
    check_good("{}");
    check_good("# threads: 7\n");
    check_bad("", "1: the file is empty: write {} for no settings");
    check_bad(" \n\t\n", "1: the file is empty: write {} for no settings");
}

static void test_file_unknown_keys(void **state)
{
    (void)state;
    check_bad("threads: 1\n\nlisen_client: x\n", "3: unknown key 'lisen_client' (did you mean 'listen_client'?)");
    check_bad("Threads: 1\n", "1: unknown key 'Threads' (did you mean 'threads'?)");
    check_bad("zzzzzzzz: 1\n", "1: unknown key 'zzzzzzzz'");
    check_bad("\"a\\nb\": 1\n", "1: unknown key 'a\\x0Ab'");
    check_bad("\"threads\\0x\": 1\n", "1: unknown key 'threads\\x00x' (did you mean 'threads'?)");
    check_bad("? [a]\n: 1\n", "1: a key must be a word");
}

static void test_file_wrong_types(void **state)
{
    (void)state;
    check_bad("threads: many\n", "1: 'threads' is 'many': it must be a whole number from 1 to 64");
    check_bad("threads: 0\n", "1: 'threads' is '0': it must be a whole number from 1 to 64");
    check_bad("\nthreads: 65\n", "2: 'threads' is '65': it must be a whole number from 1 to 64");
    check_bad("threads: -1\n", "1: 'threads' is '-1': it must be a whole number from 1 to 64");
    check_bad("threads: 1.5\n", "1: 'threads' is '1.5': it must be a whole number from 1 to 64");
    check_bad("any_number: 18446744073709551616\n",
              "1: 'any_number' is '18446744073709551616': it must be a whole number of at least 0");
    check_bad("threads: [1]\n", "1: 'threads' is a list: it must be a whole number from 1 to 64");
    check_bad("threads: {a: 1}\n", "1: 'threads' is a mapping: it must be a whole number from 1 to 64");
    check_bad("threads:\n", "1: 'threads' has no value: it must be a whole number from 1 to 64");
    check_bad("listen_client: ~\n", "1: 'listen_client' has no value: it must be text of at most 4096 bytes");
    check_bad("tracing: 1\n", "1: 'tracing' is '1': it must be true or false");
    check_bad("workers: a\n", "1: 'workers' is a single value: it must be a list of at most 3 texts");
    check_bad("workers: [a, [b]]\n", "1: 'workers' has a list or a mapping inside: its items must be texts");
    check_bad("workers: [a, '']\n", "1: 'workers' has an empty item, number 2");
    check_bad("workers: [a, b, c, d]\n", "1: 'workers' has 4 items: at most 3 are allowed");
    check_bad("log_format: xml\n", "1: 'log_format' is 'xml': it must be one of text, json");
    check_bad("log_format: tex\n", "1: 'log_format' is 'tex': it must be one of text, json");
    check_bad("log_format: text|json\n", "1: 'log_format' is 'text|json': it must be one of text, json");
    check_bad("short_name: 12345678901\n", "1: 'short_name' has 11 bytes: at most 10 are allowed");
    check_bad("short_name: \"a\\0b\"\n", "1: 'short_name' has a NUL character");
}

static void test_file_duplicate_keys(void **state)
{
    (void)state;
    check_bad("threads: 1\ntracing: on\nthreads: 1\n", "3: 'threads' is set twice, first on line 1");
}

static void test_file_not_a_mapping(void **state)
{
    (void)state;
    check_bad("hello\n", "1: settings must be a mapping, lines of 'key: value'");
    check_bad("\n- threads: 1\n", "2: settings must be a mapping, lines of 'key: value'");
    check_bad("threads: 1\n---\ntracing: on\n", "2: a second document starts here: settings are one document");
    check_bad("---\n# nothing\n---\n", "3: settings must be a mapping, lines of 'key: value'");
    check_bad("listen_client: &a x\nshort_name: *a\n", "1: anchors and aliases (& and *) are not supported: write the value out");
    check_bad("<<: {threads: 1}\n", "1: unknown key '<<'");
}

static void test_file_bad_yaml(void **state)
{
    (void)state;
    check_bad("threads: 1\n  tracing: on\n", "2: not valid YAML: mapping values are not allowed in this context");
    check_bad("workers: [a\nthreads: 1\n", "2: not valid YAML: did not find expected ',' or ']'");
    check_bad("threads: 1\n\tx: 1\n", "2: not valid YAML: found a tab character that violates indentation");
    check_bad("threads: 1\nshort_name: \xff\n", "2: not valid YAML: invalid leading UTF-8 octet");
    check_bad("threads: 1\nshort_name: \x01\n", "2: not valid YAML: control characters are not allowed");
}

static void test_file_nul_byte(void **state)
{
    (void)state;
    write_file("threads: 1\n\0short_name: x\n", 27);
    assert_int_equal(config_read_file(&program_, "router.yaml", &settings_), STATUS_INVALID);
    assert_memory_equal(status_detail(), "router.yaml:2: ", 15);
}

static void check_repeated(const char *start, const char *unit, size_t count, const char *expected)
{
    size_t size = strlen(start) + count * strlen(unit);
    char *text = malloc(size + 1);
    strcpy(text, start);
    for (size_t i = 0, at = strlen(start); i < count; i++, at += strlen(unit))
        strcpy(text + at, unit);
    check_bad(text, expected);
    free(text);
}

static void test_file_huge(void **state)
{
    (void)state;
    check_repeated("listen_client: ", "x", 100000, "1: 'listen_client' has 100000 bytes: at most 4096 are allowed");
    check_repeated("", "[", 100000, "1: settings must be a mapping, lines of 'key: value'");
    check_repeated("threads: ", "[", 100000, "1: 'threads' is a list: it must be a whole number from 1 to 64");
    check_repeated("workers: ", "[", 100000, "1: 'workers' has a list or a mapping inside: its items must be texts");
    check_repeated("workers: ", "{a: ", 100000, "1: 'workers' is a mapping: it must be a list of at most 3 texts");
    check_repeated("workers:", "\n- a", 50000, "1: 'workers' has 50000 items: at most 3 are allowed");
    check_repeated("? ", "? ", 100000, "1: a key must be a word");
    check_repeated("threads: 1\n", "#", CONFIG_FILE_BYTES_MAX, " is larger than 1048576 bytes, is it the right file?");
    check_repeated("", "x", 100000, "1: settings must be a mapping, lines of 'key: value'");
}

static void test_file_cannot_be_read(void **state)
{
    (void)state;
    assert_int_equal(config_read_file(&program_, "missing.yaml", &settings_), STATUS_NOT_FOUND);
    assert_string_equal(status_detail(), "missing.yaml: cannot be opened: No such file or directory");
    assert_int_equal(config_read_file(&program_, ".", &settings_), STATUS_IO);
    assert_string_equal(status_detail(), ".: cannot be read: Is a directory");
    if (geteuid() == 0)
        return; /* root reads everything */
    write_file("{}", 2);
    chmod("router.yaml", 0);
    assert_int_equal(config_read_file(&program_, "router.yaml", &settings_), STATUS_IO);
    assert_string_equal(status_detail(), "router.yaml: cannot be opened: Permission denied");
    chmod("router.yaml", 0600);
}

/* Random bytes, random cuts and random splices of a good file: any answer but a crash or a message of several lines. */
static void test_file_garbage(void **state)
{
    (void)state;
    static const char good[] = "listen_client: tcp://*:1\nthreads: 6\ntracing: yes\nworkers:\n  - x\n  - 'y'\n"
                               "log_format: \"json\"\nshort_name: |\n  abc\n";
    static const char *const pieces[] = {"[", "]", "{", "}", ": ", "\n", "- ", "? ", "&a ", "*a ", "!!int ", "|\n", ">", "'",
                                         "\"", "\\", "#", "%YAML 1.1\n", "---\n", "...\n", "\xef\xbb\xbf", "\xc2\x85", "\t", "~"};
    srand(7);
    for (int round = 0; round < 3000; round++) {
        char text[400];
        size_t size = sizeof good - 1;
        memcpy(text, good, size);
        for (int edit = rand() % 4; edit >= 0; edit--) {
            size_t at = (size_t)rand() % size;
            const char *piece = pieces[(size_t)rand() % (sizeof pieces / sizeof pieces[0])];
            if (rand() % 5 == 0)
                text[at] = (char)rand();
            else if (rand() % 8 == 0)
                size = at + 1;
            else if (size + strlen(piece) < sizeof text) {
                memmove(text + at + strlen(piece), text + at, size - at);
                memcpy(text + at, piece, strlen(piece));
                size += strlen(piece);
            }
        }
        write_file(text, size);
        if (config_read_file(&program_, "router.yaml", &settings_) != STATUS_OK) {
            assert_null(strchr(status_detail(), '\n'));
            assert_memory_equal(status_detail(), "router.yaml:", 12);
        }
    }
}

/* ---- one key ---- */

static void test_set(void **state)
{
    (void)state;
    assert_ok(config_set(&program_, &settings_, "workers", " a ,b", NULL));
    assert_int_equal(settings_.workers.count, 2);
    assert_string_equal(settings_.workers.items[0], "a");
    assert_ok(config_set(&program_, &settings_, "workers", "", NULL));
    assert_int_equal(settings_.workers.count, 0);
    assert_int_equal(config_set(&program_, &settings_, "workers", "a,,b", "--workers"), STATUS_INVALID);
    assert_string_equal(status_detail(), "--workers: 'workers' has an empty item, number 2");
    assert_int_equal(config_set(&program_, &settings_, "thread", "1", "--thread"), STATUS_INVALID);
    assert_string_equal(status_detail(), "--thread: unknown key 'thread' (did you mean 'threads'?)");
    assert_int_equal(config_set(&program_, &settings_, "threads", " 1", NULL), STATUS_INVALID);
    assert_int_equal(config_set(&program_, &settings_, "threads", "", NULL), STATUS_INVALID);
    assert_int_equal(config_set(&program_, &settings_, "short_name", "a\xff", NULL), STATUS_INVALID);
    assert_string_equal(status_detail(), "'short_name' is 'a\\xFF': it must be valid UTF-8");
}

/* ---- whole programs ---- */

static char out_[8192], err_[2048];

static void slurp(const char *name, char *bytes, size_t size)
{
    FILE *file = fopen(name, "rb");
    bytes[fread(bytes, 1, size - 1, file)] = '\0';
    fclose(file);
}

/* Runs config_load with both streams in files. */
static enum config_outcome load(const char *first, const char *second, const char *third)
{
    char *argv[] = {(char *)"roost-router", (char *)first, (char *)second, (char *)third, NULL};
    int argc = 1 + (first != NULL) + (second != NULL) + (third != NULL);
    fflush(stdout);
    int saved_out = dup(1), saved_err = dup(2);
    int out = open("out", O_WRONLY | O_CREAT | O_TRUNC, 0600), err = open("err", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(out, 1);
    dup2(err, 2);
    config_free(&program_, &settings_);
    enum config_outcome outcome = config_load(&program_, argc, argv, &settings_);
    fflush(stdout);
    dup2(saved_out, 1);
    dup2(saved_err, 2);
    close(saved_out), close(saved_err), close(out), close(err);
    slurp("out", out_, sizeof out_);
    slurp("err", err_, sizeof err_);
    if (outcome != CONFIG_RUN)
        assert_null(settings_.listen_client);
    return outcome;
}

static void check_refused(const char *first, const char *second, const char *expected)
{
    assert_int_equal(load(first, second, NULL), CONFIG_EXIT_BAD);
    assert_string_equal(out_, "");
    assert_string_equal(err_, expected);
}

static void test_load_defaults(void **state)
{
    (void)state;
    assert_int_equal(load(NULL, NULL, NULL), CONFIG_RUN);
    assert_string_equal(out_, "");
    assert_string_equal(err_, "");
    assert_string_equal(settings_.listen_client, "tcp://127.0.0.1:5555");
    assert_true(settings_.threads == 2);
    assert_int_equal(settings_.workers.count, 2);
    assert_string_equal(settings_.short_name, "");
}

static void test_load_later_wins(void **state)
{
    (void)state;
    static const char yaml[] = "threads: 3\nshort_name: file\nlisten_client: file\n";
    write_file(yaml, sizeof yaml - 1);
    setenv("ROOST_ROUTER_SHORT_NAME", "env", 1);
    setenv("ROOST_ROUTER_LISTEN_CLIENT", "env", 1);
    assert_int_equal(load("--config=router.yaml", "--listen-client", "flag"), CONFIG_RUN);
    unsetenv("ROOST_ROUTER_SHORT_NAME");
    unsetenv("ROOST_ROUTER_LISTEN_CLIENT");
    assert_true(settings_.threads == 3);
    assert_string_equal(settings_.short_name, "env");
    assert_string_equal(settings_.listen_client, "flag");
}

static void test_load_bad_flags(void **state)
{
    (void)state;
    check_refused("--lisen-client", "x", "roost-router: unknown flag --lisen-client (did you mean --listen-client?)\n");
    check_refused("--listen_client=x", NULL, "roost-router: unknown flag --listen_client (did you mean --listen-client?)\n");
    check_refused("--hepl", NULL, "roost-router: unknown flag --hepl (did you mean --help?)\n");
    check_refused("--confg", "x", "roost-router: unknown flag --confg (did you mean --config?)\n");
    check_refused("-x", NULL, "roost-router: unknown flag -x (see --help)\n");
    check_refused("start", NULL, "roost-router: unexpected argument 'start': settings are given as --setting VALUE (see --help)\n");
    check_refused("--threads", NULL, "roost-router: --threads needs a value\n");
    check_refused("--threads=x\n", NULL, "roost-router: --threads: 'threads' is 'x\\x0A': it must be a whole number from 1 to 64\n");
    check_refused("--config", "nope.yaml", "roost-router: nope.yaml: cannot be opened: No such file or directory\n");
    assert_int_equal(load("--tracing=true", "--threads", "9"), CONFIG_EXIT_BAD);
    assert_string_equal(err_, "roost-router: tracing needs threads of at most 8\n");
}

static void test_load_bad_environment(void **state)
{
    (void)state;
    setenv("ROOST_ROUTER_THREDS", "1", 1);
    check_refused(NULL, NULL, "roost-router: unknown environment variable ROOST_ROUTER_THREDS (did you mean ROOST_ROUTER_THREADS?)\n");
    unsetenv("ROOST_ROUTER_THREDS");
    setenv("ROOST_ROUTER_threads", "1", 1);
    check_refused(NULL, NULL, "roost-router: unknown environment variable ROOST_ROUTER_threads (did you mean ROOST_ROUTER_THREADS?)\n");
    unsetenv("ROOST_ROUTER_threads");
    setenv("ROOST_ROUTER_THREADS", "0", 1);
    check_refused(NULL, NULL, "roost-router: ROOST_ROUTER_THREADS: 'threads' is '0': it must be a whole number from 1 to 64\n");
    unsetenv("ROOST_ROUTER_THREADS");
    setenv("ROOST_ROUTER_PORT", "5555", 1);
    assert_int_equal(load(NULL, NULL, NULL), CONFIG_EXIT_BAD);
    unsetenv("ROOST_ROUTER_PORT");
}

/* What Kubernetes sets in every pod when a service is called roost-router (enableServiceLinks, on by default). */
static void test_load_ignores_service_links(void **state)
{
    (void)state;
    static const char *const links[][2] = {
        {"ROOST_ROUTER_SERVICE_HOST", "10.0.0.11"},     {"ROOST_ROUTER_SERVICE_PORT", "5555"},
        {"ROOST_ROUTER_SERVICE_PORT_CLIENT", "5555"},   {"ROOST_ROUTER_PORT", "tcp://10.0.0.11:5555"},
        {"ROOST_ROUTER_PORT_5555_TCP", "tcp://10.0.0.11:5555"}, {"ROOST_ROUTER_PORT_5555_TCP_ADDR", "10.0.0.11"},
        {"ROOST_ROUTER_HEADLESS_SERVICE_HOST", "None"}, {"ROOST_WORKER_THREADS", "not ours"},
    };
    for (unsigned i = 0; i < sizeof links / sizeof links[0]; i++)
        setenv(links[i][0], links[i][1], 1);
    assert_int_equal(load(NULL, NULL, NULL), CONFIG_RUN);
    for (unsigned i = 0; i < sizeof links / sizeof links[0]; i++)
        unsetenv(links[i][0]);
}

static void test_load_standard_flags(void **state)
{
    (void)state;
    assert_int_equal(load("--version", NULL, NULL), CONFIG_EXIT_OK);
    assert_string_equal(out_, "roost-router " ROOST_VERSION "\n");
    assert_int_equal(load("--threads=bad", "--help", NULL), CONFIG_EXIT_OK);
    for (unsigned i = 0; i < program_.field_count; i++) {
        char flag[64] = "--";
        strcat(flag, fields_[i].key);
        for (char *c = flag; *c; c++)
            *c = *c == '_' ? '-' : *c;
        assert_non_null(strstr(out_, flag));
    }
    assert_int_equal(load("--check-config", NULL, NULL), CONFIG_EXIT_OK);
    assert_string_equal(out_, "roost-router: the configuration is valid\n");
    assert_int_equal(load("--check-config", "--threads=0", NULL), CONFIG_EXIT_BAD);
}

static void check_same(const struct settings *a, const struct settings *b)
{
    assert_string_equal(a->listen_client, b->listen_client);
    assert_string_equal(a->short_name, b->short_name);
    assert_string_equal(a->log_format, b->log_format);
    assert_true(a->threads == b->threads && a->any_number == b->any_number && a->tracing == b->tracing);
    assert_int_equal(a->workers.count, b->workers.count);
    for (unsigned i = 0; i < a->workers.count; i++)
        assert_string_equal(a->workers.items[i], b->workers.items[i]);
}

static void test_print_reads_back(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "", "plain", "null", "~", "yes", "12", "- x", "a: b", "# no comment", " space ", "\"'\\", "a\nb\r\tc", "\x01\x7f",
        "\xc3\xa4\xe2\x82\xac\xf0\x9f\xa6\x89", "\xc2\x85\xc2\xa0", "\xe2\x80\xa8\xe2\x80\xae", "\xef\xbb\xbfx", "\xef\xbf\xbe",
        "{x}", "[x]", "&a", "*a", "!t", "%d", "@", "`", "|", ">",
    };
    for (unsigned i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct settings again;
        memset(&again, 0, sizeof again);
        assert_int_equal(load("--any-number=7", "--tracing", "on"), CONFIG_RUN);
        assert_ok(config_set(&program_, &settings_, "listen_client", texts[i], NULL));
        const char *const items[3] = {texts[i], "x", texts[i]};
        if (*texts[i]) {
            assert_ok(config_set(&program_, &settings_, "workers", "", NULL)); /* a flag is split at commas: set the member */
            settings_.workers.items = calloc(3, sizeof(char *));
            for (unsigned k = 0; k < 3; k++)
                settings_.workers.items[settings_.workers.count++] = strdup(items[k]);
        }
        FILE *file = fopen("router.yaml", "wb");
        config_print(&program_, &settings_, file);
        fclose(file);
        assert_ok(config_read_file(&program_, "router.yaml", &again));
        check_same(&settings_, &again);
        config_free(&program_, &again);
    }
}

static void test_print_flag_reads_back(void **state)
{
    (void)state;
    struct settings again;
    memset(&again, 0, sizeof again);
    assert_int_equal(load("--print-config", "--short-name", "x\ty"), CONFIG_EXIT_OK);
    write_file(out_, strlen(out_));
    assert_ok(config_read_file(&program_, "router.yaml", &again));
    assert_int_equal(load("--short-name", "x\ty", NULL), CONFIG_RUN);
    check_same(&settings_, &again);
    config_free(&program_, &again);
}

#define CASE(name) cmocka_unit_test_teardown(name, clean)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_file_sets_values),      CASE(test_file_without_settings),      CASE(test_file_unknown_keys),
        CASE(test_file_wrong_types),      CASE(test_file_duplicate_keys),        CASE(test_file_not_a_mapping),
        CASE(test_file_bad_yaml),         CASE(test_file_nul_byte),              CASE(test_file_huge),
        CASE(test_file_cannot_be_read),   CASE(test_file_garbage),               CASE(test_set),
        CASE(test_load_defaults),         CASE(test_load_later_wins),            CASE(test_load_bad_flags),
        CASE(test_load_bad_environment),  CASE(test_load_ignores_service_links), CASE(test_load_standard_flags),
        CASE(test_print_reads_back),      CASE(test_print_flag_reads_back),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
