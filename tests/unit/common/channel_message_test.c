/* channel_message_test.c - framing, limits, bad peers and endpoints of channels, over loopback. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>
#include "channel_fixture.h"
#include "common/clock.h"
#include "tests/unit/unit.h"

/* ---- messages ---- */

static enum status send_frames(struct channel *channel, const struct channel_peer *peer, unsigned count,
                               const char *const *texts)
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
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
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
    assert_in_range(clock_now_ms() - start, 0, 20000);
    assert_ok(channel_send_bytes(f->client, NULL, "still here", 10));
    run_until(f, client_got_one);
    assert_string_equal(f->client_text, "still here");
    assert_string_equal(f->events, "um");
    assert_int_equal(f->server_received, 1);
    for (unsigned i = 0; i < 4; i++)
        close(strangers_[i]);
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
    check_refused(f, channel_endpoint(f->server), STATUS_IO,
                  "is in use; stop the process that has it or choose another port");
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
    assert_int_equal(channel_create_server(f->loop, f->context, &config, "tcp://127.0.0.1:*", &channel),
                     STATUS_INVALID);
    config = server_config(f);
    config.send_messages_max = 0;
    assert_int_equal(channel_create_client(f->loop, f->context, &config, "tcp://127.0.0.1:1", &channel),
                     STATUS_INVALID);
    assert_null(channel);
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
        if (channel_check_descriptors(300) != STATUS_OK || getrlimit(RLIMIT_NOFILE, &after) != 0 ||
            after.rlim_cur != 500)
            _exit(2);
        if (channel_descriptors_left() > 500 - 64 - 3 || channel_descriptors_left() < 300)
            _exit(5);
        if (channel_check_descriptors(500) != STATUS_LIMIT)
            _exit(3);
        _exit(strstr(status_detail(), "the limit on open files is 500") && strstr(status_detail(), "LimitNOFILE=") ? 0
                                                                                                                   : 4);
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
        CASE(test_descriptors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
