#include "channel_fixture.h"
#include <string.h>
#include <zmq.h>
#include "common/loop.h"
#include "tests/unit/unit.h"

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

struct channel_config server_config(struct fixture *f)
{
    return (struct channel_config){.frame_bytes_max = FRAME_BYTES_MAX,
                                   .receive_messages_max = 1000,
                                   .send_messages_max = 1000,
                                   .queue_bytes_max = 1 << 20,
                                   .on_message = on_server_message,
                                   .user = f};
}

struct channel_config client_config(struct fixture *f)
{
    struct channel_config config = server_config(f);
    config.on_message = on_client_message;
    config.on_link = on_link;
    return config;
}

int setup(void **state)
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

int teardown(void **state)
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

void start_server(struct fixture *f, const char *endpoint)
{
    struct channel_config config = server_config(f);
    assert_ok(channel_create_server(f->loop, f->context, &config, endpoint, &f->server));
}

void start_client(struct fixture *f)
{
    struct channel_config config = client_config(f);
    assert_ok(channel_create_client(f->loop, f->context, &config, channel_endpoint(f->server), &f->client));
}

void run_until(struct fixture *f, bool (*done)(struct fixture *))
{
    f->done = done;
    if (!done(f))
        assert_ok(loop_run(f->loop));
    if (f->gave_up)
        fail_msg("gave up: server got %u, client got %u, events %s, pending %zu", f->server_received,
                 f->client_received, f->events, f->client ? channel_pending(f->client) : 0);
}

void run_for(struct fixture *f, unsigned ms)
{
    struct loop_timer *timer;
    f->done = NULL;
    assert_ok(loop_timer_create(f->loop, ms, false, (void (*)(void *))loop_stop, f->loop, &timer));
    assert_ok(loop_run(f->loop));
    loop_timer_destroy(&timer);
}

bool is_up(struct fixture *f)
{
    return f->ups > f->downs;
}

bool is_down(struct fixture *f)
{
    return f->ups == f->downs;
}

bool server_got_one(struct fixture *f)
{
    return f->server_received >= 1;
}

bool server_got_two(struct fixture *f)
{
    return f->server_received >= 2;
}

bool client_got_one(struct fixture *f)
{
    return f->client_received >= 1;
}

void *raw_dealer(struct fixture *f)
{
    int zero = 0;
    void *dealer = zmq_socket(f->context, ZMQ_DEALER);
    zmq_setsockopt(dealer, ZMQ_LINGER, &zero, sizeof zero);
    assert_int_equal(zmq_connect(dealer, channel_endpoint(f->server)), 0);
    return dealer;
}

void raw_send(void *dealer, unsigned frames, const char *text)
{
    for (unsigned i = 0; i < frames; i++)
        assert_int_equal(zmq_send(dealer, text, strlen(text), i + 1 < frames ? ZMQ_SNDMORE : 0), (int)strlen(text));
}
