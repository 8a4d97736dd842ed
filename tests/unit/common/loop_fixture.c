#include "loop_fixture.h"
#include <zmq.h>
#include "common/clock.h"
#include "tests/unit/unit.h"

void burn(unsigned ms)
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

void send_to_near(struct fixture *f, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        assert_int_equal(zmq_send(f->far, "x", 1, ZMQ_DONTWAIT), 1);
}

void send_from_near(struct fixture *f)
{
    assert_int_equal(zmq_send(f->near, "y", 1, ZMQ_DONTWAIT), 1);
}

int setup(void **state)
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

int teardown(void **state)
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

void give_up_after(struct fixture *f, unsigned ms)
{
    loop_timer_destroy(&f->give_up);
    assert_ok(loop_timer_create(f->loop, ms, false, on_give_up, f, &f->give_up));
}

void run(struct fixture *f, unsigned wanted)
{
    f->wanted = wanted;
    assert_ok(loop_run(f->loop));
    if (f->gave_up)
        fail_msg("%u of %u messages arrived, then silence", f->received, wanted);
    assert_int_equal(f->received, wanted);
}

void stop_loop(void *user)
{
    loop_stop(user);
}
