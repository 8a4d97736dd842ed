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
struct fake_worker *holder(struct bench *bench, unsigned *count);  /* one that has a request; all requests so far */
unsigned requests_total(const struct bench *bench);
void let(struct bench *bench, unsigned ms); /* time pass */

#endif
