/* router_test.c - the real router on the test's loop, with fake workers and fake clients on real sockets. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zmq.h>
#include "common/clock.h"
#include "common/hash.h"
#include "common/loop.h"
#include "router_bench.h"
#include "spin.h"
#include "tests/unit/unit.h"

/* ---- happy path ---- */

static void happy_path(void **state)
{
    (void)state;
    struct bench *bench = bench_start(2, NULL);
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, "chat-1");
    struct fake_worker *worker = ask_first(bench, &ask);
    struct fake_request *request = fake_worker_request(worker, 0);
    assert_memory_equal(request->id, ask.id, WIRE_ID_BYTES);
    assert_memory_equal(request->incarnation, worker->incarnation, WIRE_ID_BYTES);
    assert_memory_not_equal(request->session, client->session, WIRE_ID_BYTES);
    assert_string_equal(request->conversation, "chat-1");
    assert_string_equal(request->tenant, "default");
    assert_int_equal(request->body_size, 200);
    assert_int_equal(request->body_bytes, 200);
    assert_int_equal(request->body_last, 1);
    assert_int_equal(request->attempt.client, 1);
    assert_true(request->deadline_ms <= 20000 && request->deadline_ms > 19000);
    assert_true(request->epoch > 0);
    struct fake_stream *stream = &client->streams[1];
    assert_int_equal(stream->acks, 0); /* sent is not accepted */
    let(bench, 250);
    assert_int_equal(client->acknowledged_bytes, 0);

    fake_worker_ack(worker, request);
    SPIN_UNTIL(bench->loop, 2000, stream->acks == 1);
    fake_worker_tokens(worker, request, 0, 3);
    fake_worker_tokens(worker, request, 3, 4);
    SPIN_UNTIL(bench->loop, 2000, stream->tokens == 7);
    fake_worker_done(worker, request, 7);
    SPIN_UNTIL(bench->loop, 2000, stream->dones == 1);
    assert_false(stream->gap);
    assert_string_equal(stream->route, "new");
    assert_string_equal(stream->worker, worker->name);
    assert_int_equal(stream->attempt.client, 1);
    assert_int_equal(router_in_flight(bench->router), 0);
    SPIN_UNTIL(bench->loop, 2000, client->acknowledged_bytes == 200);

    /* the next turns go home, and name the cache that the worker told */
    for (uint32_t turn = 2; turn < 12; turn++) {
        worker->auto_tokens = 5;
        struct fake_ask next = ask_of(turn, "chat-1");
        fake_client_ask(client, &next);
        SPIN_UNTIL(bench->loop, 2000, client->streams[turn].dones == 1);
        assert_string_equal(client->streams[turn].route, "owner");
        assert_string_equal(client->streams[turn].worker, worker->name);
        assert_int_equal(client->streams[turn].tokens, 5);
    }
    assert_true(worker->requests[1].has_cache_id);
    assert_memory_equal(worker->requests[1].cache_id, worker->cache_id, WIRE_ID_BYTES);
    assert_true(worker->requests[1].epoch == worker->requests[5].epoch);
    let(bench, 50);
    for (uint32_t turn = 1; turn < 12; turn++)
        assert_int_equal(fake_stream_ends(&client->streams[turn]), 1);
    assert_int_equal(stats_of(bench).done, 11);
    bench_stop(&bench);
}

static void two_clients(void **state)
{
    (void)state;
    struct bench *bench = bench_start(3, NULL);
    answer_at_once(bench, 20);
    for (uint32_t stream = 1; stream <= 40; stream++) {
        for (unsigned i = 0; i < CLIENTS; i++) {
            char conversation[32];
            snprintf(conversation, sizeof conversation, "chat-%u-%u", i, stream);
            struct fake_ask ask = ask_of(stream, stream % 4 ? conversation : NULL);
            ask.id[15] = (uint8_t)i;
            fake_client_ask(&bench->clients[i], &ask);
        }
    }
    for (uint32_t stream = 1; stream <= 40; stream++)
        for (unsigned i = 0; i < CLIENTS; i++)
            SPIN_UNTIL(bench->loop, 5000, bench->clients[i].streams[stream].dones == 1);
    let(bench, 50);
    for (uint32_t stream = 1; stream <= 40; stream++) {
        for (unsigned i = 0; i < CLIENTS; i++) {
            const struct fake_stream *got = &bench->clients[i].streams[stream];
            assert_int_equal(got->tokens, 20);
            assert_int_equal(fake_stream_ends(got), 1);
            assert_false(got->gap);
            assert_string_equal(got->route, stream % 4 ? "new" : "load");
        }
    }
    for (unsigned i = 0; i < 3; i++)
        assert_true(bench->workers[i].request_count > 5); /* spread */
    assert_int_equal(router_in_flight(bench->router), 0);
    bench_stop(&bench);
}

static void tokens_are_batched(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_worker *worker = &bench->workers[0];
    struct fake_client *client = &bench->clients[0];
    ask_each(bench, 1, 50);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 50);
    for (unsigned i = 0; i < 50; i++)
        fake_worker_tokens(worker, &worker->requests[i], 0, 2);
    for (uint32_t stream = 1; stream <= 50; stream++)
        SPIN_UNTIL(bench->loop, 2000, client->streams[stream].tokens == 2);
    assert_true(client->token_frames < 25); /* 50 frames came in, a few turns of the loop went out */
    bench_stop(&bench);
}

/* ---- ends ---- */

static void no_worker(void **state)
{
    (void)state;
    struct bench *bench = bench_start(0, NULL);
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, "chat-1"), hasty = ask_of(2, NULL), cancelled = ask_of(3, NULL);
    hasty.deadline_ms = 300;
    uint64_t begun = clock_now_ms();
    fake_client_ask(client, &ask);
    fake_client_ask(client, &hasty);
    fake_client_ask(client, &cancelled);
    let(bench, 50);
    fake_client_cancel(client, &cancelled);
    SPIN_UNTIL(bench->loop, 2000, client->streams[3].errors == 1);
    assert_int_equal(client->streams[3].error, WIRE_ERROR_CANCELLED);
    SPIN_UNTIL(bench->loop, 1000, client->streams[2].errors == 1);
    assert_int_equal(client->streams[2].error, WIRE_ERROR_DEADLINE);
    assert_int_equal(client->streams[1].errors, 0); /* it waits for longer */
    SPIN_UNTIL(bench->loop, 4000, client->streams[1].errors == 1);
    assert_true(clock_now_ms() - begun >= 1950);
    assert_int_equal(client->streams[1].error, WIRE_ERROR_OVER_CAPACITY);
    assert_string_equal(client->streams[1].detail, "no worker is ready");
    assert_int_equal(client->streams[1].retry_after_ms, 1000);
    assert_int_equal(router_in_flight(bench->router), 0);
    bench_stop(&bench);
}

static void cancel(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_worker *worker = &bench->workers[0];
    struct fake_client *client = &bench->clients[0];
    struct fake_ask answered = ask_of(1, NULL), ignored = ask_of(2, NULL), foreign = ask_of(3, NULL);
    fake_client_ask(client, &answered);
    fake_client_ask(client, &ignored);
    fake_client_ask(client, &foreign);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 3);
    fake_worker_tokens(worker, &worker->requests[0], 0, 2);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].tokens == 2);
    fake_client_cancel(client, &answered);
    SPIN_UNTIL(bench->loop, 2000, worker->cancel_count == 1);
    assert_memory_equal(worker->last_cancel, answered.id, WIRE_ID_BYTES);
    fake_worker_tokens(worker, &worker->requests[0], 2, 5); /* under way already: not passed on */
    fake_worker_error(worker, &worker->requests[0], WIRE_ERROR_CANCELLED);
    SPIN_UNTIL(bench->loop, 500, client->streams[1].errors == 1);
    assert_int_equal(client->streams[1].error, WIRE_ERROR_CANCELLED);
    assert_int_equal(client->streams[1].tokens, 2);

    uint64_t begun = clock_now_ms();
    fake_client_cancel(client, &ignored); /* the worker does not answer */
    SPIN_UNTIL(bench->loop, 3000, client->streams[2].errors == 1);
    assert_int_equal(client->streams[2].error, WIRE_ERROR_CANCELLED);
    assert_true(clock_now_ms() - begun >= 900);

    fake_client_cancel(&bench->clients[1], &foreign); /* not its own */
    let(bench, 100);
    assert_int_equal(fake_stream_ends(&client->streams[3]), 0);
    fake_worker_tokens(worker, &worker->requests[2], 0, 1);
    fake_worker_done(worker, &worker->requests[2], 1);
    SPIN_UNTIL(bench->loop, 2000, client->streams[3].dones == 1);
    bench_stop(&bench);
}

static void deadline(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_worker *worker = &bench->workers[0];
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, NULL);
    ask.deadline_ms = 300;
    uint64_t begun = clock_now_ms();
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].errors == 1);
    assert_int_equal(client->streams[1].error, WIRE_ERROR_DEADLINE);
    assert_true(clock_now_ms() - begun >= 290);
    SPIN_UNTIL(bench->loop, 1000, worker->cancel_count == 1);
    assert_int_equal(router_in_flight(bench->router), 0);
    bench_stop(&bench);
}

/* The lease counts, not the connection. */
static void client_lease_expires(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_worker *worker = &bench->workers[0];
    struct fake_ask ask = ask_of(1, NULL), other = ask_of(2, NULL);
    fake_client_ask(&bench->clients[0], &ask);
    fake_client_ask(&bench->clients[1], &other);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 2);
    bench->clients[0].silent = true;
    SPIN_UNTIL(bench->loop, 3000, worker->cancel_count == 1);
    assert_memory_equal(worker->last_cancel, ask.id, WIRE_ID_BYTES);
    assert_int_equal(router_in_flight(bench->router), 1);
    assert_int_equal(fake_stream_ends(&bench->clients[1].streams[2]), 0);
    /* it comes back: it gets the terminal, and may ask again */
    bench->clients[0].silent = false;
    SPIN_UNTIL(bench->loop, 2000, bench->clients[0].streams[1].errors == 1);
    worker->auto_tokens = 1;
    ask = ask_of(3, NULL);
    fake_client_ask(&bench->clients[0], &ask);
    SPIN_UNTIL(bench->loop, 2000, bench->clients[0].streams[3].dones == 1);
    bench_stop(&bench);
}

/* It says that it goes: its requests end at once, not when its lease does. */
static void client_says_goodbye(void **state)
{
    (void)state;
    struct router_settings settings = default_settings();
    settings.client_lease_expiry_ms = 600000;
    struct bench *bench = bench_start(1, &settings);
    struct fake_worker *worker = &bench->workers[0];
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, NULL), other = ask_of(2, NULL);
    fake_client_ask(client, &ask);
    fake_client_ask(&bench->clients[1], &other);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 2);
    struct wire_message goaway = {.kind = WIRE_GOAWAY,
                                  .goaway = {.session = wire_span_of(client->session, WIRE_ID_BYTES)}};
    fake_client_send(&bench->clients[1], false, &goaway); /* not its own session */
    let(bench, 100);
    assert_int_equal(router_in_flight(bench->router), 2);
    fake_client_send(client, false, &goaway);
    SPIN_UNTIL(bench->loop, 2000, worker->cancel_count == 1);
    assert_memory_equal(worker->last_cancel, ask.id, WIRE_ID_BYTES);
    assert_int_equal(router_in_flight(bench->router), 1);
    bench_stop(&bench);
}

/* Its connection was replaced without a HELLO, as when something between us reconnects: a lease tells the new one. */
static void lease_binds_a_connection(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_worker *worker = &bench->workers[0];
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, NULL);
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 1);
    channel_destroy(&client->data);
    client->welcomed_data = false;
    int none = 0;
    void *data = zmq_socket(bench->zmq, ZMQ_DEALER);
    zmq_setsockopt(data, ZMQ_LINGER, &none, sizeof none);
    assert_int_equal(zmq_connect(data, router_data_endpoint(bench->router)), 0);
    struct wire_message lease = {.kind = WIRE_LEASE,
                                 .lease = {.session = wire_span_of(client->session, WIRE_ID_BYTES), .number = 1000}};
    uint8_t buffer[128];
    zmq_send(data, buffer, wire_encode(&lease, buffer), 0);
    let(bench, 100);
    fake_worker_tokens(worker, &worker->requests[0], 0, 3);
    bool got_tokens = false;
    for (unsigned turns = 0; !got_tokens && turns < 2000; let(bench, 1), turns++) {
        zmq_msg_t frame;
        enum wire_kind kind;
        zmq_msg_init(&frame);
        int got = zmq_msg_recv(&frame, data, ZMQ_DONTWAIT);
        got_tokens =
            got > 0 && wire_peek(zmq_msg_data(&frame), (size_t)got, &kind, NULL) == STATUS_OK && kind == WIRE_TOKENS;
        zmq_msg_close(&frame);
    }
    assert_true(got_tokens);
    zmq_close(data);
    bench_stop(&bench);
}

/* It drops its data connection in the middle of a reply and comes back: nothing is cancelled, nothing is lost. */
static void client_reconnects(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_worker *worker = &bench->workers[0];
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, NULL);
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 1);
    fake_worker_tokens(worker, &worker->requests[0], 0, 2);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].tokens == 2);
    struct fake_client again = *client;
    channel_destroy(&client->data);
    client->welcomed_data = false;
    let(bench, 100);
    fake_worker_tokens(worker, &worker->requests[0], 2, 2);
    fake_worker_tokens(worker, &worker->requests[0], 4, 2);
    fake_worker_done(worker, &worker->requests[0], 6);
    let(bench, 100);
    assert_int_equal(worker->cancel_count, 0);
    again.role = WIRE_ROLE_CLIENT;
    fake_client_start(&again, bench->loop, bench->zmq, router_control_endpoint(bench->router),
                      router_data_endpoint(bench->router));
    memcpy(again.session, client->session, WIRE_ID_BYTES); /* before its HELLO: the same process */
    again.streams[1].tokens = again.streams[1].by_choice[0] = 2;
    SPIN_UNTIL(bench->loop, 2000, again.streams[1].dones == 1);
    assert_int_equal(again.streams[1].tokens, 6);
    assert_false(again.streams[1].gap);
    fake_client_stop(&again);
    bench_stop(&bench);
}

/* One that does not read its data connection: its streams end, the memory is bounded, others go on. */
static void slow_client(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_worker *worker = &bench->workers[0];
    /* a raw socket, which nobody reads */
    void *control = zmq_socket(bench->zmq, ZMQ_DEALER), *data = zmq_socket(bench->zmq, ZMQ_DEALER);
    int one = 1, none = 0, small = 4096;
    zmq_setsockopt(data, ZMQ_RCVHWM, &one, sizeof one);
    zmq_setsockopt(data, ZMQ_RCVBUF, &small, sizeof small);
    zmq_setsockopt(data, ZMQ_LINGER, &none, sizeof none);
    zmq_setsockopt(control, ZMQ_LINGER, &none, sizeof none);
    assert_int_equal(zmq_connect(control, router_control_endpoint(bench->router)), 0);
    assert_int_equal(zmq_connect(data, router_data_endpoint(bench->router)), 0);
    uint8_t session[WIRE_ID_BYTES], buffer[512];
    hash_random(session, sizeof session);
    for (unsigned side = 0; side < 2; side++) {
        struct wire_message hello = {.kind = WIRE_HELLO,
                                     .hello = {.version_min = 1,
                                               .version_max = 1,
                                               .session = wire_span_of(session, WIRE_ID_BYTES),
                                               .role = WIRE_ROLE_CLIENT,
                                               .connection = side ? WIRE_CONNECTION_DATA : WIRE_CONNECTION_CONTROL}};
        zmq_send(side ? data : control, buffer, wire_encode(&hello, buffer), 0);
    }
    let(bench, 100);
    struct fake_ask ask = ask_of(1, NULL);
    struct wire_message head = {.kind = WIRE_HEAD,
                                .head = {.request_id = wire_span_of(ask.id, WIRE_ID_BYTES),
                                         .session = wire_span_of(session, WIRE_ID_BYTES),
                                         .stream = 1,
                                         .tenant = wire_span_str("slow"),
                                         .deadline_ms = 60000,
                                         .body_bytes = 4}};
    zmq_send(data, buffer, wire_encode(&head, buffer), ZMQ_SNDMORE);
    zmq_send(data, (const uint8_t[]){'R', WIRE_VERSION, WIRE_BODY, 0}, 4, 0);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 1);
    uint64_t lease_due = clock_now_ms();
    for (uint32_t first = 0; worker->cancel_count == 0 && first < 6000000; first += 1000) {
        fake_worker_tokens(worker, &worker->requests[0], first, 1000); /* 5 KB */
        if (first % 4000 == 0)
            let(bench, 1);
        if (clock_now_ms() > lease_due) { /* alive, only slow */
            struct wire_message lease = {
                .kind = WIRE_LEASE, .lease = {.session = wire_span_of(session, WIRE_ID_BYTES), .number = first + 1}};
            zmq_send(control, buffer, wire_encode(&lease, buffer), 0);
            lease_due = clock_now_ms() + 200;
        }
    }
    SPIN_UNTIL(bench->loop, 2000, worker->cancel_count == 1);
    assert_int_equal(stats_of(bench).errors[WIRE_ERROR_SLOW_READER], 1);
    assert_int_equal(router_in_flight(bench->router), 0);
    worker->auto_tokens = 3;
    struct fake_ask other = ask_of(2, NULL);
    fake_client_ask(&bench->clients[0], &other);
    SPIN_UNTIL(bench->loop, 2000, bench->clients[0].streams[2].dones == 1);

    /* it reads after all: some tokens, and the terminal last */
    bool ended = false;
    for (unsigned i = 0; i < 20000 && !ended; i++) {
        zmq_msg_t frame;
        zmq_msg_init(&frame);
        int got = zmq_msg_recv(&frame, data, ZMQ_DONTWAIT);
        struct wire_message message;
        if (got > 0 && wire_decode(zmq_msg_data(&frame), zmq_msg_size(&frame), &message) == STATUS_OK) {
            if (message.kind == WIRE_ERROR) {
                ended = true;
                assert_int_equal(message.error.code, WIRE_ERROR_SLOW_READER);
                assert_int_equal(message.error.stream, 1);
            }
            wire_message_free(&message);
        }
        zmq_msg_close(&frame);
        if (got < 0)
            let(bench, 1);
    }
    assert_true(ended);
    zmq_close(control);
    zmq_close(data);
    bench_stop(&bench);
}

/* ---- drain ---- */

static void on_drained(void *user)
{
    *(bool *)user = true;
}

static void drain(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_worker *worker = &bench->workers[0];
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, NULL), late = ask_of(2, NULL);
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 1);
    bool drained = false;
    router_drain(bench->router, 5000, on_drained, &drained);
    SPIN_UNTIL(bench->loop, 2000, client->goaways == 1 && bench->clients[1].goaways == 1);
    fake_client_ask(client, &late);
    SPIN_UNTIL(bench->loop, 2000, client->streams[2].errors == 1);
    assert_int_equal(client->streams[2].error, WIRE_ERROR_OVER_CAPACITY);
    assert_non_null(strstr(client->streams[2].detail, "draining"));
    assert_true(client->streams[2].retry_after_ms > 0);
    static const uint32_t one = 1;
    struct fake_ask resume = ask_of(3, NULL);
    resume.attempt_client = 2;
    resume.resume_choices = 1;
    resume.resume_counts = &one;
    fake_client_ask(client, &resume);
    SPIN_UNTIL(bench->loop, 2000, client->streams[3].errors == 1);
    assert_int_equal(client->streams[3].error, WIRE_ERROR_OVER_CAPACITY);
    let(bench, 300);
    assert_false(drained);
    fake_worker_tokens(worker, &worker->requests[0], 0, 2);
    fake_worker_done(worker, &worker->requests[0], 2);
    SPIN_UNTIL(bench->loop, 2000, drained);
    assert_int_equal(client->streams[1].dones, 1);
    bench_stop(&bench);
}

/* That a terminal was sent is not that its client has it: the router stays until an echo says so, or the client is
 * given up. */
static void drain_waits_for_readers(void **state)
{
    bool comes_back = *state == NULL;
    struct router_settings settings = default_settings();
    settings.client_lease_expiry_ms = comes_back ? 8000 : 2000;
    struct bench *bench = bench_start(1, &settings);
    struct fake_worker *worker = &bench->workers[0];
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, NULL);
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 1);
    client->silent = true;
    bool drained = false;
    router_drain(bench->router, 10000, on_drained, &drained);
    uint64_t begun = clock_now_ms();
    fake_worker_tokens(worker, &worker->requests[0], 0, 2);
    fake_worker_done(worker, &worker->requests[0], 2);
    let(bench, 600); /* longer than it settles */
    assert_false(drained);
    if (comes_back)
        client->silent = false;
    SPIN_UNTIL(bench->loop, 4000, drained);
    assert_in_range(clock_now_ms() - begun, comes_back ? 600 : 2000, comes_back ? 7000 : 20000); /* its lease */
    bench_stop(&bench);
}

/* A worker that drains takes nothing new; its conversations are taken over. */
static void worker_drains(void **state)
{
    (void)state;
    struct bench *bench = bench_start(2, NULL);
    answer_at_once(bench, 1);
    const struct fake_stream *before = take_turn(bench, 1, "chat");
    struct fake_worker *owner = worker_named(bench, before->worker);
    owner->life = WIRE_LIFE_DRAINING;
    SPIN_UNTIL(bench->loop, 2000, router_workers_ready(bench->router) == 1);
    const struct fake_stream *moved = take_turn(bench, 2, "chat");
    assert_string_equal(moved->route, "moved");
    assert_true(moved->epoch > before->epoch);
    assert_int_equal(owner->request_count, 1);
    bench_stop(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(happy_path),
        cmocka_unit_test(two_clients),
        cmocka_unit_test(tokens_are_batched),
        cmocka_unit_test(no_worker),
        cmocka_unit_test(cancel),
        cmocka_unit_test(deadline),
        cmocka_unit_test(client_lease_expires),
        cmocka_unit_test(client_says_goodbye),
        cmocka_unit_test(lease_binds_a_connection),
        cmocka_unit_test(client_reconnects),
        cmocka_unit_test(slow_client),
        cmocka_unit_test(drain),
        cmocka_unit_test(drain_waits_for_readers),
        {"drain_gives_a_reader_up", drain_waits_for_readers, NULL, NULL, &(bool){true}},
        cmocka_unit_test(worker_drains),
    };
    return unit_run(tests, NULL, NULL);
}
