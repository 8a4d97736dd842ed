/* client_test.c - the client library against fake routers: what it promises to applications, whatever a router does. */
#include <math.h>
#include <pthread.h>
#include <string.h>
#include <time.h>
#include "client_script.h"
#include "common/clock.h"
#include "tests/unit/unit.h"

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
        {"resend-late", WIRE_ERROR_WORKER_LOST, 3, "cannot continue"},
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
        assert_in_range(reply.end_ms - start, 390, 5000);
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
    assert_true(clock_now_ms() - start < 1900); /* not the 2 s for which a confirmation is waited */
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
    assert_in_range(clock_now_ms() - start, 1900, 9000);
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
    assert_true(clock_now_ms() - start < 5000); /* not their deadlines */
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
    struct client_callbacks next = {.on_tokens = callbacks.on_tokens, .on_end = generate_in_on_end};
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
