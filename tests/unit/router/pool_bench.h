/* pool_bench.h - a real worker pool with peers behind relays (pool_peer.h), and the counts of what it called, on one
 * loop. */
#ifndef ROOST_TESTS_POOL_BENCH_H
#define ROOST_TESTS_POOL_BENCH_H
#include <stdbool.h>
#include <stdint.h>
#include "pool_peer.h"
#include "router/worker_pool.h"

enum { PEERS_MAX = 3, TICK_MS = 10, LEASE_MS = 30 };

struct pool_bench {
    struct loop *loop;
    void *context;
    struct worker_pool *pool;
    struct loop_timer *tick;
    struct loop_hook *hook;
    bool stalled; /* nothing expires, as after a stall of the router's own */
    struct pool_peer peers[PEERS_MAX];
    unsigned peer_count;
    unsigned ready, lost, relinked, messages;
    enum wire_kind last_kind;
    uint64_t lost_ms;
};

/* With peers that are told nothing yet. */
struct pool_bench *pool_bench_start(unsigned peers);
struct pool_bench *pool_bench_start_up(unsigned peers); /* returns when all of them are ready */
void pool_bench_stop(struct pool_bench *bench);
struct worker *pool_bench_worker(struct pool_bench *bench, unsigned index);
void pool_bench_let(struct pool_bench *bench, uint64_t ms); /* time pass */
enum status pool_bench_request(struct worker *worker, uint32_t stream, uint64_t tokens);

#endif
