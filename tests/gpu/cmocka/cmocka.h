/* cmocka.h - the part of cmocka that tests/unit/cuda uses, so that the same cases run on a machine without it (tests/gpu). One thread, one
 * program. ROOST_TEST_FILTER: only tests whose name has one of these words (separated by commas) in it. */
#ifndef ROOST_TESTS_GPU_CMOCKA_H
#define ROOST_TESTS_GPU_CMOCKA_H
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void (*CMUnitTestFunction)(void **state);
typedef int (*CMFixtureFunction)(void **state);

struct CMUnitTest {
    const char *name;
    CMUnitTestFunction test_func;
};

static jmp_buf cmocka_end_;            /* of the test that runs: 1 failed, 2 skipped */

static inline _Noreturn void cmocka_fail_(const char *file, int line)
{
    fprintf(stderr, " (%s:%d)\n", file, line);
    longjmp(cmocka_end_, 1);
}

#define fail_msg(...) (fprintf(stderr, __VA_ARGS__), cmocka_fail_(__FILE__, __LINE__))
#define skip() longjmp(cmocka_end_, 2)
#define assert_true(c) ((c) ? (void)0 : (void)fail_msg("not true: %s", #c))
#define assert_false(c) ((c) ? (void)fail_msg("not false: %s", #c) : (void)0)
#define assert_non_null(p) ((p) != NULL ? (void)0 : (void)fail_msg("NULL: %s", #p))
#define assert_null(p) ((p) == NULL ? (void)0 : (void)fail_msg("not NULL: %s", #p))
#define assert_int_equal(a, b) cmocka_equal_((unsigned long long)(a), (unsigned long long)(b), 1, #a, __FILE__, __LINE__)
#define assert_int_not_equal(a, b) cmocka_equal_((unsigned long long)(a), (unsigned long long)(b), 0, #a, __FILE__, __LINE__)
#define assert_memory_equal(a, b, size) (memcmp((a), (b), (size)) == 0 ? (void)0 : (void)fail_msg("%s has other bytes than %s", #a, #b))
#define assert_string_equal(a, b) (strcmp((a), (b)) == 0 ? (void)0 : (void)fail_msg("\"%s\" is not \"%s\"", (a), (b)))

static inline void cmocka_equal_(unsigned long long a, unsigned long long b, int equal, const char *what, const char *file, int line)
{
    if ((a == b) == equal)
        return;
    fprintf(stderr, "%s is %lld, %s %lld", what, (long long)a, equal ? "not" : "which is", (long long)b);
    cmocka_fail_(file, line);
}

#define cmocka_unit_test(f) {#f, f}
#define cmocka_run_group_tests(tests, setup, teardown) cmocka_run_((tests), sizeof(tests) / sizeof *(tests), (setup), (teardown))

static inline int cmocka_wanted_(const char *name)
{
    const char *filter = getenv("ROOST_TEST_FILTER");
    char words[1024];
    if (filter == NULL || *filter == '\0')
        return 1;
    snprintf(words, sizeof words, "%s", filter);
    for (char *word = strtok(words, ","); word != NULL; word = strtok(NULL, ","))
        if (strstr(name, word) != NULL)
            return 1;
    return 0;
}

static inline int cmocka_run_(const struct CMUnitTest *tests, size_t count, CMFixtureFunction setup, CMFixtureFunction teardown)
{
    void *state = NULL;
    volatile int failed = 0, ran = 0;  /* how many */
    if (setup != NULL && setup(&state) != 0)
        return 1;
    for (volatile size_t i = 0; i < count; i++) {
        if (!cmocka_wanted_(tests[i].name))
            continue;
        const int end = setjmp(cmocka_end_);
        if (end == 0) {
            tests[i].test_func(&state);
            ran++;
        }
        failed += end == 1;
        printf("%s %s\n", end == 0 ? "ok     " : end == 2 ? "skipped" : "FAILED ", tests[i].name);
        fflush(stdout);
    }
    if (teardown != NULL && teardown(&state) != 0)
        failed++;
    printf("%d passed, %d failed\n", ran, failed);
    return failed > 0 || ran == 0;
}

#endif
