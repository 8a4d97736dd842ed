/* redis_hostile_test.c - common/redis_link against a server that answers PING as it should, and the next command with
 * whatever a case says. What it costs is measured: the peak of this process' address space. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <hiredis/hiredis.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/redis_bound.h"
#include "common/redis_link.h"
#include "spin.h"

/* 4 MiB unread, doubled as it grows, and as much in strings; and what malloc keeps. A sanitizer keeps what is freed:
 * 256 MiB of it. */
#ifdef __SANITIZE_ADDRESS__
enum { GROWN_KB_MAX = 512 << 10 };
#else
enum { GROWN_KB_MAX = 32 << 10 };
#endif

struct hostile_reply {
    const char *head; /* then `times` times what follows, and so many bytes */
    unsigned times;
    const char *each;
    size_t each_bytes;
    const char *tail;
};

/* ---- the server: a process for each case ---- */

struct hostile {
    char directory[64], socket[96];
    pid_t pid;
};

static bool send_all(int fd, const char *text, size_t size)
{
    while (size > 0) {
        ssize_t sent = send(fd, text, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return false;
        text += sent;
        size -= (size_t)sent;
    }
    return true;
}

static bool send_reply(int fd, const struct hostile_reply *reply)
{
    static char filler[1 << 16];
    memset(filler, 'x', sizeof filler);
    if (!send_all(fd, reply->head, strlen(reply->head)))
        return false;
    for (unsigned i = 0; i < reply->times; i++) {
        if (!send_all(fd, reply->each, strlen(reply->each)))
            return false;
        for (size_t left = reply->each_bytes, part; left > 0; left -= part) {
            part = left < sizeof filler ? left : sizeof filler;
            if (!send_all(fd, filler, part))
                return false;
        }
        if (reply->tail && !send_all(fd, reply->tail, strlen(reply->tail)))
            return false;
    }
    return true;
}

static void serve(int listener, const struct hostile_reply *reply, bool from_the_start)
{
    char bytes[4096];
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        ssize_t got;
        while (fd >= 0 && (got = read(fd, bytes, sizeof bytes - 1)) > 0) {
            bytes[got] = 0;
            if (strstr(bytes, "PING") && !from_the_start ? !send_all(fd, "+PONG\r\n", 7) : !send_reply(fd, reply))
                break;
        }
        close(fd);
    }
}

static void hostile_start(struct hostile *hostile, const struct hostile_reply *reply, bool from_the_start)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(hostile->directory, "/tmp/roost-hostile-XXXXXX");
    assert_non_null(mkdtemp(hostile->directory));
    snprintf(hostile->socket, sizeof hostile->socket, "%s/redis.sock", hostile->directory);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", hostile->socket);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(listener, 16), 0);
    hostile->pid = fork();
    assert_true(hostile->pid >= 0);
    if (hostile->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        serve(listener, reply, from_the_start);
    }
    close(listener);
}

static void hostile_stop(struct hostile *hostile)
{
    kill(hostile->pid, SIGKILL);
    assert_int_equal(waitpid(hostile->pid, NULL, 0), hostile->pid);
    unlink(hostile->socket);
    rmdir(hostile->directory);
}

/* ---- the link ---- */

struct bench {
    struct loop *loop;
    struct redis_link *link;
    struct hostile hostile;
    unsigned ups, downs;
    char why[256]; /* it went down last */
    unsigned ok, closed;
    size_t elements;
    long peak_kb;
};

static long peak_kb(void)
{
    long kb = 0;
    char line[256];
    FILE *file = fopen("/proc/self/status", "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "VmPeak: %ld kB", &kb) == 1)
            break;
    fclose(file);
    assert_true(kb > 0);
    return kb;
}

static void on_state(void *user, bool up)
{
    struct bench *bench = user;
    *(up ? &bench->ups : &bench->downs) += 1;
    if (!up)
        snprintf(bench->why, sizeof bench->why, "%s", status_detail());
}

static void on_answer(void *user, enum status st, const struct redisReply *reply, bool late)
{
    struct bench *bench = user;
    assert_false(late);
    *(st == STATUS_OK ? &bench->ok : &bench->closed) += 1;
    if (st == STATUS_OK)
        bench->elements = reply->elements;
}

static void bench_start(struct bench *bench, const struct hostile_reply *reply, bool from_the_start)
{
    memset(bench, 0, sizeof *bench);
    hostile_start(&bench->hostile, reply, from_the_start);
    assert_int_equal(loop_create(&bench->loop), STATUS_OK);
    struct redis_link_config config = {.address = bench->hostile.socket, .on_state = on_state, .user_data = bench};
    bench->peak_kb = peak_kb();
    assert_int_equal(redis_link_create(bench->loop, &config, &bench->link), STATUS_OK);
}

static void bench_stop(struct bench *bench)
{
    assert_in_range(peak_kb() - bench->peak_kb, 0, GROWN_KB_MAX);
    redis_link_destroy(&bench->link);
    loop_destroy(&bench->loop);
    hostile_stop(&bench->hostile);
}

static void ask(struct bench *bench, uint32_t deadline_ms)
{
    assert_int_equal(redis_link_command(bench->link, deadline_ms, on_answer, bench, 2, (const char *[]){"GET", "k"},
                                        (size_t[]){3, 1}),
                     STATUS_OK);
}

/* ---- cases ---- */

/* Nothing is reserved for it; the connection ends with a reason, and the link comes up again. */
static void refused(void **state)
{
    struct bench bench;
    bench_start(&bench, *state, false);
    for (unsigned round = 1; round <= 2; round++) {
        SPIN_UNTIL(bench.loop, 2000, redis_link_up(bench.link));
        ask(&bench, 10000);
        SPIN_UNTIL(bench.loop, 5000, bench.closed == round);
        assert_non_null(strstr(bench.why, "more elements or bytes"));
        assert_int_equal(bench.downs, round);
    }
    assert_int_equal(bench.ok, 0);
    bench_stop(&bench);
}

static void taken(void **state)
{
    struct bench bench;
    bench_start(&bench, *state, false);
    SPIN_UNTIL(bench.loop, 2000, redis_link_up(bench.link));
    for (unsigned round = 1; round <= 3; round++) { /* each reply is counted from nothing */
        ask(&bench, 10000);
        SPIN_UNTIL(bench.loop, 5000, bench.ok == round);
    }
    assert_int_equal(bench.downs, 0);
    bench_stop(&bench);
}

/* As the answer to our first question: it never comes up, and what it announces is not reserved. */
static void from_the_start(void **state)
{
    struct bench bench;
    bench_start(&bench, *state, true);
    (void)spin(bench.loop, 800, NULL, NULL); /* three connections */
    assert_int_equal(bench.ups, 0);
    bench_stop(&bench);
}

/* A long string that never comes: nothing is reserved, and its deadline is as any other. */
static void announced_and_not_sent(void **state)
{
    static const struct hostile_reply reply = {.head = "$536870912\r\nabc"};
    struct bench bench;
    (void)state;
    bench_start(&bench, &reply, false);
    SPIN_UNTIL(bench.loop, 2000, redis_link_up(bench.link));
    for (unsigned i = 0; i < REDIS_LINK_MISSES_MAX; i++) {
        assert_int_equal(
            redis_link_command(bench.link, 2, NULL, NULL, 2, (const char *[]){"GET", "k"}, (size_t[]){3, 1}),
            STATUS_OK);
        (void)spin(bench.loop, 20, NULL, NULL);
    }
    SPIN_UNTIL(bench.loop, 2000, bench.downs >= 1);
    assert_non_null(strstr(bench.why, "deadlines"));
    bench_stop(&bench);
}

int main(void)
{
    static struct hostile_reply array = {.head = "*700000000\r\n"}, one_more = {.head = "*4097\r\n"},
                                nested = {.head = "*2\r\n*4095\r\n"},
                                nests = {.head = "*4096\r\n", .times = 2, .each = "*4096\r\n:1\r\n"},
                                bulk = {.head = "$536870912\r\n", .times = 1, .each = "", .each_bytes = 64 << 20},
                                line = {.head = "+", .times = 1, .each = "", .each_bytes = 64 << 20},
                                strings = {.head = "*4096\r\n",
                                           .times = 64,
                                           .each = "$1048576\r\n",
                                           .each_bytes = 1 << 20,
                                           .tail = "\r\n"};
    static struct hostile_reply full = {.head = "*4096\r\n", .times = 4096, .each = ":1\r\n"},
                                large = {.head = "*3\r\n",
                                         .times = 3,
                                         .each = "$1048576\r\n",
                                         .each_bytes = 1 << 20,
                                         .tail = "\r\n"};
    const struct CMUnitTest tests[] = {
        {"array_of_700_million", refused, NULL, NULL, &array},
        {"one_element_more", refused, NULL, NULL, &one_more},
        {"one_more_over_two_levels", refused, NULL, NULL, &nested},
        {"arrays_of_arrays", refused, NULL, NULL, &nests},
        {"string_of_512_mb", refused, NULL, NULL, &bulk},
        {"endless_line", refused, NULL, NULL, &line},
        {"array_of_long_strings", refused, NULL, NULL, &strings},
        {"as_many_as_allowed", taken, NULL, NULL, &full},
        {"as_long_as_allowed", taken, NULL, NULL, &large},
        {"array_from_the_start", from_the_start, NULL, NULL, &array},
        {"string_from_the_start", from_the_start, NULL, NULL, &bulk},
        cmocka_unit_test(announced_and_not_sent),
    };
    log_setup(&(struct log_config){.program = "test", .level = LOG_LEVEL_ERROR, .fd = 2});
    return cmocka_run_group_tests(tests, NULL, NULL);
}
