/* router.h - one router: wires frontend, worker pool, placement and policy together and carries each request through
 * them.
 *
 *   client -> frontend -> [request_begin] -> placement -> policy -> [dispatch] -> worker_pool -> worker
 *   client <- frontend <- [re-numbered]   <----------- tokens, terminal <-------- worker_pool <-'
 *
 * Always true: each request that on_request brought ends in exactly one terminal to its client. Loop thread only.
 * The router keeps no state that another one needs: conversations are placed in Redis, everything else dies with it. */
#ifndef ROOST_ROUTER_ROUTER_H
#define ROOST_ROUTER_ROUTER_H
#include <stdbool.h>
#include <stdint.h>
#include "common/config.h"
#include "common/status.h"
#include "proto/wire.h"
#include "router/policy.h"

struct loop;
struct router;

struct router_settings { /* filled by config_load from main.c's table, which explains each one, or by a test */
    char *name;
    char *listen_control, *listen_data;
    bool allow_remote;
    struct config_list workers;
    char *placement; /* "redis" or "memory" */
    char *redis_address, *redis_user, *redis_password_file;
    uint64_t redis_database;
    char *placement_salt;
    uint64_t lease_ms, client_lease_ms, client_lease_expiry_ms;
    uint64_t new_choices;
    uint64_t in_flight_max, in_flight_bytes_max;
    char *log_level, *log_format, *ready_file;
    uint64_t drain_deadline_ms;
};

struct router_stats {  /* totals since start */
    uint64_t requests; /* with a well-formed head and body */
    uint64_t done;
    uint64_t errors[WIRE_ERROR_COUNT];
    uint64_t reasons[POLICY_REASON_COUNT]; /* of dispatches */
    uint64_t stale;                        /* frames or rows of an older attempt, repeated or out of order: dropped */
    uint64_t retries;                      /* after a worker refused */
    uint64_t losses;                       /* requests whose worker was lost while they ran */
    uint64_t placement_late;               /* budget spent */
    uint64_t malformed;                    /* frames from clients */
};

/* settings, redis_password (NULL: none) and zmq_context are borrowed; zmq_context outlives the router. */
enum status router_create(struct loop *loop, void *zmq_context, const struct router_settings *settings,
                          const char *redis_password, struct router **out);
void router_destroy(struct router **router);

const char *router_control_endpoint(const struct router *router);
const char *router_data_endpoint(const struct router *router);

/* Refuses new requests from now on; calls on_drained once, from the loop, when the last one has ended and its terminal
 * is out. */
void router_drain(struct router *router, uint32_t deadline_ms, void (*on_drained)(void *user), void *user);

void router_stats_read(const struct router *router, struct router_stats *out);
unsigned router_in_flight(const struct router *router);
unsigned router_workers_ready(const struct router *router);

#endif
