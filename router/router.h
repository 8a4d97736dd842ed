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
    char *listen_control, *listen_data, *listen_operator;
    bool allow_remote;
    struct config_list workers;
    char *placement; /* "redis" or "memory" */
    char *redis_address, *redis_user, *redis_password_file, *redis_sentinel_master;
    struct config_list redis_sentinels;
    uint64_t redis_database;
    bool redis_tls;
    char *placement_salt;
    uint64_t lease_ms, client_lease_ms, client_lease_expiry_ms;
    uint64_t new_choices;
    char *decision_log; /* NULL or "": none */
    uint64_t decision_sample;
    uint64_t in_flight_max, in_flight_bytes_max;
    char *log_level, *log_format, *ready_file;
    uint64_t drain_deadline_ms;
};

/* Seconds, upper bounds of cancel_counts and placement_counts; the last count is above all. */
#define ROUTER_CANCEL_BOUNDS    8u
#define ROUTER_PLACEMENT_BOUNDS 8u
extern const double router_cancel_bounds[ROUTER_CANCEL_BOUNDS];
extern const double router_placement_bounds[ROUTER_PLACEMENT_BOUNDS];

struct router_stats {  /* totals since start, unless it says "now" */
    uint64_t requests; /* with a well-formed head and body */
    uint64_t done;
    uint64_t prompt_tokens;   /* of those, as their workers said, as the next two */
    uint64_t cached_tokens;   /* not computed again */
    uint64_t expected_tokens; /* that their records said the worker holds */
    uint64_t errors[WIRE_ERROR_COUNT];
    uint64_t reasons[POLICY_REASON_COUNT]; /* of dispatches */
    uint64_t stale;                        /* frames or rows of an older attempt, repeated or out of order: dropped */
    uint64_t retries;                      /* after a worker refused */
    uint64_t losses;                       /* requests whose worker was lost while they ran */
    uint64_t given_up;                     /* by workers that live, after a silence of ours: sent on */
    uint64_t placement_late;               /* budget spent */
    uint64_t
        placement_counts[ROUTER_PLACEMENT_BOUNDS + 1]; /* from a question to the store to its answer, late ones too */
    double placement_seconds;                          /* the sum of those times */
    uint64_t decisions_dropped;                        /* lines of the decision log */
    uint64_t malformed;                                /* frames from clients */
    uint64_t refusals_dropped;                         /* of clients that do not read what was before them */

    uint64_t moves;          /* requests sent on with the tokens that they had, after their worker was lost */
    uint64_t resumes_taken;  /* requests that came from a client with tokens */
    uint64_t asked;          /* requests for which workers were asked whether they have them */
    uint64_t attached;       /* of these, found: not generated twice */
    uint64_t superseded;     /* requests that a newer attempt took away, through another router */
    uint64_t resends;        /* RESEND to clients: the body was gone when its worker was lost */
    uint64_t shed;           /* bodies dropped early, to keep within the bytes in flight */
    uint64_t poisoned;       /* ended because two workers were lost with them */
    uint64_t not_exact;      /* ended because no worker with their numerics id was left */
    uint64_t inexact;        /* sent on to another numerics id, as they allowed */
    uint64_t cancels;        /* by clients, of requests in flight here */
    uint64_t cancels_passed; /* by clients, of requests that are not: told to workers that may have them */
    uint64_t cancel_counts[ROUTER_CANCEL_BOUNDS + 1]; /* from a client's cancel to the end of the request here */
    double cancel_seconds;                            /* the sum of those times */
    uint64_t in_flight_bytes;                         /* now: frames and tokens of the requests in flight */
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
