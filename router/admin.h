/* admin.h - a router's operator port (common/operator_port.h): what people, probes, scrapers and `roost workers`, `whereis` and `drain` ask it.
 *
 *   GET  /healthz                                the loop turns
 *   GET  /readyz                                 200: at least one worker is ready, and this router does not drain
 *   GET  /metrics                                Prometheus' text format; docs/operations.md has the table
 *   GET  /workers                                JSON: each worker as this router sees it
 *   GET  /conversation?name=NAME[&tenant=T]      JSON: its record in the store, and where its next turn would go and why
 *   POST /drain?worker=NAME[&deadline_ms=N][&cancel=1]   asks the worker to drain; how that goes is in /workers
 *   POST /probe?arm=...                          common/probe.h
 *
 * Reads the router and changes nothing in it. Owns the port and its question to the store. Loop thread only. */
#ifndef ROOST_ROUTER_ADMIN_H
#define ROOST_ROUTER_ADMIN_H
#include "common/status.h"
#include "router/router.h"

struct admin;
struct loop;

struct admin_config {
    struct loop *loop;                      /* ref */
    struct router *router;                  /* ref */
    const struct router_settings *settings; /* ref */
    const char *address;                    /* as operator_port_create takes it */
};

enum status admin_create(const struct admin_config *config, struct admin **out);
/* After the router, whose connection to Redis answers what is open; accepts NULL. */
void admin_destroy(struct admin **admin);
const char *admin_address(const struct admin *admin); /* as bound */

#endif
