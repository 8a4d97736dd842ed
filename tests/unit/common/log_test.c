/* log_test.c - lines as they leave through the descriptor. */
#include "tests/unit/unit.h"
#include "common/log.h"
#include "common/utf8.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <regex.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int pipe_[2];
static char line_[1 << 16];

static int setup(void **state)
{
    (void)state;
    return pipe2(pipe_, O_NONBLOCK | O_CLOEXEC);
}

static int teardown(void **state)
{
    (void)state;
    log_request_scope(NULL);
    close(pipe_[0]);
    close(pipe_[1]);
    return 0;
}

static void use(enum log_level level, enum log_format format)
{
    log_setup(&(struct log_config){.program = "router", .level = level, .format = format, .fd = pipe_[1]});
}

/* What was written since the last call. */
static const char *take(void)
{
    ssize_t got = read(pipe_[0], line_, sizeof line_ - 1);
    line_[got > 0 ? got : 0] = '\0';
    return line_;
}

static json_t *take_json(void)
{
    json_error_t error;
    json_t *json = json_loads(take(), 0, &error);
    if (!json)
        fail_msg("%s in: %s", error.text, line_);
    return json;
}

static void test_text_line(void **state)
{
    (void)state;
    regex_t form;
    const uint8_t id[16] = {0x8f, 0x3a};
    use(LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
    assert_int_equal(regcomp(&form, "^20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]\\.[0-9]{3}Z "
                                    "INFO router \\[req 8f3a[0]{28}\\] took 3 ms\n$", REG_EXTENDED | REG_NOSUB), 0);
    log_request_scope(id);
    LOG_INFO("took %d ms", 3);
    assert_int_equal(regexec(&form, take(), 0, NULL, 0), 0);
    regfree(&form);
    log_request_scope(NULL);
    LOG_ERROR("x");
    assert_non_null(strstr(take(), " ERROR router [req -] x\n"));
}

static void test_levels(void **state)
{
    (void)state;
    use(LOG_LEVEL_WARN, LOG_FORMAT_TEXT);
    assert_false(log_enabled(LOG_LEVEL_INFO));
    assert_true(log_enabled(LOG_LEVEL_WARN));
    LOG_DEBUG("no");
    LOG_INFO("no");
    assert_string_equal(take(), "");
    LOG_WARN("yes");
    assert_non_null(strstr(take(), "yes"));
}

static void test_json_line(void **state)
{
    (void)state;
    use(LOG_LEVEL_DEBUG, LOG_FORMAT_JSON);
    LOG_DEBUG("a \"quoted\" \\ word\nand \x01 \x7f more, \xc3\xa4 \xff \xe2\x80\xae end");
    json_t *json = take_json();
    assert_int_equal(json_object_size(json), 5);
    assert_string_equal(json_string_value(json_object_get(json, "level")), "debug");
    assert_string_equal(json_string_value(json_object_get(json, "program")), "router");
    assert_string_equal(json_string_value(json_object_get(json, "request")), "-");
    assert_int_equal(strlen(json_string_value(json_object_get(json, "ts"))), 24);
    assert_string_equal(json_string_value(json_object_get(json, "msg")),
                        "a \"quoted\" \\ word\nand \x01 \x7f more, \xc3\xa4 \\xFF \\xE2\\x80\\xAE end");
    json_decref(json);
}

/* A peer's text cannot start a line of its own. */
static void test_no_forged_lines(void **state)
{
    (void)state;
    use(LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
    LOG_INFO("name '%s'", "x\r\n2026-11-22T07:30:01.123Z ERROR router [req -] forged\x1b[2J\xc2\x85\xc0\xaf\xed\xa0\x80");
    const char *line = take();
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
    assert_non_null(strstr(line, "x\\x0D\\x0A2026"));
    assert_non_null(strstr(line, "\\x1B[2J\\xC2\\x85\\xC0\\xAF\\xED\\xA0\\x80'"));
}

static void check_long_line(const char *text)
{
    LOG_INFO("%s", text);
    const char *line = take();
    size_t size = strlen(line);
    assert_in_range(size, 1900, 2000);
    assert_ptr_equal(strchr(line, '\n'), line + size - 1);
    assert_true(utf8_valid(line, size));
    assert_non_null(strstr(line + size - 6, "..."));
}

static void test_long_lines(void **state)
{
    (void)state;
    static char text[10001];
    const char *const units[] = {"x", "\xc3\xa4", "\n", "\xf0\x9f\xa6\x89", "\""};
    for (unsigned unit = 0; unit < 5; unit++) {
        for (unsigned shift = 0; shift < 8; shift++) {
            memset(text, 'y', shift);
            text[shift] = '\0';
            for (size_t used = shift; used + 5 < sizeof text; used += strlen(units[unit]))
                strcpy(text + used, units[unit]);
            use(LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
            check_long_line(text);
            use(LOG_LEVEL_INFO, LOG_FORMAT_JSON);
            check_long_line(text);
            json_error_t error;
            json_t *json = json_loads(line_, 0, &error);
            if (!json)
                fail_msg("%s in: %s", error.text, line_);
            json_decref(json);
        }
    }
}

static void test_parse_words(void **state)
{
    (void)state;
    enum log_level level = LOG_LEVEL_INFO;
    enum log_format format = LOG_FORMAT_TEXT;
    assert_ok(log_level_parse("error", &level));
    assert_int_equal(level, LOG_LEVEL_ERROR);
    assert_ok(log_format_parse("json", &format));
    assert_int_equal(format, LOG_FORMAT_JSON);
    assert_int_equal(log_level_parse("loud\n", &level), STATUS_INVALID);
    assert_string_equal(status_detail(), "unknown log level 'loud\\x0A': use debug, info, warn or error");
    assert_int_equal(log_format_parse("", &format), STATUS_INVALID);
}

/* A full pipe loses lines; it does not block or change errno. */
static void test_full_pipe(void **state)
{
    (void)state;
    use(LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
    for (int i = 0; i < 5000; i++) {
        errno = 77;
        LOG_INFO("line %d", i);
        assert_int_equal(errno, 77);
    }
}

static void *write_lines(void *user)
{
    const uint8_t id[16] = {*(uint8_t *)user};
    log_request_scope(id);
    for (int i = 0; i < 100; i++)
        LOG_INFO("thread %u has 50 bytes: 01234567890123456789", id[0]);
    return NULL;
}

static void test_threads_do_not_mix(void **state)
{
    (void)state;
    pthread_t threads[4];
    uint8_t numbers[4] = {1, 2, 3, 4};
    use(LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, write_lines, &numbers[i]), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    unsigned count = 0;
    take();
    for (char *rest = line_, *line; (line = strsep(&rest, "\n")) && *line; count++) {
        char expected[100];
        const char *req = strstr(line, "[req 0");
        assert_non_null(req);
        snprintf(expected, sizeof expected, "] thread %c has 50 bytes: 01234567890123456789", req[6]);
        assert_string_equal(strchr(line, ']'), expected);
    }
    assert_int_equal(count, 400);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_text_line, setup, teardown),
        cmocka_unit_test_setup_teardown(test_levels, setup, teardown),
        cmocka_unit_test_setup_teardown(test_json_line, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_forged_lines, setup, teardown),
        cmocka_unit_test_setup_teardown(test_long_lines, setup, teardown),
        cmocka_unit_test_setup_teardown(test_parse_words, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_pipe, setup, teardown),
        cmocka_unit_test_setup_teardown(test_threads_do_not_mix, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
