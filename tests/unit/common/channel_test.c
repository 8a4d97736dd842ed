/* channel_test.c - links of channels that come and go, what becomes of their messages, and destroying from callbacks.
 */
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>
#include "channel_fixture.h"
#include "common/loop.h"
#include "tests/unit/free_port.h"
#include "tests/unit/unit.h"

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
    assert_string_equal(f->events, "ududududu"
                                   "du");
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
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%u", free_port());
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
    assert_in_range(f->pending_at_down, 500000,
                    pending);                        /* shown to on_link(false) (the network may take a little more), */
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
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%u", free_port());
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
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%u", free_port());
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

/* What the server sent before it died comes before the news of its death, also when it is more than the loop reads in
 * one turn. (With ZMQ_IMMEDIATE it would not come at all.) */
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

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_server_restart),          CASE(test_killed_server_takes_its_queue_along),
        CASE(test_restart_during_a_stall),  CASE(test_send_to_a_dead_incarnation),
        CASE(test_last_words_come_first),   CASE(test_lingering),
        CASE(test_destroy_in_on_message),   CASE(test_destroy_in_on_link_up),
        CASE(test_destroy_in_on_link_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
