/* router_backlog_test.c - what waits for a client that is away or does not read, and places of clients that are gone:
 * the real router with fake workers and clients. */
#include <string.h>
#include "common/clock.h"
#include "router/frontend.h"
#include "router_bench.h"
#include "spin.h"
#include "tests/unit/unit.h"

enum { STREAMS = 16, ROWS = 10, ROW_TOKENS = 50 }; /* with 20 alternatives: 8.5 KB a row, 1.3 MiB over all */

static void grant_credit(struct bench *bench)
{
    bench->clients[0].capabilities = WIRE_CAN_CREDIT;
    fake_client_hello(&bench->clients[0]);
    let(bench, 50);
}

/* The first client's data connection is away while replies come that are more than a client without credit may leave.
 */
static struct bench *start_with_backlog(bool credit)
{
    struct bench *bench = bench_start(1, NULL);
    struct fake_worker *worker = &bench->workers[0];
    if (credit)
        grant_credit(bench);
    ask_each(bench, 1, STREAMS);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == STREAMS);
    channel_destroy(&bench->clients[0].data);
    bench->clients[0].welcomed_data = false; /* it sends no lease by it */
    let(bench, 100);
    for (unsigned row = 0; row < ROWS; row++) {
        for (unsigned i = 0; i < STREAMS; i++)
            fake_worker_row(worker, &worker->requests[i], 0, row * ROW_TOKENS, ROW_TOKENS, 20);
        let(bench, 5);
    }
    let(bench, 200);
    return bench;
}

/* With another request right behind its HELLO: both are read in one turn. */
static void come_back(struct bench *bench)
{
    struct fake_ask ask = ask_of(STREAMS + 1, NULL);
    bench->clients[0].ask_with_hello = &ask;
    fake_client_connect_data(&bench->clients[0], bench->zmq, router_data_endpoint(bench->router));
    SPIN_UNTIL(bench->loop, 2000, bench->workers[0].request_count == STREAMS + 1);
    bench->clients[0].ask_with_hello = NULL;
}

/* Its windows bound what is held for it: nothing of that is lost. */
static void a_client_with_credit_finds_what_it_granted(void **state)
{
    (void)state;
    struct bench *bench = start_with_backlog(true);
    struct fake_client *client = &bench->clients[0];
    struct fake_worker *worker = &bench->workers[0];
    assert_int_equal(router_in_flight(bench->router), STREAMS);
    come_back(bench);
    for (unsigned i = 1; i <= STREAMS; i++) {
        SPIN_UNTIL(bench->loop, 3000, client->streams[i].tokens == ROWS * ROW_TOKENS);
        assert_false(client->streams[i].gap);
        fake_worker_done(worker, &worker->requests[i - 1], ROWS * ROW_TOKENS);
        SPIN_UNTIL(bench->loop, 2000, client->streams[i].dones == 1);
    }
    bench_stop(&bench);
}

/* Without credit it lost its replies, and is taken on again with the HELLO that reads that: not a turn later. */
static void a_slow_client_is_none_after_its_hello(void **state)
{
    (void)state;
    struct bench *bench = start_with_backlog(false);
    struct fake_client *client = &bench->clients[0];
    assert_int_equal(router_in_flight(bench->router), 0);
    come_back(bench);
    SPIN_UNTIL(bench->loop, 2000, client->streams[STREAMS].errors == 1);
    assert_int_equal(client->streams[STREAMS].error, WIRE_ERROR_SLOW_READER);
    bench_stop(&bench);
}

/* Refusals wait behind tokens that it does not take: so many, and no more. */
static void refusals_that_nobody_reads_are_bounded(void **state)
{
    (void)state;
    enum { ASKED = FRONTEND_TERMINALS_MAX + 800 };
    struct bench *bench = bench_start(1, NULL);
    struct fake_client *client = &bench->clients[0];
    struct fake_worker *worker = &bench->workers[0];
    grant_credit(bench);
    fake_client_grant(client, 1, 0, 100);
    ask_each(bench, 1, 1);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 1);
    fake_worker_tokens(worker, &worker->requests[0], 0, 200);
    for (uint32_t i = 0; i < ASKED; i++) {
        struct fake_ask ask = ask_of(1000 + i, NULL); /* an id of its own */
        ask.stream = 1;                               /* in use: a conflict */
        fake_client_ask(client, &ask);
    }
    SPIN_UNTIL(bench->loop, 20000, stats_of(bench).requests == ASKED + 1);
    assert_int_equal(stats_of(bench).refusals_dropped, ASKED - FRONTEND_TERMINALS_MAX);
    struct fake_ask one_more = ask_of(2, NULL); /* it has as many open as it may */
    fake_client_ask(client, &one_more);
    SPIN_UNTIL(bench->loop, 2000, stats_of(bench).requests == ASKED + 2);
    assert_int_equal(router_in_flight(bench->router), 1);
    fake_client_grant(client, 1, 0, 1 << 30);
    SPIN_UNTIL(bench->loop, 10000, client->streams[1].errors == FRONTEND_TERMINALS_MAX);
    assert_int_equal(client->streams[1].tokens, 200);
    fake_client_ask(client, &one_more);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 2);
    bench_stop(&bench);
}

/* ---- places ---- */

static void say(struct bench *bench, enum wire_kind kind, uint32_t number)
{
    uint8_t session[WIRE_ID_BYTES] = {0x77};
    memcpy(session + 1, &number, sizeof number);
    struct wire_message message = {.kind = kind};
    if (kind == WIRE_HELLO)
        message.hello = (struct wire_hello){.version_min = WIRE_VERSION,
                                            .version_max = WIRE_VERSION,
                                            .session = wire_span_of(session, WIRE_ID_BYTES),
                                            .role = WIRE_ROLE_CLIENT,
                                            .connection = WIRE_CONNECTION_CONTROL};
    else
        message.goaway = (struct wire_goaway){.session = wire_span_of(session, WIRE_ID_BYTES)};
    fake_client_send(&bench->clients[0], false, &message);
}

static void who_is_gone_gives_its_place_away(void **state)
{
    (void)state;
    struct router_settings settings = default_settings();
    settings.client_lease_ms = settings.client_lease_expiry_ms = 600000;
    struct bench *bench = bench_start(1, &settings);
    struct fake_client *client = &bench->clients[0];
    for (uint32_t i = CLIENTS; i < FRONTEND_SESSIONS_MAX; i++) {
        say(bench, WIRE_HELLO, i);
        if (i % 500 == 0)
            let(bench, 5);
    }
    let(bench, 300);
    assert_int_equal(client->connection_errors, 0);
    say(bench, WIRE_HELLO, 1); /* one too many, and everybody is there */
    SPIN_UNTIL(bench->loop, 3000, client->connection_errors == 1);
    assert_int_equal(client->connection_error, WIRE_ERROR_OVER_CAPACITY);
    say(bench, WIRE_GOAWAY, 3000);
    say(bench, WIRE_GOAWAY, 4000);
    say(bench, WIRE_HELLO, 4000); /* back */
    say(bench, WIRE_HELLO, 1);
    let(bench, 300);
    assert_int_equal(client->connection_errors, 1);
    say(bench, WIRE_HELLO, 4000); /* has its place */
    say(bench, WIRE_HELLO, 3000);
    SPIN_UNTIL(bench->loop, 3000, client->connection_errors == 2);
    bench_stop(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_client_with_credit_finds_what_it_granted),
        cmocka_unit_test(a_slow_client_is_none_after_its_hello),
        cmocka_unit_test(refusals_that_nobody_reads_are_bounded),
        cmocka_unit_test(who_is_gone_gives_its_place_away),
    };
    return unit_run(tests, NULL, NULL);
}
