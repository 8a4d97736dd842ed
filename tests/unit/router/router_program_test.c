/* router_program_test.c - roost-router as a process: settings that are refused, the ready file, signals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>
#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/loop.h"
#include "fake_client.h"
#include "fake_worker.h"
#include "spin.h"

enum {
    HANG_MS = 20000
}; /* how long one that hangs is waited for; a machine with other load needs seconds to start one */

static char directory[64];

struct program {
    pid_t pid;
    char ready[96], log[96];
    char control[128], data[128];
};

static void start(struct program *program, const char *const *words)
{
    const char *all[32] = {getenv("ROOST_ROUTER")};
    unsigned count = 1;
    assert_non_null(all[0]);
    while (*words && count < 31)
        all[count++] = *words++;
    snprintf(program->log, sizeof program->log, "%s/log", directory);
    program->pid = fork();
    if (program->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int log = open(program->log, O_CREAT | O_TRUNC | O_WRONLY, 0600);
        dup2(log, 1);
        dup2(log, 2);
        execv(all[0], (char *const *)all);
        _exit(127);
    }
    assert_true(program->pid > 0);
}

static int wait_exit(struct program *program, unsigned timeout_ms)
{
    int st;
    for (unsigned i = 0; i < timeout_ms / 10; i++) {
        if (waitpid(program->pid, &st, WNOHANG) == program->pid)
            return WIFEXITED(st) ? WEXITSTATUS(st) : 1000 + WTERMSIG(st);
        usleep(10000);
    }
    kill(program->pid, SIGKILL);
    waitpid(program->pid, &st, 0);
    return -1;
}

static const char *log_text(const struct program *program)
{
    static char text[20000];
    FILE *file = fopen(program->log, "re");
    size_t size = file ? fread(text, 1, sizeof text - 1, file) : 0;
    text[size] = 0;
    if (file)
        fclose(file);
    return text;
}

static unsigned lines(const char *text)
{
    unsigned count = 0;
    for (; *text; text++)
        count += *text == '\n';
    return count;
}

static void read_ready(struct program *program)
{
    struct stat info;
    for (unsigned i = 0; i < 500 && stat(program->ready, &info) != 0; i++)
        usleep(10000);
    char text[512] = "", name[64];
    int pid = 0;
    FILE *file = fopen(program->ready, "re");
    assert_non_null(file);
    assert_non_null(fgets(text, sizeof text, file));
    fclose(file);
    assert_int_equal(
        sscanf(text, "{\"name\": \"%63[^\"]\", \"pid\": %d, \"control\": \"%127[^\"]\", \"data\": \"%127[^\"]\"}", name,
               &pid, program->control, program->data),
        4);
    assert_int_equal(pid, program->pid);
}

static void start_serving(struct program *program, const char *worker, const char *drain_ms)
{
    snprintf(program->ready, sizeof program->ready, "%s/ready.json", directory);
    unlink(program->ready);
    const char *words[] = {"--listen-control",
                           "tcp://127.0.0.1:*",
                           "--listen-data",
                           "tcp://127.0.0.1:*",
                           "--placement",
                           "memory",
                           "--workers",
                           worker,
                           "--ready-file",
                           program->ready,
                           "--drain-deadline-ms",
                           drain_ms,
                           NULL};
    start(program, words);
    read_ready(program);
}

static void refused_settings(void **state)
{
    (void)state;
    char open_file[96], empty_file[96];
    snprintf(open_file, sizeof open_file, "%s/open", directory);
    snprintf(empty_file, sizeof empty_file, "%s/empty", directory);
    FILE *file = fopen(open_file, "we");
    fputs("secret\n", file);
    fclose(file);
    chmod(open_file, 0644);
    file = fopen(empty_file, "we");
    fclose(file);
    chmod(empty_file, 0600);
    static const struct {
        const char *flag, *value;
        int code;
    } cases[] = {{"--listen-control", "tcp://0.0.0.0:7400", 2},
                 {"--listen-data", "tcp://*:7401", 2},
                 {"--listen-data", "tcp://192.168.1.1:7401", 2},
                 {"--listen-control", "tcp://localhost.evil.com:1", 2},
                 {"--name", "no name", 2},
                 {"--placement", "disk", 2},
                 {"--lease-ms", "0", 2},
                 {"--lease-ms", "99999", 2},
                 {"--new-choices", "x", 2},
                 {"--client-lease-expiry-ms", "1000", 2},
                 {"--no-such-thing", "1", 2},
                 {"--placement", "memory", 2}, /* no workers */
                 {"--listen-control", "tcp://127.0.0.1:1x", 1},
                 {"--redis-address", "localhost:6379", 2},
                 {"--redis-password-file", NULL, 1},
                 {"--redis-password-file", "", 1},
                 {"--redis-password-file", "/nowhere/at/all", 1}};
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *value = cases[i].value ? cases[i].value : open_file;
        if (!value[0])
            value = empty_file;
        struct program program = {.pid = 0};
        start(&program, (const char *[]){cases[i].flag, value, "--listen-data", "tcp://127.0.0.1:*", NULL});
        if (strcmp(cases[i].flag, "--listen-data") == 0) {
            (void)wait_exit(&program, 1);
            start(&program, (const char *[]){cases[i].flag, value, NULL});
        }
        int code = wait_exit(&program, HANG_MS);
        if (code != cases[i].code || lines(log_text(&program)) != 1)
            fail_msg("%s %s: exit %d, said: %s", cases[i].flag, value, code, log_text(&program));
    }
}

static void help_and_check(void **state)
{
    (void)state;
    static const char *const flags[] = {"--help", "--version", "--check-config", "--print-config"};
    for (unsigned i = 0; i < 4; i++) {
        struct program program = {.pid = 0};
        start(&program, (const char *[]){flags[i], NULL});
        assert_int_equal(wait_exit(&program, HANG_MS), 0);
        if (i != 2)
            assert_true(strlen(log_text(&program)) > 3);
    }
}

struct outside {
    struct loop *loop;
    void *zmq;
    struct fake_worker worker;
    struct fake_client client;
    struct program program;
};

static void outside_start(struct outside *outside, const char *drain_ms)
{
    memset(outside, 0, sizeof *outside);
    assert_int_equal(loop_create(&outside->loop), STATUS_OK);
    outside->zmq = zmq_ctx_new();
    fake_worker_start(&outside->worker, outside->loop, outside->zmq, "worker-a");
    start_serving(&outside->program, fake_worker_endpoint(&outside->worker), drain_ms);
    fake_client_start(&outside->client, outside->loop, outside->zmq, outside->program.control, outside->program.data);
    SPIN_UNTIL(outside->loop, 5000, fake_client_ready(&outside->client));
    struct fake_ask ask = {.stream = 1, .deadline_ms = 60000};
    fake_client_ask(&outside->client, &ask);
    SPIN_UNTIL(outside->loop, 5000, outside->worker.request_count == 1);
}

static void outside_stop(struct outside *outside)
{
    fake_client_stop(&outside->client);
    fake_worker_kill(&outside->worker);
    loop_destroy(&outside->loop);
    zmq_ctx_term(outside->zmq);
}

/* wait_exit, while the fakes go on. */
static int wait_exit_spinning(struct outside *outside, unsigned timeout_ms)
{
    uint64_t end = clock_now_ms() + timeout_ms;
    siginfo_t info = {.si_pid = 0};
    while (clock_now_ms() < end && waitid(P_PID, (id_t)outside->program.pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == 0)
        (void)spin(outside->loop, 10, NULL, NULL);
    return wait_exit(&outside->program, 10);
}

static void term_drains(void **state)
{
    (void)state;
    struct outside outside;
    outside_start(&outside, "10000");
    kill(outside.program.pid, SIGTERM);
    SPIN_UNTIL(outside.loop, 2000, outside.client.goaways == 1);
    (void)spin(outside.loop, 300, NULL, NULL);
    assert_int_equal(kill(outside.program.pid, 0), 0);
    fake_worker_tokens(&outside.worker, &outside.worker.requests[0], 0, 3);
    fake_worker_done(&outside.worker, &outside.worker.requests[0], 3);
    assert_int_equal(wait_exit_spinning(&outside, 5000), 0);
    assert_int_equal(outside.client.streams[1].dones, 1);
    assert_int_equal(outside.client.streams[1].tokens, 3);
    assert_int_not_equal(access(outside.program.ready, F_OK), 0);
    outside_stop(&outside);
}

static void drain_deadline(void **state)
{
    (void)state;
    struct outside outside;
    outside_start(&outside, "300");
    kill(outside.program.pid, SIGINT);
    assert_int_equal(wait_exit_spinning(&outside, 3000), 0);
    assert_non_null(strstr(log_text(&outside.program), "1 requests are abandoned"));
    assert_int_not_equal(access(outside.program.ready, F_OK), 0);
    outside_stop(&outside);
}

static void second_signal(void **state)
{
    (void)state;
    struct outside outside;
    outside_start(&outside, "60000");
    kill(outside.program.pid, SIGTERM);
    SPIN_UNTIL(outside.loop, 2000, outside.client.goaways == 1);
    kill(outside.program.pid, SIGTERM);
    assert_int_equal(wait_exit_spinning(&outside, 2000), 0);
    outside_stop(&outside);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refused_settings), cmocka_unit_test(help_and_check), cmocka_unit_test(term_drains),
        cmocka_unit_test(drain_deadline),   cmocka_unit_test(second_signal),
    };
    log_setup(&(struct log_config){.program = "test", .level = LOG_LEVEL_ERROR, .fd = 2});
    snprintf(directory, sizeof directory, "%s/roost-router-XXXXXX", P_tmpdir);
    if (!mkdtemp(directory) || hash_setup() != STATUS_OK)
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    static const char *const names[] = {"log", "open", "empty", "ready.json"};
    for (unsigned i = 0; i < 4; i++) {
        char path[96];
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        unlink(path);
    }
    rmdir(directory);
    return failed;
}
