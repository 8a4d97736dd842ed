/* loop_test.c - the turn: writable sockets, destroying from callbacks, order, clock, timers, posts, signals. */
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>
#include "common/clock.h"
#include "loop_fixture.h"
#include "tests/unit/unit.h"

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
    if (stopped.gap_ms < 200 ||
        stopped.stall_in_it_ms + 20 < stopped.gap_ms) /* it was stopped, and the next tick knew */
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
