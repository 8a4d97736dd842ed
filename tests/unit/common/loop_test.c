/* loop_test.c - the turn, and above all that no ZeroMQ message waits while the thread sleeps.
 *
 * How an edge is swallowed here: zmq_send reads the mailbox of its socket (and so empties ZMQ_FD) only when about a
 * millisecond has passed since it last did, so the tests let EDGE_MS pass before the send that is meant to swallow. */
#include "unit.h"
#include "common/clock.h"
#include "common/loop.h"
#include <event2/event.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

enum { EDGE_MS = 10, GIVE_UP_MS = 3000 };

struct fixture {
    struct loop *loop;
    void *context;
    void *near, *far; /* a pair of PAIR sockets; near is watched */
    struct loop_socket *watch;
    struct loop_timer *give_up;
    bool gave_up;
    unsigned received, wanted;
    void (*on_message)(struct fixture *);
};

static void burn(unsigned ms)
{
    for (uint64_t end = clock_now_ms() + ms; clock_now_ms() < end;)
        ;
}

static void on_give_up(void *user)
{
    struct fixture *f = user;
    f->gave_up = true;
    loop_stop(f->loop);
}

static bool receive(void *user)
{
    struct fixture *f = user;
    char byte;
    if (zmq_recv(f->near, &byte, 1, ZMQ_DONTWAIT) < 0)
        return false;
    f->received++;
    if (f->on_message)
        f->on_message(f);
    if (f->received == f->wanted)
        loop_stop(f->loop);
    return true;
}

static void send_to_near(struct fixture *f, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        assert_int_equal(zmq_send(f->far, "x", 1, ZMQ_DONTWAIT), 1);
}

static void send_from_near(struct fixture *f)
{
    assert_int_equal(zmq_send(f->near, "y", 1, ZMQ_DONTWAIT), 1);
}

static int setup(void **state)
{
    static unsigned number;
    struct fixture *f = calloc(1, sizeof *f);
    char name[32];
    int no_limit = 0;
    snprintf(name, sizeof name, "inproc://pair-%u", number++);
    f->context = zmq_ctx_new();
    f->near = zmq_socket(f->context, ZMQ_PAIR);
    f->far = zmq_socket(f->context, ZMQ_PAIR);
    zmq_setsockopt(f->near, ZMQ_RCVHWM, &no_limit, sizeof no_limit);
    zmq_setsockopt(f->far, ZMQ_SNDHWM, &no_limit, sizeof no_limit);
    if (zmq_bind(f->near, name) != 0 || zmq_connect(f->far, name) != 0 || loop_create(&f->loop) != STATUS_OK ||
        loop_socket_create(f->loop, f->near, receive, f, &f->watch) != STATUS_OK ||
        loop_timer_create(f->loop, GIVE_UP_MS, false, on_give_up, f, &f->give_up) != STATUS_OK)
        return -1;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    loop_socket_destroy(&f->watch);
    loop_timer_destroy(&f->give_up);
    loop_destroy(&f->loop);
    zmq_close(f->near);
    zmq_close(f->far);
    zmq_ctx_term(f->context);
    free(f);
    return 0;
}

static void run(struct fixture *f, unsigned wanted)
{
    f->wanted = wanted;
    assert_ok(loop_run(f->loop));
    if (f->gave_up)
        fail_msg("%u of %u messages arrived, then silence", f->received, wanted);
    assert_int_equal(f->received, wanted);
}

/* ---- the edge ---- */

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

/* The premise of the two tests above: without the touch, the same pulse leaves the socket silent. Shown with a plain libevent
 * watch of ZMQ_FD, which is what the loop would be without its dirty list. */
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

static void stop_loop(void *user)
{
    loop_stop(user);
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
    loop_timer_destroy(&f->give_up);
    assert_ok(loop_timer_create(f->loop, 30000, false, on_give_up, f, &f->give_up));
    assert_int_equal(pthread_create(&thread, NULL, send_jittered, f), 0);
    run(f, 20000);
    pthread_join(thread, NULL);
}

/* (c) deterministic: the message comes in the hook, which is after the handlers and before the sleep; nobody touches. */
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

/* ---- writable ---- */

struct writer {
    struct fixture *f;
    void *out, *in;
    struct loop_socket *watch;
    unsigned sent, calls;
};

static bool receive_nothing(void *user)
{
    (void)user;
    return false;
}

static void on_writable(void *user)
{
    struct writer *writer = user;
    writer->calls++;
    while (writer->sent < 1000 && zmq_send(writer->out, "z", 1, ZMQ_DONTWAIT) == 1)
        writer->sent++;
    if (writer->sent == 1000)
        loop_socket_watch_writable(writer->watch, NULL);
}

static void read_some(void *user)
{
    struct writer *writer = user;
    char byte;
    for (int i = 0; i < 60 && zmq_recv(writer->in, &byte, 1, ZMQ_DONTWAIT) == 1; i++)
        writer->f->received++;
    if (writer->f->received == 1000)
        loop_stop(writer->f->loop);
}

static void test_writable(void **state)
{
    struct writer writer = {.f = *state};
    struct loop_timer *timer;
    int mark = 50;
    writer.out = zmq_socket(writer.f->context, ZMQ_DEALER);
    writer.in = zmq_socket(writer.f->context, ZMQ_DEALER);
    zmq_setsockopt(writer.out, ZMQ_SNDHWM, &mark, sizeof mark);
    zmq_setsockopt(writer.in, ZMQ_RCVHWM, &mark, sizeof mark);
    assert_int_equal(zmq_bind(writer.in, "inproc://writable"), 0);
    assert_int_equal(zmq_connect(writer.out, "inproc://writable"), 0);
    assert_ok(loop_socket_create(writer.f->loop, writer.out, receive_nothing, &writer, &writer.watch));
    assert_ok(loop_timer_create(writer.f->loop, 5, true, read_some, &writer, &timer));
    loop_socket_watch_writable(writer.watch, on_writable);
    assert_ok(loop_run(writer.f->loop));
    assert_false(writer.f->gave_up);
    assert_int_equal(writer.f->received, 1000);
    assert_in_range(writer.calls, 2, 100); /* called when there is room, not in every turn */
    loop_timer_destroy(&timer);
    loop_socket_destroy(&writer.watch);
    zmq_close(writer.out);
    zmq_close(writer.in);
}

/* ---- (e) destroying from callbacks ---- */

static bool destroy_own_socket(void *user)
{
    struct fixture *f = user;
    char byte;
    if (zmq_recv(f->near, &byte, 1, ZMQ_DONTWAIT) < 0)
        return false;
    f->received++;
    loop_socket_destroy(&f->watch);
    zmq_close(f->near); /* at once, as an owner would */
    f->near = NULL;
    loop_stop(f->loop);
    return true;
}

static void test_socket_destroys_itself(void **state)
{
    struct fixture *f = *state;
    loop_socket_destroy(&f->watch);
    assert_ok(loop_socket_create(f->loop, f->near, destroy_own_socket, f, &f->watch));
    send_to_near(f, 3);
    assert_ok(loop_run(f->loop));
    assert_int_equal(f->received, 1);
    assert_false(f->gave_up);
    f->near = zmq_socket(f->context, ZMQ_PAIR); /* for teardown */
}

struct couple {
    struct fixture *f;
    void *socket[2], *peer[2];
    struct loop_socket *watch[2];
    struct loop_timer *timer[2];
    struct loop_hook *hook[2];
    unsigned fired;
};

struct half {
    struct couple *couple;
    unsigned other;
};

static bool socket_kills_other(void *user)
{
    struct half *half = user;
    char byte;
    if (zmq_recv(half->couple->socket[!half->other], &byte, 1, ZMQ_DONTWAIT) < 0)
        return false;
    half->couple->fired++;
    loop_socket_destroy(&half->couple->watch[half->other]);
    return true;
}

static void test_socket_destroys_another(void **state)
{
    struct couple couple = {.f = *state};
    struct half half[2] = {{&couple, 1}, {&couple, 0}};
    struct loop_timer *timer;
    for (unsigned i = 0; i < 2; i++) {
        char name[32];
        snprintf(name, sizeof name, "inproc://couple-%u", i);
        couple.socket[i] = zmq_socket(couple.f->context, ZMQ_PAIR);
        couple.peer[i] = zmq_socket(couple.f->context, ZMQ_PAIR);
        assert_int_equal(zmq_bind(couple.socket[i], name), 0);
        assert_int_equal(zmq_connect(couple.peer[i], name), 0);
        assert_ok(loop_socket_create(couple.f->loop, couple.socket[i], socket_kills_other, &half[i], &couple.watch[i]));
        zmq_send(couple.peer[i], "x", 1, 0); /* both are readable in the same turn */
    }
    assert_ok(loop_timer_create(couple.f->loop, 20, false, stop_loop, couple.f->loop, &timer));
    assert_ok(loop_run(couple.f->loop));
    assert_int_equal(couple.fired, 1); /* the first one to run removed the other */
    loop_timer_destroy(&timer);
    for (unsigned i = 0; i < 2; i++) {
        loop_socket_destroy(&couple.watch[i]);
        zmq_close(couple.socket[i]);
        zmq_close(couple.peer[i]);
    }
}

static void timer_kills_both(void *user)
{
    struct couple *couple = user;
    couple->fired++;
    loop_timer_destroy(&couple->timer[0]);
    loop_timer_destroy(&couple->timer[1]);
}

static void test_timer_destroys_itself_and_another(void **state)
{
    struct couple couple = {.f = *state};
    struct loop_timer *timer;
    for (unsigned i = 0; i < 2; i++) /* due in the same dispatch, and repeating */
        assert_ok(loop_timer_create(couple.f->loop, 5, true, timer_kills_both, &couple, &couple.timer[i]));
    assert_ok(loop_timer_create(couple.f->loop, 40, false, stop_loop, couple.f->loop, &timer));
    assert_ok(loop_run(couple.f->loop));
    assert_int_equal(couple.fired, 1);
    loop_timer_destroy(&timer);
}

static void hook_kills_both(void *user)
{
    struct couple *couple = user;
    couple->fired++;
    loop_hook_destroy(&couple->hook[0]);
    loop_hook_destroy(&couple->hook[1]);
}

static void test_hook_destroys_itself_and_another(void **state)
{
    struct couple couple = {.f = *state};
    struct loop_timer *timer;
    for (unsigned i = 0; i < 2; i++)
        assert_ok(loop_hook_create(couple.f->loop, hook_kills_both, &couple, &couple.hook[i]));
    assert_ok(loop_timer_create(couple.f->loop, 20, false, stop_loop, couple.f->loop, &timer));
    assert_ok(loop_run(couple.f->loop));
    assert_int_equal(couple.fired, 1);
    loop_timer_destroy(&timer);
}

static void timer_kills_socket(void *user)
{
    struct fixture *f = user;
    loop_socket_destroy(&f->watch);
    loop_stop(f->loop);
}

static void test_timer_destroys_a_readable_socket(void **state)
{
    struct fixture *f = *state;
    struct loop_timer *timer;
    assert_ok(loop_timer_create(f->loop, 5, false, timer_kills_socket, f, &timer));
    assert_ok(loop_run(f->loop));
    send_to_near(f, 1);
    assert_int_equal(f->received, 0);
    loop_timer_destroy(&timer);
}

/* ---- order, clock, timers, posts, signals ---- */

struct order {
    struct fixture *f;
    char text[64];
};

static void add(struct order *order, char letter)
{
    size_t size = strlen(order->text);
    if (size + 1 < sizeof order->text)
        order->text[size] = letter;
}

static void order_hook(void *user)
{
    add(user, 'h');
}

static void order_post(void *user)
{
    add(user, 'p');
}

static void order_last_post(void *user)
{
    struct order *order = user;
    add(order, 'q');
    loop_stop(order->f->loop);
}

static bool order_socket(void *user)
{
    struct order *order = user;
    char byte;
    if (zmq_recv(order->f->near, &byte, 1, ZMQ_DONTWAIT) < 0)
        return false;
    add(order, 's');
    assert_ok(loop_post(order->f->loop, order_last_post, order)); /* not before the next turn */
    return true;
}

static void test_order_of_a_turn(void **state)
{
    struct order order = {.f = *state};
    struct loop_hook *hook;
    loop_socket_destroy(&order.f->watch);
    assert_ok(loop_hook_create(order.f->loop, order_hook, &order, &hook));
    assert_ok(loop_socket_create(order.f->loop, order.f->near, order_socket, &order, &order.f->watch));
    send_to_near(order.f, 1);
    assert_ok(loop_post(order.f->loop, order_post, &order));
    assert_ok(loop_post(order.f->loop, order_post, &order));
    assert_ok(loop_run(order.f->loop));
    assert_string_equal(order.text, "ppshqh");
    loop_hook_destroy(&hook);
}

struct ticks {
    struct fixture *f;
    struct loop_timer *timer;
    uint64_t start, due, early;
    unsigned count;
};

static void on_tick(void *user)
{
    struct ticks *ticks = user;
    ticks->count++;
    ticks->due += 7;
    if (clock_now_ms() < ticks->due || loop_now_ms(ticks->f->loop) < ticks->due)
        ticks->early++;
    if (ticks->count == 30)
        loop_stop(ticks->f->loop);
}

static void test_timers_are_never_early(void **state)
{
    struct ticks ticks = {.f = *state, .start = clock_now_ms()};
    ticks.due = ticks.start;
    assert_ok(loop_timer_create(ticks.f->loop, 7, true, on_tick, &ticks, &ticks.timer));
    assert_ok(loop_run(ticks.f->loop));
    assert_int_equal(ticks.early, 0);
    assert_int_equal(ticks.count, 30);
    loop_timer_destroy(&ticks.timer);
}

struct stall {
    struct fixture *f;
    unsigned step;
    uint64_t seen[3];
};

static void on_stall_tick(void *user)
{
    struct stall *stall = user;
    stall->seen[stall->step++] = loop_stall_ms(stall->f->loop);
    if (stall->step == 1)
        burn(60); /* the next tick is late, and sees it */
    if (stall->step == 3)
        loop_stop(stall->f->loop);
}

static void test_stall_is_seen(void **state)
{
    struct stall stall = {.f = *state};
    struct loop_timer *timer;
    assert_ok(loop_timer_create(stall.f->loop, 30, true, on_stall_tick, &stall, &timer));
    assert_ok(loop_run(stall.f->loop));
    assert_in_range(stall.seen[0], 0, 25); /* a wait of 30 ms is no stall */
    assert_in_range(stall.seen[1], 25, 1000);
    loop_timer_destroy(&timer);
}

/* Stopped as by SIGSTOP while it waits: only a timer can tell. */
static void *stop_and_continue(void *user)
{
    (void)user;
    if (system("kill -STOP $PPID; sleep 0.3; kill -CONT $PPID") == -1)
        abort();
    return NULL;
}

struct stopped {
    struct fixture *f;
    uint64_t last_tick_ms, gap_ms, stall_in_it_ms;
    unsigned ticks;
};

static void on_stopped_tick(void *user)
{
    struct stopped *stopped = user;
    uint64_t now = clock_now_ms();
    if (now - stopped->last_tick_ms > 200) {
        stopped->gap_ms = now - stopped->last_tick_ms;
        stopped->stall_in_it_ms = loop_stall_ms(stopped->f->loop);
        loop_stop(stopped->f->loop);
    }
    stopped->last_tick_ms = now;
    if (++stopped->ticks == 150)
        loop_stop(stopped->f->loop);
}

static void test_stopped_process_is_seen(void **state)
{
    struct stopped stopped = {.f = *state, .last_tick_ms = clock_now_ms()};
    struct loop_timer *timer;
    pthread_t thread;
    assert_ok(loop_timer_create(stopped.f->loop, 10, true, on_stopped_tick, &stopped, &timer));
    assert_int_equal(pthread_create(&thread, NULL, stop_and_continue, NULL), 0);
    assert_ok(loop_run(stopped.f->loop));
    pthread_join(thread, NULL);
    loop_timer_destroy(&timer);
    if (stopped.gap_ms < 200 || stopped.stall_in_it_ms + 20 < stopped.gap_ms) /* it was stopped, and the next tick knew */
        fail_msg("%llu ms between two ticks, a stall of %llu ms", (unsigned long long)stopped.gap_ms,
                 (unsigned long long)stopped.stall_in_it_ms);
}

enum { POSTERS = 4, POSTS = 5000 };

struct poster {
    struct fixture *f;
    pthread_t thread;
    unsigned *total;
    unsigned next; /* the number this poster's next post must have */
};

struct post {
    struct poster *poster;
    unsigned number;
};

static void on_post(void *user)
{
    struct post *post = user;
    struct poster *poster = post->poster;
    if (post->number != poster->next)
        abort(); /* order of posting, per thread */
    poster->next++;
    free(post);
    if (++*poster->total == POSTERS * POSTS)
        loop_stop(poster->f->loop);
}

static void *post_many(void *user)
{
    struct poster *poster = user;
    for (unsigned i = 0; i < POSTS; i++) {
        struct post *post = malloc(sizeof *post);
        *post = (struct post){poster, i};
        if (loop_post(poster->f->loop, on_post, post) != STATUS_OK)
            abort();
        if (i % 512 == 0)
            usleep(200);
    }
    return NULL;
}

static void test_posts_from_threads(void **state)
{
    struct poster posters[POSTERS];
    unsigned total = 0;
    for (unsigned i = 0; i < POSTERS; i++) {
        posters[i] = (struct poster){.f = *state, .total = &total};
        assert_int_equal(pthread_create(&posters[i].thread, NULL, post_many, &posters[i]), 0);
    }
    assert_ok(loop_run(posters[0].f->loop));
    for (unsigned i = 0; i < POSTERS; i++)
        pthread_join(posters[i].thread, NULL);
    assert_false(posters[0].f->gave_up);
    assert_int_equal(total, POSTERS * POSTS);
}

static void *stop_from_thread(void *user)
{
    usleep(20000);
    loop_stop(user);
    return NULL;
}

static void test_stop_from_a_thread(void **state)
{
    struct fixture *f = *state;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, stop_from_thread, f->loop), 0);
    assert_ok(loop_run(f->loop));
    assert_false(f->gave_up);
    pthread_join(thread, NULL);
    loop_stop(f->loop); /* before the run: it returns after one turn */
    assert_ok(loop_run(f->loop));
    assert_false(f->gave_up);
}

static void on_signal(int signal, void *user)
{
    struct fixture *f = user;
    f->received = (unsigned)signal;
    loop_stop(f->loop);
}

static void raise_signal(void *user)
{
    (void)user;
    raise(SIGUSR1);
}

static void test_signal(void **state)
{
    struct fixture *f = *state;
    struct loop_timer *timer;
    assert_ok(loop_on_signal(f->loop, SIGUSR1, on_signal, f));
    assert_ok(loop_timer_create(f->loop, 5, false, raise_signal, f, &timer));
    assert_ok(loop_run(f->loop));
    assert_int_equal(f->received, SIGUSR1);
    loop_timer_destroy(&timer);
}

static void test_unrun_posts_are_dropped(void **state)
{
    (void)state;
    struct loop *loop;
    assert_ok(loop_create(&loop));
    assert_ok(loop_post(loop, stop_loop, NULL));
    loop_destroy(&loop);
    assert_null(loop);
    loop_destroy(&loop);
}

/* The context ends under a watched socket: no spin, no crash. */
static void *end_context(void *user)
{
    zmq_ctx_shutdown(user);
    return NULL;
}

static void test_context_shutdown_does_not_spin(void **state)
{
    struct fixture *f = *state;
    struct loop_timer *timer;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, end_context, f->context), 0);
    assert_ok(loop_timer_create(f->loop, 100, false, stop_loop, f->loop, &timer));
    assert_ok(loop_run(f->loop));
    pthread_join(thread, NULL);
    assert_in_range(loop_turn(f->loop), 1, 10);
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
        CASE(test_message_between_handler_and_sleep),
        CASE(test_idle_loop_sleeps),
        CASE(test_writable),
        CASE(test_socket_destroys_itself),
        CASE(test_socket_destroys_another),
        CASE(test_timer_destroys_itself_and_another),
        CASE(test_hook_destroys_itself_and_another),
        CASE(test_timer_destroys_a_readable_socket),
        CASE(test_order_of_a_turn),
        CASE(test_timers_are_never_early),
        CASE(test_stall_is_seen),
        CASE(test_stopped_process_is_seen),
        CASE(test_posts_from_threads),
        CASE(test_stop_from_a_thread),
        CASE(test_signal),
        CASE(test_unrun_posts_are_dropped),
        CASE(test_context_shutdown_does_not_spin),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
