/* router_bench.h - a real router with fake workers and two fake clients, all on one loop. */
#ifndef ROOST_TESTS_ROUTER_ROUTER_BENCH_H
#define ROOST_TESTS_ROUTER_ROUTER_BENCH_H
#include <stdbool.h>
#include "fake_client.h"
#include "fake_worker.h"
#include "router/router.h"

enum { WORKERS_MAX = 3, CLIENTS = 2 };

struct bench {
    struct loop *loop;
    void *zmq;
    struct router *router;
    struct fake_worker workers[WORKERS_MAX];
    unsigned worker_count;
    struct fake_client clients[CLIENTS];
    char worker_control[WORKERS_MAX][128], worker_data[WORKERS_MAX][128];
    char *endpoints[WORKERS_MAX];
    struct router_settings settings;
};

struct router_settings default_settings(void); /* placement in memory, short leases */
/* Returns when every worker is ready and both clients are welcome. settings NULL: the default; its workers are filled
 * in here. */
struct bench *bench_start(unsigned worker_count, const struct router_settings *settings);
/* The same without workers in the settings: the directory has to tell. Does not wait for workers. */
struct bench *bench_start_unlisted(unsigned worker_count, const struct router_settings *settings);
void bench_stop(struct bench **bench);

struct router_stats stats_of(const struct bench *bench);
struct fake_ask ask_of(uint32_t stream, const char *conversation); /* with an id made of the stream number */
unsigned requests_total(const struct bench *bench);
void answer_at_once(struct bench *bench, unsigned tokens); /* all workers, each request with so many; 0: not any more */
struct fake_worker *worker_named(struct bench *bench, const char *name); /* fails the test if it is none of ours */
struct fake_worker *other_than(struct bench *bench, const struct fake_worker *worker); /* of the first two */
void let(struct bench *bench, unsigned ms);                                            /* time pass */

/* All of these are by the first client. */
void ask_each(struct bench *bench, uint32_t first, uint32_t last); /* on these streams, of no conversation */
/* The first request of this bench: returns the worker that got it. */
struct fake_worker *ask_first(struct bench *bench, const struct fake_ask *ask);
/* One turn to its end, which is good. */
struct fake_stream *take_turn(struct bench *bench, uint32_t stream, const char *conversation);

/* A second router with the same workers, or with those of other settings, and a client of it; neither is waited for. */
struct second {
    struct router *router;
    struct fake_client client;
};
void second_start(struct second *second, struct bench *bench, const struct router_settings *settings);
void second_stop(struct second *second);

/* One request, at the worker that has it; the other workers are not used yet. */
struct setting {
    struct bench *bench;
    struct fake_client *client;
    struct fake_worker *worker;
    struct fake_request *request;
    struct fake_stream *stream;
};
struct setting setting_start(unsigned worker_count, const struct fake_ask *ask);

#endif
