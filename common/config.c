/* config.c - owns nothing but the strings and lists that it puts into a settings struct. Runs before threads start.
 * Always true: every value, whatever it came from, passes config_assign or config_assign_list; a settings struct can be
 * given to config_free at any time after it was zeroed. config_file.c reads YAML. */
#include "common/config.h"
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "common/utf8.h"
#include "config_internal.h"

extern char **environ;

static void *member(const struct config_field *field, void *settings)
{
    return (char *)settings + field->offset;
}

static const void *member_const(const struct config_field *field, const void *settings)
{
    return (const char *)settings + field->offset;
}

static const char *quote(const char *text, char out[CONFIG_QUOTE_BYTES])
{
    return utf8_quote(text, strlen(text), out, CONFIG_QUOTE_BYTES);
}

/* ---- keys ---- */

const struct config_field *config_find(const struct config_program *program, const char *key)
{
    for (unsigned i = 0; i < program->field_count; i++) {
        if (strcmp(program->fields[i].key, key) == 0)
            return &program->fields[i];
    }
    return NULL;
}

/* Levenshtein distance, two rows. */
static unsigned distance(const char *a, const char *b)
{
    enum { LENGTH_MAX = 64 };
    size_t a_size = strlen(a), b_size = strlen(b);
    unsigned row[LENGTH_MAX + 1];
    if (a_size > LENGTH_MAX || b_size > LENGTH_MAX)
        return LENGTH_MAX;
    for (size_t j = 0; j <= b_size; j++)
        row[j] = (unsigned)j;
    for (size_t i = 1; i <= a_size; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= b_size; j++) {
            unsigned least = diagonal + (tolower((unsigned char)a[i - 1]) != tolower((unsigned char)b[j - 1]));
            if (row[j] + 1 < least)
                least = row[j] + 1;
            if (row[j - 1] + 1 < least)
                least = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = least;
        }
    }
    return row[b_size];
}

/* A third of the letters may differ: one in "tcp", four in "listen_client". */
static void consider(const char *wrong, const char *candidate, const char **best, unsigned *best_distance)
{
    unsigned d = distance(wrong, candidate);
    if (d < *best_distance && 3 * d <= strlen(candidate)) {
        *best = candidate;
        *best_distance = d;
    }
}

const char *config_suggest(const struct config_program *program, const char *key)
{
    const char *best = NULL;
    unsigned best_distance = 64;
    for (unsigned i = 0; i < program->field_count; i++)
        consider(key, program->fields[i].key, &best, &best_distance);
    return best;
}

static void key_to_flag(const char *key, char *out, size_t size)
{
    size_t used = (size_t)snprintf(out, size, "--%s", key);
    for (size_t i = 2; i < used && i < size; i++) {
        if (out[i] == '_')
            out[i] = '-';
    }
}

/* ---- values ---- */

static uint64_t uint_max(const struct config_field *field)
{
    return field->max ? field->max : UINT64_MAX;
}

static size_t string_max(const struct config_field *field)
{
    return field->type == CONFIG_STRING && field->max ? field->max : CONFIG_VALUE_BYTES_MAX;
}

static unsigned list_max(const struct config_field *field)
{
    return field->max ? (unsigned)field->max : CONFIG_ITEMS_MAX;
}

char *config_describe(const struct config_field *field, char *out, size_t size)
{
    switch (field->type) {
    case CONFIG_UINT:
        if (field->max)
            snprintf(out, size, "a whole number from %" PRIu64 " to %" PRIu64, field->min, field->max);
        else
            snprintf(out, size, "a whole number of at least %" PRIu64, field->min);
        break;
    case CONFIG_BOOL:
        snprintf(out, size, "true or false");
        break;
    case CONFIG_LIST:
        snprintf(out, size, "a list of at most %u texts", list_max(field));
        break;
    case CONFIG_STRING:
        if (field->choices) {
            size_t used = (size_t)snprintf(out, size, "one of ");
            for (const char *c = field->choices; *c && used + 3 < size; c++) {
                if (*c == '|') {
                    out[used++] = ',';
                    out[used++] = ' ';
                } else {
                    out[used++] = *c;
                }
            }
            out[used < size ? used : size - 1] = '\0';
        } else {
            snprintf(out, size, "text of at most %zu bytes", string_max(field));
        }
        break;
    }
    return out;
}

static enum status fail_value(const struct config_field *field, const char *value, const char *prefix)
{
    char quoted[CONFIG_QUOTE_BYTES], wanted[256];
    return STATUS_FAIL(STATUS_INVALID, "%s'%s' is '%s': it must be %s", prefix, field->key, quote(value, quoted),
                       config_describe(field, wanted, sizeof wanted));
}

static bool is_choice(const char *choices, const char *value)
{
    size_t size = strlen(value);
    for (const char *c = choices;; c++) {
        const char *end = strchrnul(c, '|');
        if ((size_t)(end - c) == size && memcmp(c, value, size) == 0)
            return true;
        if (!*end)
            return false;
        c = end;
    }
}

static bool parse_uint(const char *value, uint64_t *out)
{
    if (!isdigit((unsigned char)*value))
        return false; /* no sign, no space */
    char *end;
    errno = 0;
    unsigned long long parsed = strtoull(value, &end, 10);
    *out = parsed;
    return errno == 0 && *end == '\0';
}

static bool parse_bool(const char *value, bool *out)
{
    static const char *const yes[] = {"true", "yes", "on"}, *const no[] = {"false", "no", "off"};
    for (unsigned i = 0; i < 3; i++) {
        if (strcasecmp(value, yes[i]) == 0 || strcasecmp(value, no[i]) == 0) {
            *out = strcasecmp(value, yes[i]) == 0;
            return true;
        }
    }
    return false;
}

static enum status check_text(const struct config_field *field, const char *value, const char *prefix)
{
    size_t size = strlen(value);
    if (size > string_max(field))
        return STATUS_FAIL(STATUS_INVALID, "%s'%s' has %zu bytes: at most %zu are allowed", prefix, field->key, size,
                           string_max(field));
    if (!utf8_valid(value, size)) {
        char quoted[CONFIG_QUOTE_BYTES];
        return STATUS_FAIL(STATUS_INVALID, "%s'%s' is '%s': it must be valid UTF-8", prefix, field->key, quote(value, quoted));
    }
    return STATUS_OK;
}

static enum status fail_memory(const struct config_field *field)
{
    return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the setting '%s'", field->key);
}

static void free_list(struct config_list *list)
{
    for (unsigned i = 0; i < list->count; i++)
        free(list->items[i]);
    free(list->items);
    *list = (struct config_list){.items = NULL};
}

enum status config_assign_list(const struct config_field *field, void *settings, char *const *items, unsigned count,
                               const char *prefix)
{
    if (count > list_max(field))
        return STATUS_FAIL(STATUS_INVALID, "%s'%s' has %u items: at most %u are allowed", prefix, field->key, count,
                           list_max(field));
    struct config_list list = {.items = NULL};
    enum status st = STATUS_OK;
    if (count > 0 && !(list.items = calloc(count, sizeof *list.items)))
        return fail_memory(field);
    for (unsigned i = 0; i < count; i++) {
        if (items[i][0] == '\0') {
            st = STATUS_FAIL(STATUS_INVALID, "%s'%s' has an empty item, number %u", prefix, field->key, i + 1);
            goto fail;
        }
        TRY_GOTO(check_text(field, items[i], prefix), st, fail);
        if (!(list.items[list.count] = strdup(items[i]))) {
            st = fail_memory(field);
            goto fail;
        }
        list.count++;
    }
    struct config_list *target = member(field, settings);
    free_list(target);
    *target = list;
    return STATUS_OK;
fail:
    free_list(&list);
    return st;
}

/* "a, b" from a flag, the environment or a default. */
static enum status assign_split(const struct config_field *field, void *settings, const char *value, const char *prefix)
{
    char *copy = strdup(value);
    unsigned count = 0, space = 1;
    for (const char *c = value; *c; c++)
        space += *c == ',';
    char **items = calloc(space, sizeof *items);
    enum status st = STATUS_OK;
    if (!copy || !items) {
        st = fail_memory(field);
        goto done;
    }
    if (copy[strspn(copy, " ")] != '\0') {
        for (char *rest = copy, *item; (item = strsep(&rest, ","));) {
            item += strspn(item, " ");
            for (size_t size = strlen(item); size > 0 && item[size - 1] == ' '; size--)
                item[size - 1] = '\0';
            items[count++] = item;
        }
    }
    st = config_assign_list(field, settings, items, count, prefix);
done:
    free(items);
    free(copy);
    return st;
}

enum status config_assign(const struct config_field *field, void *settings, const char *value, const char *prefix)
{
    switch (field->type) {
    case CONFIG_UINT: {
        uint64_t number;
        if (!parse_uint(value, &number) || number < field->min || number > uint_max(field))
            return fail_value(field, value, prefix);
        memcpy(member(field, settings), &number, sizeof number);
        return STATUS_OK;
    }
    case CONFIG_BOOL: {
        bool on;
        if (!parse_bool(value, &on))
            return fail_value(field, value, prefix);
        memcpy(member(field, settings), &on, sizeof on);
        return STATUS_OK;
    }
    case CONFIG_STRING: {
        TRY(check_text(field, value, prefix));
        if (field->choices && !is_choice(field->choices, value))
            return fail_value(field, value, prefix);
        char *copy = strdup(value);
        if (!copy)
            return fail_memory(field);
        char **target = member(field, settings);
        free(*target);
        *target = copy;
        return STATUS_OK;
    }
    case CONFIG_LIST:
        return assign_split(field, settings, value, prefix);
    }
    return STATUS_FAIL(STATUS_INTERNAL, "the setting '%s' has no type", field->key);
}

enum status config_set(const struct config_program *program, void *settings, const char *key, const char *value,
                       const char *origin)
{
    char prefix[300] = "";
    if (origin)
        snprintf(prefix, sizeof prefix, "%s: ", origin);
    const struct config_field *field = config_find(program, key);
    if (!field) {
        char quoted[CONFIG_QUOTE_BYTES];
        const char *near = config_suggest(program, key);
        return STATUS_FAIL(STATUS_INVALID, "%sunknown key '%s'%s%s%s", prefix, quote(key, quoted),
                           near ? " (did you mean '" : "", near ? near : "", near ? "'?)" : "");
    }
    return config_assign(field, settings, value, prefix);
}

static enum status set_defaults(const struct config_program *program, void *settings)
{
    for (unsigned i = 0; i < program->field_count; i++) {
        const struct config_field *field = &program->fields[i];
        if (field->default_value) {
            enum status st = config_assign(field, settings, field->default_value, "the default of ");
            assert(st != STATUS_INVALID); /* our mistake: a default that breaks its own rule */
            TRY(st);
        } else if (field->type == CONFIG_STRING) {
            char *empty = strdup("");
            if (!empty)
                return fail_memory(field);
            *(char **)member(field, settings) = empty;
        }
    }
    return STATUS_OK;
}

void config_free(const struct config_program *program, void *settings)
{
    for (unsigned i = 0; i < program->field_count; i++) {
        const struct config_field *field = &program->fields[i];
        if (field->type == CONFIG_STRING) {
            char **text = member(field, settings);
            free(*text);
            *text = NULL;
        } else if (field->type == CONFIG_LIST) {
            free_list(member(field, settings));
        }
    }
}

/* ---- printing ---- */

/* A double-quoted YAML scalar: what is not plain is escaped by code point. */
static void print_quoted(const char *text, FILE *stream)
{
    size_t size = strlen(text);
    fputc('"', stream);
    for (size_t i = 0; i < size;) {
        uint32_t c = 0xfffd; /* never used: values are valid UTF-8 */
        unsigned length = utf8_decode(text + i, size - i, &c);
        if (length == 0)
            length = 1;
        if (c == '"' || c == '\\')
            fprintf(stream, "\\%c", (char)c);
        else if (utf8_is_plain(c))
            fwrite(text + i, 1, length, stream);
        else
            fprintf(stream, "\\U%08X", (unsigned)c);
        i += length;
    }
    fputc('"', stream);
}

/* Settings without a default may hold an empty value that their own rules refuse. */
static bool is_printable(const struct config_field *field, const void *value)
{
    if (field->type == CONFIG_UINT) {
        uint64_t number;
        memcpy(&number, value, sizeof number);
        return number >= field->min && number <= uint_max(field);
    }
    if (field->type == CONFIG_STRING) {
        const char *text = *(const char *const *)value;
        return text && (!field->choices || is_choice(field->choices, text));
    }
    return true;
}

static void print_value(const struct config_field *field, const void *value, FILE *stream)
{
    switch (field->type) {
    case CONFIG_UINT: {
        uint64_t number;
        memcpy(&number, value, sizeof number);
        fprintf(stream, "%" PRIu64, number);
        break;
    }
    case CONFIG_BOOL:
        fputs(*(const bool *)value ? "true" : "false", stream);
        break;
    case CONFIG_STRING:
        print_quoted(*(const char *const *)value, stream);
        break;
    case CONFIG_LIST: {
        const struct config_list *list = value;
        fputc('[', stream);
        for (unsigned i = 0; i < list->count; i++) {
            fputs(i ? ", " : "", stream);
            print_quoted(list->items[i], stream);
        }
        fputc(']', stream);
        break;
    }
    }
}

void config_print(const struct config_program *program, const void *settings, FILE *stream)
{
    unsigned printed = 0;
    for (unsigned i = 0; i < program->field_count; i++) {
        const struct config_field *field = &program->fields[i];
        const void *value = member_const(field, settings);
        if (field->help)
            fprintf(stream, "# %s\n", field->help);
        if (!is_printable(field, value)) {
            fprintf(stream, "# %s: not set\n", field->key);
            continue;
        }
        fprintf(stream, "%s: ", field->key);
        print_value(field, value, stream);
        fputc('\n', stream);
        printed++;
    }
    if (printed == 0)
        fputs("{}\n", stream);
}

static void print_help(const struct config_program *program, FILE *stream)
{
    static const char *const words[] = {
        [CONFIG_STRING] = "TEXT", [CONFIG_UINT] = "N", [CONFIG_BOOL] = "true|false", [CONFIG_LIST] = "A,B,..."};
    fprintf(stream, "%s - %s\n\nUsage: %s [--config FILE] [--SETTING VALUE ...]\n\n", program->name, program->summary,
            program->name);
    fputs("  --config FILE\n        read settings from a YAML file; environment variables and flags override it\n"
          "  --check-config\n        check all settings and exit: 0 if they are valid, 2 if not\n"
          "  --print-config\n        print all settings as YAML and exit\n"
          "  --help\n  --version\n\nSettings:\n",
          stream);
    for (unsigned i = 0; i < program->field_count; i++) {
        const struct config_field *field = &program->fields[i];
        char flag[128], wanted[256];
        key_to_flag(field->key, flag, sizeof flag);
        fprintf(stream, "  %s %s\n        %s\n        (%s", flag, field->choices ? field->choices : words[field->type],
                field->help ? field->help : "", config_describe(field, wanted, sizeof wanted));
        if (field->default_value && *field->default_value)
            fprintf(stream, "; default %s", field->default_value);
        fputs(")\n", stream);
    }
}

/* ---- the environment ---- */

/* "roost-router" -> "ROOST_ROUTER_" */
static void make_prefix(const struct config_program *program, char *out, size_t size)
{
    const char *name = strncmp(program->name, "roost-", 6) == 0 ? program->name + 6 : program->name;
    snprintf(out, size, "ROOST_%s_", name);
    for (char *c = out; *c; c++)
        *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
}

/* Kubernetes sets these in every pod for each service of its namespace, and one may well be called roost-router:
 * <NAME>_SERVICE_HOST, <NAME>_SERVICE_PORT[_...], <NAME>_PORT=tcp://..., <NAME>_PORT_<number>_<protocol>[_...]. */
static bool is_service_link(const char *key, const char *value)
{
    size_t size = strlen(key);
    const char *port = strstr(key, "PORT");
    if (size >= 12 && strcmp(key + size - 12, "SERVICE_HOST") == 0)
        return true;
    if (strstr(key, "SERVICE_PORT"))
        return true;
    if (!port)
        return false;
    if (port[4] == '\0')
        return strstr(value, "://") != NULL;
    return port[4] == '_' && isdigit((unsigned char)port[5]);
}

static enum status read_environment(const struct config_program *program, void *settings)
{
    char prefix[80];
    make_prefix(program, prefix, sizeof prefix);
    size_t prefix_size = strlen(prefix);
    for (char **entry = environ; entry && *entry; entry++) {
        const char *equals = strchr(*entry, '=');
        if (!equals || strncmp(*entry, prefix, prefix_size) != 0)
            continue;
        char name[128], key[128];
        size_t name_size = (size_t)(equals - *entry);
        if (name_size >= sizeof name)
            name_size = sizeof name - 1; /* longer than any key: it will be unknown */
        memcpy(name, *entry, name_size);
        name[name_size] = '\0';
        snprintf(key, sizeof key, "%s", name + prefix_size);
        bool upper = true;
        for (char *c = key; *c; c++) {
            upper = upper && !islower((unsigned char)*c);
            *c = (char)tolower((unsigned char)*c);
        }
        if (upper && config_find(program, key)) {
            TRY(config_set(program, settings, key, equals + 1, name));
        } else if (!is_service_link(name + prefix_size, equals + 1)) {
            char quoted[CONFIG_QUOTE_BYTES], meant[128] = "";
            const char *near = config_suggest(program, key);
            snprintf(meant, sizeof meant, "%s", near ? near : "");
            for (char *c = meant; *c; c++)
                *c = (char)toupper((unsigned char)*c);
            return STATUS_FAIL(STATUS_INVALID, "unknown environment variable %s%s%s%s%s", quote(name, quoted),
                               near ? " (did you mean " : "", near ? prefix : "", meant, near ? "?)" : "");
        }
    }
    return STATUS_OK;
}

/* ---- flags ---- */

struct command_line {
    const char *file; /* ref, into argv; NULL if none was given */
    bool help, version, check, print;
};

static enum status fail_flag(const struct config_program *program, const char *argument)
{
    static const char *const standard[] = {"--config", "--check-config", "--print-config", "--help", "--version"};
    char given[CONFIG_QUOTE_BYTES], quoted[CONFIG_QUOTE_BYTES], flag[128], best_flag[128];
    if (argument[0] != '-')
        return STATUS_FAIL(STATUS_INVALID, "unexpected argument '%s': settings are given as --setting VALUE (see --help)",
                           quote(argument, quoted));
    snprintf(given, sizeof given, "%.*s", (int)strcspn(argument, "="), argument);
    const char *best = NULL;
    unsigned best_distance = 64;
    for (unsigned i = 0; i < sizeof standard / sizeof standard[0]; i++)
        consider(given, standard[i], &best, &best_distance);
    for (unsigned i = 0; i < program->field_count; i++) {
        unsigned before = best_distance;
        key_to_flag(program->fields[i].key, flag, sizeof flag);
        consider(given, flag, &best, &best_distance);
        if (best_distance < before) {
            strcpy(best_flag, flag);
            best = best_flag;
        }
    }
    if (best)
        return STATUS_FAIL(STATUS_INVALID, "unknown flag %s (did you mean %s?)", quote(given, quoted), best);
    return STATUS_FAIL(STATUS_INVALID, "unknown flag %s (see --help)", quote(given, quoted));
}

/* The field of "--key-name" or "--key-name=VALUE"; NULL if there is none. */
static const struct config_field *find_flag(const struct config_program *program, const char *argument)
{
    size_t size = strcspn(argument, "=");
    for (unsigned i = 0; i < program->field_count; i++) {
        char flag[128];
        key_to_flag(program->fields[i].key, flag, sizeof flag);
        if (strlen(flag) == size && memcmp(flag, argument, size) == 0)
            return &program->fields[i];
    }
    return NULL;
}

/* Walks over the flags: without settings it fills *line and checks the names, with settings it sets the values. */
static enum status read_flags(const struct config_program *program, int argc, char **argv, struct command_line *line,
                              void *settings)
{
    for (int i = 1; i < argc; i++) {
        const char *argument = argv[i];
        bool *standard = strcmp(argument, "--help") == 0           ? &line->help
                         : strcmp(argument, "--version") == 0      ? &line->version
                         : strcmp(argument, "--check-config") == 0 ? &line->check
                         : strcmp(argument, "--print-config") == 0 ? &line->print
                                                                   : NULL;
        if (standard) {
            *standard = true;
            if (line->help || line->version)
                return STATUS_OK; /* whatever else is wrong, these are answered */
            continue;
        }
        const struct config_field *field = find_flag(program, argument);
        size_t name_size = strcspn(argument, "=");
        bool is_file = name_size == 8 && memcmp(argument, "--config", 8) == 0;
        if (!field && !is_file)
            return fail_flag(program, argument);
        const char *value = argument[name_size] == '=' ? argument + name_size + 1 : i + 1 < argc ? argv[++i] : NULL;
        if (!value)
            return STATUS_FAIL(STATUS_INVALID, "%s needs a value", argument);
        if (is_file)
            line->file = value;
        if (field && settings) {
            char flag[128];
            key_to_flag(field->key, flag, sizeof flag);
            TRY(config_set(program, settings, field->key, value, flag));
        }
    }
    return STATUS_OK;
}

/* ---- all together ---- */

static enum status load(const struct config_program *program, int argc, char **argv, struct command_line *line,
                        void *settings)
{
    TRY(read_flags(program, argc, argv, line, NULL));
    if (line->help || line->version)
        return STATUS_OK;
    TRY(set_defaults(program, settings));
    if (line->file)
        TRY(config_read_file(program, line->file, settings));
    TRY(read_environment(program, settings));
    TRY(read_flags(program, argc, argv, line, settings));
    if (program->check)
        TRY(program->check(settings));
    return STATUS_OK;
}

enum config_outcome config_load(const struct config_program *program, int argc, char **argv, void *settings)
{
    struct command_line line = {.file = NULL};
    memset(settings, 0, program->settings_size);
    enum config_outcome outcome = CONFIG_EXIT_OK;
    if (load(program, argc, argv, &line, settings) != STATUS_OK) {
        fprintf(stderr, "%s: %s\n", program->name, status_detail());
        outcome = CONFIG_EXIT_BAD;
    } else if (line.help) {
        print_help(program, stdout);
    } else if (line.version) {
        printf("%s %s\n", program->name, ROOST_VERSION);
    } else if (line.print) {
        config_print(program, settings, stdout);
    } else if (line.check) {
        printf("%s: the configuration is valid\n", program->name);
    } else {
        return CONFIG_RUN;
    }
    if (fflush(stdout) != 0 && outcome == CONFIG_EXIT_OK) {
        fprintf(stderr, "%s: cannot write to the standard output: %s\n", program->name, strerror(errno));
        outcome = CONFIG_EXIT_BAD;
    }
    config_free(program, settings);
    memset(settings, 0, program->settings_size);
    return outcome;
}
