/* router_loss_test.c - workers that are lost, and how replies go on elsewhere: the real router with fake workers. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zmq.h>
#include "common/clock.h"
#include "common/loop.h"
#include "router/inflight.h"
#include "router/worker_pool.h"
#include "router_bench.h"
#include "spin.h"
#include "tests/unit/unit.h"

/* ---- losses ---- */

static void lost_before_tokens(void **state)
{
    (void)state;
    struct bench *bench = bench_start(2, NULL);
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, "chat-1");
    struct fake_worker *first = ask_first(bench, &ask);
    struct fake_worker *second = other_than(bench, first);
    fake_worker_ack(first, &first->requests[0]);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].acks == 1);
    second->auto_tokens = 4;
    uint64_t killed = clock_now_ms();
    fake_worker_kill(first);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].dones == 1);
    assert_true(clock_now_ms() - killed < WORKER_DEAD_MS); /* the link dropped: dead at once */
    assert_int_equal(client->streams[1].tokens, 4);
    assert_false(client->streams[1].gap);
    assert_int_equal(client->streams[1].errors, 0);
    assert_string_equal(client->streams[1].worker, second->name);
    assert_int_equal(second->requests[0].loss_count, 1);
    assert_int_equal(second->requests[0].attempt.client, 1);
    assert_true(second->requests[0].attempt.router > first->requests[0].attempt.router);
    assert_int_equal(second->requests[0].body_last, 1);
    assert_int_equal(client->streams[1].acks, 1); /* once for the client */
    assert_int_equal(client->streams[1].attempt.router, second->requests[0].attempt.router);

    /* who ran it is its owner now: the next turns go there */
    for (uint32_t turn = 2; turn <= 3; turn++) {
        struct fake_ask next = ask_of(turn, "chat-1");
        fake_client_ask(client, &next);
        SPIN_UNTIL(bench->loop, 2000, client->streams[turn].dones == 1);
        assert_string_equal(client->streams[turn].route, "owner");
        assert_string_equal(client->streams[turn].worker, second->name);
    }
    assert_true(client->streams[3].epoch == client->streams[2].epoch);
    bench_stop(&bench);
}

/* No link drops: its leases stop (or echo nothing). Suspect takes no new work, dead loses what it has. */
static void silent_worker(void **state)
{
    bool deaf = *state != NULL;
    struct bench *bench = bench_start(2, NULL);
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, "chat-1");
    struct fake_worker *first = ask_first(bench, &ask);
    struct fake_worker *second = other_than(bench, first);
    *(deaf ? &first->deaf : &first->mute) = true;
    second->auto_tokens = 3;
    SPIN_UNTIL(bench->loop, 1500, router_workers_ready(bench->router) == 1);
    ask = ask_of(2, "chat-1"); /* the owner is only suspect: spill, the record stays */
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 1400, client->streams[2].dones == 1);
    assert_string_equal(client->streams[2].route, "spill");
    assert_int_equal(client->streams[1].dones, 0);
    SPIN_UNTIL(bench->loop, 3000, client->streams[1].dones == 1); /* dead after 2 s: moved */
    assert_string_equal(client->streams[1].worker, second->name);

    /* it wakes up: its late output of the old attempt is dropped */
    uint64_t stale = stats_of(bench).stale;
    first->mute = first->deaf = false;
    SPIN_UNTIL(bench->loop, 3000, router_workers_ready(bench->router) == 2);
    fake_worker_tokens(first, &first->requests[0], 0, 9);
    fake_worker_done(first, &first->requests[0], 9);
    SPIN_UNTIL(bench->loop, 2000, stats_of(bench).stale >= stale + 2);
    assert_int_equal(fake_stream_ends(&client->streams[1]), 1);
    assert_int_equal(client->streams[1].tokens, 3);
    bench_stop(&bench);
}

/* This process stands still for longer than a worker may be silent: nobody is blamed for it. */
static void own_stall(void **state)
{
    (void)state;
    struct router_settings settings = default_settings();
    settings.lease_ms = 500;
    settings.client_lease_ms = 1000;
    settings.client_lease_expiry_ms = 2000;
    struct bench *bench = bench_start(2, &settings);
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, "chat-1");
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, requests_total(bench) == 1);
    nanosleep(&(struct timespec){.tv_nsec = 400000000}, NULL); /* a short one first: the long one begins before it is */
    for (unsigned i = 0; i < CLIENTS; i++)                     /* caught up with; nothing that was under way helps */
        bench->clients[i].silent = true;
    bench->workers[0].mute = bench->workers[1].mute = true;
    let(bench, 60);
    nanosleep(&(struct timespec){.tv_sec = 2, .tv_nsec = 500000000}, NULL);
    let(bench, 60);
    bench->workers[0].mute = bench->workers[1].mute = false;
    for (unsigned i = 0; i < CLIENTS; i++)
        bench->clients[i].silent = false;
    let(bench, 1500);
    assert_int_equal(stats_of(bench).losses, 0);
    assert_int_equal(fake_stream_ends(&client->streams[1]), 0); /* the client's lease did not run out either */
    assert_int_equal(requests_total(bench), 1);
    assert_int_equal(router_workers_ready(bench->router), 2);
    bench_stop(&bench);
}

static void two_losses_end_it(void **state)
{
    bool one_before = *state != NULL; /* in the head, from another router */
    struct bench *bench = bench_start(3, NULL);
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, "chat-1");
    ask.loss_count = one_before;
    fake_client_ask(client, &ask);
    for (unsigned loss = one_before; loss < 2; loss++) {
        SPIN_UNTIL(bench->loop, 2000, requests_total(bench) == loss + 1 - one_before);
        for (unsigned i = 0; i < 3; i++) {
            if (bench->workers[i].request_count > 0 && bench->workers[i].control)
                fake_worker_kill(&bench->workers[i]);
        }
    }
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].errors == 1);
    assert_int_equal(client->streams[1].error, WIRE_ERROR_WORKER_LOST);
    let(bench, 100);
    assert_int_equal(requests_total(bench), 2 - one_before);
    bench_stop(&bench);
}

/* Another process under the same address and name: what the old one had is lost, and dispatches name the new one. */
static void worker_restarts(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, "chat-1");
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, requests_total(bench) == 1);
    fake_worker_kill(&bench->workers[0]);
    let(bench, 20);
    fake_worker_start_at(&bench->workers[0], bench->loop, bench->zmq, "worker-a", bench->worker_control[0],
                         bench->worker_data[0]);
    bench->workers[0].auto_tokens = 2;
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].dones == 1); /* waited for a worker, which came */
    assert_memory_equal(bench->workers[0].requests[0].incarnation, bench->workers[0].incarnation, WIRE_ID_BYTES);
    assert_true(bench->workers[0].requests[0].deadline_ms <= 20000 - 20); /* what it waited here is taken off */
    ask = ask_of(2, "chat-1");
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, client->streams[2].dones == 1);
    assert_string_equal(client->streams[2].route, "owner");
    bench_stop(&bench);
}

/* Two processes under one name: the first has it as long as it is up. */
static void name_is_taken(void **state)
{
    (void)state;
    struct bench *bench = bench_start(2, NULL);
    struct fake_worker *first = &bench->workers[0], *second = &bench->workers[1];
    fake_worker_kill(second);
    SPIN_UNTIL(bench->loop, 1000, router_workers_ready(bench->router) == 1);
    fake_worker_start_at(second, bench->loop, bench->zmq, "worker-a", bench->worker_control[1], bench->worker_data[1]);
    SPIN_UNTIL(bench->loop, 2000, second->has_control_peer && second->has_data_peer);
    let(bench, 300);
    assert_int_equal(router_workers_ready(bench->router), 1);
    first->auto_tokens = second->auto_tokens = 1;
    for (uint32_t stream = 1; stream <= 10; stream++) {
        struct fake_ask ask = ask_of(stream, NULL);
        fake_client_ask(&bench->clients[0], &ask);
        SPIN_UNTIL(bench->loop, 2000, bench->clients[0].streams[stream].dones == 1);
    }
    assert_int_equal(second->request_count, 0);
    fake_worker_kill(first);
    SPIN_UNTIL(bench->loop, 1000, router_workers_ready(bench->router) == 0);
    SPIN_UNTIL(bench->loop, 3000, router_workers_ready(bench->router) == 1); /* asked again once a second */
    struct fake_ask ask = ask_of(11, NULL);
    fake_client_ask(&bench->clients[0], &ask);
    SPIN_UNTIL(bench->loop, 2000, second->request_count == 1);
    bench_stop(&bench);
}

/* ---- replies go on elsewhere ---- */

/* Returns when so many requests have been sent in all, the last one to another worker: that is s->request now. */
static void follow(struct setting *s, unsigned total)
{
    SPIN_UNTIL(s->bench->loop, 4000, requests_total(s->bench) == total);
    for (unsigned i = 0; i < s->bench->worker_count; i++) {
        struct fake_worker *worker = &s->bench->workers[i];
        if (worker->control && worker != s->worker && worker->request_count > 0) {
            s->worker = worker;
            s->request = &worker->requests[worker->request_count - 1];
            return;
        }
    }
    fail_msg("it did not go to another worker");
}

static void a_reply_goes_on_elsewhere(void **state)
{
    (void)state;
    struct fake_ask ask = ask_of(1, "chat-1");
    struct setting s = setting_start(2, &ask);
    fake_worker_ack(s.worker, s.request);
    SPIN_UNTIL(s.bench->loop, 2000, s.stream->acks == 1);
    assert_true(s.stream->has_numerics_id);
    assert_memory_equal(s.stream->numerics_id, s.worker->numerics_id, 32);
    assert_true(s.request->has_placement);
    assert_int_equal(s.request->resume_choices, 0);
    fake_worker_tokens(s.worker, s.request, 0, 3);
    fake_worker_tokens(s.worker, s.request, 3, 4);
    SPIN_UNTIL(s.bench->loop, 2000, s.stream->tokens == 7);
    struct fake_request before = *s.request;
    fake_worker_kill(s.worker);
    follow(&s, 2);
    assert_int_equal(s.request->resume_choices, 1);
    assert_int_equal(s.request->resume_total, 7); /* exactly what its client has */
    for (uint32_t i = 0; i < 7; i++)
        assert_int_equal(s.request->resume_ids[i], i);
    assert_true(s.request->has_numerics_id);
    assert_memory_equal(s.request->numerics_id, s.worker->numerics_id, 32);
    assert_int_equal(s.request->loss_count, 0); /* it made progress: not blamed */
    assert_int_equal(s.request->attempt.client, before.attempt.client);
    assert_true(s.request->attempt.router > before.attempt.router);
    assert_int_equal(s.request->body_last, 1);
    fake_worker_tokens(s.worker, s.request, 7, 2);
    fake_worker_done(s.worker, s.request, 9);
    SPIN_UNTIL(s.bench->loop, 2000, s.stream->dones == 1);
    assert_int_equal(s.stream->tokens, 9);
    assert_false(s.stream->gap);
    assert_false(s.stream->inexact);
    assert_int_equal(s.stream->acks, 1);
    assert_int_equal(stats_of(s.bench).moves, 1);
    assert_int_equal(router_in_flight(s.bench->router), 0);
    assert_int_equal(stats_of(s.bench).in_flight_bytes, 0);
    bench_stop(&s.bench);
}

/* Each choice goes on behind its own tokens, also one that has none yet. */
static void each_choice_goes_on(void **state)
{
    (void)state;
    struct fake_ask ask = ask_of(1, "chat-1");
    ask.body_choices = 4;
    struct setting s = setting_start(2, &ask);
    fake_worker_row(s.worker, s.request, 0, 0, 5, 0);
    fake_worker_row(s.worker, s.request, 2, 0, 3, 0);
    fake_worker_row(s.worker, s.request, 0, 5, 200, 0); /* ids of one reply grow past what was kept first */
    fake_worker_last(s.worker, s.request, 2, 3);
    SPIN_UNTIL(s.bench->loop, 2000, s.stream->lasts == 1);
    fake_worker_kill(s.worker);
    follow(&s, 2);
    static const uint32_t counts[4] = {205, 0, 3, 0};
    assert_int_equal(s.request->resume_choices, 4); /* as its body says: choice 3 was never heard of */
    assert_memory_equal(s.request->resume_counts, counts, sizeof counts);
    assert_int_equal(s.request->resume_total, 208);
    fake_worker_last(s.worker, s.request, 2, 3); /* the end of choice 2 once more: its client has it */
    fake_worker_row(s.worker, s.request, 1, 0, 2, 0);
    fake_worker_row(s.worker, s.request, 3, 0, 1, 0);
    fake_worker_row(s.worker, s.request, 0, 205, 1, 0);
    fake_worker_done_of(s.worker, s.request, 4, 212);
    SPIN_UNTIL(s.bench->loop, 2000, s.stream->dones == 1);
    assert_int_equal(s.stream->tokens, 212);
    assert_int_equal(s.stream->lasts, 1);
    assert_false(s.stream->gap);
    bench_stop(&s.bench);
}

/* Lost again and again, with progress in between: nobody is blamed, but there is an end to it. */
static void progress_is_not_blame(void **state)
{
    (void)state;
    struct fake_ask ask = ask_of(1, "chat-1");
    ask.deadline_ms = 60000;
    struct setting s = setting_start(2, &ask);
    for (uint32_t move = 0; move <= REQUEST_MOVES_MAX; move++) {
        assert_int_equal(s.request->loss_count, 0);
        assert_int_equal(s.request->resume_total, move);
        fake_worker_tokens(s.worker, s.request, move, 1);
        SPIN_UNTIL(s.bench->loop, 2000, s.stream->tokens == move + 1);
        struct fake_worker *lost = s.worker;
        unsigned index = (unsigned)(lost - s.bench->workers);
        fake_worker_kill(lost);
        if (move == REQUEST_MOVES_MAX)
            break;
        struct fake_worker *other = &s.bench->workers[!index];
        unsigned seen = other->request_count;
        SPIN_UNTIL(s.bench->loop, 5000, other->request_count > seen);
        s.worker = other;
        s.request = &other->requests[other->request_count - 1];
        char name[] = {'w', 'o', 'r', 'k', 'e', 'r', '-', (char)('a' + index), 0};
        fake_worker_start_at(lost, s.bench->loop, s.bench->zmq, name, s.bench->worker_control[index],
                             s.bench->worker_data[index]);
        SPIN_UNTIL(s.bench->loop, 5000, lost->data_heard > 0 && lost->heard > 1); /* up; its breaker may be open */
    }
    SPIN_UNTIL(s.bench->loop, 2000, s.stream->errors == 1);
    assert_int_equal(s.stream->error, WIRE_ERROR_WORKER_LOST);
    assert_non_null(strstr(s.stream->detail, "more often"));
    assert_int_equal(s.stream->tokens, REQUEST_MOVES_MAX + 1);
    assert_false(s.stream->gap);
    assert_int_equal(stats_of(s.bench).poisoned, 0);
    bench_stop(&s.bench);
}

/* Progress once, then two workers that die before they release anything: it is what kills them. */
static void two_losses_without_progress_end_a_reply(void **state)
{
    (void)state;
    struct fake_ask ask = ask_of(1, "chat-1");
    struct setting s = setting_start(3, &ask);
    fake_worker_tokens(s.worker, s.request, 0, 2);
    SPIN_UNTIL(s.bench->loop, 2000, s.stream->tokens == 2);
    fake_worker_kill(s.worker);
    follow(&s, 2);
    assert_int_equal(s.request->loss_count, 0);
    fake_worker_ack(s.worker, s.request);
    let(s.bench, 50);
    fake_worker_kill(s.worker);
    follow(&s, 3);
    assert_int_equal(s.request->loss_count, 1);
    assert_int_equal(s.request->resume_total, 2);
    fake_worker_kill(s.worker);
    SPIN_UNTIL(s.bench->loop, 3000, s.stream->errors == 1);
    assert_int_equal(s.stream->error, WIRE_ERROR_WORKER_LOST);
    assert_int_equal(stats_of(s.bench).poisoned, 1);
    assert_int_equal(requests_total(s.bench), 3);
    bench_stop(&s.bench);
}

static struct fake_request *request_of(struct fake_worker *worker, const char *conversation)
{
    for (unsigned i = 0; i < worker->request_count; i++)
        if (strcmp(worker->requests[i].conversation, conversation) == 0)
            return &worker->requests[i];
    fail_msg("%s is not there", conversation);
    return NULL;
}

/* Workers that tell what they have begun: of those that were there, only what was begun and has released nothing may
 * have killed it. Who only waited there may be lost as often as workers are. */
static void only_what_was_begun_is_blamed(void **state)
{
    (void)state;
    struct bench *bench = bench_start(3, NULL);
    struct fake_client *client = &bench->clients[0];
    static const char *const names[] = {"poison", "waits", "unheard", "speaks", "again"};
    enum { COUNT = sizeof names / sizeof names[0] };
    for (unsigned i = 0; i < 3; i++) {
        bench->workers[i].capabilities |= WIRE_CAN_TELL_START;
        fake_worker_welcome(&bench->workers[i]);
        bench->workers[i].life = i == 0 ? WIRE_LIFE_READY : WIRE_LIFE_DRAINING;
    }
    SPIN_UNTIL(bench->loop, 2000, router_workers_ready(bench->router) == 1);
    for (uint32_t stream = 0; stream < COUNT; stream++) {
        struct fake_ask ask = ask_of(stream, names[stream]);
        fake_client_ask(client, &ask);
    }
    for (unsigned loss = 0; loss < 2; loss++) {
        struct fake_worker *worker = &bench->workers[loss], *next = &bench->workers[loss + 1];
        SPIN_UNTIL(bench->loop, 3000, worker->request_count == COUNT); /* two that are blamed, at one worker too */
        const struct fake_request *poison = request_of(worker, "poison"), *speaks = request_of(worker, "speaks");
        assert_int_equal(poison->loss_count, loss);
        assert_int_equal(request_of(worker, "again")->loss_count, loss);
        assert_int_equal(request_of(worker, "waits")->loss_count, 0);
        assert_int_equal(request_of(worker, "unheard")->loss_count, 0);
        assert_int_equal(speaks->loss_count, 0);
        fake_worker_ack(worker, request_of(worker, "waits"));
        fake_worker_ack(worker, poison);
        fake_worker_ack_started(worker, poison);
        fake_worker_ack_started(worker, speaks);
        fake_worker_tokens(worker, speaks, loss, 1);
        if (loss == 0)
            fake_worker_ack_started(worker, request_of(worker, "again")); /* the second time it only waits */
        SPIN_UNTIL(bench->loop, 2000, client->streams[3].tokens == loss + 1);
        let(bench, 50);
        next->life = WIRE_LIFE_READY;
        SPIN_UNTIL(bench->loop, 2000, router_workers_ready(bench->router) == 2);
        fake_worker_kill(worker);
    }
    struct fake_worker *last = &bench->workers[2];
    SPIN_UNTIL(bench->loop, 3000, last->request_count == COUNT - 1 && client->streams[0].errors == 1);
    assert_int_equal(client->streams[0].error, WIRE_ERROR_WORKER_LOST);
    assert_non_null(strstr(client->streams[0].detail, "two workers"));
    assert_int_equal(request_of(last, "again")->loss_count, 1);
    assert_int_equal(request_of(last, "waits")->loss_count, 0);
    assert_int_equal(request_of(last, "unheard")->loss_count, 0);
    assert_int_equal(request_of(last, "speaks")->loss_count, 0);
    assert_int_equal(stats_of(bench).poisoned, 1);
    for (unsigned i = 1; i < COUNT; i++) {
        assert_int_equal(fake_stream_ends(&client->streams[i]), 0);
        assert_true(client->streams[i].acks <= 1); /* what is begun is between router and worker */
    }
    bench_stop(&bench);
}

/* ---- exact, or not at all ---- */

static void other_numerics(void **state)
{
    bool allowed = *state != NULL;
    struct fake_ask ask = ask_of(1, NULL);
    ask.inexact_allowed = allowed;
    struct setting s = setting_start(2, &ask);
    struct fake_worker *other = other_than(s.bench, s.worker);
    memset(other->numerics_id, 0x77, sizeof other->numerics_id);
    fake_worker_welcome(other);
    fake_worker_tokens(s.worker, s.request, 0, 2);
    SPIN_UNTIL(s.bench->loop, 2000, s.stream->tokens == 2);
    uint64_t killed = clock_now_ms();
    fake_worker_kill(s.worker);
    if (!allowed) {
        SPIN_UNTIL(s.bench->loop, 4000, s.stream->errors == 1);
        assert_int_equal(s.stream->error, WIRE_ERROR_NOT_EXACT);
        assert_true(clock_now_ms() - killed >= 1900); /* one with the same may come back */
        assert_int_equal(requests_total(s.bench), 1);
        assert_int_equal(stats_of(s.bench).not_exact, 1);
    } else {
        follow(&s, 2);
        assert_true(clock_now_ms() - killed >= 1900);
        assert_true(s.request->inexact_allowed);
        assert_memory_not_equal(s.request->numerics_id, s.worker->numerics_id, 32); /* what its tokens were made with */
        fake_worker_tokens(s.worker, s.request, 2, 2);
        SPIN_UNTIL(s.bench->loop, 2000, s.stream->acks == 2); /* told what a resume has to ask for now */
        assert_memory_equal(s.stream->numerics_id, s.worker->numerics_id, 32);
        fake_worker_done(s.worker, s.request, 4);
        SPIN_UNTIL(s.bench->loop, 2000, s.stream->dones == 1);
        assert_true(s.stream->inexact);
        assert_int_equal(s.stream->acks, 2);
        assert_int_equal(stats_of(s.bench).inexact, 1);
    }
    bench_stop(&s.bench);
}

/* A worker of the first release takes new requests, but nothing that has tokens. */
static void a_worker_that_cannot_resume(void **state)
{
    (void)state;
    struct fake_ask ask = ask_of(1, "chat-1");
    struct setting s = setting_start(3, &ask);
    struct fake_worker *old = other_than(s.bench, s.worker);
    struct fake_worker *young = &s.bench->workers[3 - (old - s.bench->workers) - (s.worker - s.bench->workers)];
    old->capabilities = 0;
    old->kv_tokens_max = 10000000; /* the best choice by far */
    old->auto_tokens = 3;
    fake_worker_welcome(old);
    fake_worker_tokens(s.worker, s.request, 0, 2);
    SPIN_UNTIL(s.bench->loop, 2000, s.stream->tokens == 2);
    fake_worker_kill(s.worker);
    SPIN_UNTIL(s.bench->loop, 3000, young->request_count == 1);
    assert_int_equal(old->request_count, 0);
    assert_int_equal(young->requests[0].resume_total, 2);
    fake_worker_kill(young); /* without progress: now only the old one is left */
    SPIN_UNTIL(s.bench->loop, 5000, s.stream->errors == 1);
    assert_int_equal(s.stream->error, WIRE_ERROR_NOT_EXACT);
    assert_int_equal(old->request_count, 0);
    ask = ask_of(2, NULL);
    fake_client_ask(s.client, &ask);
    SPIN_UNTIL(s.bench->loop, 2000, s.client->streams[2].dones == 1);
    assert_int_equal(old->request_count, 1);
    bench_stop(&s.bench);
}

/* Everybody that is left has enough to do: a reply that has begun waits for them. */
static void a_moved_reply_waits_for_room(void **state)
{
    (void)state;
    struct fake_ask ask = ask_of(1, "chat-1");
    struct setting s = setting_start(2, &ask);
    fake_worker_tokens(s.worker, s.request, 0, 2);
    SPIN_UNTIL(s.bench->loop, 2000, s.stream->tokens == 2);
    fake_worker_kill(s.worker);
    follow(&s, 2);
    fake_worker_error(s.worker, s.request, WIRE_ERROR_OVER_CAPACITY); /* try again after 70 ms */
    uint64_t refused = clock_now_ms();
    SPIN_UNTIL(s.bench->loop, 3000, s.worker->request_count == 2);
    assert_true(clock_now_ms() - refused >= 60);
    assert_int_equal(s.worker->requests[1].resume_total, 2);
    fake_worker_tokens(s.worker, &s.worker->requests[1], 2, 1);
    fake_worker_done(s.worker, &s.worker->requests[1], 3);
    SPIN_UNTIL(s.bench->loop, 2000, s.stream->dones == 1);
    assert_int_equal(fake_stream_ends(s.stream), 1);
    bench_stop(&s.bench);
}

/* ---- from a client ---- */

/* It lost its router: it has tokens, and goes on behind them here. */
static void a_client_resumes(void **state)
{
    (void)state;
    static const uint32_t counts[2] = {3, 0};
    uint8_t numerics[32];
    memset(numerics, 0x5a, sizeof numerics);
    struct bench *bench = bench_start(2, NULL);
    struct fake_client *client = &bench->clients[0];
    struct fake_stream *stream = &client->streams[1];
    struct fake_ask ask = ask_of(1, "chat-1");
    ask.attempt_client = 2;
    ask.resume_choices = 2;
    ask.resume_counts = counts;
    ask.numerics_id = numerics;
    stream->tokens = stream->by_choice[0] = 3;
    fake_client_ask(client, &ask);
    struct setting s = {.bench = bench, .client = client, .stream = stream};
    follow(&s, 1);
    assert_int_equal(s.request->resume_choices, 2);
    assert_memory_equal(s.request->resume_counts, counts, sizeof counts);
    assert_memory_equal(s.request->numerics_id, numerics, 32);
    fake_worker_row(s.worker, s.request, 0, 3, 2, 0);
    fake_worker_row(s.worker, s.request, 1, 0, 4, 0);
    SPIN_UNTIL(bench->loop, 2000, stream->tokens == 9);
    fake_worker_kill(s.worker); /* what came here is added to what it had */
    follow(&s, 2);
    assert_int_equal(s.request->resume_counts[0], 5);
    assert_int_equal(s.request->resume_counts[1], 4);
    for (unsigned i = 0; i < 9; i++)
        assert_int_equal(s.request->resume_ids[i], i < 5 ? i : i - 5);
    fake_worker_row(s.worker, s.request, 1, 4, 1, 0);
    fake_worker_done_of(s.worker, s.request, 2, 10);
    SPIN_UNTIL(bench->loop, 2000, stream->dones == 1);
    assert_false(stream->gap);
    assert_int_equal(stream->tokens, 10);
    assert_int_equal(stats_of(bench).resumes_taken, 1);
    bench_stop(&bench);
}

/* What a worker still sends of a request that went on elsewhere is dropped, whatever it is. */
static void late_output_is_dropped(void **state)
{
    (void)state;
    struct fake_ask ask = ask_of(1, "chat-1");
    struct setting s = setting_start(2, &ask);
    struct fake_worker *first = s.worker;
    struct fake_request old = *s.request;
    fake_worker_tokens(first, &old, 0, 2);
    SPIN_UNTIL(s.bench->loop, 2000, s.stream->tokens == 2);
    first->mute = first->deaf = true;
    follow(&s, 2);
    assert_int_equal(s.request->resume_total, 2);
    first->mute = first->deaf = false;
    SPIN_UNTIL(s.bench->loop, 3000, router_workers_ready(s.bench->router) == 2);
    uint64_t stale = stats_of(s.bench).stale;
    fake_worker_tokens(first, &old, 2, 5);
    fake_worker_error(first, &old, WIRE_ERROR_INTERNAL);
    fake_worker_superseded(first, &old);
    SPIN_UNTIL(s.bench->loop, 2000, stats_of(s.bench).stale >= stale + 2);
    let(s.bench, 50);
    assert_int_equal(s.stream->tokens, 2);
    fake_worker_tokens(s.worker, s.request, 2, 1);
    fake_worker_done(s.worker, s.request, 3);
    SPIN_UNTIL(s.bench->loop, 2000, s.stream->dones == 1);
    assert_int_equal(fake_stream_ends(s.stream), 1);
    assert_false(s.stream->gap);
    assert_int_equal(stats_of(s.bench).superseded, 0);
    bench_stop(&s.bench);
}

int main(void)
{
    static int deaf = 1, one_before = 1, allowed = 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lost_before_tokens),
        cmocka_unit_test(silent_worker),
        {"deaf_worker", silent_worker, NULL, NULL, &deaf},
        cmocka_unit_test(own_stall),
        cmocka_unit_test(two_losses_end_it),
        {"two_losses_in_two_routers", two_losses_end_it, NULL, NULL, &one_before},
        cmocka_unit_test(worker_restarts),
        cmocka_unit_test(name_is_taken),
        cmocka_unit_test(a_reply_goes_on_elsewhere),
        cmocka_unit_test(each_choice_goes_on),
        cmocka_unit_test(progress_is_not_blame),
        cmocka_unit_test(two_losses_without_progress_end_a_reply),
        cmocka_unit_test(only_what_was_begun_is_blamed),
        cmocka_unit_test(other_numerics),
        {"other_numerics_if_allowed", other_numerics, NULL, NULL, &allowed},
        cmocka_unit_test(a_worker_that_cannot_resume),
        cmocka_unit_test(a_moved_reply_waits_for_room),
        cmocka_unit_test(a_client_resumes),
        cmocka_unit_test(late_output_is_dropped),
    };
    return unit_run(tests, NULL, NULL);
}
