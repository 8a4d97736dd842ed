/* status_test.c - the last error of a thread. */
#include "tests/unit/unit.h"
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static void test_detail_and_where(void **state)
{
    (void)state;
    int line = __LINE__ + 1;
    enum status st = STATUS_FAIL(STATUS_LIMIT, "queue of %d is full", 7);
    char where[64];
    snprintf(where, sizeof where, "status_test.c:%d", line);
    assert_int_equal(st, STATUS_LIMIT);
    assert_string_equal(status_detail(), "queue of 7 is full");
    assert_string_equal(status_where(), where);
}

static void test_detail_may_quote_itself(void **state)
{
    (void)state;
    (void)STATUS_FAIL(STATUS_IO, "inner");
    (void)STATUS_FAIL(STATUS_IO, "outer: %s", status_detail());
    assert_string_equal(status_detail(), "outer: inner");
}

static void test_long_detail_is_cut(void **state)
{
    (void)state;
    char text[5000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    (void)STATUS_FAIL(STATUS_IO, "%s", text);
    assert_in_range(strlen(status_detail()), 500, 1100);
}

static void *other_thread(void *user)
{
    const char **seen = user;
    seen[0] = strdup(status_detail());
    (void)STATUS_FAIL(STATUS_IO, "of the other thread");
    return NULL;
}

static void test_threads_do_not_share(void **state)
{
    (void)state;
    char *seen[1];
    pthread_t thread;
    (void)STATUS_FAIL(STATUS_IO, "of this thread");
    assert_int_equal(pthread_create(&thread, NULL, other_thread, seen), 0);
    pthread_join(thread, NULL);
    assert_string_equal(seen[0], "");
    assert_string_equal(status_detail(), "of this thread");
    free(seen[0]);
}

static void test_names(void **state)
{
    (void)state;
    for (int st = STATUS_OK; st <= STATUS_INTERNAL; st++)
        assert_string_not_equal(status_name((enum status)st), "unknown");
    assert_string_equal(status_name((enum status)999), "unknown");
}

static enum status fails(void)
{
    return STATUS_FAIL(STATUS_CLOSED, "gone");
}

static enum status tries(bool *reached)
{
    TRY(fails());
    *reached = true;
    return STATUS_OK;
}

static void test_try_returns_early(void **state)
{
    (void)state;
    bool reached = false;
    assert_int_equal(tries(&reached), STATUS_CLOSED);
    assert_false(reached);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_detail_and_where),     cmocka_unit_test(test_detail_may_quote_itself),
        cmocka_unit_test(test_long_detail_is_cut),   cmocka_unit_test(test_threads_do_not_share),
        cmocka_unit_test(test_names),                cmocka_unit_test(test_try_returns_early),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
