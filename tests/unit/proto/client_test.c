/* The client library against fake routers: what it promises to applications, whatever a router does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/clock.h"
#include "fake_router.h"
#include "proto/client.h"

struct reply { /* what one call delivered */
    atomic_uint token_calls, tokens, ends, bad_order;
    char text[4096];
    size_t text_size;
    struct client_end end;
    char detail[WIRE_DETAIL_MAX + 1], worker[65], route[65];
    uint64_t end_ms;
    struct client *client; /* on_end starts another call with it */
    atomic_uint accepted;  /* of a chain of calls */
    unsigned cancel_after; /* cancels itself after so many tokens */
};

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

static const struct client_callbacks callbacks = {.on_tokens = on_tokens, .on_end = on_end};

static struct client *connect_to(struct fake_router *first, struct fake_router *second)
{
    const char *endpoints[] = {fake_router_endpoint(first), second ? fake_router_endpoint(second) : NULL};
    struct client *client = NULL;
    struct client_config config = {
        .routers = endpoints, .router_count = second ? 2 : 1, .keep_order = true, .tenant = "acme", .name = "test"};
    if (client_create(&config, &client) != STATUS_OK)
        fail_msg("%s", status_detail());
    return client;
}

static void wait_until(atomic_uint *counter, unsigned at_least)
{
    uint64_t give_up = clock_now_ms() + 10000;
    while (atomic_load(counter) < at_least) {
        if (clock_now_ms() > give_up)
            fail_msg("a counter stays at %u instead of %u", atomic_load(counter), at_least);
        struct timespec pause = {0, 2000000};
        nanosleep(&pause, NULL);
    }
}

/* Both links are there, so the order of the list decides. */
static struct client *connect_to_both(struct fake_router *first, struct fake_router *second)
{
    struct client *client = connect_to(first, second);
    wait_until(&fake_router_counts(first)->leases_data, 1);
    wait_until(&fake_router_counts(second)->leases_data, 1);
    return client;
}

static struct client_call *ask(struct client *client, const char *conversation, uint32_t deadline_ms,
                               struct reply *reply)
{
    struct client_call *call = NULL;
    struct client_message message = {WIRE_MESSAGE_USER, "HAMLET", "To be?", 6};
    struct client_request request = {
        .conversation = conversation, .messages = &message, .message_count = 1, .deadline_ms = deadline_ms};
    if (client_generate(client, &request, &callbacks, reply, &call) != STATUS_OK)
        fail_msg("%s", status_detail());
    return call;
}

static void finish(struct client_call *call, struct reply *reply, enum wire_error_code expected)
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

static void say_all(struct fake_router *router, const struct fake_request *request)
{
    fake_send_ack(router, request);
    fake_send_tokens(router, request, 0, 3, "To be, ");
    fake_send_tokens(router, request, 3, 2, "or not");
    fake_send_done(router, request, 5);
}

static void script(void *user, struct fake_router *router, const struct fake_request *request)
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

static struct fake_router *start_router(void)
{
    struct fake_router *router;
    fake_router_start(&(struct fake_router_config){.on_request = script, .on_cancel = confirm_cancel}, &router);
    return router;
}

/* ---- tests ---- */

static void test_happy_path(void **state)
{
    (void)state;
    struct fake_router *router = start_router();
    struct client *client = connect_to(router, NULL);
    struct reply replies[20];
    struct client_call *calls[20];
    memset(replies, 0, sizeof replies);
    for (unsigned i = 0; i < 20; i++)
        calls[i] = ask(client, "happy", 0, &replies[i]);
    for (unsigned i = 0; i < 20; i++) {
        finish(calls[i], &replies[i], WIRE_ERROR_UNKNOWN);
        assert_int_equal(replies[i].tokens, 5);
        assert_int_equal(replies[i].text_size, 13);
        assert_memory_equal(replies[i].text, "To be, or not", 13);
        assert_int_equal(replies[i].end.finish, WIRE_FINISH_LENGTH);
        assert_int_equal(replies[i].end.prompt_tokens, 11);
        assert_int_equal(replies[i].end.cached_tokens, 7);
        assert_int_equal(replies[i].end.reply_tokens, 5);
        assert_int_equal(replies[i].end.decode_us, 3);
        assert_string_equal(replies[i].worker, "worker-9");
        assert_string_equal(replies[i].route, "owner");
        assert_string_equal(replies[i].detail, "");
    }
    struct fake_counts *counts = fake_router_counts(router);
    wait_until(&counts->leases_control, 3); /* leases go on, on both connections */
    wait_until(&counts->leases_data, 3);
    assert_int_equal(counts->hellos_control, 1);
    assert_int_equal(counts->hellos_data, 1);
    assert_int_equal(counts->malformed, 0);
    assert_int_equal(client_dropped(client), 0);
    client_destroy(&client);
    assert_null(client);
    client_destroy(&client);
    fake_router_stop(&router);
}

static void test_sequence(void **state)
{
    (void)state;
    struct fake_router *router = start_router();
    struct client *client = connect_to(router, NULL);
    const struct {
        const char *name;
        enum wire_error_code error;
        unsigned tokens;
        const char *detail;
    } cases[] = {
        {"duplicates", WIRE_ERROR_UNKNOWN, 5, ""},
        {"reattempt", WIRE_ERROR_UNKNOWN, 5, ""},
        {"gap", WIRE_ERROR_INTERNAL, 3, "tokens from 4 came, from 3 were due"},
        {"overlap", WIRE_ERROR_INTERNAL, 3, "tokens from 2 came, from 3 were due"},
        {"short", WIRE_ERROR_INTERNAL, 3, "5 tokens were released and 3 arrived"},
        {"resend", WIRE_ERROR_UNKNOWN, 5, ""},
        {"resend-for-ever", WIRE_ERROR_INTERNAL, 0, "again and again"},
        {"resend-late", WIRE_ERROR_WORKER_LOST, 3, "by which numerics"},
        {"need-history", WIRE_ERROR_INTERNAL, 0, "does not handle"},
        {"superseded", WIRE_ERROR_CONFLICT, 0, "took the request over"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct reply reply;
        memset(&reply, 0, sizeof reply);
        finish(ask(client, cases[i].name, 5000, &reply), &reply, cases[i].error);
        if (reply.tokens != cases[i].tokens || !strstr(reply.detail, cases[i].detail))
            fail_msg("%s: %u tokens, detail '%s'", cases[i].name, reply.tokens, reply.detail);
        if (cases[i].tokens == 5)
            assert_memory_equal(reply.text, "To be, or not", 13);
    }
    assert_true(client_dropped(client) >= 8);
    assert_int_equal(fake_router_counts(router)->malformed, 0);
    assert_true(fake_router_counts(router)->cancels >= 2); /* gap, overlap: the work is stopped */
    client_destroy(&client);
    fake_router_stop(&router);
}

static void test_over_capacity(void **state)
{
    (void)state;
    struct fake_router *router = start_router();
    struct client *client = connect_to(router, NULL);
    struct reply reply;
    memset(&reply, 0, sizeof reply);
    finish(ask(client, "busy", 0, &reply), &reply, WIRE_ERROR_OVER_CAPACITY);
    assert_int_equal(reply.end.retry_after_ms, 1234);
    assert_string_equal(reply.detail, "said so");
    client_destroy(&client);
    fake_router_stop(&router);
}

static void test_router_lost_before_tokens(void **state)
{
    (void)state;
    for (unsigned how = 0; how < 2; how++) { /* its sockets close; it falls silent */
        struct fake_router *first = start_router(), *second = start_router();
        struct client *client = connect_to_both(first, second);
        struct reply reply, again;
        memset(&reply, 0, sizeof reply);
        memset(&again, 0, sizeof again);
        struct client_call *call = ask(client, "slow", 8000, &reply);
        wait_until(&fake_router_counts(first)->requests, 1);
        assert_int_equal(fake_router_counts(second)->requests, 0);
        uint64_t lost_ms = clock_now_ms();
        if (how == 0)
            fake_router_stop(&first);
        else
            fake_router_freeze(first);
        /* A frozen router still has its timer: its answer to "slow" is of an old attempt by then or never leaves. */
        finish(call, &reply, WIRE_ERROR_UNKNOWN);
        assert_int_equal(reply.tokens, 5);
        assert_memory_equal(reply.text, "To be, or not", 13);
        if (how == 0)
            assert_int_equal(fake_router_counts(second)->requests, 1);
        assert_true(reply.end_ms - lost_ms < 3000);
        if (how == 0) {
            finish(ask(client, "happy", 5000, &again), &again, WIRE_ERROR_UNKNOWN);
            assert_int_equal(fake_router_counts(second)->requests, 2);
        }
        client_destroy(&client);
        fake_router_stop(&first);
        fake_router_stop(&second);
    }
}

static void test_silent_router_is_lost(void **state)
{
    (void)state;
    struct fake_router *first = start_router(), *second = start_router();
    struct client *client = connect_to_both(first, second);
    struct reply reply;
    memset(&reply, 0, sizeof reply);
    struct client_call *call = ask(client, "silent", 20000, &reply);
    wait_until(&fake_router_counts(first)->requests, 1);
    fake_router_freeze(first);
    uint64_t start = clock_now_ms();
    wait_until(&fake_router_counts(second)->requests, 1); /* sent again, to the next of the list */
    assert_in_range(clock_now_ms() - start, 400, 3000);   /* the lease is 600 ms */
    client_cancel(call);
    finish(call, &reply, WIRE_ERROR_CANCELLED);
    client_destroy(&client);
    fake_router_stop(&first);
    fake_router_stop(&second);
}

/* 0: never answered, 1: replayed, 2: only one direction moves, 3 and 4: answered on one connection only */
static void check_useless_leases(unsigned how)
{
    struct fake_router *first, *second = start_router();
    struct fake_router_config config = {.on_request = script,
                                        .no_leases = how == 0,
                                        .own_number = how == 1,
                                        .no_echo = how == 2,
                                        .no_control_leases = how == 3,
                                        .no_data_leases = how == 4};
    fake_router_start(&config, &first);
    struct client *client = connect_to_both(first, second);
    struct reply reply;
    memset(&reply, 0, sizeof reply);
    struct client_call *call = ask(client, "silent", 20000, &reply);
    wait_until(&fake_router_counts(first)->requests, 1);
    wait_until(&fake_router_counts(second)->requests, 1);
    assert_int_equal(client_dropped(client) > 0, how == 1);
    client_cancel(call);
    finish(call, &reply, WIRE_ERROR_CANCELLED);
    client_destroy(&client);
    fake_router_stop(&first);
    fake_router_stop(&second);
}

static void test_leases_without_answer(void **state)
{
    (void)state;
    for (unsigned how = 0; how < 5; how++)
        check_useless_leases(how);
}

/* One of the two connections goes; the lease is long, so it is the link that tells. */
static void test_one_connection_lost(void **state)
{
    (void)state;
    for (unsigned control = 0; control < 2; control++) {
        struct fake_router *first, *second = start_router();
        fake_router_start(
            &(struct fake_router_config){.on_request = script, .lease_ms = 1000, .lease_expiry_ms = 30000}, &first);
        struct client *client = connect_to_both(first, second);
        struct reply reply;
        memset(&reply, 0, sizeof reply);
        struct client_call *call = ask(client, "silent", 20000, &reply);
        wait_until(&fake_router_counts(first)->requests, 1);
        fake_router_cut(first, control);
        wait_until(&fake_router_counts(second)->requests, 1);
        client_cancel(call);
        client_destroy(&client);
        finish(call, &reply, WIRE_ERROR_CANCELLED);
        fake_router_stop(&first);
        fake_router_stop(&second);
    }
}

static void test_router_lost_after_tokens(void **state)
{
    (void)state;
    struct fake_router *first = start_router(), *second = start_router();
    struct client *client = connect_to_both(first, second);
    struct reply reply;
    memset(&reply, 0, sizeof reply);
    struct client_call *call = ask(client, "half", 8000, &reply);
    wait_until(&reply.tokens, 3);
    fake_router_stop(&first);
    finish(call, &reply, WIRE_ERROR_WORKER_LOST);
    assert_int_equal(reply.tokens, 3);
    assert_int_equal(fake_router_counts(second)->requests, 0);
    client_destroy(&client);
    fake_router_stop(&second);
}

static void test_router_comes_back(void **state)
{
    (void)state;
    struct fake_router *router = start_router();
    struct client *client = connect_to(router, NULL);
    char endpoint[128];
    struct reply first, second;
    memset(&first, 0, sizeof first);
    memset(&second, 0, sizeof second);
    snprintf(endpoint, sizeof endpoint, "%s", fake_router_endpoint(router));
    finish(ask(client, "happy", 5000, &first), &first, WIRE_ERROR_UNKNOWN);
    fake_router_stop(&router);
    struct client_call *call = ask(client, "happy", 15000, &second);
    fake_router_start(&(struct fake_router_config){.on_request = script, .control_endpoint = endpoint}, &router);
    finish(call, &second, WIRE_ERROR_UNKNOWN); /* another session, another data port */
    assert_int_equal(second.tokens, 5);
    client_destroy(&client);
    fake_router_stop(&router);
}

static void test_draining_router_gets_nothing_new(void **state)
{
    (void)state;
    struct fake_router *first = start_router(), *second = start_router();
    struct client *client = connect_to_both(first, second);
    struct reply running, next;
    memset(&running, 0, sizeof running);
    memset(&next, 0, sizeof next);
    struct client_call *call = ask(client, "goaway", 5000, &running);
    finish(call, &running, WIRE_ERROR_UNKNOWN); /* what runs there ends there */
    unsigned before = fake_router_counts(first)->requests;
    finish(ask(client, "happy", 5000, &next), &next, WIRE_ERROR_UNKNOWN);
    assert_int_equal(fake_router_counts(first)->requests, before);
    assert_true(fake_router_counts(second)->requests >= 1);
    client_destroy(&client);
    fake_router_stop(&first);
    fake_router_stop(&second);
}

static void test_deadline(void **state)
{
    (void)state;
    struct fake_router *silent = start_router(), *mute;
    fake_router_start(&(struct fake_router_config){.mute = true}, &mute);
    const char *nobody[] = {"tcp://127.0.0.1:1"};
    struct client *clients[3] = {connect_to(silent, NULL), connect_to(mute, NULL), NULL};
    struct client_config config = {.routers = nobody, .router_count = 1};
    assert_int_equal(client_create(&config, &clients[2]), STATUS_OK);
    for (unsigned i = 0; i < 3; i++) {
        struct reply reply;
        memset(&reply, 0, sizeof reply);
        uint64_t start = clock_now_ms();
        finish(ask(clients[i], "silent", 400, &reply), &reply, WIRE_ERROR_DEADLINE);
        assert_in_range(reply.end_ms - start, 390, 1000);
    }
    wait_until(&fake_router_counts(silent)->cancels, 1); /* so that the work stops there too */
    for (unsigned i = 0; i < 3; i++)
        client_destroy(&clients[i]);
    fake_router_stop(&silent);
    fake_router_stop(&mute);
}

static void test_refused_connection_is_told(void **state)
{
    (void)state;
    struct fake_router *router;
    fake_router_start(&(struct fake_router_config){.refuse = "speak version 7"}, &router);
    struct client *client = connect_to(router, NULL);
    struct reply reply;
    memset(&reply, 0, sizeof reply);
    finish(ask(client, "happy", 1000, &reply), &reply, WIRE_ERROR_DEADLINE);
    assert_non_null(strstr(reply.detail, "speak version 7"));
    assert_in_range(fake_router_counts(router)->hellos_control, 2, 8); /* with a back-off */
    client_destroy(&client);
    fake_router_stop(&router);
}

static void answer_cancel(void *user, struct fake_router *router, const struct wire_cancel *cancel)
{
    struct fake_request *request = user;
    (void)cancel;
    fake_send_error(router, request, WIRE_ERROR_CANCELLED, 0);
}

static void remember(void *user, struct fake_router *router, const struct fake_request *request)
{
    *(struct fake_request *)user = *request;
    fake_send_tokens(router, request, 0, 3, "To be, ");
}

static void test_cancel(void **state)
{
    (void)state;
    struct fake_request last;
    struct fake_router *answering, *deaf = start_router();
    fake_router_start(&(struct fake_router_config){.on_request = remember, .on_cancel = answer_cancel, .user = &last},
                      &answering);
    struct client *client = connect_to(answering, NULL);
    struct reply reply;

    memset(&reply, 0, sizeof reply); /* the router confirms: its words come back */
    struct client_call *call = ask(client, "cancel", 20000, &reply);
    wait_until(&reply.tokens, 3);
    uint64_t start = clock_now_ms();
    client_cancel(call);
    client_cancel(call);
    finish(call, &reply, WIRE_ERROR_CANCELLED);
    assert_string_equal(reply.detail, "said so");
    assert_true(clock_now_ms() - start < 1000);
    assert_int_equal(fake_router_counts(answering)->cancels, 1);

    memset(&reply, 0, sizeof reply); /* from its own callback */
    reply.cancel_after = 1;
    finish(ask(client, "cancel", 20000, &reply), &reply, WIRE_ERROR_CANCELLED);
    client_destroy(&client);

    client = connect_to(deaf, NULL); /* nobody confirms: 2 s */
    memset(&reply, 0, sizeof reply);
    call = ask(client, "cancel", 20000, &reply);
    wait_until(&reply.tokens, 3);
    start = clock_now_ms();
    client_cancel(call);
    finish(call, &reply, WIRE_ERROR_CANCELLED);
    assert_in_range(clock_now_ms() - start, 1900, 3000);
    client_destroy(&client);
    fake_router_stop(&answering);
    fake_router_stop(&deaf);

    const char *nobody[] = {"tcp://127.0.0.1:1"}; /* before it was sent: at once */
    assert_int_equal(client_create(&(struct client_config){.routers = nobody, .router_count = 1}, &client), STATUS_OK);
    memset(&reply, 0, sizeof reply);
    call = ask(client, "cancel", 20000, &reply);
    client_cancel(call);
    finish(call, &reply, WIRE_ERROR_CANCELLED);

    memset(&reply, 0, sizeof reply); /* after its end: nothing happens */
    call = ask(client, "cancel", 100, &reply);
    assert_int_equal(client_wait(call, NULL), STATUS_OK);
    client_cancel(call);
    finish(call, &reply, WIRE_ERROR_DEADLINE);
    client_destroy(&client);
}

static void refuse(struct client *client, const struct client_request *request, enum status expected, const char *word)
{
    struct reply reply;
    struct client_call *call = NULL;
    memset(&reply, 0, sizeof reply);
    enum status st = client_generate(client, request, &callbacks, &reply, &call);
    if (st != expected || !strstr(status_detail(), word))
        fail_msg("%s (%s) instead of %s with '%s'", status_name(st), status_detail(), status_name(expected), word);
    assert_null(call);
    assert_int_equal(reply.ends, 0);
}

static void test_bad_input_is_refused(void **state)
{
    (void)state;
    struct fake_router *router;
    struct wire_limits limits = {.body_bytes_max = 4096, .messages_max = 10, .prompt_tokens_max = 100};
    fake_router_start(&(struct fake_router_config){.on_request = script, .limits = limits}, &router);
    struct client *client = connect_to(router, NULL);
    static char big[2 << 20];
    memset(big, 'a', sizeof big);
    struct client_message message = {WIRE_MESSAGE_USER, NULL, "hi", 2};
    struct client_message many[11];
    static uint32_t ids[101];
    struct client_request good = {.messages = &message, .message_count = 1}, bad;
    for (unsigned i = 0; i < 11; i++)
        many[i] = message;

    bad = good, bad.conversation = "a b";
    refuse(client, &bad, STATUS_INVALID, "conversation");
    bad = good, bad.model = "../etc";
    refuse(client, &bad, STATUS_INVALID, "model");
    bad = good, bad.message_count = 0;
    refuse(client, &bad, STATUS_INVALID, "exactly one");
    bad = good, bad.prompt_ids = ids, bad.prompt_id_count = 1;
    refuse(client, &bad, STATUS_INVALID, "exactly one");
    bad = good, bad.sampling.temperature = NAN;
    refuse(client, &bad, STATUS_INVALID, "temperature");
    bad = good, bad.sampling.top_p = 2;
    refuse(client, &bad, STATUS_INVALID, "top_p");
    bad = good, bad.sampling.choices = 17;
    refuse(client, &bad, STATUS_INVALID, "choices");
    bad = good, bad.priority = 101;
    refuse(client, &bad, STATUS_INVALID, "priority");
    bad = good, bad.deadline_ms = WIRE_DEADLINE_MS_MAX + 1;
    refuse(client, &bad, STATUS_INVALID, "deadline");
    bad = good, bad.reply_name = "\xff";
    refuse(client, &bad, STATUS_INVALID, "reply_name");
    bad = good, bad.message_count = WIRE_MESSAGES_MAX + 1; /* not even read */
    refuse(client, &bad, STATUS_LIMIT, "messages");
    message = (struct client_message){WIRE_MESSAGE_USER, NULL, "a\0b", 3};
    refuse(client, &good, STATUS_INVALID, "text");
    message = (struct client_message){WIRE_MESSAGE_USER, NULL, "\xed\xa0\x80", 3};
    refuse(client, &good, STATUS_INVALID, "text");
    message = (struct client_message){(enum wire_message_role)9, NULL, "x", 1};
    refuse(client, &good, STATUS_INVALID, "role");
    message = (struct client_message){WIRE_MESSAGE_USER, NULL, big, WIRE_BODY_BYTES_MAX};
    refuse(client, &good, STATUS_LIMIT, "bytes");
    message = (struct client_message){WIRE_MESSAGE_USER, NULL, big, sizeof big};
    refuse(client, &good, STATUS_LIMIT, "text");

    /* The limits of the router are known from its WELCOME on. */
    struct reply reply;
    memset(&reply, 0, sizeof reply);
    finish(ask(client, "happy", 5000, &reply), &reply, WIRE_ERROR_UNKNOWN);
    message = (struct client_message){WIRE_MESSAGE_USER, NULL, big, 4096};
    refuse(client, &good, STATUS_LIMIT, "body");
    bad = good, bad.messages = many, bad.message_count = 11;
    refuse(client, &bad, STATUS_LIMIT, "11 messages, the router takes 10");
    bad = (struct client_request){.prompt_ids = ids, .prompt_id_count = 101};
    refuse(client, &bad, STATUS_LIMIT, "101 prompt ids, the router takes 100");
    assert_int_equal(fake_router_counts(router)->requests, 1);
    assert_int_equal(fake_router_counts(router)->malformed, 0);
    client_destroy(&client);

    /* A request made before the WELCOME learns of them when it is sent. */
    client = connect_to(router, NULL);
    struct client_call *call = NULL;
    memset(&reply, 0, sizeof reply);
    enum status st = client_generate(client, &good, &callbacks, &reply, &call);
    if (st == STATUS_OK)
        finish(call, &reply, WIRE_ERROR_TOO_LARGE);
    client_destroy(&client);
    fake_router_stop(&router);

    const char *endpoints[] = {"tcp://127.0.0.1:7400", "gopher://x"};
    struct client *none = NULL;
    assert_int_equal(client_create(&(struct client_config){.routers = endpoints, .router_count = 0}, &none),
                     STATUS_INVALID);
    assert_int_equal(
        client_create(&(struct client_config){.routers = endpoints, .router_count = 1, .tenant = "a b"}, &none),
        STATUS_INVALID);
    assert_int_equal(client_create(&(struct client_config){.routers = endpoints, .router_count = 1, .name = ""}, &none),
                     STATUS_INVALID);
    assert_int_not_equal(client_create(&(struct client_config){.routers = endpoints, .router_count = 2}, &none),
                         STATUS_OK);
    assert_null(none);
}

/* Two bodies of 3 KB do not fit a grant of 4 KB: the second waits for the acknowledgement of the first. */
static void count_grant(void *user, struct fake_router *router, const struct fake_request *request)
{
    atomic_uint *most = user;
    unsigned open = fake_router_counts(router)->requests - most[1];
    if (open > most[0])
        most[0] = open;
    (void)request;
    fake_later(router, 30, say_all, request);
    most[1]++; /* its acknowledgement is under way only in 30 ms, but only this thread counts */
}

static void test_grant_and_stream_limits(void **state)
{
    (void)state;
    atomic_uint most[2] = {0, 0};
    struct fake_router *router;
    struct wire_limits limits = {.unacknowledged_bytes_max = 4096, .streams_max = 100};
    fake_router_start(&(struct fake_router_config){.on_request = count_grant, .limits = limits, .user = most}, &router);
    struct client *client = connect_to(router, NULL);
    char text[3000];
    memset(text, 'a', sizeof text);
    struct client_message message = {WIRE_MESSAGE_USER, NULL, text, sizeof text};
    struct client_request request = {
        .messages = &message, .message_count = 1, .deadline_ms = 10000, .conversation = "grant"};
    struct reply replies[6];
    struct client_call *calls[6];
    memset(replies, 0, sizeof replies);
    uint64_t start = clock_now_ms();
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(client_generate(client, &request, &callbacks, &replies[i], &calls[i]), STATUS_OK);
    for (unsigned i = 0; i < 6; i++)
        finish(calls[i], &replies[i], WIRE_ERROR_UNKNOWN);
    assert_true(clock_now_ms() - start >= 6 * 29); /* one after the other */
    client_destroy(&client);
    fake_router_stop(&router);

    limits = (struct wire_limits){.streams_max = 2};
    fake_router_start(&(struct fake_router_config){.on_request = script, .limits = limits}, &router);
    client = connect_to(router, NULL);
    memset(replies, 0, sizeof replies);
    for (unsigned i = 0; i < 5; i++)
        calls[i] = ask(client, "silent", i == 0 ? 700 : 5000, &replies[i]);
    wait_until(&fake_router_counts(router)->requests, 2);
    struct timespec pause = {0, 200000000};
    nanosleep(&pause, NULL);
    assert_int_equal(fake_router_counts(router)->requests, 2);
    wait_until(&fake_router_counts(router)->requests, 3); /* the first has ended */
    client_destroy(&client);
    finish(calls[0], &replies[0], WIRE_ERROR_DEADLINE);
    for (unsigned i = 1; i < 5; i++)
        finish(calls[i], &replies[i], WIRE_ERROR_CANCELLED);
    fake_router_stop(&router);
}

/* Tokens say that the request was accepted: a body whose ACK does not come holds nothing up. */
static void test_tokens_acknowledge(void **state)
{
    (void)state;
    struct fake_router *router;
    fake_router_start(&(struct fake_router_config){.on_request = script, .limits = {.unacknowledged_bytes_max = 1}},
                      &router);
    struct client *client = connect_to(router, NULL);
    struct reply half, happy;
    memset(&half, 0, sizeof half);
    memset(&happy, 0, sizeof happy);
    struct client_call *call = ask(client, "half", 20000, &half);
    wait_until(&half.tokens, 3);
    finish(ask(client, "happy", 5000, &happy), &happy, WIRE_ERROR_UNKNOWN);
    client_destroy(&client);
    finish(call, &half, WIRE_ERROR_CANCELLED);
    fake_router_stop(&router);
}

static void test_destroy_with_open_calls(void **state)
{
    (void)state;
    struct fake_router *router = start_router();
    struct client *client = connect_to(router, NULL);
    struct reply replies[6];
    struct client_call *calls[6];
    const char *names[6] = {"half", "silent", "half", "slow", "silent", "half"};
    memset(replies, 0, sizeof replies);
    for (unsigned i = 0; i < 5; i++)
        calls[i] = ask(client, names[i], 20000, &replies[i]);
    wait_until(&fake_router_counts(router)->requests, 5);
    calls[5] = ask(client, names[5], 20000, &replies[5]); /* perhaps not sent yet */
    client_call_release(&calls[1]);                       /* nobody waits for it: on_end still comes */
    client_cancel(calls[2]);
    uint64_t start = clock_now_ms();
    client_destroy(&client);
    assert_true(clock_now_ms() - start < 1000);
    for (unsigned i = 0; i < 6; i++) {
        assert_int_equal(replies[i].ends, 1);
        assert_int_equal(replies[i].end.error, WIRE_ERROR_CANCELLED);
        if (calls[i])
            finish(calls[i], &replies[i], WIRE_ERROR_CANCELLED);
    }
    wait_until(&fake_router_counts(router)->cancels, 5); /* and the work stops */
    wait_until(&fake_router_counts(router)->goodbyes, 1);
    assert_int_equal(fake_router_counts(router)->malformed, 0);
    fake_router_stop(&router);
}

static void generate_in_on_end(void *user, struct client_call *call, const struct client_end *end)
{
    struct reply *reply = user;
    struct client_call *again = NULL;
    struct client_message message = {WIRE_MESSAGE_USER, NULL, "hi", 2};
    struct client_request request = {
        .conversation = "happy", .messages = &message, .message_count = 1, .deadline_ms = 10000};
    struct client_callbacks next = {.on_tokens = on_tokens, .on_end = generate_in_on_end};
    (void)call;
    (void)end;
    if (client_generate(reply->client, &request, &next, reply, &again) == STATUS_OK) {
        atomic_fetch_add(&reply->accepted, 1);
        client_call_release(&again);
    }
    atomic_store(&reply->tokens, 0);
    atomic_fetch_add(&reply->ends, 1);
}

/* Calls chained from callbacks, from several threads, and a destroy in the middle: each accepted call ends once. */
static void *hammer(void *user)
{
    struct client *client = user;
    for (unsigned i = 0; i < 100; i++) {
        struct reply reply;
        memset(&reply, 0, sizeof reply);
        struct client_call *call = ask(client, i % 3 ? "happy" : "silent", 20000, &reply);
        if (i % 3 == 0)
            client_cancel(call);
        finish(call, &reply, i % 3 ? WIRE_ERROR_UNKNOWN : WIRE_ERROR_CANCELLED);
    }
    return NULL;
}

static void on_cancel_silent(void *user, struct fake_router *router, const struct wire_cancel *cancel)
{
    (void)user;
    (void)router;
    (void)cancel;
}

static void cancel_at_once(void *user, struct fake_router *router, const struct fake_request *request)
{
    if (strcmp(request->conversation, "silent") == 0)
        fake_send_error(router, request, WIRE_ERROR_CANCELLED, 0);
    else
        script(user, router, request);
}

static void test_threads_and_chains(void **state)
{
    (void)state;
    struct fake_router *router;
    fake_router_start(&(struct fake_router_config){.on_request = cancel_at_once, .on_cancel = on_cancel_silent},
                      &router);
    struct client *client = connect_to(router, NULL);
    pthread_t threads[3];
    struct reply chain;
    memset(&chain, 0, sizeof chain);
    chain.client = client;
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, hammer, client), 0);
    struct client_call *call = NULL;
    struct client_message message = {WIRE_MESSAGE_USER, NULL, "hi", 2};
    struct client_request request = {
        .conversation = "short-lived", .messages = &message, .message_count = 1, .deadline_ms = 200};
    struct client_callbacks next = {.on_end = generate_in_on_end};
    assert_int_equal(client_generate(client, &request, &next, &chain, &call), STATUS_OK);
    client_call_release(&call);
    for (unsigned i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    client_destroy(&client); /* the chain is open: its on_end asks for another one, which is refused */
    assert_true(chain.ends >= 1);
    assert_int_equal(chain.ends, chain.accepted + 1);
    fake_router_stop(&router);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_happy_path),
        cmocka_unit_test(test_sequence),
        cmocka_unit_test(test_over_capacity),
        cmocka_unit_test(test_router_lost_before_tokens),
        cmocka_unit_test(test_silent_router_is_lost),
        cmocka_unit_test(test_leases_without_answer),
        cmocka_unit_test(test_one_connection_lost),
        cmocka_unit_test(test_router_lost_after_tokens),
        cmocka_unit_test(test_router_comes_back),
        cmocka_unit_test(test_draining_router_gets_nothing_new),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_refused_connection_is_told),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_bad_input_is_refused),
        cmocka_unit_test(test_grant_and_stream_limits),
        cmocka_unit_test(test_tokens_acknowledge),
        cmocka_unit_test(test_destroy_with_open_calls),
        cmocka_unit_test(test_threads_and_chains),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
