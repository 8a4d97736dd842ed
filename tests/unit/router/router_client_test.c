/* router_client_test.c - the client library through the real router to a fake worker: both ends of one protocol. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/loop.h"
#include "proto/client.h"
#include "router_bench.h"
#include "spin.h"
#include "tests/unit/unit.h"

enum { CALLS = 64 };

struct outcome {
    atomic_uint ends;
    unsigned tokens;
    bool gap;
    enum wire_error_code error;
    char detail[200], worker[WIRE_NAME_MAX + 1], route[32];
};

static void on_tokens(void *user, struct client_call *call, const struct client_tokens *tokens)
{
    struct outcome *outcome = user;
    (void)call;
    outcome->gap = outcome->gap || tokens->first != outcome->tokens;
    outcome->tokens += tokens->count;
}

static void on_end(void *user, struct client_call *call, const struct client_end *end)
{
    struct outcome *outcome = user;
    (void)call;
    outcome->error = end->error;
    snprintf(outcome->detail, sizeof outcome->detail, "%s", end->detail);
    snprintf(outcome->worker, sizeof outcome->worker, "%s", end->worker);
    snprintf(outcome->route, sizeof outcome->route, "%s", end->route);
    atomic_fetch_add(&outcome->ends, 1);
}

static struct client_call *ask(struct client *client, const char *conversation, struct outcome *outcome)
{
    static const struct client_callbacks callbacks = {.on_tokens = on_tokens, .on_end = on_end};
    struct client_message message = {.role = WIRE_MESSAGE_USER, .text = "hello", .text_size = 5};
    struct client_request request = {.conversation = conversation, .messages = &message, .message_count = 1};
    struct client_call *call = NULL;
    assert_int_equal(client_generate(client, &request, &callbacks, outcome, &call), STATUS_OK);
    return call;
}

static struct client *connect_client(struct bench *bench)
{
    const char *routers[] = {router_control_endpoint(bench->router)};
    struct client *client;
    assert_int_equal(
        client_create(&(struct client_config){.routers = routers, .router_count = 1, .tenant = "acme"}, &client),
        STATUS_OK);
    return client;
}

static void generates(void **state)
{
    (void)state;
    struct bench *bench = bench_start(2, NULL);
    for (unsigned i = 0; i < 2; i++)
        bench->workers[i].auto_tokens = 12;
    struct client *client = connect_client(bench);
    static struct outcome outcomes[CALLS];
    static struct client_call *calls[CALLS];
    memset(outcomes, 0, sizeof outcomes);
    for (unsigned i = 0; i < CALLS; i++) {
        char conversation[16];
        snprintf(conversation, sizeof conversation, "chat-%u", i % 8);
        calls[i] = ask(client, conversation, &outcomes[i]);
    }
    for (unsigned i = 0; i < CALLS; i++) {
        SPIN_UNTIL(bench->loop, 5000, atomic_load(&outcomes[i].ends) == 1);
        if (outcomes[i].error != WIRE_ERROR_UNKNOWN)
            fail_msg("%s: %s", wire_error_name(outcomes[i].error), outcomes[i].detail);
        assert_int_equal(outcomes[i].tokens, 12);
        assert_false(outcomes[i].gap);
        assert_string_equal(outcomes[i].worker, outcomes[i % 8].worker);
        client_call_release(&calls[i]);
    }
    client_destroy(&client);
    bench_stop(&bench);
}

static void cancels_and_survives_a_loss(void **state)
{
    (void)state;
    struct bench *bench = bench_start(2, NULL);
    struct client *client = connect_client(bench);
    struct outcome cancelled = {.tokens = 0}, moved = {.tokens = 0};
    struct client_call *call = ask(client, "chat-1", &cancelled);
    SPIN_UNTIL(bench->loop, 3000, requests_total(bench) == 1);
    client_cancel(call);
    SPIN_UNTIL(bench->loop, 3000, atomic_load(&cancelled.ends) == 1);
    assert_int_equal(cancelled.error, WIRE_ERROR_CANCELLED);
    client_call_release(&call);

    call = ask(client, "chat-1", &moved);
    SPIN_UNTIL(bench->loop, 3000, requests_total(bench) == 2);
    for (unsigned i = 0; i < 2; i++) {
        bench->workers[i].auto_tokens = 5;
        if (bench->workers[i].request_count == 2)
            fake_worker_kill(&bench->workers[i]);
    }
    SPIN_UNTIL(bench->loop, 4000, atomic_load(&moved.ends) == 1);
    assert_int_equal(moved.error, WIRE_ERROR_UNKNOWN);
    assert_int_equal(moved.tokens, 5);
    assert_false(moved.gap);
    client_call_release(&call);
    client_destroy(&client);
    bench_stop(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(generates), cmocka_unit_test(cancels_and_survives_a_loss)};
    return unit_run(tests, NULL, NULL);
}
