/* loop_edge_test.c - no ZeroMQ message waits while the thread sleeps, however its edge was swallowed.
 *
 * How an edge is swallowed here: zmq_send reads the mailbox of its socket (and so empties ZMQ_FD) only when about a
 * millisecond has passed since it last did, so the tests let EDGE_MS pass before the send that is meant to swallow. */
#include <event2/event.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <unistd.h>
#include <zmq.h>
#include "loop_fixture.h"
#include "tests/unit/unit.h"

enum { EDGE_MS = 10 };

static void test_messages_before_the_watch(void **state)
{
    struct fixture *f = *state;
    int events;
    size_t size = sizeof events;
    send_to_near(f, 3);
    zmq_getsockopt(f->near, ZMQ_EVENTS, &events, &size); /* swallows */
    run(f, 3);
}

/* (a) The handler's own answer swallows the edge of the next message. */
static void answer_slowly(struct fixture *f)
{
    if (f->received < 20) {
        send_to_near(f, 1);
        burn(EDGE_MS / 3);
        send_from_near(f);
    }
}

static void test_send_in_the_handler_swallows_the_edge(void **state)
{
    struct fixture *f = *state;
    f->on_message = answer_slowly;
    send_to_near(f, 1);
    run(f, 20);
}

/* (a, d) A timer sends on the socket, which swallows the edge of a message that came while the thread was busy. */
struct pulse {
    struct fixture *f;
    struct loop_timer *timer;
    unsigned left;
};

static void on_pulse(void *user)
{
    struct pulse *pulse = user;
    send_to_near(pulse->f, 1);
    burn(EDGE_MS);
    send_from_near(pulse->f);
    loop_socket_touch(pulse->f->watch);
    if (--pulse->left == 0)
        loop_timer_destroy(&pulse->timer);
}

static void test_send_in_a_timer_swallows_the_edge(void **state)
{
    struct pulse pulse = {.f = *state, .left = 10};
    assert_ok(loop_timer_create(pulse.f->loop, 5, true, on_pulse, &pulse, &pulse.timer));
    run(pulse.f, 10);
}

/* The premise of the two tests above: without the touch, the same pulse leaves the socket silent. Shown with a plain
 * libevent watch of ZMQ_FD, which is what the loop would be without its dirty list. */
static void on_fd(evutil_socket_t fd, short what, void *user)
{
    (void)fd;
    (void)what;
    *(unsigned *)user += 1;
}

static void test_premise_the_edge_is_swallowed(void **state)
{
    struct fixture *f = *state;
    unsigned fired = 0;
    int fd;
    size_t size = sizeof fd;
    assert_int_equal(zmq_getsockopt(f->near, ZMQ_FD, &fd, &size), 0);
    int events;
    size_t events_size = sizeof events;
    assert_int_equal(zmq_getsockopt(f->near, ZMQ_EVENTS, &events, &events_size), 0);
    struct event_base *base = event_base_new();
    struct event *event = event_new(base, fd, EV_READ | EV_PERSIST, on_fd, &fired);
    event_add(event, NULL);
    send_to_near(f, 1);
    burn(EDGE_MS);
    send_from_near(f);
    event_base_loop(base, EVLOOP_NONBLOCK);
    assert_int_equal(fired, 0);
    char byte;
    assert_int_equal(zmq_recv(f->near, &byte, 1, ZMQ_DONTWAIT), 1); /* it was there all the time */
    event_free(event);
    event_base_free(base);
}

/* A hook at the end of the turn sends, as the flush of a batch does. */
struct flush {
    struct fixture *f;
    struct loop_hook *hook;
    unsigned left;
};

static void on_flush(void *user)
{
    struct flush *flush = user;
    if (flush->left == 0)
        return;
    flush->left--;
    send_to_near(flush->f, 1);
    burn(EDGE_MS / 3);
    send_from_near(flush->f);
    loop_socket_touch(flush->f->watch);
}

static void test_send_in_a_hook_swallows_the_edge(void **state)
{
    struct flush flush = {.f = *state, .left = 20};
    assert_ok(loop_hook_create(flush.f->loop, on_flush, &flush, &flush.hook));
    run(flush.f, 20);
    loop_hook_destroy(&flush.hook);
    assert_null(flush.hook);
}

/* (b) More messages than one batch, with nothing that would signal the rest again. */
static void test_more_than_a_batch(void **state)
{
    struct fixture *f = *state;
    send_to_near(f, 5 * LOOP_SOCKET_BATCH + 7);
    run(f, 5 * LOOP_SOCKET_BATCH + 7);
}

static void test_exactly_a_batch(void **state)
{
    struct fixture *f = *state;
    for (unsigned count = LOOP_SOCKET_BATCH - 1; count <= LOOP_SOCKET_BATCH + 1; count++) {
        f->received = 0;
        send_to_near(f, count);
        run(f, count);
    }
}

/* A flood on one socket leaves turns to timers, posts and others. */
static void keep_flooding(struct fixture *f)
{
    send_to_near(f, 1);
}

static void test_flood_does_not_starve(void **state)
{
    struct fixture *f = *state;
    struct loop_timer *timer;
    f->on_message = keep_flooding;
    f->wanted = UINT32_MAX;
    send_to_near(f, LOOP_SOCKET_BATCH * 2);
    assert_ok(loop_timer_create(f->loop, 20, false, stop_loop, f->loop, &timer));
    assert_ok(loop_run(f->loop));
    assert_false(f->gave_up);
    assert_true(f->received > LOOP_SOCKET_BATCH);
    loop_timer_destroy(&timer);
}

/* (c) Messages from another thread at every moment: after the handler, before the sleep, inside the wait. */
static void *send_jittered(void *user)
{
    struct fixture *f = user;
    unsigned seed = 1;
    for (unsigned i = 0; i < 20000; i++) {
        if (zmq_send(f->far, "x", 1, 0) != 1)
            abort();
        seed = seed * 1103515245u + 12345u;
        for (volatile unsigned spin = seed >> 16 & 1023; spin > 0; spin--)
            ;
        if ((seed >> 16) % 500 == 0)
            usleep(300);
    }
    return NULL;
}

static void test_messages_at_every_moment(void **state)
{
    struct fixture *f = *state;
    pthread_t thread;
    give_up_after(f, 30000);
    assert_int_equal(pthread_create(&thread, NULL, send_jittered, f), 0);
    run(f, 20000);
    pthread_join(thread, NULL);
}

/* (c) deterministic: the message comes in the hook, which is after the handlers and before the sleep; nobody touches.
 */
static void test_messages_at_every_moment_of_a_paced_loop(void **state)
{
    struct fixture *f = *state;
    loop_set_pace(f->loop, 200);
    test_messages_at_every_moment(state);
}

static void send_one(void *user)
{
    send_to_near(user, 1);
}

/* Who asks now and then does not wait: one message in 2 ms, turns of timers between. */
static void test_few_messages_are_not_paced(void **state)
{
    struct fixture *f = *state;
    struct loop_timer *timer;
    loop_set_pace(f->loop, 1000);
    assert_ok(loop_timer_create(f->loop, 2, true, send_one, f, &timer));
    run(f, 200);
    assert_int_equal(loop_paced_turns(f->loop), 0);
    loop_timer_destroy(&timer);
}

static void send_in_hook(void *user)
{
    struct flush *flush = user;
    if (flush->left > 0) {
        flush->left--;
        send_to_near(flush->f, 1);
    }
}

static void test_message_between_handler_and_sleep(void **state)
{
    struct flush flush = {.f = *state, .left = 50};
    assert_ok(loop_hook_create(flush.f->loop, send_in_hook, &flush, &flush.hook));
    run(flush.f, 50);
    loop_hook_destroy(&flush.hook);
}

/* Each message is answered by the next one, from another thread: so many turns that they are spread out, sooner or later. */
struct echo {
    struct fixture *f;
    sem_t asked;
    atomic_bool over;
};

static struct echo echo;

static void *answer_each(void *user)
{
    (void)user;
    while (sem_wait(&echo.asked) == 0 && !atomic_load(&echo.over))
        if (zmq_send(echo.f->far, "x", 1, 0) != 1)
            abort();
    return NULL;
}

static void ask_for_the_next(struct fixture *f)
{
    if (loop_paced_turns(f->loop) > 10)
        f->wanted = f->received; /* enough */
    sem_post(&echo.asked);
}

static void test_busy_turns_keep_the_pace(void **state)
{
    struct fixture *f = *state;
    pthread_t thread;
    echo.f = f;
    atomic_store(&echo.over, false);
    assert_int_equal(sem_init(&echo.asked, 0, 1), 0);
    f->on_message = ask_for_the_next;
    give_up_after(f, 30000);
    loop_set_pace(f->loop, 200);
    assert_int_equal(pthread_create(&thread, NULL, answer_each, NULL), 0);
    f->wanted = UINT_MAX;
    assert_ok(loop_run(f->loop));
    atomic_store(&echo.over, true);
    sem_post(&echo.asked);
    pthread_join(thread, NULL);
    sem_destroy(&echo.asked);
    assert_false(f->gave_up);
}

/* A loop with nothing to do sleeps: few turns in 200 ms. */
static void test_idle_loop_sleeps(void **state)
{
    struct fixture *f = *state;
    struct loop_timer *timer;
    f->wanted = 2;
    send_to_near(f, 1);
    assert_ok(loop_timer_create(f->loop, 200, false, stop_loop, f->loop, &timer));
    assert_ok(loop_run(f->loop));
    assert_int_equal(f->received, 1);
    assert_in_range(loop_turn(f->loop), 1, 8);
    loop_timer_destroy(&timer);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_messages_before_the_watch),
        CASE(test_premise_the_edge_is_swallowed),
        CASE(test_send_in_the_handler_swallows_the_edge),
        CASE(test_send_in_a_timer_swallows_the_edge),
        CASE(test_send_in_a_hook_swallows_the_edge),
        CASE(test_more_than_a_batch),
        CASE(test_exactly_a_batch),
        CASE(test_flood_does_not_starve),
        CASE(test_messages_at_every_moment),
        CASE(test_messages_at_every_moment_of_a_paced_loop),
        CASE(test_few_messages_are_not_paced),
        CASE(test_message_between_handler_and_sleep),
        CASE(test_busy_turns_keep_the_pace),
        CASE(test_idle_loop_sleeps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
