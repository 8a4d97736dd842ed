/* decision_log_test.c - what the policy was asked is read back and decided again; a file that cannot keep up drops
 * lines and stalls nobody; bad lines are refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "../seed.h"
#include "common/clock.h"
#include "common/hash.h"
#include "router/decision_log.h"

enum { WORKERS_MAX = 40, DECISIONS = 3000 };

static char path[64];

static int make_path(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/roost-decisions-%d", (int)getpid());
    (void)unlink(path);
    return 0;
}

static int remove_path(void **state)
{
    (void)state;
    (void)unlink(path);
    return 0;
}

static uint64_t draw(uint64_t *random)
{
    return *random = hash_mix(*random, 0xdec1);
}

static unsigned draw_table(uint64_t *random, struct policy_worker *workers)
{
    unsigned count = (unsigned)(draw(random) % (WORKERS_MAX + 1));
    for (unsigned i = 0; i < count; i++) {
        uint64_t bits = draw(random);
        workers[i] = (struct policy_worker){.name_hash = draw(random),
                                            .weight = draw(random) >> (24 + bits % 40),
                                            .load_tokens = draw(random) >> 40,
                                            .queued_tokens = draw(random) >> 45,
                                            .overloaded_ms = bits & 0x80 ? bits >> 8 & 0x3fff : 0,
                                            .suspect_ms = bits >> 3 & 0x3ff,
                                            .token_ns = (uint32_t)(bits >> 40),
                                            .ramp = 1 + (float)(bits & 0xffff) / 21845.0f,
                                            .ready = bits & 0x600000,
                                            .suspect = bits & 0x100000,
                                            .draining = (bits & 0x1f00000) == 0};
    }
    return count;
}

static struct policy_query draw_query(uint64_t *random)
{
    uint64_t bits = draw(random);
    return (struct policy_query){.conversation = bits & 7,
                                 .owner_lost = bits & 8,
                                 .may_take_over = bits & 16,
                                 .may_choose = bits & 32,
                                 .key = draw(random),
                                 .record = (enum policy_record)(bits >> 6 & 3),
                                 .owner = (int)(bits >> 8 & 31) - 1,
                                 .new_choices = bits >> 16 & 15,
                                 .prompt_tokens = draw(random) >> 50,
                                 .cached_tokens = draw(random) >> 51,
                                 .record_age_ms = bits >> 40 & 0x1ffff};
}

static void assert_same_choice(const struct policy_choice *a, const struct policy_choice *b)
{
    assert_int_equal(a->worker, b->worker);
    assert_int_equal(a->reason, b->reason);
    assert_int_equal(a->take_over, b->take_over);
    assert_int_equal(a->by_choice, b->by_choice);
}

static char *read_file(size_t *size)
{
    struct stat info;
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &info), 0);
    char *text = calloc(1, (size_t)info.st_size + 1);
    assert_non_null(text);
    assert_int_equal(read(fd, text, (size_t)info.st_size), info.st_size);
    close(fd);
    *size = (size_t)info.st_size;
    return text;
}

static void a_log_can_be_replayed(void **state)
{
    (void)state;
    struct decision_log *log;
    struct policy_worker workers[WORKERS_MAX], again[WORKERS_MAX];
    struct policy_choice *chosen = calloc(DECISIONS, sizeof *chosen);
    uint64_t random = test_seed(31);
    assert_non_null(chosen);
    assert_int_equal(decision_log_create(path, 1, &log), STATUS_OK);
    for (unsigned i = 0; i < DECISIONS; i++) {
        struct policy_table table = {workers, draw_table(&random, workers)};
        struct policy_query query = draw_query(&random);
        chosen[i] = policy_choose(&table, &query);
        decision_log_add(log, &table, &query, &chosen[i]);
        if (i % 50 == 0)
            usleep(1000); /* the writer keeps up */
    }
    assert_int_equal(decision_log_dropped(log), 0);
    decision_log_destroy(&log);
    assert_null(log);

    size_t size;
    unsigned lines = 0, reasons[POLICY_REASON_COUNT] = {0};
    char *text = read_file(&size), *rest = text, *line;
    while ((line = strsep(&rest, "\n")) && *line) {
        struct policy_table table;
        struct policy_query query;
        struct policy_choice logged;
        assert_true(lines < DECISIONS);
        assert_int_equal(decision_log_parse(line, again, WORKERS_MAX, &table, &query, &logged), STATUS_OK);
        struct policy_choice replayed = policy_choose(&table, &query);
        assert_same_choice(&logged, &chosen[lines]);
        assert_same_choice(&replayed, &chosen[lines]);
        reasons[logged.reason]++;
        lines++;
    }
    assert_int_equal(lines, DECISIONS);
    for (unsigned i = 0; i < POLICY_REASON_COUNT; i++)
        if (i != POLICY_ATTACHED && reasons[i] == 0) /* the tables reach every other one */
            fail_msg("no decision for %s", policy_reason_name((enum policy_reason)i));
    free(text);
    free(chosen);
}

static void one_in_a_sample_is_written(void **state)
{
    (void)state;
    struct decision_log *log;
    size_t size;
    unsigned lines = 0;
    assert_int_equal(decision_log_create(path, 10, &log), STATUS_OK);
    for (unsigned i = 0; i < 95; i++)
        decision_log_add(log, &(struct policy_table){0}, &(struct policy_query){0},
                         &(struct policy_choice){.worker = POLICY_NO_WORKER});
    decision_log_destroy(&log);
    char *text = read_file(&size);
    for (size_t i = 0; i < size; i++)
        lines += text[i] == '\n';
    assert_int_equal(lines, 10);
    assert_non_null(strstr(text, "\"n\":91,"));
    free(text);
    decision_log_add(NULL, NULL, NULL, NULL); /* not wanted */
    assert_int_equal(decision_log_dropped(NULL), 0);
    decision_log_destroy(&log);
}

/* A pipe that nobody empties stands for a disk that is slow or full. */
static void a_slow_file_stalls_nobody(void **state)
{
    (void)state;
    struct decision_log *log = NULL;
    struct policy_worker workers[WORKERS_MAX];
    struct policy_query query = {.conversation = true};
    struct policy_choice choice = {.worker = POLICY_NO_WORKER};
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(decision_log_create(path, 1, &log), STATUS_IO); /* nobody reads it */
    int reader = open(path, O_RDONLY | O_NONBLOCK);
    assert_true(reader >= 0);
    assert_int_equal(decision_log_create(path, 1, &log), STATUS_OK);
    memset(workers, 0, sizeof workers);
    struct policy_table table = {workers, WORKERS_MAX};
    uint64_t longest_us = 0, begun_us = clock_now_us();
    for (unsigned i = 0; i < 5000; i++) {
        uint64_t before_us = clock_now_us();
        decision_log_add(log, &table, &query, &choice);
        uint64_t took_us = clock_now_us() - before_us;
        longest_us = took_us > longest_us ? took_us : longest_us;
    }
    printf("5,000 lines: %u us each, the longest %u us; %u dropped\n", (unsigned)((clock_now_us() - begun_us) / 5000),
           (unsigned)longest_us, (unsigned)decision_log_dropped(log));
    usleep(50000);
    assert_true(decision_log_dropped(log) > 1000);
    assert_true(longest_us < 500000);
    decision_log_destroy(&log);
    close(reader);
}

static void bad_lines_are_refused(void **state)
{
    (void)state;
    struct decision_log *log;
    struct policy_worker workers[2] = {{.name_hash = 5, .ramp = 1, .ready = true}, {.name_hash = 6, .ramp = 1.5f}};
    struct policy_table table = {workers, 2};
    struct policy_query query = {.conversation = true, .record = POLICY_RECORD_OTHER, .new_choices = 3};
    struct policy_choice choice = policy_choose(&table, &query);
    size_t size;
    assert_int_equal(decision_log_create(path, 1, &log), STATUS_OK);
    decision_log_add(log, &table, &query, &choice);
    decision_log_destroy(&log);
    char *text = read_file(&size);
    assert_int_equal(decision_log_parse(text, workers, 2, &table, &query, &choice), STATUS_OK);
    assert_int_equal(decision_log_parse(text, workers, 1, &table, &query, &choice), STATUS_LIMIT);
    for (size_t cut = 0; cut + 1 < size - 1;
         cut++) { /* shorter, or one byte another one: refused, or read as what it says */
        char *line = calloc(1, size + 1);
        assert_non_null(line);
        memcpy(line, text, cut);
        assert_int_equal(decision_log_parse(line, workers, 2, &table, &query, &choice), STATUS_INVALID);
        memcpy(line, text, size);
        line[cut] = '?';
        assert_int_equal(decision_log_parse(line, workers, 2, &table, &query, &choice), STATUS_INVALID);
        free(line);
    }
    free(text);
    assert_int_equal(decision_log_create("/nowhere/at/all", 1, &log), STATUS_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_log_can_be_replayed, make_path, remove_path),
        cmocka_unit_test_setup_teardown(one_in_a_sample_is_written, make_path, remove_path),
        cmocka_unit_test_setup_teardown(a_slow_file_stalls_nobody, make_path, remove_path),
        cmocka_unit_test_setup_teardown(bad_lines_are_refused, make_path, remove_path),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
