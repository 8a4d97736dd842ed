/* channel_test.c - real sockets over loopback: framing, limits, queues, links that come and go. */
#include "unit.h"
#include "common/channel.h"
#include "common/clock.h"
#include "common/loop.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

enum { GIVE_UP_MS = 8000, FRAME_BYTES_MAX = 100000, TEXT_MAX = 256 };

struct fixture {
    struct loop *loop;
    void *context;
    struct loop_timer *give_up, *tick;
    bool gave_up;
    struct channel *server, *client;

    /* server side */
    struct channel_peer peer; /* of the last message */
    unsigned server_received;
    size_t server_bytes;
    char server_text[TEXT_MAX]; /* of the last message, frames joined by | */
    bool echo;
    bool check_order;
    unsigned order_errors;

    /* client side */
    unsigned client_received, ups, downs;
    char client_text[TEXT_MAX];
    char events[64]; /* u: up, d: down, m: message */
    unsigned received_at_down;
    size_t pending_at_down;
    enum status send_at_down;
    bool wanted_up;
    bool hello; /* say hello in on_link(true) */

    bool (*done)(struct fixture *);
    void (*on_message)(struct fixture *);
};

static void check_done(struct fixture *f)
{
    if (f->done && f->done(f))
        loop_stop(f->loop);
}

static void on_give_up(void *user)
{
    struct fixture *f = user;
    f->gave_up = true;
    loop_stop(f->loop);
}

static void on_tick(void *user)
{
    check_done(user);
}

static void join(char out[TEXT_MAX], zmq_msg_t *frames, unsigned count)
{
    size_t used = 0;
    for (unsigned i = 0; i < count; i++) {
        size_t size = zmq_msg_size(&frames[i]) < 40 ? zmq_msg_size(&frames[i]) : 40;
        if (i)
            out[used++] = '|';
        memcpy(out + used, zmq_msg_data(&frames[i]), size);
        used += size;
    }
    out[used] = '\0';
}

static void note(struct fixture *f, char letter)
{
    size_t size = strlen(f->events);
    if (size + 1 < sizeof f->events)
        f->events[size] = letter;
}

static void on_server_message(void *user, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    struct fixture *f = user;
    f->peer = *peer;
    join(f->server_text, frames, count);
    if (f->check_order) {
        uint32_t number;
        memcpy(&number, zmq_msg_data(&frames[0]), sizeof number);
        f->order_errors += number != f->server_received;
    }
    f->server_received++;
    f->server_bytes += zmq_msg_size(&frames[count - 1]);
    if (f->echo)
        assert_ok(channel_send(f->server, peer, frames, count));
    if (f->on_message)
        f->on_message(f);
    check_done(f);
}

static void on_client_message(void *user, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    struct fixture *f = user;
    assert_int_equal(peer->size, 0);
    join(f->client_text, frames, count);
    f->client_received++;
    note(f, 'm');
    check_done(f);
}

static void on_link(void *user, bool up)
{
    struct fixture *f = user;
    note(f, up ? 'u' : 'd');
    if (up) {
        f->ups++;
        if (f->hello)
            assert_ok(channel_send_bytes(f->client, NULL, "hello", 5));
    } else {
        f->downs++;
        f->received_at_down = f->client_received;
        f->pending_at_down = channel_pending(f->client);
        f->send_at_down = channel_send_bytes(f->client, NULL, "x", 1);
    }
    check_done(f);
}

static struct channel_config server_config(struct fixture *f)
{
    return (struct channel_config){.frame_bytes_max = FRAME_BYTES_MAX, .receive_messages_max = 1000, .send_messages_max = 1000,
                                   .queue_bytes_max = 1 << 20, .on_message = on_server_message, .user = f};
}

static struct channel_config client_config(struct fixture *f)
{
    struct channel_config config = server_config(f);
    config.on_message = on_client_message;
    config.on_link = on_link;
    return config;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->context = zmq_ctx_new();
    if (loop_create(&f->loop) != STATUS_OK ||
        loop_timer_create(f->loop, GIVE_UP_MS, false, on_give_up, f, &f->give_up) != STATUS_OK ||
        loop_timer_create(f->loop, 5, true, on_tick, f, &f->tick) != STATUS_OK)
        return -1;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    channel_destroy(&f->client);
    channel_destroy(&f->server);
    loop_timer_destroy(&f->give_up);
    loop_timer_destroy(&f->tick);
    loop_destroy(&f->loop);
    zmq_ctx_term(f->context);
    free(f);
    return 0;
}

static void start_server(struct fixture *f, const char *endpoint)
{
    struct channel_config config = server_config(f);
    assert_ok(channel_create_server(f->loop, f->context, &config, endpoint, &f->server));
}

static void start_client(struct fixture *f)
{
    struct channel_config config = client_config(f);
    assert_ok(channel_create_client(f->loop, f->context, &config, channel_endpoint(f->server), &f->client));
}

static void run_until(struct fixture *f, bool (*done)(struct fixture *))
{
    f->done = done;
    if (!done(f))
        assert_ok(loop_run(f->loop));
    if (f->gave_up)
        fail_msg("gave up: server got %u, client got %u, events %s, pending %zu", f->server_received, f->client_received,
                 f->events, f->client ? channel_pending(f->client) : 0);
}

static void run_for(struct fixture *f, unsigned ms)
{
    struct loop_timer *timer;
    f->done = NULL;
    assert_ok(loop_timer_create(f->loop, ms, false, (void (*)(void *))loop_stop, f->loop, &timer));
    assert_ok(loop_run(f->loop));
    loop_timer_destroy(&timer);
}

static bool is_up(struct fixture *f)
{
    return f->ups > f->downs;
}

static bool is_down(struct fixture *f)
{
    return f->ups == f->downs;
}

static bool server_got_one(struct fixture *f)
{
    return f->server_received >= 1;
}

static bool client_got_one(struct fixture *f)
{
    return f->client_received >= 1;
}

static enum status send_frames(struct channel *channel, const struct channel_peer *peer, unsigned count, const char *const *texts)
{
    zmq_msg_t frames[8];
    for (unsigned i = 0; i < count; i++) {
        zmq_msg_init_size(&frames[i], strlen(texts[i]));
        memcpy(zmq_msg_data(&frames[i]), texts[i], strlen(texts[i]));
    }
    enum status st = channel_send(channel, peer, frames, count);
    for (unsigned i = 0; i < count; i++) {
        assert_int_equal(zmq_msg_size(&frames[i]), 0); /* taken in every case */
        zmq_msg_close(&frames[i]);
    }
    return st;
}

/* ---- messages ---- */

static void check_echo(struct fixture *f, const char *endpoint)
{
    static const char *const texts[] = {"head", "", "body", "tail"};
    start_server(f, endpoint);
    start_client(f);
    f->echo = true;
    assert_ok(send_frames(f->client, NULL, 4, texts)); /* before the link is up */
    run_until(f, client_got_one);
    assert_string_equal(f->server_text, "head||body|tail");
    assert_string_equal(f->client_text, "head||body|tail");
    f->client_received = 0;
    assert_ok(channel_send_bytes(f->client, NULL, "", 0));
    run_until(f, client_got_one);
    assert_string_equal(f->client_text, "");
}

static void test_echo_over_tcp(void **state)
{
    struct fixture *f = *state;
    check_echo(f, "tcp://127.0.0.1:*");
    assert_string_equal(f->events, "umm");
    assert_memory_equal(channel_endpoint(f->server), "tcp://127.0.0.1:", 16);
    assert_true(atoi(channel_endpoint(f->server) + 16) > 0);
}

static void test_echo_over_ipv6(void **state)
{
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    bool has_ipv6 = fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0;
    close(fd);
    if (!has_ipv6)
        skip();
    check_echo(*state, "tcp://[::1]:*");
}

static void test_echo_over_inproc(void **state)
{
    struct fixture *f = *state;
    check_echo(f, "inproc://echo");
    assert_string_equal(f->events, "mm"); /* no link events there */
}

static void test_heartbeats_keep_an_idle_link(void **state)
{
    struct fixture *f = *state;
    struct channel_config config = server_config(f);
    config.heartbeat = true;
    assert_ok(channel_create_server(f->loop, f->context, &config, "tcp://127.0.0.1:*", &f->server));
    config = client_config(f);
    config.heartbeat = true;
    assert_ok(channel_create_client(f->loop, f->context, &config, channel_endpoint(f->server), &f->client));
    run_until(f, is_up);
    run_for(f, 1500);
    assert_string_equal(f->events, "u");
}

/* A bare DEALER without our limits. */
static void *raw_dealer(struct fixture *f)
{
    int zero = 0;
    void *dealer = zmq_socket(f->context, ZMQ_DEALER);
    zmq_setsockopt(dealer, ZMQ_LINGER, &zero, sizeof zero);
    assert_int_equal(zmq_connect(dealer, channel_endpoint(f->server)), 0);
    return dealer;
}

static void raw_send(void *dealer, unsigned frames, const char *text)
{
    for (unsigned i = 0; i < frames; i++)
        assert_int_equal(zmq_send(dealer, text, strlen(text), i + 1 < frames ? ZMQ_SNDMORE : 0), (int)strlen(text));
}

static void test_too_many_frames_are_dropped(void **state)
{
    struct fixture *f = *state;
    start_server(f, "tcp://127.0.0.1:*");
    void *dealer = raw_dealer(f);
    raw_send(dealer, CHANNEL_FRAMES_MAX + 1, "x");
    raw_send(dealer, 3000, "y");
    raw_send(dealer, CHANNEL_FRAMES_MAX, "z");
    run_until(f, server_got_one);
    assert_string_equal(f->server_text, "z|z|z|z");
    assert_int_equal(f->server_received, 1);
    assert_int_equal(channel_dropped(f->server), 2);
    zmq_close(dealer);
}

static void test_long_peer_ids_are_dropped(void **state)
{
    struct fixture *f = *state;
    char id[CHANNEL_PEER_ID_MAX + 1];
    memset(id, 'i', sizeof id);
    start_server(f, "tcp://127.0.0.1:*");
    void *strange = zmq_socket(f->context, ZMQ_DEALER);
    zmq_setsockopt(strange, ZMQ_ROUTING_ID, id, sizeof id);
    zmq_connect(strange, channel_endpoint(f->server));
    raw_send(strange, 2, "strange");
    void *dealer = raw_dealer(f);
    run_for(f, 200);
    raw_send(dealer, 2, "good");
    run_until(f, server_got_one);
    assert_string_equal(f->server_text, "good|good");
    assert_int_equal(channel_dropped(f->server), 1);
    zmq_close(dealer);
    zmq_close(strange);
}

static void test_send_refuses(void **state)
{
    struct fixture *f = *state;
    static const char *const texts[] = {"a", "b", "c", "d", "e"};
    const struct channel_peer nobody = {.size = 5, .id = {0, 1, 2, 3, 4}};
    start_server(f, "tcp://127.0.0.1:*");
    assert_int_equal(send_frames(f->server, &nobody, 1, texts), STATUS_CLOSED);
    assert_int_equal(send_frames(f->server, &(struct channel_peer){.size = 0}, 1, texts), STATUS_CLOSED);
    assert_int_equal(send_frames(f->server, &(struct channel_peer){.size = 200}, 1, texts), STATUS_CLOSED);
    assert_int_equal(send_frames(f->server, &nobody, 5, texts), STATUS_INVALID);
    assert_int_equal(send_frames(f->server, &nobody, 0, texts), STATUS_INVALID);
    assert_int_equal(channel_pending(f->server), 0);
}

/* ---- bad peers ---- */

static int connect_raw(struct fixture *f)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                  .sin_port = htons((uint16_t)atoi(strrchr(channel_endpoint(f->server), ':') + 1))};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static bool is_closed(int fd)
{
    char bytes[256];
    ssize_t got;
    while ((got = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT)) > 0)
        ;
    return got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK);
}

static int strangers_[4];

static bool strangers_are_closed(struct fixture *f)
{
    (void)f;
    for (unsigned i = 0; i < 4; i++)
        if (strangers_[i] >= 0 && !is_closed(strangers_[i]))
            return false;
    return true;
}

static void test_strangers_are_dropped_alone(void **state)
{
    struct fixture *f = *state;
    static const uint8_t tls_hello[] = {0x16, 0x03, 0x01, 0x00, 0xc8, 0x01, 0x00, 0x00, 0xc4, 0x03, 0x03};
    static const char http[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    uint8_t garbage[5000];
    srand(3);
    for (unsigned i = 0; i < sizeof garbage; i++)
        garbage[i] = (uint8_t)rand();
    start_server(f, "tcp://127.0.0.1:*");
    start_client(f);
    f->echo = true;
    for (unsigned i = 0; i < 4; i++)
        strangers_[i] = connect_raw(f);
    (void)!send(strangers_[0], tls_hello, sizeof tls_hello, MSG_NOSIGNAL);
    (void)!send(strangers_[1], http, sizeof http, MSG_NOSIGNAL);
    (void)!send(strangers_[2], garbage, sizeof garbage, MSG_NOSIGNAL);
    /* strangers_[3] says nothing */
    uint64_t start = clock_now_ms();
    run_until(f, strangers_are_closed);
    assert_in_range(clock_now_ms() - start, 0, 4000);
    assert_ok(channel_send_bytes(f->client, NULL, "still here", 10));
    run_until(f, client_got_one);
    assert_string_equal(f->client_text, "still here");
    assert_string_equal(f->events, "um");
    assert_int_equal(f->server_received, 1);
    for (unsigned i = 0; i < 4; i++)
        close(strangers_[i]);
}

static bool server_got_two(struct fixture *f)
{
    return f->server_received >= 2;
}

static void test_long_frame_drops_only_its_connection(void **state)
{
    struct fixture *f = *state;
    struct channel_config config = client_config(f);
    config.frame_bytes_max = 10 * FRAME_BYTES_MAX;
    start_server(f, "tcp://127.0.0.1:*");
    assert_ok(channel_create_client(f->loop, f->context, &config, channel_endpoint(f->server), &f->client));
    void *other = raw_dealer(f);
    run_until(f, is_up);
    char *big = calloc(1, FRAME_BYTES_MAX + 1);
    assert_ok(channel_send_bytes(f->client, NULL, big, FRAME_BYTES_MAX)); /* at the limit */
    run_until(f, server_got_one);
    assert_int_equal(f->server_bytes, FRAME_BYTES_MAX);
    assert_ok(channel_send_bytes(f->client, NULL, big, FRAME_BYTES_MAX + 1)); /* over it */
    run_until(f, is_down);
    raw_send(other, 1, "other");
    run_until(f, server_got_two);
    assert_string_equal(f->server_text, "other");
    run_until(f, is_up); /* it reconnects by itself */
    assert_string_equal(f->events, "udu");
    free(big);
    zmq_close(other);
}

/* ---- endpoints ---- */

static void check_refused(struct fixture *f, const char *endpoint, enum status expected, const char *words)
{
    struct channel_config config = server_config(f);
    struct channel *channel = NULL;
    enum status st = channel_create_server(f->loop, f->context, &config, endpoint, &channel);
    bool made = channel != NULL;
    channel_destroy(&channel);
    if (made || st != expected)
        fail_msg("%s: %s: %s", endpoint, status_name(st), status_detail());
    if (!strstr(status_detail(), words) || !strstr(status_detail(), endpoint))
        fail_msg("%s: %s", endpoint, status_detail());
}

static void test_endpoints_refused(void **state)
{
    struct fixture *f = *state;
    start_server(f, "tcp://127.0.0.1:*");
    check_refused(f, channel_endpoint(f->server), STATUS_IO, "is in use; stop the process that has it or choose another port");
    check_refused(f, "tcp://192.0.2.1:5555", STATUS_IO, "no such address");
    check_refused(f, "127.0.0.1:5555", STATUS_INVALID, "write tcp://HOST:PORT");
    check_refused(f, "tcp://127.0.0.1:99999", STATUS_INVALID, "write tcp://HOST:PORT");
    check_refused(f, "http://127.0.0.1:80", STATUS_INVALID, "write tcp://HOST:PORT");
    check_refused(f, "", STATUS_INVALID, "write tcp://HOST:PORT");
}

static void test_limits_must_be_set(void **state)
{
    struct fixture *f = *state;
    struct channel_config config = server_config(f);
    struct channel *channel = NULL;
    config.frame_bytes_max = 0;
    assert_int_equal(channel_create_server(f->loop, f->context, &config, "tcp://127.0.0.1:*", &channel), STATUS_INVALID);
    config = server_config(f);
    config.send_messages_max = 0;
    assert_int_equal(channel_create_client(f->loop, f->context, &config, "tcp://127.0.0.1:1", &channel), STATUS_INVALID);
    assert_null(channel);
}

/* ---- slow readers ---- */

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
    for (uint64_t end = clock_now_ms() + 2000; !raw_read(quick, bytes, sizeof bytes);)
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
    assert_ok(loop_timer_create(f->loop, 5, true, on_tick, f, &f->tick));
}

/* ---- links ---- */

static bool server_got_hello(struct fixture *f)
{
    return strcmp(f->server_text, "hello") == 0;
}

static void test_server_restart(void **state)
{
    struct fixture *f = *state;
    char endpoint[64];
    start_server(f, "tcp://127.0.0.1:*");
    strcpy(endpoint, channel_endpoint(f->server));
    f->hello = true;
    start_client(f);
    run_until(f, server_got_hello);
    for (unsigned round = 0; round < 5; round++) {
        f->server_text[0] = '\0';
        channel_destroy(&f->server);
        run_until(f, is_down);
        assert_int_equal(f->send_at_down, STATUS_CLOSED);
        run_for(f, round * 30);
        start_server(f, endpoint);
        run_until(f, server_got_hello);
    }
    assert_string_equal(f->events, "ududududu" "du");
}

/* In a process of its own: reads nothing, or echoes; killed from outside. */
static pid_t fork_server(const char *endpoint, bool reads)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* not to outlive a case that fails */
    close_range(3, ~0u, 0);           /* the parent's ZeroMQ descriptors, perhaps a listener on this very port */
    void *context = zmq_ctx_new();
    void *router = zmq_socket(context, ZMQ_ROUTER);
    int few = 1, small = 4096;
    zmq_setsockopt(router, ZMQ_RCVHWM, &few, sizeof few);
    zmq_setsockopt(router, ZMQ_RCVBUF, &small, sizeof small);
    while (zmq_bind(router, endpoint) != 0)
        usleep(1000);
    for (;;) {
        if (!reads) {
            pause();
            continue;
        }
        zmq_msg_t frame;
        zmq_msg_init(&frame);
        if (zmq_msg_recv(&frame, router, 0) < 0)
            _exit(1);
        bool more = zmq_msg_more(&frame);
        zmq_msg_send(&frame, router, more ? ZMQ_SNDMORE : 0);
    }
}

/* With a plain socket: ZeroMQ closes a listener some time after zmq_close. */
static void find_free_endpoint(char endpoint[64])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, size), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    close(fd);
    snprintf(endpoint, 64, "tcp://127.0.0.1:%u", ntohs(address.sin_port));
}

static void kill_server(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* What waited for the killed server never reaches the one that follows it at the same address. */
static void test_killed_server_takes_its_queue_along(void **state)
{
    struct fixture *f = *state;
    char endpoint[64];
    static char body[10000];
    find_free_endpoint(endpoint);
    pid_t pid = fork_server(endpoint, false);
    struct channel_config config = client_config(f);
    config.send_messages_max = 5;
    assert_ok(channel_create_client(f->loop, f->context, &config, endpoint, &f->client));
    run_until(f, is_up);
    for (unsigned i = 0; i < 2000 && channel_send_bytes(f->client, NULL, body, sizeof body) == STATUS_OK; i++)
        if (i % 50 == 0)
            run_for(f, 1);
    size_t pending = channel_pending(f->client);
    assert_true(pending > 500000);
    kill_server(pid);
    run_until(f, is_down);
    assert_in_range(f->pending_at_down, 500000, pending); /* shown to on_link(false) (the network may take a little more), */
    assert_int_equal(channel_pending(f->client), 0); /* then dropped */
    assert_int_equal(f->send_at_down, STATUS_CLOSED);
    f->hello = true;
    pid = fork_server(endpoint, true);
    run_until(f, client_got_one);
    assert_string_equal(f->client_text, "hello"); /* the first and only thing that the new server has seen */
    run_for(f, 100);
    assert_int_equal(f->client_received, 1);
    assert_string_equal(f->events, "udum");
    kill_server(pid);
}

/* The thread is busy while the server dies and another one takes its place. */
static void test_restart_during_a_stall(void **state)
{
    struct fixture *f = *state;
    char endpoint[64];
    find_free_endpoint(endpoint);
    pid_t pid = fork_server(endpoint, true);
    struct channel_config config = client_config(f);
    assert_ok(channel_create_client(f->loop, f->context, &config, endpoint, &f->client));
    run_until(f, is_up);
    assert_ok(channel_send_bytes(f->client, NULL, "one", 3));
    run_until(f, client_got_one);
    run_for(f, 20);
    kill_server(pid);
    pid = fork_server(endpoint, true);
    usleep(500000);
    run_until(f, is_down);
    run_until(f, is_up);
    assert_string_equal(f->events, "umdu");
    kill_server(pid);
}

/* The same, and the first thing after it is a send: it must not reach the new server. */
struct stalled {
    struct fixture *f;
    enum status st;
};

static void stall_and_send(void *user)
{
    struct stalled *stalled = user;
    stalled->st = channel_send_bytes(stalled->f->client, NULL, "for the dead", 12);
    loop_stop(stalled->f->loop);
}

static void test_send_to_a_dead_incarnation(void **state)
{
    struct fixture *f = *state;
    char endpoint[64];
    find_free_endpoint(endpoint);
    pid_t pid = fork_server(endpoint, true);
    struct channel_config config = client_config(f);
    assert_ok(channel_create_client(f->loop, f->context, &config, endpoint, &f->client));
    run_until(f, is_up);
    kill_server(pid);
    pid = fork_server(endpoint, true);
    usleep(500000);
    struct stalled stalled = {.f = f};
    assert_ok(loop_post(f->loop, stall_and_send, &stalled)); /* posts run before sockets */
    f->done = NULL;
    assert_ok(loop_run(f->loop));
    assert_int_equal(stalled.st, STATUS_OK); /* the loss is not known yet: it goes the way of the old link */
    f->hello = true;
    run_until(f, client_got_one);
    assert_string_equal(f->client_text, "hello");
    run_for(f, 100);
    assert_string_equal(f->events, "udum");
    kill_server(pid);
}

/* What the server sent before it died comes before the news of its death, also when it is more than the loop reads in one
 * turn. (With ZMQ_IMMEDIATE it would not come at all.) */
static void test_last_words_come_first(void **state)
{
    struct fixture *f = *state;
    enum { WORDS = 3 * LOOP_SOCKET_BATCH };
    start_server(f, "tcp://127.0.0.1:*");
    f->hello = true;
    start_client(f);
    run_until(f, server_got_hello);
    for (unsigned i = 0; i < WORDS; i++)
        assert_ok(channel_send_bytes(f->server, &f->peer, "x", 1));
    assert_int_equal(channel_pending(f->server), 0);
    channel_destroy_lingering(&f->server, 1000);
    usleep(200000); /* ZeroMQ has moved all of it, and the end of the link, before the loop looks */
    run_until(f, is_down);
    assert_int_equal(f->received_at_down, WORDS);
    run_for(f, 20);
    assert_int_equal(f->client_received, WORDS);
}

static bool server_got_300(struct fixture *f)
{
    return f->server_received >= 300;
}

/* An orderly exit: what was sent last arrives although the sender is gone at once. */
static void test_lingering(void **state)
{
    struct fixture *f = *state;
    start_server(f, "tcp://127.0.0.1:*");
    start_client(f);
    run_until(f, is_up);
    static char body[FRAME_BYTES_MAX];
    for (unsigned i = 0; i < 300; i++) /* 30 MB: more than sockets take at once */
        assert_ok(channel_send_bytes(f->client, NULL, body, sizeof body));
    assert_int_equal(channel_pending(f->client), 0);
    channel_destroy_lingering(&f->client, 5000);
    run_until(f, server_got_300);
}

/* ---- destroying from callbacks ---- */

static void destroy_server(struct fixture *f)
{
    channel_destroy(&f->server);
    loop_stop(f->loop);
}

static void test_destroy_in_on_message(void **state)
{
    struct fixture *f = *state;
    start_server(f, "tcp://127.0.0.1:*");
    void *dealer = raw_dealer(f);
    f->on_message = destroy_server;
    raw_send(dealer, 2, "x");
    raw_send(dealer, 2, "y");
    f->done = NULL;
    assert_ok(loop_run(f->loop));
    assert_false(f->gave_up);
    assert_int_equal(f->server_received, 1);
    assert_null(f->server);
    zmq_close(dealer);
}

static void destroy_in_link(void *user, bool up)
{
    struct fixture *f = user;
    if (up != f->wanted_up)
        return;
    channel_destroy(&f->client);
    loop_stop(f->loop);
}

static void check_destroy_in_link(struct fixture *f, bool up)
{
    struct channel_config config = client_config(f);
    config.on_link = destroy_in_link;
    f->wanted_up = up;
    start_server(f, "tcp://127.0.0.1:*");
    assert_ok(channel_create_client(f->loop, f->context, &config, channel_endpoint(f->server), &f->client));
    assert_ok(channel_send_bytes(f->client, NULL, "x", 1));
    run_for(f, 200);
    channel_destroy(&f->server);
    if (f->client)
        run_for(f, 1000);
    assert_null(f->client);
}

static void test_destroy_in_on_link_up(void **state)
{
    check_destroy_in_link(*state, true);
}

static void test_destroy_in_on_link_down(void **state)
{
    check_destroy_in_link(*state, false);
}

/* ---- descriptors ---- */

static void test_descriptors(void **state)
{
    (void)state;
    pid_t pid = fork();
    if (pid == 0) { /* limits cannot be raised again */
        struct rlimit limit = {.rlim_cur = 100, .rlim_max = 500}, after;
        if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
            _exit(1);
        if (channel_check_descriptors(300) != STATUS_OK || getrlimit(RLIMIT_NOFILE, &after) != 0 || after.rlim_cur != 500)
            _exit(2);
        if (channel_descriptors_left() > 500 - 64 - 3 || channel_descriptors_left() < 300)
            _exit(5);
        if (channel_check_descriptors(500) != STATUS_LIMIT)
            _exit(3);
        _exit(strstr(status_detail(), "the limit on open files is 500") && strstr(status_detail(), "LimitNOFILE=") ? 0 : 4);
    }
    int code;
    waitpid(pid, &code, 0);
    assert_int_equal(WEXITSTATUS(code), 0);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_echo_over_tcp),
        CASE(test_echo_over_ipv6),
        CASE(test_echo_over_inproc),
        CASE(test_heartbeats_keep_an_idle_link),
        CASE(test_too_many_frames_are_dropped),
        CASE(test_long_peer_ids_are_dropped),
        CASE(test_send_refuses),
        CASE(test_strangers_are_dropped_alone),
        CASE(test_long_frame_drops_only_its_connection),
        CASE(test_endpoints_refused),
        CASE(test_limits_must_be_set),
        CASE(test_slow_reader_of_a_server),
        CASE(test_peer_that_leaves_loses_its_queue),
        CASE(test_forget_peer),
        CASE(test_burst_over_tcp),
        CASE(test_burst_over_inproc),
        CASE(test_absent_server),
        CASE(test_server_restart),
        CASE(test_killed_server_takes_its_queue_along),
        CASE(test_restart_during_a_stall),
        CASE(test_send_to_a_dead_incarnation),
        CASE(test_last_words_come_first),
        CASE(test_lingering),
        CASE(test_destroy_in_on_message),
        CASE(test_destroy_in_on_link_up),
        CASE(test_destroy_in_on_link_down),
        CASE(test_descriptors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
