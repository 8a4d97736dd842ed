/* operator_port.h - the HTTP port for people, probes and scrapers: /healthz, /readyz, /metrics and what a program adds. On a port of its own
 * (loopback unless allowed otherwise), never on that of clients. libevent's evhttp on the program's loop; the listener is ours, with a backlog of
 * 1,024. At most OPERATOR_CONNECTIONS_MAX connections, requests of 8 KiB and 5 s; answers are made at once in the handler. Loop thread only. */
#ifndef ROOST_COMMON_OPERATOR_PORT_H
#define ROOST_COMMON_OPERATOR_PORT_H
#include <stdbool.h>
#include <stddef.h>
#include "common/status.h"

#define OPERATOR_CONNECTIONS_MAX 64

struct loop;
struct operator_port;
struct operator_request;               /* opaque: borrowed for the handler's call */

/* One handler a path; it must answer exactly once. */
typedef void operator_handler_fn(void *user, struct operator_request *request);

/* address "127.0.0.1:7490", "[::1]:7490"; port 0: any. STATUS_INVALID: not an address. STATUS_IO: it cannot be bound (the detail says why). */
enum status operator_port_create(struct loop *loop, const char *address, struct operator_port **out);
void operator_port_destroy(struct operator_port **port);          /* accepts NULL */
const char *operator_port_address(const struct operator_port *port);   /* as bound: "127.0.0.1:7490" */

/* method "GET" or "POST"; another method on a known path is answered 405, an unknown path 404, both as JSON. Strings are static. */
enum status operator_port_add(struct operator_port *port, const char *method, const char *path, operator_handler_fn *fn, void *user);

/* A query parameter, decoded; NULL: not given. Borrowed for the handler's call. */
const char *operator_query(struct operator_request *request, const char *name);
/* type "application/json", "text/plain; version=0.0.4", ... */
void operator_answer(struct operator_request *request, int code, const char *type, const char *text, size_t size);
/* {"error": detail} */
void operator_answer_error(struct operator_request *request, int code, const char *detail);

#endif
