/* link_probe.h - asks a ZeroMQ endpoint whether a process listens there, by a TCP (or unix) connection of its own.
 *
 * ZeroMQ tells that a link was lost, not why, and its next attempt comes 50 ms later at the earliest. A refused connect
 * tells within a round trip that the process is gone. An accepted one tells nothing yet: the kernel accepts for a
 * process that is stopped, and for one that is being killed. So the probe waits for the greeting that every ZMTP peer
 * sends at once.
 *
 * Numeric addresses and ipc paths only: looking up a name would block. Owns one descriptor. Loop thread only; callbacks
 * come from the loop, never from link_probe_create, once for each probe; they may destroy it. */
#ifndef ROOST_ROUTER_LINK_PROBE_H
#define ROOST_ROUTER_LINK_PROBE_H
#include "common/status.h"

struct loop;
struct link_probe;

enum link_probe_result {
    LINK_PROBE_REFUSED,  /* nobody listens there */
    LINK_PROBE_ANSWERED, /* a process that speaks */
    LINK_PROBE_UNCLEAR,  /* closed or unreachable before it spoke: ask again */
};

typedef void link_probe_fn(void *user, enum link_probe_result result);

/* Without an answer it waits until it is destroyed. STATUS_UNSUPPORTED: the endpoint is a name, or neither tcp nor ipc.
 * STATUS_IO: no socket. */
enum status link_probe_create(struct loop *loop, const char *endpoint, link_probe_fn *fn, void *user,
                              struct link_probe **out);
void link_probe_destroy(struct link_probe **probe); /* accepts NULL */

#endif
