/* server_frames_test - frames and bodies that break a rule: answered, at a bounded rate, and the connection stays. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "fake_engine.h"
#include "fake_router.h"
#include "server_fixture.h"

/* ---- malformed frames ---- */

static void malformed_frames_are_answered_and_the_connection_stays(void **state)
{
    (void)state;
    static const struct {
        int link;
        const char *bytes;
        size_t size;
        enum wire_error_code code;
    } cases[] = {
        {CONTROL, "", 0, WIRE_ERROR_INVALID},
        {DATA, "", 0, WIRE_ERROR_INVALID},
        {CONTROL, "R", 1, WIRE_ERROR_INVALID},
        {DATA, "GET / HTTP/1.1\r\n\r\n", 18, WIRE_ERROR_INVALID},
        {CONTROL, "R\x02\x01\x00", 4, WIRE_ERROR_UNSUPPORTED},
        {CONTROL, "R\x01\x7f\x00", 4, WIRE_ERROR_UNSUPPORTED},
        {CONTROL, "R\x01\x01\x00", 4, WIRE_ERROR_INVALID},                  /* HELLO without anything */
        {DATA, "R\x01\x03\x00\xff\xff\xff\xff\xff", 9, WIRE_ERROR_INVALID}, /* LEASE with a broken varint */
        {DATA, "R\x01\x04\x00", 4, WIRE_ERROR_INVALID},                     /* HEAD without a body frame */
        {CONTROL, "R\x01\x04\x00", 4, WIRE_ERROR_INVALID},
        {DATA, "R\x01\x06\x00", 4, WIRE_ERROR_INVALID},    /* TOKENS are ours to send */
        {DATA, "R\x01\x0d\x00", 4, WIRE_ERROR_INVALID},    /* CANCEL goes on control */
        {CONTROL, "R\x01\x02\x00", 4, WIRE_ERROR_INVALID}, /* WELCOME */
    };
    start();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        router_send_raw(&router, cases[i].link, cases[i].bytes, cases[i].size);
        expect_connection_error(&router, cases[i].link, cases[i].code, "");
    }
    works(&router, 1);
    stop();
}

static void wrong_frame_counts_are_answered(void **state)
{
    (void)state;
    struct wire_message head, body;
    struct wire_chat_message chat;
    uint8_t request_id[16], *data;
    start();
    ask_messages(&(struct ask){.id = 1, .stream = 1}, &router, &head, &body, &chat, request_id);
    size_t size = encode(&head, &data);
    zmq_send(router.sockets[DATA], data, size, ZMQ_SNDMORE);
    zmq_send(router.sockets[DATA], data, size, ZMQ_SNDMORE);
    zmq_send(router.sockets[DATA], data, size, 0);
    expect_connection_error(&router, DATA, WIRE_ERROR_INVALID, "3 frames");
    zmq_send(router.sockets[CONTROL], data, size, ZMQ_SNDMORE);
    zmq_send(router.sockets[CONTROL], data, size, 0);
    expect_connection_error(&router, CONTROL, WIRE_ERROR_INVALID, "control");
    free(data);
    /* Over CHANNEL_FRAMES_MAX: dropped without a word. */
    for (int i = 0; i < 1000; i++)
        zmq_send(router.sockets[DATA], "x", 1, ZMQ_SNDMORE);
    zmq_send(router.sockets[DATA], "x", 1, 0);
    works(&router, 2);
    stop();
}

static void an_error_is_never_answered_with_an_error(void **state)
{
    (void)state;
    struct incoming in;
    struct wire_message error = {.kind = WIRE_ERROR};
    start();
    error.error.code = WIRE_ERROR_INVALID;
    router_send(&router, CONTROL, &error);
    router_send(&router, DATA, &error);
    works(&router, 1);
    expect_ack(&router, 1001);
    assert_false(router_try(&router, CONTROL, 50, &in));
    stop();
}

static void answers_to_malformed_frames_are_rate_limited(void **state)
{
    (void)state;
    unsigned answers = 0;
    struct incoming in;
    start();
    for (unsigned i = 0; i < 500; i++)
        router_send_raw(&router, CONTROL, "junk", 4);
    router_connect(&other, &bench, 2);
    router_hello(&other);
    for (; router_try(&router, CONTROL, 200, &in); answers++)
        incoming_free(&in);
    assert_true(answers >= 1 && answers <= 20);  /* two windows at most */
    router_send_raw(&other, CONTROL, "junk", 4); /* another connection has its own share */
    expect_connection_error(&other, CONTROL, WIRE_ERROR_INVALID, "");
    works(&router, 1);
    stop_two();
}

static void truncated_frames_never_hurt(void **state)
{
    (void)state;
    struct wire_message cancel = {.kind = WIRE_CANCEL};
    uint8_t id[16] = {1}, *data;
    start();
    cancel.cancel = (struct wire_cancel){.request_id = wire_span_of(id, 16),
                                         .tenant = wire_span_str("acme"),
                                         .session = wire_span_of(router.session, 16)};
    size_t size = encode(&cancel, &data);
    for (size_t cut = 0; cut < size; cut++) {
        router_send_raw(&router, CONTROL, data, cut);
        router_send_raw(&router, DATA, data, cut);
    }
    free(data);
    works(&router, 2);
    stop();
}

/* ---- bodies ---- */

static void each_truncated_body_ends_in_one_error(void **state)
{
    (void)state;
    struct wire_message head, body;
    struct wire_chat_message chat;
    uint8_t request_id[16], *data;
    start();
    struct ask ask = {.stream = 1, .sampling = {.tokens_max = 1, .temperature = 0.5f}};
    ask_messages(&ask, &router, &head, &body, &chat, request_id);
    size_t size = encode(&body, &data);
    unsigned errors = 0;
    for (size_t cut = 0; cut <= size; cut++) {
        struct reply reply = {0};
        ask.id = (uint8_t)(1 + cut);
        ask.stream = (uint32_t)(1 + cut);
        struct wire_message cut_head, unused;
        ask_messages(&ask, &router, &cut_head, &unused, &chat, request_id);
        router_ask_raw(&router, &cut_head, data, cut);
        router_collect(&router, ask.stream, first_attempt, &reply);
        if (!reply.done) {
            assert_int_equal(reply.error, WIRE_ERROR_INVALID);
            assert_non_null(strstr(reply.detail, "body"));
            errors++;
        }
        reply_free(&reply);
    }
    /* Whole: done. Cut between fields: a shorter message, which may be valid. */
    assert_true(errors >= size - 4);
    free(data);
    stop();
}

static void bodies_that_break_a_rule(void **state)
{
    (void)state;
    struct wire_message head, body;
    struct wire_chat_message chat;
    uint8_t request_id[16], *data;
    start();
    ask_messages(&(struct ask){.id = 1, .stream = 1}, &router, &head, &body, &chat, request_id);
    size_t size = encode(&body, &data);
    head.head.body_bytes = (uint32_t)size + 1;
    router_ask_raw(&router, &head, data, size);
    expect_error(&router, 1, WIRE_ERROR_INVALID, "bytes of body");
    head.head.body_bytes = 0;
    uint8_t *head_data;
    size_t head_size = encode(&head, &head_data);
    router_ask_raw(&router, &head, head_data, head_size);
    expect_error(&router, 1, WIRE_ERROR_INVALID, "second frame");
    free(head_data);
    free(data);
    size_t big = (1u << 20) + 64;
    data = calloc(1, big);
    memcpy(data, "R\x01\x05", 4);
    router_ask_raw(&router, &head, data, big);
    expect_error(&router, 1, WIRE_ERROR_TOO_LARGE, "body");
    free(data);
    chat.text = wire_span_str("\xff\xfe");
    size = encode(&body, &data);
    router_ask_raw(&router, &head, data, size);
    expect_error(&router, 1, WIRE_ERROR_INVALID, "UTF-8");
    free(data);
    works(&router, 2);
    stop();
}

static void a_body_with_history_is_unsupported(void **state)
{
    (void)state;
    struct wire_message head, body;
    struct wire_chat_message chat;
    uint8_t request_id[16], digest[32] = {0}, *data;
    start();
    ask_messages(&(struct ask){.id = 1, .stream = 1}, &router, &head, &body, &chat, request_id);
    body.body.history = wire_span_of(digest, 32);
    size_t size = encode(&body, &data);
    router_ask_raw(&router, &head, data, size);
    free(data);
    expect_error(&router, 1, WIRE_ERROR_UNSUPPORTED, "history");
    works(&router, 200);
    stop();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(malformed_frames_are_answered_and_the_connection_stays, server_setup),
        cmocka_unit_test_setup(wrong_frame_counts_are_answered, server_setup),
        cmocka_unit_test_setup(an_error_is_never_answered_with_an_error, server_setup),
        cmocka_unit_test_setup(answers_to_malformed_frames_are_rate_limited, server_setup),
        cmocka_unit_test_setup(truncated_frames_never_hurt, server_setup),
        cmocka_unit_test_setup(each_truncated_body_ends_in_one_error, server_setup),
        cmocka_unit_test_setup(bodies_that_break_a_rule, server_setup),
        cmocka_unit_test_setup(a_body_with_history_is_unsupported, server_setup),
    };
    return server_run(tests, sizeof tests / sizeof *tests);
}
