/* probe_test.c - the places where a test driver can fail a process. What ends or stops a process happens in a child. */
#include "tests/unit/unit.h"
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "common/probe.h"

#ifdef ROOST_PROBES

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Arms `text` in a child that passes `name` `passes` times and then exits 0; its standard error is the read end of
 * *out. */
static pid_t child_start(const char *text, const char *name, unsigned passes, int *out)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        dup2(ends[1], STDERR_FILENO);
        if (probe_arm(text) != STATUS_OK)
            _exit(3);
        for (unsigned i = 0; i < passes; i++)
            (void)probe_hit(name);
        _exit(0);
    }
    close(ends[1]);
    *out = ends[0];
    return pid;
}

static void check_line(int from, const char *expected)
{
    char line[256];
    ssize_t size = read(from, line, sizeof line - 1);
    line[size > 0 ? size : 0] = 0;
    close(from);
    /* A sanitizer may report the abort as well. */
    assert_int_equal(strncmp(line, expected, strlen(expected)), 0);
}

static void test_unarmed(void **state)
{
    (void)state;
    assert_false(PROBE("test.unarmed"));
}

static void test_fails_once_at_its_pass(void **state)
{
    (void)state;
    assert_ok(probe_arm("test.a=fail@3,test.b=fail"));
    assert_false(PROBE("test.a"));
    assert_false(PROBE("test.other"));
    assert_false(PROBE("test.a"));
    assert_true(PROBE("test.b"));
    assert_true(PROBE("test.a"));
    for (int i = 0; i < 5; i++) {
        assert_false(PROBE("test.a"));
        assert_false(PROBE("test.b"));
    }
}

static void test_two_of_one_name(void **state)
{
    (void)state;
    assert_ok(probe_arm("test.twice=fail"));
    assert_ok(probe_arm("test.twice=fail,test.twice=fail@4"));
    assert_true(PROBE("test.twice"));
    assert_true(PROBE("test.twice"));
    assert_false(PROBE("test.twice"));
    assert_true(PROBE("test.twice"));
    assert_false(PROBE("test.twice"));
}

static void test_kill_and_abort(void **state)
{
    (void)state;
    static const struct {
        const char *text, *line;
        int signal;
    } cases[] = {{"test.place=kill@2", "probe test.place kill\n", SIGKILL},
                 {"test.place=abort@2", "probe test.place abort\n", SIGABRT}};
    for (unsigned i = 0; i < 2; i++) {
        int from, status;
        pid_t pid = child_start(cases[i].text, "test.place", 1, &from);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        close(from);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        pid = child_start(cases[i].text, "test.place", 2, &from);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
        assert_int_equal(WTERMSIG(status), cases[i].signal);
        check_line(from, cases[i].line);
    }
}

static void test_stop(void **state)
{
    (void)state;
    int from, status;
    pid_t pid = child_start("test.place=stop", "test.place", 1, &from);
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    assert_true(WIFSTOPPED(status));
    check_line(from, "probe test.place stop\n");
    assert_int_equal(kill(pid, SIGCONT), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_hang(void **state)
{
    (void)state;
    int from, status;
    pid_t pid = child_start("test.place=hang", "test.place", 1, &from);
    check_line(from, "probe test.place hang\n"); /* waits for it */
    struct timespec a_while = {.tv_nsec = 50000000};
    nanosleep(&a_while, NULL);
    assert_int_equal(waitpid(pid, &status, WNOHANG), 0);
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
}

static void test_sleep(void **state)
{
    (void)state;
    assert_ok(probe_arm("test.slow=sleep:60"));
    double start = now_s();
    assert_false(PROBE("test.slow"));
    assert_true(now_s() - start >= 0.059);
    start = now_s();
    assert_false(PROBE("test.slow"));
    assert_true(now_s() - start < 0.05);
}

static void test_refused(void **state)
{
    (void)state;
    static const char *const wrong[] = {"",
                                        "test.c",
                                        "test.c=",
                                        "=fail",
                                        "test.c=fail,",
                                        "test.c=fail,,test.d=fail",
                                        "test.c=explode",
                                        "test.c=fail@0",
                                        "test.c=fail@",
                                        "test.c=fail@-1",
                                        "test.c=fail@4294967297",
                                        "test.c=fail:3",
                                        "test.c=sleep",
                                        "test.c=sleep:",
                                        "test.c=sleep:1s",
                                        "test c=fail",
                                        "test.c=fail,test.d=sleep:99999999",
                                        "a-name-that-is-longer-than-any-place-there-will-ever-be=fail"};
    for (unsigned i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(probe_arm(wrong[i]), STATUS_INVALID);
        assert_non_null(strstr(status_detail(), "NAME=ACTION"));
    }
    assert_false(PROBE("test.c")); /* nothing was armed */
    assert_false(PROBE("test.d"));
}

static void test_room(void **state)
{
    (void)state;
    for (int i = 0; i < 32; i++)
        assert_ok(probe_arm("test.room=fail"));
    assert_int_equal(probe_arm("test.room=fail"), STATUS_LIMIT);
    for (int i = 0; i < 32; i++)
        assert_true(PROBE("test.room"));
    assert_false(PROBE("test.room"));
}

static void test_environment(void **state)
{
    (void)state;
    assert_int_equal(unsetenv("ROOST_PROBES"), 0);
    assert_ok(probe_init());
    assert_int_equal(setenv("ROOST_PROBES", "test.environment=fail", 1), 0);
    assert_ok(probe_init());
    assert_true(PROBE("test.environment"));
    assert_int_equal(setenv("ROOST_PROBES", "nonsense", 1), 0);
    assert_int_equal(probe_init(), STATUS_INVALID);
    assert_int_equal(unsetenv("ROOST_PROBES"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unarmed),
        cmocka_unit_test(test_fails_once_at_its_pass),
        cmocka_unit_test(test_two_of_one_name),
        cmocka_unit_test(test_kill_and_abort),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_hang),
        cmocka_unit_test(test_sleep),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_room),
        cmocka_unit_test(test_environment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

static void test_unsupported(void **state)
{
    (void)state;
    assert_int_equal(probe_arm("test.a=fail"), STATUS_UNSUPPORTED);
    assert_false(PROBE("test.a"));
    assert_int_equal(setenv("ROOST_PROBES", "test.a=fail", 1), 0);
    assert_int_equal(probe_init(), STATUS_UNSUPPORTED); /* and not silence */
    assert_int_equal(unsetenv("ROOST_PROBES"), 0);
    assert_ok(probe_init());
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_unsupported)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
