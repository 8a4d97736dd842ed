/* client_events_test - the queue of events: what a binding reads out of it is what callbacks would have said. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <poll.h>
#include <string.h>
#include "fake_router.h"
#include "proto/client_events.h"

#define CALLS 200u

static void on_request(void *user, struct fake_router *router, const struct fake_request *request)
{
    (void)user;
    if (strcmp(request->conversation, "fails") == 0) {
        fake_send_error(router, request, WIRE_ERROR_OVER_CAPACITY, 77);
        return;
    }
    if (strcmp(request->conversation, "columns") == 0) {
        uint32_t ids[3] = {4, 5, 6}, others[6] = {4, 9, 5, 9, 6, 9};
        float values[3] = {-1, -2, -3}, other_values[6] = {-1, -4, -2, -5, -3, -6};
        struct wire_tokens_row row = {.count = 3,
                                      .ids = wire_span_of(ids, sizeof ids),
                                      .logprobs = wire_span_of(values, sizeof values),
                                      .alternatives = 2,
                                      .alternative_ids = wire_span_of(others, sizeof others),
                                      .alternative_logprobs = wire_span_of(other_values, sizeof other_values)};
        row.choice = WIRE_CHOICE_PROMPT;
        fake_send_row(router, request, row);
        row.choice = 1;
        row.text = wire_span_str("abcde");
        fake_send_row(router, request, row);
        fake_send_done_of(router, request, wire_span_of("\1\3", 2), 3);
        return;
    }
    for (unsigned i = 0; i < 10; i++)
        fake_send_tokens(router, request, i, 1, "x");
    fake_send_done(router, request, 10);
}

struct fixture {
    struct fake_router *router;
    struct client *client;
    struct client_events *events;
};

static int set_up(void **state)
{
    static struct fixture f;
    fake_router_start(&(struct fake_router_config){.on_request = on_request}, &f.router);
    const char *endpoint = fake_router_endpoint(f.router);
    assert_int_equal(client_create(&(struct client_config){.routers = &endpoint, .router_count = 1}, &f.client),
                     STATUS_OK);
    assert_int_equal(client_events_create(&f.events), STATUS_OK);
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    client_destroy(&f->client);
    client_events_destroy(&f->events);
    client_events_destroy(&f->events);
    fake_router_stop(&f->router);
    return 0;
}

static bool readable(const struct fixture *f, int timeout_ms)
{
    struct pollfd watch = {.fd = client_events_fd(f->events), .events = POLLIN};
    return poll(&watch, 1, timeout_ms) == 1;
}

static struct client_call *ask(struct fixture *f, const char *conversation, uint64_t tag)
{
    static const struct client_message message = {WIRE_MESSAGE_USER, NULL, "To be?", 6};
    struct client_call *call;
    struct client_request request = {.conversation = conversation, .messages = &message, .message_count = 1};
    if (strcmp(conversation, "columns") == 0) {
        request.sampling.choices = 2;
        request.sampling.logprobs = 2;
        request.sampling.prompt_logprobs = true;
    }
    assert_int_equal(client_events_generate(f->client, &request, f->events, tag, &call), STATUS_OK);
    return call;
}

/* The next record; waits for it. */
static const struct client_event *next(const struct fixture *f, const uint8_t **at, size_t *left)
{
    if (*left == 0) {
        const void *data;
        assert_true(readable(f, 5000));
        client_events_take(f->events, &data, left);
        *at = data;
        assert_true(*left > 0);
    }
    const struct client_event *event = (const struct client_event *)(const void *)*at;
    assert_int_equal((uintptr_t)*at % 8, 0);
    assert_true(event->size <= *left && event->size % 8 == 0);
    *at += event->size;
    *left -= event->size;
    return event;
}

static void records_of_many_calls(void **state)
{
    struct fixture *f = *state;
    uint32_t tokens[CALLS] = {0};
    bool ended[CALLS] = {false};
    const uint8_t *at = NULL;
    size_t left = 0;
    assert_false(readable(f, 0));
    for (unsigned i = 0; i < CALLS; i++) {
        struct client_call *call = ask(f, "many", i);
        client_call_release(&call); /* the events still come */
    }
    for (unsigned open = CALLS; open > 0;) {
        const struct client_event *event = next(f, &at, &left);
        assert_true(event->tag < CALLS);
        assert_false(ended[event->tag]);
        if (event->kind == CLIENT_EVENT_TOKENS) {
            assert_int_equal(event->first, tokens[event->tag]);
            assert_int_equal(event->count, 1);
            uint32_t id;
            memcpy(&id, event + 1, 4);
            assert_int_equal(id, event->first);
            assert_int_equal(event->text_bytes, 1);
            tokens[event->tag]++;
        } else {
            assert_int_equal(event->kind, CLIENT_EVENT_END);
            assert_int_equal(tokens[event->tag], 10);
            ended[event->tag] = true;
            open--;
        }
    }
    assert_int_equal(left, 0);
    assert_false(readable(f, 50)); /* all was taken */
    const void *data;
    client_events_take(f->events, &data, &left);
    assert_int_equal(left, 0);
}

static void all_columns(void **state)
{
    struct fixture *f = *state;
    const uint8_t *at = NULL;
    size_t left = 0;
    const uint32_t ids[3] = {4, 5, 6}, others[6] = {4, 9, 5, 9, 6, 9};
    const float values[3] = {-1, -2, -3}, other_values[6] = {-1, -4, -2, -5, -3, -6};
    struct client_call *call = ask(f, "columns", UINT64_MAX);
    for (unsigned i = 0; i < 2; i++) {
        const struct client_event *event = next(f, &at, &left);
        const uint8_t *column = (const uint8_t *)(event + 1);
        assert_int_equal(event->kind, i == 0 ? CLIENT_EVENT_PROMPT : CLIENT_EVENT_TOKENS);
        assert_int_equal(event->choice, i);
        assert_true(event->tag == UINT64_MAX);
        assert_int_equal(event->count, 3);
        assert_int_equal(event->alternatives, 2);
        assert_true(event->has_logprobs);
        assert_memory_equal(column, ids, sizeof ids);
        assert_memory_equal(column + 12, values, sizeof values);
        assert_memory_equal(column + 24, others, sizeof others);
        assert_memory_equal(column + 48, other_values, sizeof other_values);
        assert_int_equal(event->text_bytes, i == 0 ? 0 : 5);
        assert_memory_equal(column + 72, "abcde", event->text_bytes);
    }
    const struct client_event *event = next(f, &at, &left);
    struct client_event_end end;
    memcpy(&end, event + 1, sizeof end);
    assert_int_equal(event->kind, CLIENT_EVENT_END);
    assert_int_equal(end.error, WIRE_ERROR_INTERNAL); /* the fake's prompt has 11 tokens, and it sent 3 */
    assert_memory_equal((const uint8_t *)(event + 1) + sizeof end, "the prompt has 11", 17);
    client_call_release(&call);
}

static void ends(void **state)
{
    struct fixture *f = *state;
    const uint8_t *at = NULL;
    size_t left = 0;
    struct client_event_end end;
    struct client_call *call = ask(f, "fails", 5);
    const struct client_event *event = next(f, &at, &left);
    memcpy(&end, event + 1, sizeof end);
    assert_int_equal(event->kind, CLIENT_EVENT_END);
    assert_int_equal(event->count, 0);
    assert_int_equal(end.error, WIRE_ERROR_OVER_CAPACITY);
    assert_int_equal(end.retry_after_ms, 77);
    assert_int_equal(end.detail_bytes, 7);
    assert_memory_equal((const uint8_t *)(event + 1) + sizeof end, "said so", 7);
    client_call_release(&call);

    call = ask(f, "well", 6);
    do
        event = next(f, &at, &left);
    while (event->kind == CLIENT_EVENT_TOKENS);
    memcpy(&end, event + 1, sizeof end);
    assert_int_equal(end.error, 0);
    assert_int_equal(event->count, 1);
    assert_int_equal(end.finishes[0], WIRE_FINISH_LENGTH);
    assert_int_equal(end.prompt_tokens, 11);
    assert_int_equal(end.cached_tokens, 7);
    assert_int_equal(end.reply_tokens, 10);
    assert_int_equal(end.dropped_messages, 2);
    assert_int_equal(end.queue_us + 10 * end.prefill_us + 100 * end.decode_us + 1000 * end.route_us, 4321);
    assert_int_equal(end.detail_bytes, 0);
    assert_memory_equal((const uint8_t *)(event + 1) + sizeof end, "worker-9owner", 13);
    client_call_release(&call);
}

/* What client_destroy ends can still be taken. */
static void the_last_records(void **state)
{
    struct fixture *f = *state;
    const uint8_t *at = NULL;
    size_t left = 0;
    fake_router_freeze(f->router);
    struct client_call *call = ask(f, "silent", 9);
    client_destroy(&f->client);
    const struct client_event *event = next(f, &at, &left);
    assert_int_equal(event->kind, CLIENT_EVENT_END);
    assert_int_equal(event->tag, 9);
    assert_false(readable(f, 0));
    client_call_release(&call);
}

static void a_refused_request_leaves_nothing(void **state)
{
    struct fixture *f = *state;
    struct client_call *call = NULL;
    assert_int_equal(client_events_generate(f->client, &(struct client_request){0}, f->events, 1, &call),
                     STATUS_INVALID);
    assert_null(call);
    assert_false(readable(f, 50));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(records_of_many_calls, set_up, tear_down),
        cmocka_unit_test_setup_teardown(all_columns, set_up, tear_down),
        cmocka_unit_test_setup_teardown(ends, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_last_records, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_refused_request_leaves_nothing, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
