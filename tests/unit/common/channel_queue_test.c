/* channel_queue_test.c - what a channel keeps for a peer that does not read or is not there: in order, and bounded. */
#include <string.h>
#include <zmq.h>
#include "channel_fixture.h"
#include "common/clock.h"
#include "common/loop.h"
#include "tests/unit/unit.h"

static bool pending_is_gone(struct fixture *f)
{
    return channel_pending(f->server ? f->server : f->client) == 0;
}

static bool raw_read(void *dealer, char *bytes, size_t size)
{
    zmq_pollitem_t item = {.socket = dealer, .events = ZMQ_POLLIN};
    return zmq_poll(&item, 1, 0) == 1 && zmq_recv(dealer, bytes, size, ZMQ_DONTWAIT) >= 0;
}

struct reader {
    struct fixture *f;
    void *dealer;
    uint32_t next;
    unsigned errors;
    struct loop_timer *timer;
};

static void on_read(void *user)
{
    struct reader *reader = user;
    static char bytes[20000];
    uint32_t number;
    while (raw_read(reader->dealer, bytes, sizeof bytes)) {
        memcpy(&number, bytes, sizeof number);
        reader->errors += number != reader->next;
        reader->next++;
    }
}

static uint32_t reader_wanted_;
static struct reader *reader_;

static bool reader_is_done(struct fixture *f)
{
    (void)f;
    return reader_->next >= reader_wanted_;
}

/* A peer that does not read: everything up to the limit is kept, in order, and the one over it is refused. */
static void test_slow_reader_of_a_server(void **state)
{
    struct fixture *f = *state;
    struct channel_config config = server_config(f);
    enum { BYTES = 10000 };
    static char body[BYTES];
    config.send_messages_max = 10;
    config.queue_bytes_max = 500000;
    assert_ok(channel_create_server(f->loop, f->context, &config, "tcp://127.0.0.1:*", &f->server));
    void *quick = raw_dealer(f), *dealer = zmq_socket(f->context, ZMQ_DEALER);
    int few = 2, small = 4096;
    zmq_setsockopt(dealer, ZMQ_RCVHWM, &few, sizeof few);
    zmq_setsockopt(dealer, ZMQ_RCVBUF, &small, sizeof small);
    zmq_connect(dealer, channel_endpoint(f->server));
    raw_send(dealer, 1, "slow");
    run_until(f, server_got_one);
    struct channel_peer slow = f->peer;
    uint32_t sent = 0;
    enum status st = STATUS_OK;
    while (st == STATUS_OK && sent < 100000) {
        memcpy(body, &sent, sizeof sent);
        st = channel_send_bytes(f->server, &slow, body, BYTES);
        sent += st == STATUS_OK;
        if (sent % 50 == 0)
            run_for(f, 1);
    }
    assert_int_equal(st, STATUS_LIMIT);
    assert_non_null(strstr(status_detail(), "reads too slowly"));
    assert_in_range(channel_pending(f->server), 500000 - BYTES - CHANNEL_QUEUE_OVERHEAD, 500000);

    /* Others are served meanwhile. */
    raw_send(quick, 1, "quick");
    run_until(f, server_got_two);
    assert_ok(channel_send_bytes(f->server, &f->peer, "prompt", 6));
    char bytes[16];
    for (uint64_t end = clock_now_ms() + 20000; !raw_read(quick, bytes, sizeof bytes);)
        assert_true(clock_now_ms() < end);
    assert_memory_equal(bytes, "prompt", 6);

    /* It wakes up: nothing before the limit is missing. */
    struct reader reader = {.f = f, .dealer = dealer};
    reader_ = &reader;
    reader_wanted_ = sent;
    assert_ok(loop_timer_create(f->loop, 2, true, on_read, &reader, &reader.timer));
    run_until(f, reader_is_done);
    loop_timer_destroy(&reader.timer);
    assert_int_equal(reader.errors, 0);
    assert_int_equal(reader.next, sent);
    assert_int_equal(channel_pending(f->server), 0);
    zmq_close(dealer);
    zmq_close(quick);
}

static void test_peer_that_leaves_loses_its_queue(void **state)
{
    struct fixture *f = *state;
    struct channel_config config = server_config(f);
    static char body[10000];
    config.send_messages_max = 2;
    assert_ok(channel_create_server(f->loop, f->context, &config, "tcp://127.0.0.1:*", &f->server));
    void *dealer = zmq_socket(f->context, ZMQ_DEALER);
    int few = 1, zero = 0;
    zmq_setsockopt(dealer, ZMQ_RCVHWM, &few, sizeof few);
    zmq_setsockopt(dealer, ZMQ_LINGER, &zero, sizeof zero);
    zmq_connect(dealer, channel_endpoint(f->server));
    raw_send(dealer, 1, "x");
    run_until(f, server_got_one);
    enum status st = STATUS_OK;
    for (unsigned i = 0; st == STATUS_OK; i++) {
        assert_in_range(i, 0, 10000);
        st = channel_send_bytes(f->server, &f->peer, body, sizeof body);
    }
    assert_int_equal(st, STATUS_LIMIT);
    zmq_close(dealer);
    run_until(f, pending_is_gone); /* by the flush timer */
    assert_int_equal(channel_send_bytes(f->server, &f->peer, "x", 1), STATUS_CLOSED);
}

static void test_forget_peer(void **state)
{
    struct fixture *f = *state;
    struct channel_config config = server_config(f);
    static char body[10000];
    config.send_messages_max = 2;
    assert_ok(channel_create_server(f->loop, f->context, &config, "tcp://127.0.0.1:*", &f->server));
    void *dealer = raw_dealer(f);
    raw_send(dealer, 1, "x");
    run_until(f, server_got_one);
    while (channel_send_bytes(f->server, &f->peer, body, sizeof body) == STATUS_OK)
        ;
    assert_true(channel_pending(f->server) > 0);
    channel_forget_peer(f->server, &f->peer);
    assert_int_equal(channel_pending(f->server), 0);
    zmq_close(dealer);
}

static bool server_got_3000(struct fixture *f)
{
    return f->server_received >= 3000;
}

/* A client in one turn sends more than ZeroMQ takes: the queue carries the rest, in order, and POLLOUT empties it. */
static void check_burst(struct fixture *f, const char *endpoint)
{
    struct channel_config config = client_config(f);
    config.send_messages_max = 20;
    config.queue_bytes_max = 64 << 20;
    struct channel_config server = server_config(f);
    server.receive_messages_max = 20;
    assert_ok(channel_create_server(f->loop, f->context, &server, endpoint, &f->server));
    assert_ok(channel_create_client(f->loop, f->context, &config, channel_endpoint(f->server), &f->client));
    f->check_order = true;
    for (uint32_t i = 0; i < 1000; i++) /* before the link */
        assert_ok(channel_send_bytes(f->client, NULL, &i, sizeof i));
    if (strncmp(endpoint, "inproc", 6) != 0)
        run_until(f, is_up);
    for (uint32_t i = 1000; i < 3000; i++)
        assert_ok(channel_send_bytes(f->client, NULL, &i, sizeof i));
    assert_true(channel_pending(f->client) > 0);
    run_until(f, server_got_3000);
    assert_int_equal(f->order_errors, 0);
    assert_int_equal(f->server_received, 3000);
    assert_int_equal(channel_pending(f->client), 0);
}

static void test_burst_over_tcp(void **state)
{
    check_burst(*state, "tcp://127.0.0.1:*");
}

static void test_burst_over_inproc(void **state)
{
    check_burst(*state, "inproc://burst");
}

/* The queue of an absent server is bounded, and an idle wait for it costs nothing. */
static void test_absent_server(void **state)
{
    struct fixture *f = *state;
    struct channel_config config = client_config(f);
    config.queue_bytes_max = 10000;
    assert_ok(channel_create_client(f->loop, f->context, &config, "tcp://127.0.0.1:1", &f->client));
    unsigned sent = 0;
    while (channel_send_bytes(f->client, NULL, "0123456789", 10) == STATUS_OK)
        assert_true(++sent < 10000);
    assert_int_equal(sent, 10000 / (10 + CHANNEL_QUEUE_OVERHEAD));
    loop_timer_destroy(&f->tick);
    uint64_t turns = loop_turn(f->loop);
    run_for(f, 300);
    assert_in_range(loop_turn(f->loop) - turns, 1, 60); /* about five retries */
    assert_string_equal(f->events, "");
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_slow_reader_of_a_server),
        CASE(test_peer_that_leaves_loses_its_queue),
        CASE(test_forget_peer),
        CASE(test_burst_over_tcp),
        CASE(test_burst_over_inproc),
        CASE(test_absent_server),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
