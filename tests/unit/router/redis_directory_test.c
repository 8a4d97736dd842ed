/* redis_directory_test.c - the directory of workers as workers write it and routers read it, also when somebody else
 * has written over it. */
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/loop.h"
#include "common/redis_link.h"
#include "redis_server.h"
#include "router/worker_directory.h"
#include "spin.h"
#include "tests/unit/unit.h"
#include "worker/server/directory.h"

struct bench {
    struct loop *loop;
    struct redis_server server;
    struct redis_link *worker_link, *router_link;
    struct directory *worker;
    struct worker_directory *router;
    unsigned readings, count;
    struct worker_directory_entry first;
};

static void on_reading(void *user, const struct worker_directory_entry *entries, unsigned count, uint64_t begun_ms)
{
    struct bench *bench = user;
    (void)begun_ms;
    bench->readings++;
    bench->count = count;
    if (count)
        bench->first = entries[0];
}

static void bench_start(struct bench *bench)
{
    static const uint8_t incarnation[16] = {1, 2, 3};
    memset(bench, 0, sizeof *bench);
    assert_int_equal(loop_create(&bench->loop), STATUS_OK);
    redis_server_start(&bench->server);
    struct redis_link_config config = {.address = bench->server.socket};
    assert_int_equal(redis_link_create(bench->loop, &config, &bench->worker_link), STATUS_OK);
    assert_int_equal(redis_link_create(bench->loop, &config, &bench->router_link), STATUS_OK);
    struct directory_config worker = {.loop = bench->loop,
                                      .link = bench->worker_link,
                                      .name = "worker-a",
                                      .endpoint = "tcp://127.0.0.1:7410",
                                      .incarnation = incarnation};
    assert_int_equal(directory_create(&worker, &bench->worker), STATUS_OK);
    assert_int_equal(worker_directory_create(bench->loop, bench->router_link, on_reading, bench, &bench->router),
                     STATUS_OK);
    directory_set_state(bench->worker, "ready");
    SPIN_UNTIL(bench->loop, 3000, redis_link_up(bench->worker_link) && redis_link_up(bench->router_link));
}

static void bench_stop(struct bench *bench)
{
    redis_link_destroy(&bench->worker_link);
    redis_link_destroy(&bench->router_link);
    directory_destroy(&bench->worker);
    worker_directory_destroy(&bench->router);
    redis_server_destroy(&bench->server);
    loop_destroy(&bench->loop);
}

static bool lists_worker_a(const struct bench *bench)
{
    return bench->count == 1 && strcmp(bench->first.name, "worker-a") == 0 &&
           strcmp(bench->first.endpoint, "tcp://127.0.0.1:7410") == 0;
}

/* The next whole reading is begun from now on. */
static void next_reading(struct bench *bench)
{
    unsigned before = bench->readings;
    SPIN_UNTIL(bench->loop, 5000, bench->readings >= before + 2);
}

static void written_and_read(void **state)
{
    (void)state;
    struct bench bench;
    bench_start(&bench);
    next_reading(&bench);
    assert_true(lists_worker_a(&bench));
    /* killed workers leave their names: the first reading after their entry ran out takes them out */
    redis_server_ask(&bench.server, "SADD roost:workers worker-dead worker-b");
    redis_server_ask(&bench.server, "HSET roost:worker:worker-b endpoint tcp://127.0.0.1:7420");
    next_reading(&bench);
    assert_int_equal(bench.count, 2);
    assert_string_equal(redis_server_ask(&bench.server, "SISMEMBER roost:workers worker-dead"), "0");
    assert_string_equal(redis_server_ask(&bench.server, "SISMEMBER roost:workers worker-b"), "1");
    /* wiped: back with the next renewal */
    redis_server_ask(&bench.server, "FLUSHALL");
    SPIN_UNTIL(bench.loop, 3000, strcmp(redis_server_ask(&bench.server, "EXISTS roost:worker:worker-a"), "1") == 0);
    next_reading(&bench);
    assert_true(lists_worker_a(&bench));
    bench_stop(&bench);
}

/* Wrong types, no names, huge ones, endpoints that are none: what is left is read, and the worker gets back in. */
static void poisoned(void **state)
{
    (void)state;
    static const char *const poisons[] = {
        "SADD roost:workers /etc/passwd x:y:z!",
        "EVAL return(redis.call('SADD',KEYS[1],string.rep('a',50000000))) 1 roost:workers",
        "EVAL return(redis.call('SADD',KEYS[1],'')) 1 roost:workers",
        "EVAL for\ti=1,3000\tdo\tredis.call('SADD',KEYS[1],'ghost-'..i)end 1 roost:workers",
        "SET roost:workers x",
        "EVAL redis.call('DEL',KEYS[1])return(redis.call('LPUSH',KEYS[1],'a')) 1 roost:worker:worker-a",
        "EVAL return(redis.call('HSET',KEYS[1],'endpoint',string.rep('a',50000000))) 1 roost:worker:worker-a",
        "EVAL return(redis.call('HSET',KEYS[1],'incarnation',string.rep('a',50000000))) 1 roost:worker:worker-a",
        "EVAL return(redis.call('HSET',KEYS[1],'endpoint','\\000')) 1 roost:worker:worker-a",
        "HSET roost:worker:worker-a more stuff",
    };
    struct bench bench;
    bench_start(&bench);
    for (unsigned i = 0; i < sizeof poisons / sizeof *poisons; i++) {
        struct redis_link_stats before, after;
        redis_link_stats(bench.router_link, &before);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
#pragma GCC diagnostic ignored "-Wformat-security"
        redis_server_ask(&bench.server, poisons[i]);
#pragma GCC diagnostic pop
        unsigned readings = bench.readings;
        SPIN_UNTIL(bench.loop, 9000, bench.readings >= readings + 3 && lists_worker_a(&bench));
        redis_link_stats(bench.router_link, &after);
        assert_true(before.losses == after.losses); /* nothing huge came out of Redis */
    }
    /* a set that cannot be read is no reading: nobody is taken out by it */
    redis_link_destroy(&bench.worker_link);
    directory_destroy(&bench.worker);
    redis_server_ask(&bench.server, "SET roost:workers x");
    (void)spin(bench.loop, 1200, NULL, NULL);
    unsigned readings = bench.readings;
    (void)spin(bench.loop, 2500, NULL, NULL);
    assert_int_equal(bench.readings, readings);
    bench_stop(&bench);
}

static redisReply *reply_of(const char *bytes, size_t size)
{
    redisReader *reader = redisReaderCreate();
    void *reply = NULL;
    assert_int_equal(redisReaderFeed(reader, bytes, size), REDIS_OK);
    assert_int_equal(redisReaderGetReply(reader, &reply), REDIS_OK);
    assert_non_null(reply);
    redisReaderFree(reader);
    return reply;
}

static void replies(void **state)
{
    (void)state;
    char name[WIRE_NAME_MAX + 1], endpoint[WORKER_ENDPOINT_MAX];
    static const char names[] = "*6\r\n$8\r\nworker-a\r\n:1\r\n$-1\r\n$1\r\n/\r\n$0\r\n\r\n*1\r\n$1\r\na\r\n";
    redisReply *reply = reply_of(names, sizeof names - 1);
    for (size_t i = 0; i < 8; i++)
        assert_int_equal(worker_directory_parse_name(reply, i, name), i == 0);
    assert_string_equal(name, "worker-a");
    assert_false(worker_directory_parse_endpoint(reply, endpoint));
    freeReplyObject(reply);
    static const struct {
        const char *text;
        size_t size;
        bool good;
    } cases[] = {{"$4\r\nipc:\r\n", 10, true},   {"$0\r\n\r\n", 6, false}, {"$-1\r\n", 5, false},
                 {"$4\r\nip\0:\r\n", 10, false}, {":1\r\n", 4, false},     {"+OK\r\n", 5, false},
                 {"-ERR x\r\n", 8, false}};
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        reply = reply_of(cases[i].text, cases[i].size);
        assert_int_equal(worker_directory_parse_endpoint(reply, endpoint), cases[i].good);
        assert_false(worker_directory_parse_name(reply, 0, name));
        freeReplyObject(reply);
    }
    char text[400];
    for (unsigned size = WORKER_ENDPOINT_MAX - 1; size <= WORKER_ENDPOINT_MAX; size++) {
        int head = snprintf(text, sizeof text, "$%u\r\n", size);
        memset(text + head, 'a', size);
        memcpy(text + head + size, "\r\n", 2);
        reply = reply_of(text, (size_t)head + size + 2);
        assert_int_equal(worker_directory_parse_endpoint(reply, endpoint), size < WORKER_ENDPOINT_MAX);
        freeReplyObject(reply);
    }
}

int main(void)
{
    const struct CMUnitTest pure[] = {cmocka_unit_test(replies)};
    const struct CMUnitTest real[] = {cmocka_unit_test(written_and_read), cmocka_unit_test(poisoned)};
    if (!unit_begin())
        return 1;
    int failed = cmocka_run_group_tests(pure, NULL, NULL);
    return failed + redis_run(real, NULL, NULL);
}
