/* operator.h - a worker's operator port (common/operator_port.h).
 *
 *   GET  /healthz                              the I/O thread's loop turns; says nothing of the engine
 *   GET  /readyz                               200: it serves (model loaded, not draining)
 *   GET  /metrics                              Prometheus' text format; docs/operations.md has the table
 *   POST /drain[?deadline_ms=N][&cancel=1]     as a router's DRAIN: finishes, then is safe to delete, and stays until SIGTERM
 *   POST /simulate?factor=F                    a simulated worker alone: steps take F times as long
 *   POST /probe?arm=...                        common/probe.h
 *
 * Owns the port; borrows the rest, which it reads. Loop thread only. */
#ifndef ROOST_WORKER_SERVER_OPERATOR_H
#define ROOST_WORKER_SERVER_OPERATOR_H
#include <stdbool.h>
#include "common/status.h"

struct conversations;
struct loop;
struct operator;
struct redis_link;
struct server;

struct operator_config {
    struct loop *loop;                          /* ref */
    struct server *server;                      /* ref */
    const struct redis_link *redis;             /* ref; NULL: none */
    const struct conversations *conversations;  /* ref; NULL: none */
    bool simulated;
    const char *address;                        /* as operator_port_create takes it */
};

enum status operator_create(const struct operator_config *config, struct operator **out);
void operator_destroy(struct operator **operator);          /* accepts NULL; before what it borrows */
const char *operator_address(const struct operator *operator);   /* as bound */

#endif
