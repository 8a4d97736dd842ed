/* router_lease_test.c - leases between a router and its clients and workers: which count, and what they repeat. */
#include "common/clock.h"
#include "router/frontend.h"
#include "router_bench.h"
#include "spin.h"
#include "tests/unit/unit.h"

static void send_lease(struct fake_client *client, uint64_t number, uint64_t echo, uint64_t grant)
{
    uint32_t stream = 1;
    struct wire_message lease = {.kind = WIRE_LEASE,
                                 .lease = {.session = wire_span_of(client->session, WIRE_ID_BYTES),
                                           .number = number,
                                           .echo = echo,
                                           .credit_streams = wire_span_of(&stream, sizeof stream),
                                           .credit_tokens = wire_span_of(&grant, sizeof grant)}};
    fake_client_send(client, false, &lease);
}

static struct bench *start_with_credit(void)
{
    struct bench *bench = bench_start(1, NULL);
    bench->clients[0].capabilities = WIRE_CAN_CREDIT;
    fake_client_hello(&bench->clients[0]);
    let(bench, 50);
    ask_each(bench, 1, 1);
    SPIN_UNTIL(bench->loop, 2000, bench->workers[0].request_count == 1);
    return bench;
}

/* An old number, and an echo of what was never sent. */
static void a_client_lease_that_is_not_of_now_is_dropped(void **state)
{
    (void)state;
    struct bench *bench = start_with_credit();
    struct fake_client *client = &bench->clients[0];
    const struct fake_worker *worker = &bench->workers[0];
    const uint64_t *granted = &worker->granted[worker->requests[0].stream];
    SPIN_UNTIL(bench->loop, 2000, client->number[0] >= 2 && *granted == FRONTEND_STREAM_TOKENS);
    uint64_t malformed = stats_of(bench).malformed;
    send_lease(client, client->number[0], client->heard[0], 900);
    SPIN_UNTIL(bench->loop, 2000, stats_of(bench).malformed == malformed + 1);
    send_lease(client, ++client->number[0], client->heard[0] + 1000, 900);
    SPIN_UNTIL(bench->loop, 2000, stats_of(bench).malformed == malformed + 2);
    let(bench, 150);
    assert_int_equal(*granted, FRONTEND_STREAM_TOKENS);
    send_lease(client, ++client->number[0], client->heard[0], 900);
    SPIN_UNTIL(bench->loop, 2000, *granted == 900);
    assert_int_equal(stats_of(bench).malformed, malformed + 2);
    bench_stop(&bench);
}

/* Whatever became of the lease that told it: a worker hears the total of an open stream again. */
static void totals_come_again(void **state)
{
    (void)state;
    struct bench *bench = start_with_credit();
    struct fake_worker *worker = &bench->workers[0];
    uint64_t *granted = &worker->granted[worker->requests[0].stream];
    fake_client_grant(&bench->clients[0], 1, 700, 0);
    for (unsigned i = 0; i < 2; i++) {
        SPIN_UNTIL(bench->loop, 2500, *granted == 700);
        *granted = 0;
    }
    bench_stop(&bench);
}

/* Clients have nothing to ask with ATTACH: they repeat the request. */
static void clients_are_told_what_is_for_them(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    assert_int_equal(bench->clients[0].router_capabilities, WIRE_CAN_RESUME | WIRE_CAN_CREDIT);
    bench_stop(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_client_lease_that_is_not_of_now_is_dropped),
        cmocka_unit_test(totals_come_again),
        cmocka_unit_test(clients_are_told_what_is_for_them),
    };
    return unit_run(tests, NULL, NULL);
}
