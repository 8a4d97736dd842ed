/* server_fixture.c - see the header. */
#include "server_fixture.h"
#include <string.h>
#include "fake_engine.h"
#include "tests/unit/unit.h"

struct bench bench;
struct router router, other;
const struct wire_attempt first_attempt = {0, 0};

int server_setup(void **state)
{
    (void)state;
    fake_engine_reset();
    bench_setup(&bench);
    return 0;
}

int server_run(const struct CMUnitTest *tests, size_t count)
{
    return unit_begin() ? _cmocka_run_group_tests("server", tests, count, NULL, NULL) : 1;
}

void start(void)
{
    assert_int_equal(bench_start(&bench), STATUS_OK);
    assert_int_equal(bench_wait_state(&bench, WIRE_LIFE_READY, NULL), WIRE_LIFE_READY);
    router_connect(&router, &bench, 1);
    router_hello(&router);
}

void start_two(void)
{
    start_with(0);
}

void start_with(uint32_t capabilities)
{
    assert_int_equal(bench_start(&bench), STATUS_OK);
    assert_int_equal(bench_wait_state(&bench, WIRE_LIFE_READY, NULL), WIRE_LIFE_READY);
    router_connect(&router, &bench, 1);
    router_connect(&other, &bench, 2);
    router.capabilities = other.capabilities = capabilities;
    router_hello(&router);
    router_hello(&other);
}

void stop(void)
{
    fake_engine_stuck(false);
    fake_engine_stuck_at_start(false);
    fake_engine_permit(FAKE_PERMITS_ALL);
    router_close(&router);
    bench_stop(&bench);
}

void stop_two(void)
{
    router_close(&other);
    stop();
}

void expect_ack(struct router *from, uint32_t stream)
{
    struct incoming in;
    router_expect(from, CONTROL, WIRE_ACK, &in);
    assert_int_equal(in.message.stream_ref.stream, stream);
    incoming_free(&in);
}

void works(struct router *from, uint8_t id)
{
    struct reply reply = {0};
    router_ask(from, &(struct ask){.id = id, .stream = 1000u + id, .sampling = {.tokens_max = 3}});
    router_collect(from, 1000u + id, first_attempt, &reply);
    if (!reply.done)
        fail_msg("%s: %s", wire_error_name(reply.error), reply.detail);
    assert_int_equal(reply.count, 3);
    reply_free(&reply);
}

static struct reply error_of(struct router *from, uint32_t stream, enum wire_error_code code, const char *word)
{
    struct reply reply = {0};
    router_collect(from, stream, first_attempt, &reply);
    if (reply.done || reply.error != code || !strstr(reply.detail, word))
        fail_msg("not '%s' with '%s', but '%s': %s", wire_error_name(code), word,
                 reply.done ? "done" : wire_error_name(reply.error), reply.detail);
    return reply;
}

void expect_error(struct router *from, uint32_t stream, enum wire_error_code code, const char *word)
{
    struct reply reply = error_of(from, stream, code, word);
    reply_free(&reply);
}

void expect_error_after(struct router *from, uint32_t stream, enum wire_error_code code, const char *word,
                        uint32_t retry_after_ms)
{
    struct reply reply = error_of(from, stream, code, word);
    assert_int_equal(reply.retry_after_ms, retry_after_ms);
    reply_free(&reply);
}

void expect_connection_error(struct router *from, int link, enum wire_error_code code, const char *word)
{
    struct incoming in;
    router_expect(from, link, WIRE_ERROR, &in);
    assert_int_equal(in.message.error.request_id.size, 0);
    char detail[600];
    snprintf(detail, sizeof detail, "%.*s", (int)in.message.error.detail.size,
             (const char *)in.message.error.detail.data);
    if (in.message.error.code != code || !strstr(detail, word))
        fail_msg("not '%s' with '%s', but '%s': %s", wire_error_name(code), word,
                 wire_error_name(in.message.error.code), detail);
    incoming_free(&in);
}

struct attach_answer attach(struct router *from, uint8_t id, const char *tenant)
{
    uint8_t request_id[16];
    struct incoming in;
    struct attach_answer answer = {.known = false};
    struct wire_message message = {.kind = WIRE_ATTACH};
    memset(request_id, id, sizeof request_id);
    message.attach = (struct wire_attach){.request_id = wire_span_of(request_id, 16),
                                          .tenant = wire_span_str(tenant),
                                          .session = wire_span_of(from->session, 16)};
    router_send(from, CONTROL, &message);
    for (router_receive(from, CONTROL, true, &in); in.message.kind != WIRE_ATTACH_REPLY;
         router_receive(from, CONTROL, true, &in))
        incoming_free(&in); /* acknowledgements and the like */
    const struct wire_attach_reply *reply = &in.message.attach_reply;
    assert_true(wire_span_equal(reply->request_id, wire_span_of(request_id, 16)));
    assert_true(wire_span_equal(reply->tenant, wire_span_str(tenant)));
    answer.known = reply->known;
    answer.running = reply->running;
    answer.choices = (unsigned)(reply->released.size / 4);
    for (unsigned i = 0; i < answer.choices; i++)
        answer.released[i] = wire_u32_at(reply->released, i);
    incoming_free(&in);
    return answer;
}

void control_is_read(struct router *from)
{
    uint8_t request_id[16] = {5};
    struct incoming in;
    struct wire_message message = {.kind = WIRE_ATTACH};
    message.attach = (struct wire_attach){.request_id = wire_span_of(request_id, 16),
                                          .tenant = wire_span_str("nobody"),
                                          .session = wire_span_of(from->session, 16)};
    router_send(from, CONTROL, &message);
    router_receive(from, CONTROL, true, &in);
    while (in.message.kind == WIRE_ACK || in.message.kind == WIRE_SUPERSEDED) {
        incoming_free(&in);
        router_receive(from, CONTROL, true, &in);
    }
    assert_int_equal(in.message.kind, WIRE_ATTACH_REPLY);
    assert_false(in.message.attach_reply.known);
    incoming_free(&in);
}

void check_tokens(const struct reply *reply, uint32_t first, uint32_t count)
{
    assert_int_equal(reply->count, count);
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(reply->ids[i], fake_engine_token(SERVER_PROMPT_TOKENS, first + i));
}
