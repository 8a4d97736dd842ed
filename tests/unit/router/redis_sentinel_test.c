/* redis_sentinel_test.c - what sentinels answer, and a link that follows them over a failover of real servers. */
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/loop.h"
#include "common/redis_link.h"
#include "common/redis_sentinel.h"
#include "common/redis_settings.h"
#include "redis_server.h"
#include "spin.h"
#include "tests/unit/free_port.h"
#include "tests/unit/unit.h"

static redisReply *reply_of(const char *bytes, size_t size)
{
    redisReader *reader = redisReaderCreate();
    void *reply = NULL;
    assert_int_equal(redisReaderFeed(reader, bytes, size), REDIS_OK);
    if (redisReaderGetReply(reader, &reply) != REDIS_OK)
        fail_msg("%s: %s", bytes, reader->errstr);
    assert_non_null(reply);
    redisReaderFree(reader);
    return reply;
}

static void answers(void **state)
{
    (void)state;
    static const struct {
        const char *reply;
        enum status st;
        const char *address;
    } cases[] = {
        {"*2\r\n$9\r\n127.0.0.1\r\n$4\r\n6379\r\n", STATUS_OK, "127.0.0.1:6379"},
        {"*2\r\n$3\r\n::1\r\n$5\r\n65535\r\n", STATUS_OK, "[::1]:65535"},
        {"*-1\r\n", STATUS_NOT_FOUND, NULL},
        {"$-1\r\n", STATUS_NOT_FOUND, NULL},
        {"*0\r\n", STATUS_CORRUPT, NULL},
        {"*1\r\n$9\r\n127.0.0.1\r\n", STATUS_CORRUPT, NULL},
        {"*2\r\n$9\r\n127.0.0.1\r\n:6379\r\n", STATUS_CORRUPT, NULL},
        {"*2\r\n$-1\r\n$4\r\n6379\r\n", STATUS_CORRUPT, NULL},
        {"*2\r\n*0\r\n$4\r\n6379\r\n", STATUS_CORRUPT, NULL},
        {"$9\r\n127.0.0.1\r\n", STATUS_CORRUPT, NULL},
        {":1\r\n", STATUS_CORRUPT, NULL},
        {"+OK\r\n", STATUS_CORRUPT, NULL},
        {"-ERR no\r\n", STATUS_CORRUPT, NULL},
        {"*2\r\n$9\r\nlocalhost\r\n$4\r\n6379\r\n", STATUS_INVALID, NULL},
        {"*2\r\n$0\r\n\r\n$4\r\n6379\r\n", STATUS_INVALID, NULL},
        {"*2\r\n$9\r\n127.0.0.1\r\n$1\r\n0\r\n", STATUS_INVALID, NULL},
        {"*2\r\n$9\r\n127.0.0.1\r\n$5\r\n65536\r\n", STATUS_INVALID, NULL},
        {"*2\r\n$9\r\n127.0.0.1\r\n$5\r\n-6379\r\n", STATUS_INVALID, NULL},
        {"*2\r\n$9\r\n127.0.0.1\r\n$0\r\n\r\n", STATUS_INVALID, NULL},
        {"*2\r\n$9\r\n127.0.0.1\r\n$10\r\n0000006379\r\n", STATUS_INVALID, NULL},
        {"*2\r\n$60\r\n127.0.0.1127.0.0.1127.0.0.1127.0.0.1127.0.0.1127.0.0.1127.0.\r\n$4\r\n6379\r\n", STATUS_INVALID,
         NULL},
    };
    char address[REDIS_ADDRESS_MAX];
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        redisReply *reply = reply_of(cases[i].reply, strlen(cases[i].reply));
        enum status st = redis_sentinel_parse(reply, address, sizeof address);
        if (st != cases[i].st)
            fail_msg("case %u: %s", i, status_name(st));
        if (cases[i].address)
            assert_string_equal(address, cases[i].address);
        freeReplyObject(reply);
    }
    redisReply *nul = reply_of("*2\r\n$10\r\n127\0.0.0.1\r\n$4\r\n6379\r\n", 31);
    assert_int_equal(redis_sentinel_parse(nul, address, sizeof address), STATUS_INVALID);
    freeReplyObject(nul);
    redisReply *good = reply_of(cases[0].reply, strlen(cases[0].reply));
    assert_int_equal(redis_sentinel_parse(good, address, 10), STATUS_LIMIT);
    freeReplyObject(good);
    static const struct {
        const char *reply;
        bool master;
    } roles[] = {{"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n", true},
                 {"*5\r\n$5\r\nslave\r\n:0\r\n:0\r\n:0\r\n:0\r\n", false},
                 {"*1\r\n$8\r\nsentinel\r\n", false},
                 {"*0\r\n", false},
                 {"*1\r\n:1\r\n", false},
                 {"$6\r\nmaster\r\n", false},
                 {"-NOPERM\r\n", false}};
    for (unsigned i = 0; i < sizeof roles / sizeof *roles; i++) {
        redisReply *reply = reply_of(roles[i].reply, strlen(roles[i].reply));
        assert_int_equal(redis_role_is_master(reply), roles[i].master);
        freeReplyObject(reply);
    }
}

static void settings(void **state)
{
    (void)state;
    const char *good[] = {"127.0.0.1:26379", "[::1]:26379"}, *bad[] = {"127.0.0.1:26379", "sentinel:26379"};
    const char *many[REDIS_SENTINELS_MAX + 1];
    for (unsigned i = 0; i <= REDIS_SENTINELS_MAX; i++)
        many[i] = good[0];
    const struct {
        struct redis_settings settings;
        enum status st;
        const char *words;
    } cases[] = {
        {{.address = "127.0.0.1:6379"}, STATUS_OK, NULL},
        {{.address = ""}, STATUS_OK, NULL},
        {{.sentinels = good, .sentinel_count = 2, .sentinel_master = "m"}, STATUS_OK, NULL},
        {{.address = "redis:6379"}, STATUS_INVALID, "redis_address"},
        {{.sentinels = bad, .sentinel_count = 2, .sentinel_master = "m"}, STATUS_INVALID, "sentinel:26379"},
        {{.sentinels = good, .sentinel_count = 2}, STATUS_INVALID, "redis_sentinel_master"},
        {{.sentinel_master = "m"}, STATUS_INVALID, "redis_sentinels"},
        {{.sentinels = many, .sentinel_count = REDIS_SENTINELS_MAX + 1, .sentinel_master = "m"}, STATUS_INVALID, "16"},
        {{.address = "127.0.0.1:6379", .tls = true}, STATUS_UNSUPPORTED, "stunnel"},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(redis_settings_check(&cases[i].settings), cases[i].st);
        if (cases[i].words)
            assert_non_null(strstr(status_detail(), cases[i].words));
    }
    assert_false(redis_settings_given(&cases[1].settings));
    assert_true(redis_settings_given(&cases[2].settings));
}

struct fleet {
    struct redis_server servers[2], sentinel;
    char rules[512], silent[64], address[64];
};

/* A master, a replica, and a sentinel that finds out within 500 ms. */
static void fleet_start(struct fleet *fleet)
{
    char primary[12];
    memset(fleet, 0, sizeof *fleet);
    for (unsigned i = 0; i < 2; i++) {
        fleet->servers[i].port = free_port();
        if (i == 1) {
            snprintf(primary, sizeof primary, "%u", fleet->servers[0].port);
            const char *const options[] = {"--replicaof", "127.0.0.1", primary, "--repl-diskless-sync-delay", "0"};
            memcpy(fleet->servers[i].options, options, sizeof options);
        } else {
            const char *const options[] = {"--repl-diskless-sync-delay", "0"};
            memcpy(fleet->servers[i].options, options, sizeof options);
        }
        redis_server_start(&fleet->servers[i]);
    }
    for (unsigned i = 0; i < 200 && strcmp(redis_server_ask(&fleet->servers[0], "WAIT 1 100"), "1") != 0; i++)
        continue;
    snprintf(fleet->rules, sizeof fleet->rules,
             "sentinel monitor m 127.0.0.1 %u 1\nsentinel down-after-milliseconds m 500\n"
             "sentinel failover-timeout m 3000\n",
             fleet->servers[0].port);
    fleet->sentinel.port = free_port();
    fleet->sentinel.sentinel_rules = fleet->rules;
    redis_server_start(&fleet->sentinel);
    snprintf(fleet->address, sizeof fleet->address, "127.0.0.1:%u", fleet->sentinel.port);
    snprintf(fleet->silent, sizeof fleet->silent, "127.0.0.1:%u", free_port()); /* nobody is there */
}

static void fleet_stop(struct fleet *fleet)
{
    redis_server_destroy(&fleet->sentinel);
    for (unsigned i = 0; i < 2; i++)
        redis_server_destroy(&fleet->servers[i]);
}

struct answer {
    unsigned count;
    enum status st;
};

static void on_answer(void *user, enum status st, const struct redisReply *reply, bool late)
{
    struct answer *answer = user;
    (void)reply, (void)late;
    answer->count++;
    answer->st = st;
}

static enum status set(struct loop *loop, struct redis_link *link, const char *key)
{
    struct answer answer = {0};
    const char *words[] = {"SET", key, "1"};
    const size_t sizes[] = {3, strlen(key), 1};
    enum status st = redis_link_command(link, 1000, on_answer, &answer, 3, words, sizes);
    if (st != STATUS_OK)
        return st;
    SPIN_UNTIL(loop, 3000, answer.count == 1);
    return answer.st;
}

static bool is_at(const struct redis_link *link, const struct redis_server *server)
{
    char address[64];
    snprintf(address, sizeof address, "127.0.0.1:%u", server->port);
    return redis_link_up(link) && strcmp(redis_link_address(link), address) == 0;
}

/* Killed, and a stale old master that comes back: the link goes where the sentinel says, and nowhere else. */
static void failover(void **state)
{
    (void)state;
    struct fleet fleet;
    struct loop *loop;
    struct redis_link *link;
    fleet_start(&fleet);
    assert_int_equal(loop_create(&loop), STATUS_OK);
    const char *sentinels[] = {fleet.silent, fleet.address};
    struct redis_link_config config = {.sentinels = sentinels, .sentinel_count = 2, .sentinel_master = "m"};
    assert_int_equal(redis_link_create(loop, &config, &link), STATUS_OK);
    SPIN_UNTIL(loop, 5000, is_at(link, &fleet.servers[0]));
    assert_int_equal(set(loop, link, "a"), STATUS_OK);
    (void)spin(loop, 1500, NULL, NULL); /* the sentinel must know the replica first */
    uint64_t killed_ms = clock_now_ms();
    redis_server_kill(&fleet.servers[0]);
    SPIN_UNTIL(loop, 20000, is_at(link, &fleet.servers[1]));
    print_message("killed; the link is at the new master after %u ms\n", (unsigned)(clock_now_ms() - killed_ms));
    assert_int_equal(set(loop, link, "b"), STATUS_OK);
    assert_string_equal(redis_server_ask(&fleet.servers[1], "GET b"), "1");
    /* demoted under us, as after a failover that we did not see: READONLY, then back where the sentinel says */
    char command[64];
    snprintf(command, sizeof command, "%u", fleet.servers[0].port);
    redis_server_ask(&fleet.servers[1], "REPLICAOF 127.0.0.1 %s", command);
    struct redis_link_stats before, after;
    redis_link_stats(link, &before);
    if (redis_link_up(link)) /* Redis may have cut it already */
        assert_int_not_equal(set(loop, link, "c"), STATUS_OK);
    SPIN_UNTIL(loop, 1000, !redis_link_up(link));
    (void)spin(loop, 600, NULL, NULL);
    redis_link_stats(link, &after);
    assert_true(after.losses > before.losses);
    assert_false(redis_link_up(link)); /* ROLE: it is a replica, whatever the sentinel says */
    redis_server_ask(&fleet.servers[1], "REPLICAOF NO ONE");
    SPIN_UNTIL(loop, 5000, is_at(link, &fleet.servers[1]));
    assert_int_equal(set(loop, link, "d"), STATUS_OK);
    redis_link_destroy(&link);
    loop_destroy(&loop);
    fleet_stop(&fleet);
}

/* Frozen sentinels, an unknown name, nobody at all: the link stays down, the loop is never held up. */
static void no_answer(void **state)
{
    (void)state;
    struct fleet fleet;
    struct loop *loop;
    struct redis_link *link;
    fleet_start(&fleet);
    assert_int_equal(loop_create(&loop), STATUS_OK);
    const char *sentinels[] = {fleet.silent, fleet.address};
    struct redis_link_config config = {.sentinels = sentinels, .sentinel_count = 2, .sentinel_master = "other"};
    assert_int_equal(redis_link_create(loop, &config, &link), STATUS_OK);
    (void)spin(loop, 800, NULL, NULL);
    assert_false(redis_link_up(link));
    assert_string_equal(redis_link_address(link), "");
    redis_link_destroy(&link);
    config.sentinel_master = "m";
    redis_server_freeze(&fleet.sentinel);
    assert_int_equal(redis_link_create(loop, &config, &link), STATUS_OK);
    unsigned stood = 0;
    uint64_t last_ms = clock_now_ms();
    for (unsigned i = 0; i < 800; i++) {
        (void)spin(loop, 1, NULL, NULL);
        uint64_t now = clock_now_ms();
        stood += now - last_ms >= 250;
        last_ms = now;
    }
    assert_false(redis_link_up(link));
    assert_true(stood < 3); /* the machine may have stood still; a question that blocks does so every 250 ms */
    redis_server_thaw(&fleet.sentinel);
    SPIN_UNTIL(loop, 5000, is_at(link, &fleet.servers[0]));
    redis_link_destroy(&link); /* and once while a question is open */
    redis_server_freeze(&fleet.sentinel);
    assert_int_equal(redis_link_create(loop, &config, &link), STATUS_OK);
    (void)spin(loop, 20, NULL, NULL);
    redis_link_destroy(&link);
    redis_server_thaw(&fleet.sentinel);
    loop_destroy(&loop);
    fleet_stop(&fleet);
}

int main(void)
{
    const struct CMUnitTest pure[] = {cmocka_unit_test(answers), cmocka_unit_test(settings)};
    const struct CMUnitTest real[] = {cmocka_unit_test(failover), cmocka_unit_test(no_answer)};
    if (!unit_begin())
        return 1;
    int failed = cmocka_run_group_tests(pure, NULL, NULL);
    return failed + redis_run(real, NULL, NULL);
}
