#include "router_bench.h"
#include <string.h>
#include <zmq.h>
#include "common/clock.h"
#include "common/loop.h"
#include "spin.h"
#include "tests/unit/unit.h"

static bool workers_ready(void *user)
{
    struct bench *bench = user;
    return router_workers_ready(bench->router) == bench->worker_count;
}

static bool clients_ready(void *user)
{
    struct bench *bench = user;
    return fake_client_ready(&bench->clients[0]) && fake_client_ready(&bench->clients[1]);
}

struct router_settings default_settings(void)
{
    static char name[] = "router", listen[] = "tcp://127.0.0.1:*", placement[] = "memory", salt[] = "salt";
    return (struct router_settings){.name = name,
                                    .listen_control = listen,
                                    .listen_data = listen,
                                    .placement = placement,
                                    .placement_salt = salt,
                                    .lease_ms = 100,
                                    .client_lease_ms = 200,
                                    .client_lease_expiry_ms = 1000,
                                    .new_choices = 3,
                                    .in_flight_max = 100,
                                    .in_flight_bytes_max = 64 << 20};
}

static struct bench *start(unsigned worker_count, const struct router_settings *settings, bool listed)
{
    struct bench *bench = calloc(1, sizeof *bench);
    assert_non_null(bench);
    assert_int_equal(loop_create(&bench->loop), STATUS_OK);
    bench->zmq = zmq_ctx_new();
    bench->worker_count = worker_count;
    bench->settings = settings ? *settings : default_settings();
    for (unsigned i = 0; i < worker_count; i++) {
        char name[16];
        snprintf(name, sizeof name, "worker-%c", (int)('a' + i));
        fake_worker_start(&bench->workers[i], bench->loop, bench->zmq, name);
        snprintf(bench->worker_control[i], sizeof bench->worker_control[i], "%s",
                 channel_endpoint(bench->workers[i].control));
        snprintf(bench->worker_data[i], sizeof bench->worker_data[i], "%s", channel_endpoint(bench->workers[i].data));
        bench->endpoints[i] = bench->worker_control[i];
    }
    bench->settings.workers = (struct config_list){.items = bench->endpoints, .count = listed ? worker_count : 0};
    assert_int_equal(router_create(bench->loop, bench->zmq, &bench->settings, NULL, &bench->router), STATUS_OK);
    for (unsigned i = 0; i < CLIENTS; i++)
        fake_client_start(&bench->clients[i], bench->loop, bench->zmq, router_control_endpoint(bench->router),
                          router_data_endpoint(bench->router));
    assert_true(spin(bench->loop, 5000, clients_ready, bench));
    if (listed)
        assert_true(spin(bench->loop, 5000, workers_ready, bench));
    return bench;
}

struct bench *bench_start(unsigned worker_count, const struct router_settings *settings)
{
    return start(worker_count, settings, true);
}

struct bench *bench_start_unlisted(unsigned worker_count, const struct router_settings *settings)
{
    return start(worker_count, settings, false);
}

void bench_stop(struct bench **bench)
{
    struct bench *gone = *bench;
    for (unsigned i = 0; i < CLIENTS; i++)
        fake_client_stop(&gone->clients[i]);
    router_destroy(&gone->router);
    for (unsigned i = 0; i < WORKERS_MAX; i++)
        fake_worker_kill(&gone->workers[i]);
    loop_destroy(&gone->loop);
    zmq_ctx_term(gone->zmq);
    free(gone);
    *bench = NULL;
}

struct router_stats stats_of(const struct bench *bench)
{
    struct router_stats stats;
    router_stats_read(bench->router, &stats);
    return stats;
}

struct fake_ask ask_of(uint32_t stream, const char *conversation)
{
    struct fake_ask ask = {.stream = stream, .conversation = conversation, .deadline_ms = 20000, .attempt_client = 1};
    memset(ask.id, 0x40, sizeof ask.id);
    memcpy(ask.id, &stream, sizeof stream);
    return ask;
}

unsigned requests_total(const struct bench *bench)
{
    unsigned total = 0;
    for (unsigned i = 0; i < bench->worker_count; i++)
        total += bench->workers[i].request_count;
    return total;
}

void answer_at_once(struct bench *bench, unsigned tokens)
{
    for (unsigned i = 0; i < bench->worker_count; i++)
        bench->workers[i].auto_tokens = tokens;
}

struct fake_worker *worker_named(struct bench *bench, const char *name)
{
    for (unsigned i = 0; i < bench->worker_count; i++)
        if (strcmp(bench->workers[i].name, name) == 0)
            return &bench->workers[i];
    fail_msg("worker %s is none of ours", name);
    return NULL;
}

struct fake_worker *other_than(struct bench *bench, const struct fake_worker *worker)
{
    return &bench->workers[worker == &bench->workers[0]];
}

void let(struct bench *bench, unsigned ms)
{
    (void)spin(bench->loop, ms, NULL, NULL);
}

void ask_each(struct bench *bench, uint32_t first, uint32_t last)
{
    for (uint32_t stream = first; stream <= last; stream++) {
        struct fake_ask ask = ask_of(stream, NULL);
        fake_client_ask(&bench->clients[0], &ask);
    }
}

struct fake_worker *ask_first(struct bench *bench, const struct fake_ask *ask)
{
    assert_int_equal(requests_total(bench), 0);
    fake_client_ask(&bench->clients[0], ask);
    SPIN_UNTIL(bench->loop, 2000, requests_total(bench) == 1);
    for (unsigned i = 0; i < bench->worker_count; i++)
        if (bench->workers[i].request_count == 1)
            return &bench->workers[i];
    return NULL;
}

struct fake_stream *take_turn(struct bench *bench, uint32_t stream, const char *conversation)
{
    struct fake_client *client = &bench->clients[0];
    struct fake_ask ask = ask_of(stream, conversation);
    fake_client_ask(client, &ask);
    SPIN_UNTIL(bench->loop, 4000, fake_stream_ends(&client->streams[stream]) == 1);
    assert_int_equal(client->streams[stream].dones, 1);
    return &client->streams[stream];
}

void second_start(struct second *second, struct bench *bench, const struct router_settings *settings)
{
    *second = (struct second){.client.role = WIRE_ROLE_CLIENT};
    assert_int_equal(
        router_create(bench->loop, bench->zmq, settings ? settings : &bench->settings, NULL, &second->router),
        STATUS_OK);
    fake_client_start(&second->client, bench->loop, bench->zmq, router_control_endpoint(second->router),
                      router_data_endpoint(second->router));
}

void second_stop(struct second *second)
{
    fake_client_stop(&second->client);
    router_destroy(&second->router);
}

struct setting setting_start(unsigned worker_count, const struct fake_ask *ask)
{
    struct setting s = {.bench = bench_start(worker_count, NULL)};
    s.client = &s.bench->clients[0];
    s.stream = &s.client->streams[ask->stream];
    s.worker = ask_first(s.bench, ask);
    s.request = fake_worker_request(s.worker, 0);
    return s;
}
