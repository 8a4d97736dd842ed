#include "router_bench.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>
#include "common/loop.h"
#include "spin.h"

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

struct fake_worker *holder(struct bench *bench, unsigned *count)
{
    struct fake_worker *found = NULL;
    *count = 0;
    for (unsigned i = 0; i < bench->worker_count; i++) {
        *count += bench->workers[i].request_count;
        if (bench->workers[i].request_count > 0)
            found = &bench->workers[i];
    }
    return found;
}

unsigned requests_total(const struct bench *bench)
{
    unsigned total = 0;
    for (unsigned i = 0; i < bench->worker_count; i++)
        total += bench->workers[i].request_count;
    return total;
}

void let(struct bench *bench, unsigned ms)
{
    (void)spin(bench->loop, ms, NULL, NULL);
}
