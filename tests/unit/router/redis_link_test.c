/* redis_link_test.c - common/redis_link against a real server that is killed, frozen and fed with errors. */
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/loop.h"
#include "common/redis_link.h"
#include "redis_proxy.h"
#include "redis_server.h"
#include "spin.h"
#include "tests/unit/unit.h"

struct bench {
    struct loop *loop;
    struct redis_link *link;
    struct redis_server server;
    unsigned ups, downs;
};

struct answers {
    unsigned ok, error, timeout, closed, late_ok, late_closed;
    uint64_t sent_us, first_us;
    char text[64];
};

static void on_state(void *user, bool up)
{
    struct bench *bench = user;
    *(up ? &bench->ups : &bench->downs) += 1;
}

static void on_answer(void *user, enum status st, const struct redisReply *reply, bool late)
{
    struct answers *answers = user;
    if (!late)
        answers->first_us = clock_now_us();
    if (st == STATUS_OK || st == STATUS_IO) {
        assert_non_null(reply);
        (*(late ? &answers->late_ok : st == STATUS_OK ? &answers->ok : &answers->error))++;
        if (reply->str)
            snprintf(answers->text, sizeof answers->text, "%s", reply->str);
    } else {
        assert_null(reply);
        (*(st == STATUS_TIMEOUT ? &answers->timeout : late ? &answers->late_closed : &answers->closed))++;
    }
}

static unsigned finals(const struct answers *a)
{
    return a->ok + a->error + a->closed + a->late_ok + a->late_closed;
}

static enum status ask(struct bench *bench, uint32_t deadline_ms, struct answers *answers, const char *command)
{
    char copy[128];
    const char *words[8];
    size_t sizes[8];
    unsigned count = 0;
    snprintf(copy, sizeof copy, "%s", command);
    for (char *rest = NULL, *word = strtok_r(copy, " ", &rest); word && count < 8; word = strtok_r(NULL, " ", &rest)) {
        words[count] = word;
        sizes[count++] = strlen(word);
    }
    answers->sent_us = clock_now_us();
    return redis_link_command(bench->link, deadline_ms, on_answer, answers, count, words, sizes);
}

static void bench_start(struct bench *bench, bool with_server)
{
    memset(bench, 0, sizeof *bench);
    assert_int_equal(loop_create(&bench->loop), STATUS_OK);
    redis_server_start(&bench->server);
    if (!with_server)
        redis_server_kill(&bench->server);
    struct redis_link_config config = {.address = bench->server.socket, .on_state = on_state, .user_data = bench};
    assert_int_equal(redis_link_create(bench->loop, &config, &bench->link), STATUS_OK);
    if (with_server)
        SPIN_UNTIL(bench->loop, 2000, redis_link_up(bench->link));
}

static void bench_stop(struct bench *bench)
{
    redis_link_destroy(&bench->link);
    redis_server_destroy(&bench->server);
    loop_destroy(&bench->loop);
}

static void commands(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, true);
    struct answers set = {0}, get = {0}, wrong = {0}, unknown = {0};
    assert_int_equal(ask(&bench, 1000, &set, "SET a hello"), STATUS_OK);
    assert_int_equal(ask(&bench, 1000, &get, "GET a"), STATUS_OK);
    assert_int_equal(ask(&bench, 1000, &wrong, "HGET a b"), STATUS_OK);
    assert_int_equal(ask(&bench, 1000, &unknown, "NO_SUCH_THING"), STATUS_OK);
    SPIN_UNTIL(bench.loop, 2000, unknown.error == 1);
    assert_int_equal(set.ok, 1);
    assert_int_equal(get.ok, 1);
    assert_string_equal(get.text, "hello");
    assert_int_equal(wrong.error, 1);
    assert_non_null(strstr(wrong.text, "WRONGTYPE"));
    assert_int_equal(bench.ups, 1);
    assert_int_equal(bench.downs, 0);
    bench_stop(&bench);
}

/* What waits when the link is destroyed is answered, and fire-and-forget is not missed. */
static void destroyed_with_open_commands(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, true);
    redis_server_freeze(&bench.server);
    struct answers slow = {0}, timed_out = {0};
    assert_int_equal(ask(&bench, 5000, &slow, "PING"), STATUS_OK);
    assert_int_equal(ask(&bench, 2, &timed_out, "PING"), STATUS_OK);
    assert_int_equal(redis_link_command(bench.link, 5000, NULL, NULL, 1, (const char *[]){"PING"}, (size_t[]){4}),
                     STATUS_OK);
    SPIN_UNTIL(bench.loop, 1000, timed_out.timeout == 1);
    redis_link_destroy(&bench.link);
    assert_int_equal(slow.closed, 1);
    assert_int_equal(timed_out.late_closed, 1);
    redis_server_thaw(&bench.server);
    redis_server_destroy(&bench.server);
    loop_destroy(&bench.loop);
}

static void absent_at_start(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, false);
    struct answers none = {0};
    assert_int_equal(ask(&bench, 100, &none, "PING"), STATUS_CLOSED);
    (void)spin(bench.loop, 600, NULL, NULL);
    assert_false(redis_link_up(bench.link));
    redis_server_start(&bench.server);
    SPIN_UNTIL(bench.loop, 1500, redis_link_up(bench.link));
    assert_int_equal(bench.ups, 1);
    assert_int_equal(bench.downs, 0);
    assert_int_equal(ask(&bench, 1000, &none, "PING"), STATUS_OK);
    SPIN_UNTIL(bench.loop, 1000, none.ok == 1);
    bench_stop(&bench);
}

static void killed_and_restarted(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, true);
    for (unsigned round = 0; round < 3; round++) {
        redis_server_freeze(&bench.server);
        struct answers open = {0}, refused = {0}, after = {0};
        assert_int_equal(ask(&bench, 5000, &open, "PING"), STATUS_OK);
        (void)spin(bench.loop, 5, NULL, NULL);
        redis_server_kill(&bench.server);
        SPIN_UNTIL(bench.loop, 1000, open.closed == 1);
        assert_int_equal(bench.downs, round + 1);
        assert_int_equal(ask(&bench, 5000, &refused, "PING"), STATUS_CLOSED);
        redis_server_start(&bench.server);
        SPIN_UNTIL(bench.loop, 1500, redis_link_up(bench.link));
        assert_int_equal(ask(&bench, 1000, &after, "PING"), STATUS_OK);
        SPIN_UNTIL(bench.loop, 1000, after.ok == 1);
        assert_int_equal(finals(&refused), 0);
    }
    assert_int_equal(bench.ups, 4);
    bench_stop(&bench);
}

/* Frozen: each answer within its deadline, then the breaker: nothing is sent, answers are immediate; thawed: back by
 * itself. */
static void frozen(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, true);
    redis_server_freeze(&bench.server);
    struct answers answers[REDIS_LINK_MISSES_MAX] = {0};
    uint64_t best_us = UINT64_MAX;
    for (unsigned i = 0; i < REDIS_LINK_MISSES_MAX; i++) {
        assert_true(redis_link_up(bench.link));
        assert_int_equal(ask(&bench, 2, &answers[i], "PING"), STATUS_OK);
        SPIN_UNTIL(bench.loop, 1000, answers[i].timeout == 1);
        uint64_t took_us = answers[i].first_us - answers[i].sent_us;
        best_us = took_us < best_us ? took_us : best_us;
    }
    assert_true(best_us >= 2000 && best_us < 5000); /* the best of five: other processes share this machine */
    assert_false(redis_link_up(bench.link));
    assert_int_equal(bench.downs, 1);
    struct answers refused = {0};
    assert_int_equal(ask(&bench, 2, &refused, "PING"), STATUS_CLOSED);
    SPIN_UNTIL(bench.loop, 1000, answers[0].late_closed == 1);
    for (unsigned i = 0; i < REDIS_LINK_MISSES_MAX; i++)
        assert_int_equal(finals(&answers[i]), 1);
    (void)spin(bench.loop, 700, NULL, NULL); /* several probes */
    assert_false(redis_link_up(bench.link));
    redis_server_thaw(&bench.server);
    SPIN_UNTIL(bench.loop, 1500, redis_link_up(bench.link));
    bench_stop(&bench);
}

/* Asked first, and then the turn of the loop goes on for long. */
struct long_turn {
    struct bench *bench;
    struct answers answers[20];
};

static void ask_and_stand_still(void *user)
{
    struct long_turn *turn = user;
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(ask(turn->bench, 2, &turn->answers[i], "PING"), STATUS_OK);
    usleep(30000);
}

static void stand_still(void *user)
{
    (void)user;
    usleep(30000);
}

/* A deadline counts the time of Redis, not that of a loop that is busy or stands still before it has written or read.
 */
static void our_own_stall(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, true);
    unsigned late = 0;
    for (unsigned round = 0; round < 5; round++) {
        struct long_turn turn = {.bench = &bench};
        assert_int_equal(loop_post(bench.loop, ask_and_stand_still, &turn), STATUS_OK);
        SPIN_UNTIL(bench.loop, 1000, finals(&turn.answers[19]) == 1);
        for (unsigned i = 0; i < 20; i++)
            late += turn.answers[i].timeout;
        struct answers after = {0}; /* it is written in this turn, and its answer waits through the next one */
        assert_int_equal(ask(&bench, 2, &after, "PING"), STATUS_OK);
        assert_int_equal(loop_post(bench.loop, stand_still, NULL), STATUS_OK);
        SPIN_UNTIL(bench.loop, 1000, finals(&after) == 1);
        late += after.timeout;
    }
    assert_true(late <= 21); /* in one of the rounds another process may have had Redis' core */
    assert_int_equal(bench.downs, 0);
    bench_stop(&bench);
}

/* Stopped while it waits: it wakes up in time to read what came meanwhile, and with its deadlines long over. */
static void stopped_while_it_waits(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, true);
    unsigned stopped = 0;
    for (unsigned round = 0; round < 10 && stopped < 3; round++) {
        struct answers answers = {0};
        redis_server_freeze(&bench.server);
        assert_int_equal(ask(&bench, 200, &answers, "PING"), STATUS_OK);
        pid_t parent = getpid(), child = fork();
        if (child == 0) {
            usleep(50000);
            kill(parent, SIGSTOP);
            kill(bench.server.pid, SIGCONT);
            usleep(300000);
            kill(parent, SIGCONT);
            _exit(0);
        }
        SPIN_UNTIL(bench.loop, 2000, finals(&answers) == 1);
        assert_int_equal(waitpid(child, NULL, 0), child);
        if (answers.first_us - answers.sent_us <= 300000) { /* the child was given its 50 ms after the deadline */
            assert_int_equal(answers.timeout, 1);
            assert_true(answers.first_us - answers.sent_us >= 200000);
            continue;
        }
        assert_int_equal(answers.ok, 1);
        assert_int_equal(answers.timeout, 0);
        stopped++;
    }
    assert_int_equal(stopped, 3);
    bench_stop(&bench);
}

/* Five misses are five times that Redis was waited for, not five commands of one instant. */
static void misses_of_one_instant(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, true);
    redis_server_freeze(&bench.server);
    struct answers together[20] = {{0}}, one = {0};
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(ask(&bench, 2, &together[i], "PING"), STATUS_OK);
    SPIN_UNTIL(bench.loop, 1000, together[19].timeout == 1);
    assert_true(redis_link_up(bench.link));
    for (unsigned i = 1; i < REDIS_LINK_MISSES_MAX; i++) {
        assert_true(redis_link_up(bench.link));
        memset(&one, 0, sizeof one);
        assert_int_equal(ask(&bench, 2, &one, "PING"), STATUS_OK);
        SPIN_UNTIL(bench.loop, 1000, one.timeout == 1);
    }
    assert_false(redis_link_up(bench.link));
    redis_server_thaw(&bench.server);
    bench_stop(&bench);
}

/* Whoever sees the link up finds its scripts there, also on a server that has just started. */
static void scripts_are_loaded_first(void **state)
{
    (void)state;
    struct bench bench;
    unsigned script;
    char exists[64];
    memset(&bench, 0, sizeof bench);
    assert_int_equal(loop_create(&bench.loop), STATUS_OK);
    redis_server_start(&bench.server);
    struct redis_link_config config = {.address = bench.server.socket, .on_state = on_state, .user_data = &bench};
    assert_int_equal(redis_link_create(bench.loop, &config, &bench.link), STATUS_OK);
    assert_int_equal(redis_link_add_script(bench.link, "return 'hello'", &script), STATUS_OK);
    assert_string_equal(redis_link_script_digest(bench.link, script), "");
    for (unsigned i = 1; i < REDIS_LINK_SCRIPTS_MAX; i++)
        assert_int_equal(redis_link_add_script(bench.link, "return 1", &(unsigned){0}), STATUS_OK);
    assert_int_equal(redis_link_add_script(bench.link, "return 1", &(unsigned){0}), STATUS_LIMIT);
    for (unsigned i = 1; i < 3; i++) {
        SPIN_UNTIL(bench.loop, 2000, bench.ups == i);
        snprintf(exists, sizeof exists, "EVALSHA %s 0", redis_link_script_digest(bench.link, script));
        struct answers hello = {0};
        assert_int_equal(ask(&bench, 1000, &hello, exists), STATUS_OK);
        SPIN_UNTIL(bench.loop, 1000, finals(&hello) == 1);
        assert_string_equal(hello.text, "hello");
        redis_server_kill(&bench.server);
        SPIN_UNTIL(bench.loop, 2000, bench.downs == i);
        redis_server_start(&bench.server);
    }
    bench_stop(&bench);
}

/* A short freeze: the reply is delivered as late, the breaker stays closed, a good answer resets the count. */
static void late_replies(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, true);
    for (unsigned round = 0; round < 4; round++) {
        redis_server_freeze(&bench.server);
        struct answers late[2] = {0}, good = {0};
        assert_int_equal(ask(&bench, 2, &late[0], "SET k v"), STATUS_OK);
        assert_int_equal(ask(&bench, 4, &late[1], "HGET k f"), STATUS_OK);
        SPIN_UNTIL(bench.loop, 1000, late[0].timeout == 1 && late[1].timeout == 1);
        redis_server_thaw(&bench.server);
        SPIN_UNTIL(bench.loop, 1000, late[0].late_ok == 1 && late[1].late_ok == 1);
        assert_non_null(strstr(late[1].text, "WRONGTYPE"));
        assert_int_equal(ask(&bench, 1000, &good, "GET k"), STATUS_OK);
        SPIN_UNTIL(bench.loop, 1000, good.ok == 1);
        assert_true(redis_link_up(bench.link));
    }
    assert_int_equal(bench.downs, 0);
    bench_stop(&bench);
}

/* Deadlines fire in their own order, whatever the order of sending, none before it is due or held for another. */
static void deadlines_in_order(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, true);
    unsigned alone = 0;
    for (unsigned round = 0; round < 10 && !alone; round++) { /* this machine may stand still past all of them */
        redis_server_freeze(&bench.server);
        struct answers slow = {0}, quick = {0}, middle = {0};
        assert_int_equal(ask(&bench, 60, &slow, "PING"), STATUS_OK);
        assert_int_equal(ask(&bench, 2, &quick, "PING"), STATUS_OK);
        assert_int_equal(ask(&bench, 30, &middle, "PING"), STATUS_OK);
        SPIN_UNTIL(bench.loop, 1000, quick.timeout == 1);
        alone += middle.timeout + slow.timeout == 0;
        SPIN_UNTIL(bench.loop, 1000, slow.timeout == 1);
        assert_true(quick.first_us <= middle.first_us && middle.first_us <= slow.first_us);
        assert_true(middle.first_us - middle.sent_us >= 30000 && slow.first_us - slow.sent_us >= 60000);
        redis_server_thaw(&bench.server);
        SPIN_UNTIL(bench.loop, 1000, slow.late_ok + quick.late_ok + middle.late_ok == 3);
    }
    assert_int_equal(alone, 1);
    bench_stop(&bench);
}

static void pending_limit(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, true);
    redis_server_freeze(&bench.server);
    static struct answers many;
    memset(&many, 0, sizeof many);
    for (unsigned i = 0; i < REDIS_LINK_PENDING_MAX; i++)
        assert_int_equal(ask(&bench, 60000, &many, "PING"), STATUS_OK);
    assert_int_equal(ask(&bench, 60000, &many, "PING"), STATUS_LIMIT);
    redis_server_thaw(&bench.server);
    SPIN_UNTIL(bench.loop, 5000, many.ok == REDIS_LINK_PENDING_MAX);
    assert_int_equal(ask(&bench, 60000, &many, "PING"), STATUS_OK);
    bench_stop(&bench);
}

/* Somebody put 64 MB where a name should be: the connection is given up, not the memory. */
static void huge_reply(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, true);
    redis_server_ask(&bench.server, "SETRANGE big 67108864 x");
    struct answers huge = {0}, after = {0};
    assert_int_equal(ask(&bench, 10000, &huge, "GET big"), STATUS_OK);
    SPIN_UNTIL(bench.loop, 5000, huge.closed == 1);
    assert_int_equal(bench.downs, 1);
    SPIN_UNTIL(bench.loop, 1500, redis_link_up(bench.link));
    assert_int_equal(ask(&bench, 1000, &after, "PING"), STATUS_OK);
    SPIN_UNTIL(bench.loop, 1000, after.ok == 1);
    bench_stop(&bench);
}

static void password(void **state)
{
    (void)state;
    struct bench bench = {.ups = 0};
    assert_int_equal(loop_create(&bench.loop), STATUS_OK);
    bench.server.options[0] = "--requirepass";
    bench.server.options[1] = "secret";
    redis_server_start(&bench.server);
    static const char *const passwords[] = {NULL, "wrong", "secret"};
    for (unsigned i = 0; i < 3; i++) {
        struct redis_link_config config = {.address = bench.server.socket, .password = passwords[i], .database = 3};
        assert_int_equal(redis_link_create(bench.loop, &config, &bench.link), STATUS_OK);
        (void)spin(bench.loop, 400, NULL, NULL);
        assert_int_equal(redis_link_up(bench.link), i == 2);
        if (i == 2) {
            struct answers set = {0};
            assert_int_equal(ask(&bench, 1000, &set, "SET in_three 1"), STATUS_OK);
            SPIN_UNTIL(bench.loop, 1000, set.ok == 1);
        }
        redis_link_destroy(&bench.link);
    }
    bench_stop(&bench);
}

static void addresses(void **state)
{
    (void)state;
    struct loop *loop;
    assert_int_equal(loop_create(&loop), STATUS_OK);
    static const char *const bad[] = {
        "", "localhost:6379", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:6379x", ":1", "[::1:1"};
    static const char *const good[] = {"127.0.0.1:1", "[::1]:1", "/nowhere/redis.sock"};
    struct redis_link *link = NULL;
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(redis_link_create(loop, &(struct redis_link_config){.address = bad[i]}, &link),
                         STATUS_INVALID);
    for (unsigned i = 0; i < sizeof good / sizeof good[0]; i++) {
        assert_int_equal(redis_link_create(loop, &(struct redis_link_config){.address = good[i]}, &link), STATUS_OK);
        (void)spin(loop, 300, NULL, NULL);
        assert_false(redis_link_up(link));
        redis_link_destroy(&link);
    }
    redis_link_destroy(&link);
    loop_destroy(&loop);
}

/* A user of its own with the rights that we need: what else it tries is an error, not a loss. */
static void access_rights(void **state)
{
    (void)state;
    struct bench bench = {.ups = 0};
    assert_int_equal(loop_create(&bench.loop), STATUS_OK);
    redis_server_start(&bench.server);
    assert_string_equal(
        redis_server_ask(&bench.server, "ACL SETUSER roost on >secret ~roost:* -@all +ping +select +get +set"), "OK");
    redis_server_ask(&bench.server, "ACL SETUSER default off");
    static const char *const users[][2] = {
        {"roost", "wrong"}, {"nobody", "secret"}, {NULL, "secret"}, {NULL, NULL}, {"roost", "secret"}};
    for (unsigned i = 0; i < 5; i++) {
        struct redis_link_config config = {
            .address = bench.server.socket, .user = users[i][0], .password = users[i][1], .database = 2};
        assert_int_equal(redis_link_create(bench.loop, &config, &bench.link), STATUS_OK);
        (void)spin(bench.loop, 300, NULL, NULL);
        assert_int_equal(redis_link_up(bench.link), i == 4);
        if (i < 4)
            redis_link_destroy(&bench.link);
    }
    struct answers ours = {0}, theirs = {0}, forbidden = {0};
    assert_int_equal(ask(&bench, 1000, &ours, "SET roost:a 1"), STATUS_OK);
    assert_int_equal(ask(&bench, 1000, &theirs, "SET other 1"), STATUS_OK);
    assert_int_equal(ask(&bench, 1000, &forbidden, "FLUSHALL"), STATUS_OK);
    SPIN_UNTIL(bench.loop, 1000, forbidden.error == 1);
    assert_int_equal(ours.ok, 1);
    assert_non_null(strstr(theirs.text, "NOPERM"));
    assert_true(redis_link_up(bench.link));
    bench_stop(&bench);
}

static unsigned watched_ups, watched_downs;

static void on_watch(void *user, bool up)
{
    (void)user;
    *(up ? &watched_ups : &watched_downs) += 1;
}

/* To another server: what is open is answered, the old connection is gone, and all who watch are told. */
static void another_address(void **state)
{
    (void)state;
    struct bench bench;
    struct redis_server other = {.pid = 0};
    bench_start(&bench, true);
    redis_server_start(&other);
    watched_ups = watched_downs = 0;
    for (unsigned i = 1; i < REDIS_LINK_WATCHERS_MAX; i++)
        assert_int_equal(redis_link_watch(bench.link, on_watch, NULL), STATUS_OK);
    assert_int_equal(redis_link_watch(bench.link, on_watch, NULL), STATUS_LIMIT);
    assert_int_equal(redis_link_set_address(bench.link, bench.server.socket), STATUS_OK); /* where it is already */
    assert_int_equal(redis_link_set_address(bench.link, "nowhere:1"), STATUS_INVALID);
    assert_true(redis_link_up(bench.link));
    redis_server_freeze(&bench.server);
    struct answers open = {0}, closed = {0}, there = {0};
    assert_int_equal(ask(&bench, 5000, &open, "SET k v"), STATUS_OK);
    assert_int_equal(redis_link_set_address(bench.link, other.socket), STATUS_OK);
    assert_int_equal(ask(&bench, 5000, &closed, "SET k v"), STATUS_CLOSED);
    SPIN_UNTIL(bench.loop, 1000, open.closed == 1);
    SPIN_UNTIL(bench.loop, 2000, redis_link_up(bench.link));
    assert_string_equal(redis_link_address(bench.link), other.socket);
    assert_int_equal(ask(&bench, 1000, &there, "SET there 1"), STATUS_OK);
    SPIN_UNTIL(bench.loop, 1000, there.ok == 1);
    assert_string_equal(redis_server_ask(&other, "GET there"), "1");
    assert_int_equal(bench.ups, 2);
    assert_int_equal(watched_ups, REDIS_LINK_WATCHERS_MAX - 1);
    assert_int_equal(watched_downs, REDIS_LINK_WATCHERS_MAX - 1);
    redis_server_thaw(&bench.server);
    unsigned quick = 0;
    for (unsigned i = 0; i < 4; i++) {
        const char *address = i % 2 ? other.socket : bench.server.socket;
        uint64_t begun_ms = clock_now_ms();
        assert_int_equal(redis_link_set_address(bench.link, address), STATUS_OK);
        SPIN_UNTIL(bench.loop, 2000, redis_link_up(bench.link));
        quick += clock_now_ms() - begun_ms < 125;
    }
    assert_true(quick >= 2); /* it does not wait for the next probe: they come every 250 ms */
    redis_server_destroy(&other);
    bench_stop(&bench);
}

/* Runs the loop until the answer is there; the longest turn of it in us, as long as this process stood still. */
static uint64_t longest_turn_until(struct bench *bench, const struct answers *answers)
{
    uint64_t longest_us = 0;
    for (unsigned turns = 0; turns < 1000 && answers->first_us == 0; turns++) {
        uint64_t begun_us = clock_now_us();
        (void)spin(bench->loop, 1, NULL, NULL);
        uint64_t took_us = clock_now_us() - begun_us;
        longest_us = took_us > longest_us ? took_us : longest_us;
    }
    assert_true(answers->first_us > 0);
    return longest_us;
}

/* A late reply is not an answer in time. The breaker opens after five, and over two seconds a request now and then pays
 * its 2 ms, not each one. */
static void slow_server(void **state)
{
    unsigned delay_ms = *(const unsigned *)*state;
    struct bench bench;
    struct redis_proxy proxy;
    memset(&bench, 0, sizeof bench);
    assert_int_equal(loop_create(&bench.loop), STATUS_OK);
    redis_server_start(&bench.server);
    redis_proxy_start(&proxy, &bench.server, delay_ms);
    struct redis_link_config config = {.address = proxy.socket, .on_state = on_state, .user_data = &bench};
    assert_int_equal(redis_link_create(bench.loop, &config, &bench.link), STATUS_OK);
    SPIN_UNTIL(bench.loop, 2000, redis_link_up(bench.link));
    static struct answers answers[400];
    memset(answers, 0, sizeof answers);
    unsigned sent = 0, over = 0, waits = 0;
    for (unsigned i = 0; i < 400; i++) {
        uint64_t begun_us = clock_now_us();
        enum status st = ask(&bench, 2, &answers[i], "PING");
        waits += clock_now_us() - begun_us >= 15000;
        if (st == STATUS_OK) {
            sent++;
            uint64_t longest_us = longest_turn_until(&bench, &answers[i]);
            over += answers[i].first_us - answers[i].sent_us > 20000;
            if (!answers[i].timeout) /* deadline and reply came together: this process stood still for most of it */
                assert_true(longest_us >= delay_ms * 500);
        }
        (void)spin(bench.loop, 5, NULL, NULL);
    }
    print_message("with %u ms of latency: %u of 400 requests were sent, %u losses\n", delay_ms, sent, bench.downs);
    assert_true(bench.downs >= 2);
    assert_in_range(sent, REDIS_LINK_MISSES_MAX, 200);
    assert_true(over <= sent / 4); /* other processes share this machine */
    assert_true(waits <= 10);      /* asking never waits */
    redis_link_destroy(&bench.link);
    for (unsigned i = 0; i < 400; i++)
        assert_int_equal(finals(&answers[i]), answers[i].first_us > 0); /* each that was sent had one last word */
    redis_proxy_stop(&proxy);
    redis_server_destroy(&bench.server);
    loop_destroy(&bench.loop);
}

/* While it loads its file it is not up; afterwards it is. */
static void loading(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench, true);
    redis_server_ask(&bench.server, "EVAL for\ti=1,200\tdo\tredis.call('SET','k'..i,string.rep('x',2000))end 0");
    redis_server_ask(&bench.server, "SAVE");
    redis_server_kill(&bench.server);
    static const char *const options[] = {"--key-load-delay", "10000", "--loading-process-events-interval-bytes",
                                          "1024"};
    memcpy(bench.server.options, options, sizeof options);
    redis_server_start(&bench.server); /* 200 keys of 10 ms */
    const char *reply = redis_server_ask(&bench.server, "GET k1");
    assert_non_null(strstr(reply, "LOADING"));
    (void)spin(bench.loop, 700, NULL, NULL);
    assert_false(redis_link_up(bench.link));
    SPIN_UNTIL(bench.loop, 10000, redis_link_up(bench.link));
    struct answers after = {0};
    assert_int_equal(ask(&bench, 1000, &after, "GET k1"), STATUS_OK);
    SPIN_UNTIL(bench.loop, 1000, after.ok == 1);
    bench_stop(&bench);
}

int main(void)
{
    static unsigned delays_ms[] = {200, 15};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commands),
        cmocka_unit_test(destroyed_with_open_commands),
        cmocka_unit_test(absent_at_start),
        cmocka_unit_test(killed_and_restarted),
        cmocka_unit_test(frozen),
        cmocka_unit_test(our_own_stall),
        cmocka_unit_test(stopped_while_it_waits),
        cmocka_unit_test(misses_of_one_instant),
        cmocka_unit_test(scripts_are_loaded_first),
        cmocka_unit_test(late_replies),
        cmocka_unit_test(deadlines_in_order),
        cmocka_unit_test(pending_limit),
        cmocka_unit_test(huge_reply),
        cmocka_unit_test(password),
        cmocka_unit_test(addresses),
        cmocka_unit_test(access_rights),
        cmocka_unit_test(another_address),
        {"slow_server_200_ms", slow_server, NULL, NULL, &delays_ms[0]},
        {"slow_server_15_ms", slow_server, NULL, NULL, &delays_ms[1]},
        cmocka_unit_test(loading),
    };
    return unit_begin() ? redis_run(tests, NULL, NULL) : 1;
}
