/* router_attach_test.c - requests that another router has sent before: found, moved here, cancelled, taken away. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "pool_peer.h"
#include "router_bench.h"
#include "spin.h"
#include "tests/unit/unit.h"

static unsigned questions(const struct bench *bench)
{
    unsigned total = 0;
    for (unsigned i = 0; i < bench->worker_count; i++)
        total += bench->workers[i].attach_count;
    return total;
}

static void know(struct fake_worker *worker, const struct fake_ask *ask)
{
    worker->knows = true;
    memcpy(worker->known, ask->id, WIRE_ID_BYTES);
}

static struct fake_ask repeat_of(uint32_t stream, const char *conversation)
{
    struct fake_ask ask = ask_of(stream, conversation);
    ask.attempt_client = 2;
    return ask;
}

/* Whoever has it gets it, and what the client has already is not passed on once more. */
static void the_running_one_is_found(void **state)
{
    const char *conversation = *state;
    static const uint32_t three = 3;
    struct bench *bench = bench_start(3, NULL);
    struct fake_client *client = &bench->clients[0];
    for (uint32_t i = 0; i < 3; i++) { /* each of the three once */
        struct fake_worker *worker = &bench->workers[i];
        struct fake_stream *stream = &client->streams[1 + i];
        struct fake_ask ask = repeat_of(1 + i, conversation);
        know(worker, &ask);
        ask.resume_choices = 1;
        ask.resume_counts = &three;
        ask.numerics_id = worker->numerics_id;
        stream->tokens = stream->by_choice[0] = 3;
        fake_client_ask(client, &ask);
        SPIN_UNTIL(bench->loop, 2000, worker->request_count == 1);
        assert_int_equal(requests_total(bench), 1 + i);
        assert_int_equal(worker->requests[0].resume_total, 3); /* for the case that it is gone by now */
        assert_int_equal(worker->requests[0].attempt.client, 2);
        fake_worker_ack(worker, &worker->requests[0]);
        fake_worker_tokens(worker, &worker->requests[0], 0, 3); /* as first released */
        fake_worker_tokens(worker, &worker->requests[0], 3, 4);
        fake_worker_done(worker, &worker->requests[0], 7);
        SPIN_UNTIL(bench->loop, 2000, stream->dones == 1);
        assert_int_equal(stream->tokens, 7);
        assert_false(stream->gap);
        assert_string_equal(stream->route, "attached");
        assert_int_equal(stats_of(bench).attached, 1 + i);
    }
    assert_int_equal(stats_of(bench).asked, 3);
    bench_stop(&bench);
}

static void the_first_attempt_asks_nobody(void **state)
{
    (void)state;
    struct bench *bench = bench_start(2, NULL);
    struct fake_ask ask = ask_of(1, "chat-1");
    fake_client_ask(&bench->clients[0], &ask);
    SPIN_UNTIL(bench->loop, 2000, requests_total(bench) == 1);
    assert_int_equal(questions(bench), 0);
    bench_stop(&bench);
}

static void nobody_has_it(void **state)
{
    (void)state;
    struct bench *bench = bench_start(3, NULL);
    struct fake_client *client = &bench->clients[0];
    answer_at_once(bench, 2);
    uint64_t best_ms = UINT64_MAX;
    for (uint32_t stream = 1; stream <= 5; stream++) {
        char name[16];
        snprintf(name, sizeof name, "chat-%u", stream);
        struct fake_ask ask = repeat_of(stream, name);
        uint64_t begun = clock_now_ms();
        fake_client_ask(client, &ask);
        SPIN_UNTIL(bench->loop, 2000, client->streams[stream].dones == 1);
        best_ms = clock_now_ms() - begun < best_ms ? clock_now_ms() - begun : best_ms;
        assert_int_equal(questions(bench), 3 * stream);
        assert_string_equal(client->streams[stream].route, "new");
    }
    assert_true(best_ms < 45); /* three answers end the question */
    assert_int_equal(stats_of(bench).attached, 0);
    bench_stop(&bench);
}

static void nobody_answers(void **state)
{
    (void)state;
    struct bench *bench = bench_start(3, NULL);
    struct fake_client *client = &bench->clients[0];
    for (unsigned i = 0; i < 3; i++)
        bench->workers[i].never_answers = true;
    struct fake_ask ask = repeat_of(1, "chat-1"), gone = repeat_of(2, "chat-2");
    uint64_t begun = clock_now_ms();
    fake_client_ask(client, &ask);
    fake_client_ask(client, &gone);
    SPIN_UNTIL(bench->loop, 2000, questions(bench) == 6);
    fake_client_cancel(client, &gone); /* while it is asked for */
    SPIN_UNTIL(bench->loop, 2000, client->streams[2].errors == 1);
    assert_int_equal(client->streams[2].error, WIRE_ERROR_CANCELLED);
    SPIN_UNTIL(bench->loop, 2000, requests_total(bench) == 1);
    assert_true(clock_now_ms() - begun >= 45);
    let(bench, 100);
    assert_int_equal(requests_total(bench), 1);
    bench_stop(&bench);
}

/* Workers of the first release know no ATTACH: nothing is asked, nothing is waited for. */
static void old_workers_are_not_asked(void **state)
{
    (void)state;
    struct bench *bench = bench_start(2, NULL);
    struct fake_client *client = &bench->clients[0];
    for (unsigned i = 0; i < 2; i++) {
        bench->workers[i].capabilities = 0;
        bench->workers[i].auto_tokens = 2;
        fake_worker_welcome(&bench->workers[i]);
    }
    let(bench, 50);
    struct fake_ask ask = repeat_of(1, "chat-1");
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].dones == 1);
    assert_int_equal(questions(bench), 0);
    assert_int_equal(stats_of(bench).asked, 0);
    bench_stop(&bench);
}

/* It takes nothing new, but this is not new. */
static void one_that_drains_keeps_what_it_has(void **state)
{
    (void)state;
    struct bench *bench = bench_start(2, NULL);
    struct fake_client *client = &bench->clients[0];
    struct fake_worker *worker = &bench->workers[1];
    struct fake_ask ask = repeat_of(1, "chat-1");
    know(worker, &ask);
    worker->life = WIRE_LIFE_DRAINING;
    SPIN_UNTIL(bench->loop, 2000, router_workers_ready(bench->router) == 1);
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 1);
    fake_worker_tokens(worker, &worker->requests[0], 0, 2);
    fake_worker_done(worker, &worker->requests[0], 2);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].dones == 1);
    assert_int_equal(bench->workers[0].request_count, 0);
    bench->workers[0].life = WIRE_LIFE_DRAINING; /* the same when nobody takes anything new */
    SPIN_UNTIL(bench->loop, 2000, router_workers_ready(bench->router) == 0);
    ask = repeat_of(2, "chat-2");
    know(worker, &ask);
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 2);
    bench_stop(&bench);
}

/* In flight here already: its own router needs to ask nobody. */
static void the_same_router_asks_nobody(void **state)
{
    (void)state;
    struct bench *bench = bench_start(2, NULL);
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, "chat-1");
    struct fake_worker *worker = ask_first(bench, &ask);
    fake_worker_tokens(worker, &worker->requests[0], 0, 2);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].tokens == 2);
    static const uint32_t two = 2;
    struct fake_ask again = repeat_of(1, "chat-1");
    again.stream = 7;
    again.resume_choices = 1;
    again.resume_counts = &two;
    client->streams[7].tokens = client->streams[7].by_choice[0] = 2;
    fake_client_ask(client, &again);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 2);
    assert_int_equal(questions(bench), 0);
    assert_int_equal(worker->requests[1].resume_total, 2);
    fake_worker_tokens(worker, &worker->requests[1], 0, 2);
    fake_worker_tokens(worker, &worker->requests[1], 2, 1);
    fake_worker_done(worker, &worker->requests[1], 3);
    SPIN_UNTIL(bench->loop, 2000, client->streams[7].dones == 1);
    assert_int_equal(client->streams[7].tokens, 3);
    assert_false(client->streams[7].gap);
    assert_int_equal(fake_stream_ends(&client->streams[1]), 0); /* its stream is gone */
    assert_int_equal(router_in_flight(bench->router), 0);
    bench_stop(&bench);
}

/* ---- cancels ---- */

static void a_cancel_goes_where_it_may_run(void **state)
{
    (void)state;
    struct bench *bench = bench_start(3, NULL);
    bench->workers[2].capabilities = 0; /* of the first release: it would remember the id, and refuse a repeat */
    fake_worker_welcome(&bench->workers[2]);
    let(bench, 50);
    struct fake_ask ask = ask_of(1, "chat-1"), other = ask_of(2, NULL);
    fake_client_cancel_attempt(&bench->clients[0], &ask, (struct wire_attempt){2, 0});
    for (unsigned i = 0; i < 2; i++) {
        struct fake_worker *worker = &bench->workers[i];
        SPIN_UNTIL(bench->loop, 2000, worker->cancel_count == 1);
        assert_memory_equal(worker->last_cancel, ask.id, WIRE_ID_BYTES);
        assert_int_equal(worker->last_cancel_attempt.client, 2);
        assert_int_equal(worker->last_cancel_attempt.router, UINT32_MAX); /* however often a router sent it */
    }
    fake_client_cancel(&bench->clients[0], &other); /* of the first release: every attempt */
    for (unsigned i = 0; i < 2; i++) {
        SPIN_UNTIL(bench->loop, 2000, bench->workers[i].cancel_count == 2);
        assert_int_equal(bench->workers[i].last_cancel_attempt.client, 0);
    }
    assert_int_equal(bench->workers[2].cancel_count, 0);
    assert_int_equal(stats_of(bench).cancels_passed, 2);
    bench_stop(&bench);
}

/* A cancel names what it means: one that comes late cannot end what went on. */
static void cancels_name_their_attempt(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_client *client = &bench->clients[0];
    struct fake_worker *worker = &bench->workers[0];
    struct fake_ask ask = repeat_of(1, "chat-1");
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 1);
    fake_client_cancel_attempt(client, &ask, (struct wire_attempt){1, 0}); /* of what the client sent before */
    let(bench, 100);
    assert_int_equal(worker->cancel_count, 0);
    fake_client_cancel_attempt(client, &ask, (struct wire_attempt){2, 0});
    SPIN_UNTIL(bench->loop, 2000, worker->cancel_count == 1);
    assert_int_equal(worker->last_cancel_attempt.client, 2);
    assert_int_equal(worker->last_cancel_attempt.router, worker->requests[0].attempt.router);
    fake_worker_error(worker, &worker->requests[0], WIRE_ERROR_CANCELLED);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].errors == 1);
    struct router_stats stats = stats_of(bench);
    uint64_t counted = 0;
    for (unsigned i = 0; i <= ROUTER_CANCEL_BOUNDS; i++)
        counted += stats.cancel_counts[i];
    assert_int_equal(counted, 1);
    assert_true(stats.cancel_seconds > 0 && stats.cancel_seconds < 1);
    bench_stop(&bench);
}

/* ---- taken away ---- */

static void a_newer_attempt_elsewhere_takes_it(void **state)
{
    (void)state;
    struct bench *bench = bench_start(2, NULL);
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, "chat-1");
    struct fake_worker *worker = ask_first(bench, &ask);
    fake_worker_tokens(worker, &worker->requests[0], 0, 2);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].tokens == 2);
    struct fake_request older = worker->requests[0];
    older.attempt.router--; /* not the one that we have there */
    fake_worker_superseded(worker, &older);
    let(bench, 100);
    assert_int_equal(router_in_flight(bench->router), 1);
    fake_worker_superseded(worker, &worker->requests[0]);
    SPIN_UNTIL(bench->loop, 2000, router_in_flight(bench->router) == 0);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].errors == 1);
    assert_int_equal(client->streams[1].error, WIRE_ERROR_CONFLICT);
    assert_int_equal(client->streams[1].attempt.client, 1); /* a client that went on drops it by this */
    let(bench, 100);
    assert_int_equal(worker->cancel_count, 0); /* what runs there now is not ours to end */
    assert_int_equal(requests_total(bench), 1);
    assert_int_equal(stats_of(bench).superseded, 1);
    bench_stop(&bench);
}

/* ---- given up ---- */

/* A worker that no lease of ours reached for long has ended what it ran: it goes on behind what its client has. */
static void what_a_worker_gave_up_goes_on(void **state)
{
    (void)state;
    struct bench *bench = bench_start(2, NULL);
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(1, "chat-1");
    struct fake_worker *worker = ask_first(bench, &ask);
    fake_worker_tokens(worker, &worker->requests[0], 0, 3);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].tokens == 3);
    fake_worker_resend(worker, &worker->requests[0]);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 2); /* home */
    struct fake_request *again = &worker->requests[1];
    assert_int_equal(again->resume_total, 3);
    assert_int_equal(again->loss_count, 0);
    assert_int_equal(again->attempt.client, 1);
    assert_true(again->attempt.router > worker->requests[0].attempt.router);
    fake_worker_tokens(worker, again, 3, 2);
    fake_worker_done(worker, again, 5);
    SPIN_UNTIL(bench->loop, 2000, client->streams[1].dones == 1);
    assert_int_equal(client->streams[1].tokens, 5);
    assert_false(client->streams[1].gap);
    assert_int_equal(stats_of(bench).given_up, 1);
    assert_int_equal(client->streams[1].resends, 0); /* its client hears nothing of it */
    bench_stop(&bench);
}

/* The link was down and is there again: the worker is asked what it still has. */
static void what_is_not_there_any_more_goes_on(void **state)
{
    (void)state;
    struct bench *bench = bench_start(1, NULL);
    struct fake_worker *worker = &bench->workers[0];
    struct relay relay = {.loop = bench->loop, .target = atoi(strrchr(bench->worker_control[0], ':') + 1)};
    relay_open(&relay);
    char endpoint[64];
    char *endpoints[] = {endpoint};
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%d", relay.port);
    struct router_settings settings = bench->settings;
    settings.workers = (struct config_list){.items = endpoints, .count = 1};
    struct second far;
    struct fake_client *client = &far.client;
    second_start(&far, bench, &settings);
    SPIN_UNTIL(bench->loop, 3000, fake_client_ready(client) && router_workers_ready(far.router) == 1);
    struct fake_ask kept = ask_of(1, "chat-1"), gone = ask_of(2, "chat-2"), begun = ask_of(3, "chat-3");
    fake_client_ask(client, &kept);
    fake_client_ask(client, &gone);
    fake_client_ask(client, &begun);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 3);
    fake_worker_tokens(worker, &worker->requests[0], 0, 2);
    fake_worker_tokens(worker, &worker->requests[1], 0, 3);
    fake_worker_ack(worker, &worker->requests[2]);
    SPIN_UNTIL(bench->loop, 2000,
               client->streams[1].tokens == 2 && client->streams[2].tokens == 3 && client->streams[3].acks == 1);
    know(worker, &kept);
    unsigned asked = worker->attach_count;
    relay_cut(&relay);
    SPIN_UNTIL(bench->loop, 2000, worker->attach_count == asked + 3);
    SPIN_UNTIL(bench->loop, 2000, worker->request_count == 5);
    let(bench, 100);
    assert_int_equal(worker->request_count, 5); /* the first one stays */
    for (unsigned i = 3; i < 5; i++) {
        struct fake_request *again = &worker->requests[i];
        bool second = strcmp(again->conversation, "chat-2") == 0;
        assert_true(second || strcmp(again->conversation, "chat-3") == 0);
        assert_int_equal(again->resume_total, second ? 3 : 0);
        assert_int_equal(again->loss_count, 0);
        fake_worker_tokens(worker, again, second ? 3 : 0, 1);
        fake_worker_done(worker, again, second ? 4 : 1);
    }
    fake_worker_tokens(worker, &worker->requests[0], 2, 1);
    fake_worker_done(worker, &worker->requests[0], 3);
    for (unsigned i = 1; i < 4; i++) {
        SPIN_UNTIL(bench->loop, 2000, client->streams[i].dones == 1);
        assert_false(client->streams[i].gap);
    }
    second_stop(&far);
    relay_close(&relay);
    relay_cut(&relay);
    bench_stop(&bench);
}

int main(void)
{
    static char chat[] = "chat-1";
    const struct CMUnitTest tests[] = {
        {"the_running_one_is_found", the_running_one_is_found, NULL, NULL, chat},
        {"the_running_one_is_found_without_a_conversation", the_running_one_is_found, NULL, NULL, NULL},
        cmocka_unit_test(the_first_attempt_asks_nobody),
        cmocka_unit_test(nobody_has_it),
        cmocka_unit_test(nobody_answers),
        cmocka_unit_test(old_workers_are_not_asked),
        cmocka_unit_test(one_that_drains_keeps_what_it_has),
        cmocka_unit_test(the_same_router_asks_nobody),
        cmocka_unit_test(a_cancel_goes_where_it_may_run),
        cmocka_unit_test(cancels_name_their_attempt),
        cmocka_unit_test(a_newer_attempt_elsewhere_takes_it),
        cmocka_unit_test(what_a_worker_gave_up_goes_on),
        cmocka_unit_test(what_is_not_there_any_more_goes_on),
    };
    return unit_run(tests, NULL, NULL);
}
