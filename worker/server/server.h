/* server.h - the I/O side of a worker: routers, their requests, and the streams that answer them.
 *
 *     struct server *server;
 *     server_create(&config, &server);          binds; the model loads meanwhile; on_state(READY) when it serves
 *     loop_run(loop);
 *     server_drain(server);                     from a signal handler: on_state(GONE) when everybody has everything
 *     server_destroy(&server);
 *
 * Owns two server channels (control, data), the sessions of routers, the streams, and the engine thread. All functions and
 * callbacks are on the loop's thread. Always true:
 *   1. each request that a router sent is answered by exactly one of DONE, ERROR, WRONG_OWNER or SUPERSEDED to its newest
 *      attempt, unless the router's session ends first;
 *   2. the tokens of each choice of an attempt, and of its prompt, are gapless from 0; a reconnect or a newer attempt sees the
 *      same rows again from 0, so that a receiver drops by sequence number what it has;
 *   3. nothing a router sends ends a connection or the process; what it can make us keep is bounded (server_internal.h). */
#ifndef ROOST_WORKER_SERVER_SERVER_H
#define ROOST_WORKER_SERVER_SERVER_H
#include <stdbool.h>
#include <stdint.h>
#include "common/status.h"
#include "proto/wire.h"
#include "worker/engine/engine.h"

struct backend_health;              /* worker/engine/backend/backend.h */
struct loop;
struct server;

struct server_config {
    struct loop *loop;                /* ref; must not run again after server_destroy */
    void *zmq_context;                /* ref */
    const char *name;                 /* name rules of wire.h; copied */
    const char *listen_control, *listen_data;
    struct engine_config engine;
    uint32_t lease_ms;                /* 200 */
    uint32_t lease_expiry_ms;         /* 0: 5000; silence after which a router's streams are orphans */
    uint32_t orphan_ms;               /* 0: 10000; how long streams run on after that, for another router to take them over */
    uint32_t keep_finished_ms;        /* 0: 60000; how long an answered stream is kept for a repeat */
    uint64_t keep_finished_bytes;     /* 0: 64 MiB; of what those keep, the oldest go first */
    uint32_t slow_reader_ms;          /* 0: 5000; how long a router may not take its tokens */
    uint32_t credit_wait_ms;          /* 0: 30000; how long tokens may wait for credit */
    uint32_t cancel_memory_ms;        /* 0: 30000; how long an unknown cancelled id is remembered */
    uint32_t drain_deadline_ms;       /* 30000 */
    const uint8_t *cache_id;          /* 16 bytes, random for each process: names what its cache holds; copied */
    uint64_t reply_bytes_max;         /* 0: 2 GiB; memory for what open requests may release (server_internal.h) */
    /* READY: serving, also again after a drain that was taken back. DRAINING. SAFE_TO_DELETE: only after server_drain_stay. GONE: drained, or
     * failed with st and status_detail: stop the loop. */
    void (*on_state)(void *user, enum wire_life state, enum status st);
    /* A turn of a placed conversation has ended here; the next one begins with so many tokens, on the device. placement has 16 bytes.
     * May be NULL. */
    void (*on_turn)(void *user, const uint8_t *placement, uint64_t epoch, uint32_t tokens);
    /* What that turn left in the cache is in the host tier, on the device again, or evicted: ENGINE_DEMOTED, _PROMOTED, _EVICTED. May be NULL. */
    void (*on_fate)(void *user, const uint8_t *placement, enum engine_event_kind fate);
    void *user;
};

/* STATUS_IO: an endpoint cannot be bound. */
enum status server_create(const struct server_config *config, struct server **out);
void server_destroy(struct server **server);       /* accepts NULL; waits for the running step; open streams end unanswered */

/* Refuses new requests from now on and tells the routers; GONE follows, at the latest after drain_deadline_ms. */
void server_drain(struct server *server);

/* A drain that ends in SAFE_TO_DELETE instead, and can be taken back: a request to drain by an operator. deadline_ms 0: drain_deadline_ms;
 * what runs then still runs on and counts as abandoned: its router continues it elsewhere when this process ends. */
void server_drain_stay(struct server *server, uint32_t deadline_ms);
void server_drain_cancel(struct server *server);   /* READY again; without effect on a server_drain */

/* Since the start, unless it says "now". */
#define SERVER_CANCEL_BOUNDS 8u
extern const double server_cancel_bounds[SERVER_CANCEL_BOUNDS];   /* seconds, upper bounds of cancel_counts; the last count is above all */
struct server_stats {
    uint64_t requests;                /* heads that came, of every kind */
    uint64_t done;                    /* generations that ended well */
    uint64_t errors[WIRE_ERROR_COUNT];   /* refused or ended otherwise; by code */
    uint64_t resumed;                 /* taken with tokens that were released before */
    uint64_t attached;                /* ATTACH questions answered "known" */
    uint64_t superseded;              /* streams that a newer attempt took over, running or finished */
    uint64_t orphaned;                /* streams whose router's lease ended while they ran */
    uint64_t cancelled;               /* running streams that were cancelled, by whoever */
    uint64_t cancel_counts[SERVER_CANCEL_BOUNDS + 1];   /* from a cancel to the engine's word that the work has stopped */
    double cancel_seconds;            /* the sum of those times */
    uint64_t tokens;                  /* released by this worker; those of a resume not */
    uint64_t prompt_tokens, cached_tokens;   /* of generations that ended well; those that were not computed again */
    uint64_t credit_stalls;           /* times that rows of a stream began to wait for credit */
    struct engine_pressure pressure;  /* as of the last step that said something */
    uint64_t malformed, stale;        /* frames and repeats that were dropped */
    unsigned streams;                 /* now open */
    unsigned orphans;                 /* of these, now without a router */
    unsigned starved;                 /* streams whose rows wait for credit now */
    unsigned kept;                    /* now finished and kept */
    uint64_t kept_bytes, reply_bytes; /* now: of the kept ones; set aside for the open ones */
};
void server_stats_read(const struct server *server, struct server_stats *out);
/* What its leases say; the engine's progress. */
void server_load_read(const struct server *server, struct wire_load *out);

/* How the device was within the last second or so; false: it has none that says. */
bool server_device_health(const struct server *server, struct backend_health *out);

enum wire_life server_state(const struct server *server);
const uint8_t *server_incarnation(const struct server *server);        /* 16 bytes, random at start */
const char *server_control_endpoint(const struct server *server);      /* as bound */
const char *server_data_endpoint(const struct server *server);
const char *server_model_name(const struct server *server);            /* "" before READY */
const struct engine_info *server_engine_info(const struct server *server);   /* NULL before READY */
/* Whether a turn of it is queued or runs. Looks at every open stream. */
bool server_has_placement(const struct server *server, const uint8_t *placement);
unsigned server_stream_count(const struct server *server);             /* open: not answered yet */

#endif
