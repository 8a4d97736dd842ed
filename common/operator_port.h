/* operator_port.h - the HTTP port for people, probes and scrapers: /healthz, /readyz, /metrics and what a program adds. On a port of its own
 * (loopback unless allowed otherwise), never on that of clients.
 *
 *     operator_port_create(loop, "127.0.0.1:7490", &port);
 *     operator_port_add(port, "GET", "/workers", on_workers, program);
 *
 * A small HTTP/1.1 server on libevent's listener and bufferevents: libevent's own evhttp has no limit on connections, and its timeout starts
 * again with every byte that comes. GET, HEAD and POST; parameters in the query alone; a body is read and dropped.
 *
 * Always true:
 *   1. at most OPERATOR_CONNECTIONS_MAX connections; the next one is told 503 and closed;
 *   2. a connection has OPERATOR_DEADLINE_MS to send a whole request (head and body at most OPERATOR_REQUEST_BYTES_MAX each), and as long to
 *      take the answer; then it is closed. So a slow or silent peer holds one of the 64 for 10 s at most;
 *   3. one answer at a time for each connection: 64 answers of about 800 KB (1,024 workers) are 50 MB;
 *   4. a POST that a web page sent (it has an Origin) is refused: a page that an operator opens must not drain a worker.
 *
 * The port itself has GET /healthz, which answers while the loop turns, and POST /probe?arm=NAME=ACTION (common/probe.h). Loop thread only. */
#ifndef ROOST_COMMON_OPERATOR_PORT_H
#define ROOST_COMMON_OPERATOR_PORT_H
#include <stdbool.h>
#include <stddef.h>
#include "common/status.h"

#define OPERATOR_CONNECTIONS_MAX   64
#define OPERATOR_REQUEST_BYTES_MAX 8192
#define OPERATOR_DEADLINE_MS       5000
#define OPERATOR_BACKLOG           1024   /* connections that wait for the loop: a fleet's probes after a stall */
#define OPERATOR_ROUTES_MAX        16

struct loop;
struct operator_port;
struct operator_request;               /* opaque: borrowed for the handler's call */
struct operator_later;                 /* an answer that is not ready yet */

/* One handler a path; it must answer, or defer, exactly once. */
typedef void operator_handler_fn(void *user, struct operator_request *request);

/* For a program's check of its settings: STATUS_INVALID says what is wrong with the address, or that others can reach it and may not. */
enum status operator_address_check(const char *address, bool allow_remote);

/* address "127.0.0.1:7490", "[::1]:7490"; port 0: any. STATUS_INVALID: not an address. STATUS_IO: it cannot be bound (the detail says why). */
enum status operator_port_create(struct loop *loop, const char *address, struct operator_port **out);
void operator_port_destroy(struct operator_port **port);          /* accepts NULL; answers not taken yet are dropped */
const char *operator_port_address(const struct operator_port *port);   /* as bound: "127.0.0.1:7490" */

/* method "GET" (then HEAD too) or "POST"; another method on a known path is answered 405, an unknown path 404, both as JSON. Strings are static.
 * STATUS_LIMIT: OPERATOR_ROUTES_MAX are there. */
enum status operator_port_add(struct operator_port *port, const char *method, const char *path, operator_handler_fn *fn, void *user);

/* A query parameter, decoded; NULL: not given. Borrowed for the handler's call. */
const char *operator_query(struct operator_request *request, const char *name);
/* type OPERATOR_JSON, OPERATOR_METRICS, ... The text is copied. */
void operator_answer(struct operator_request *request, int code, const char *type, const char *text, size_t size);
/* {"error": detail} */
void operator_answer_error(struct operator_request *request, int code, const char *detail);

/* The answer comes from a callback, within OPERATOR_DEADLINE_MS, or the connection is closed. It must come all the same: it frees *out.
 * STATUS_NO_MEMORY: answer now. */
enum status operator_defer(struct operator_request *request, struct operator_later **out);
void operator_answer_later(struct operator_later **later, int code, const char *type, const char *text, size_t size);   /* sets it to NULL */

#define OPERATOR_JSON    "application/json"
#define OPERATOR_METRICS "text/plain; version=0.0.4; charset=utf-8"

#endif
