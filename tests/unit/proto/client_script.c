#include "client_script.h"
#include <string.h>
#include <time.h>
#include "common/clock.h"
#include "tests/unit/unit.h"

static void on_tokens(void *user, struct client_call *call, const struct client_tokens *tokens)
{
    struct reply *reply = user;
    if (tokens->first != reply->tokens || tokens->choice != 0 || (uintptr_t)tokens->ids % 4 != 0)
        reply->bad_order++;
    for (unsigned i = 0; i < tokens->count; i++)
        if (tokens->ids[i] != tokens->first + i)
            reply->bad_order++;
    if (atomic_load(&reply->ends) > 0)
        reply->bad_order++;
    assert_true(reply->text_size + tokens->text_size < sizeof reply->text);
    memcpy(reply->text + reply->text_size, tokens->text, tokens->text_size);
    reply->text_size += tokens->text_size;
    atomic_fetch_add(&reply->tokens, tokens->count);
    atomic_fetch_add(&reply->token_calls, 1);
    if (reply->cancel_after > 0 && reply->tokens >= reply->cancel_after)
        client_cancel(call);
}

static void on_end(void *user, struct client_call *call, const struct client_end *end)
{
    struct reply *reply = user;
    (void)call;
    reply->end = *end;
    reply->end_ms = clock_now_ms();
    snprintf(reply->detail, sizeof reply->detail, "%s", end->detail);
    snprintf(reply->worker, sizeof reply->worker, "%s", end->worker);
    snprintf(reply->route, sizeof reply->route, "%s", end->route);
    atomic_fetch_add(&reply->ends, 1);
}

const struct client_callbacks callbacks = {.on_tokens = on_tokens, .on_end = on_end};

struct client *connect_to(struct fake_router *first, struct fake_router *second)
{
    const char *endpoints[] = {fake_router_endpoint(first), second ? fake_router_endpoint(second) : NULL};
    struct client *client = NULL;
    struct client_config config = {
        .routers = endpoints, .router_count = second ? 2 : 1, .keep_order = true, .tenant = "acme", .name = "test"};
    if (client_create(&config, &client) != STATUS_OK)
        fail_msg("%s", status_detail());
    return client;
}

void wait_until(atomic_uint *counter, unsigned at_least)
{
    uint64_t give_up = clock_now_ms() + 10000;
    while (atomic_load(counter) < at_least) {
        if (clock_now_ms() > give_up)
            fail_msg("a counter stays at %u instead of %u", atomic_load(counter), at_least);
        struct timespec pause = {0, 2000000};
        nanosleep(&pause, NULL);
    }
}

struct client *connect_to_both(struct fake_router *first, struct fake_router *second)
{
    struct client *client = connect_to(first, second);
    wait_until(&fake_router_counts(first)->leases_data, 1);
    wait_until(&fake_router_counts(second)->leases_data, 1);
    return client;
}

struct client_call *ask(struct client *client, const char *conversation, uint32_t deadline_ms, struct reply *reply)
{
    struct client_call *call = NULL;
    struct client_message message = {WIRE_MESSAGE_USER, "HAMLET", "To be?", 6};
    struct client_request request = {
        .conversation = conversation, .messages = &message, .message_count = 1, .deadline_ms = deadline_ms};
    if (client_generate(client, &request, &callbacks, reply, &call) != STATUS_OK)
        fail_msg("%s", status_detail());
    return call;
}

void finish(struct client_call *call, struct reply *reply, enum wire_error_code expected)
{
    enum wire_error_code error;
    assert_int_equal(client_wait(call, &error), STATUS_OK);
    if (error != expected)
        fail_msg("ended with %s (%s) instead of %s", wire_error_name(error), reply->detail, wire_error_name(expected));
    assert_int_equal(reply->ends, 1);
    assert_int_equal(reply->end.error, expected);
    assert_int_equal(reply->bad_order, 0);
    client_call_release(&call);
}

/* ---- what the fake router does: the conversation names the script ---- */

void say_all(struct fake_router *router, const struct fake_request *request)
{
    fake_send_ack(router, request);
    fake_send_tokens(router, request, 0, 3, "To be, ");
    fake_send_tokens(router, request, 3, 2, "or not");
    fake_send_done(router, request, 5);
}

void script(void *user, struct fake_router *router, const struct fake_request *request)
{
    const char *name = request->conversation;
    struct fake_request forged = *request;
    (void)user;
    if (strcmp(name, "happy") == 0) {
        say_all(router, request);
    } else if (strcmp(name, "slow") == 0) {
        fake_later(router, 300, say_all, request);
    } else if (strcmp(name, "duplicates") == 0) {
        fake_send_tokens(router, request, 0, 3, "To be, ");
        fake_send_tokens(router, request, 0, 3, "To be, ");
        forged.attempt.client++; /* from an attempt that never was */
        fake_send_tokens(router, &forged, 3, 2, "XX");
        forged = *request;
        forged.stream += 1000; /* of nobody */
        fake_send_tokens(router, &forged, 3, 2, "XX");
        forged = *request;
        forged.id[0] ^= 1; /* another request's terminal */
        fake_send_done(router, &forged, 3);
        fake_send_raw(router, request, "R\1\6\0garbage", 11);
        fake_send_tokens(router, request, 0, 1, "To");
        fake_send_tokens(router, request, 3, 2, "or not");
        fake_send_done(router, request, 5);
        fake_send_done(router, request, 5);
        fake_send_error(router, request, WIRE_ERROR_INTERNAL, 0);
    } else if (strcmp(name, "reattempt") == 0) { /* the router changed workers; the old one still talks */
        forged.attempt.router = 1;
        fake_send_tokens(router, request, 0, 0, "");
        fake_send_tokens(router, &forged, 0, 3, "To be, ");
        fake_send_tokens(router, request, 3, 2, "XX");
        fake_send_tokens(router, &forged, 3, 2, "or not");
        fake_send_done(router, &forged, 5);
    } else if (strcmp(name, "gap") == 0) {
        fake_send_tokens(router, request, 0, 3, "To be, ");
        fake_send_tokens(router, request, 4, 1, "not");
        fake_send_done(router, request, 5);
    } else if (strcmp(name, "overlap") == 0) {
        fake_send_tokens(router, request, 0, 3, "To be, ");
        fake_send_tokens(router, request, 2, 3, " or not");
    } else if (strcmp(name, "short") == 0) {
        fake_send_tokens(router, request, 0, 3, "To be, ");
        fake_send_done(router, request, 5);
    } else if (strcmp(name, "busy") == 0) {
        fake_send_error(router, request, WIRE_ERROR_OVER_CAPACITY, 1234);
    } else if (strcmp(name, "resend") == 0) {
        if (request->attempt.client < 3)
            fake_send_ref(router, request, WIRE_RESEND);
        else
            say_all(router, request);
    } else if (strcmp(name, "resend-for-ever") == 0) {
        fake_send_ref(router, request, WIRE_RESEND);
    } else if (strcmp(name, "resend-late") == 0) {
        fake_send_tokens(router, request, 0, 3, "To be, ");
        fake_send_ref(router, request, WIRE_RESEND);
    } else if (strcmp(name, "need-history") == 0) {
        fake_send_ref(router, request, WIRE_NEED_HISTORY);
    } else if (strcmp(name, "superseded") == 0) {
        fake_send_ref(router, request, WIRE_SUPERSEDED);
    } else if (strcmp(name, "goaway") == 0) {
        fake_send_goaway(router, request);
        fake_later(router, 100, say_all, request);
    } else if (strcmp(name, "half") == 0 || strncmp(name, "cancel", 6) == 0) {
        fake_send_tokens(router, request, 0, 3, "To be, ");
    } /* "silent", "grant" and others: nothing */
}

static void confirm_cancel(void *user, struct fake_router *router, const struct wire_cancel *cancel)
{
    (void)router;
    (void)user;
    assert_true(wire_span_equal(cancel->tenant, wire_span_str("acme")));
}

struct fake_router *start_router(void)
{
    struct fake_router *router;
    fake_router_start(&(struct fake_router_config){.on_request = script, .on_cancel = confirm_cancel}, &router);
    return router;
}
