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

struct loop;
struct server;

struct server_config {
    struct loop *loop;                /* ref; must not run again after server_destroy */
    void *zmq_context;                /* ref */
    const char *name;                 /* name rules of wire.h; copied */
    const char *listen_control, *listen_data;
    struct engine_config engine;
    uint32_t lease_ms;                /* 200 */
    uint32_t lease_expiry_ms;         /* 0: 5000; silence after which a router's streams are cancelled */
    uint32_t slow_reader_ms;          /* 0: 5000; how long a router may not take its tokens */
    uint32_t cancel_memory_ms;        /* 0: 30000; how long an unknown cancelled id is remembered */
    uint32_t drain_deadline_ms;       /* 30000 */
    uint64_t reply_bytes_max;         /* 0: 2 GiB; memory for what open requests may release (server_internal.h) */
    /* READY: serving. DRAINING: server_drain was called. GONE: drained, or failed with st and status_detail: stop the loop. */
    void (*on_state)(void *user, enum wire_life state, enum status st);
    void *user;
};

/* STATUS_IO: an endpoint cannot be bound. */
enum status server_create(const struct server_config *config, struct server **out);
void server_destroy(struct server **server);       /* accepts NULL; waits for the running step; open streams end unanswered */

/* Refuses new requests from now on and tells the routers; GONE follows, at the latest after drain_deadline_ms. */
void server_drain(struct server *server);

enum wire_life server_state(const struct server *server);
const uint8_t *server_incarnation(const struct server *server);        /* 16 bytes, random at start */
const char *server_control_endpoint(const struct server *server);      /* as bound */
const char *server_data_endpoint(const struct server *server);
const char *server_model_name(const struct server *server);            /* "" before READY */
const struct engine_info *server_engine_info(const struct server *server);   /* NULL before READY */
unsigned server_stream_count(const struct server *server);             /* open: not answered yet */

#endif
