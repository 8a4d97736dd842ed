/* How much the routers may send: totals of tokens for each stream, cumulative, in the leases of the control connection.
 * A stream begins with the window that WELCOME names; a lease is sent early when half a window is new. */
#include "proto/client_internal.h"
#include "proto/client_link.h"

/* The first window; 0: this router knows no credit. */
static uint32_t window_of(const struct router *router)
{
    return client_link_can(router->link, WIRE_CAN_CREDIT) ? client_link_limits(router->link)->stream_credit_tokens : 0;
}

/* All tokens that the router of a sent call may have sent. */
static uint64_t credit_of(const struct client_call *call, uint32_t window)
{
    return call->credit_tokens ? atomic_load(&call->consumed_told) + call->credit_tokens
                               : call->released_total + window;
}

void call_grant(struct client_call *call)
{
    atomic_store(&call->consumed_told, atomic_load(&call->consumed));
    uint32_t window = call->state == CALL_SENT ? window_of(call->router) : 0;
    if (window > 0 &&
        credit_of(call, window) >= call->granted + credit_step(call->credit_tokens ? call->credit_tokens : window))
        client_link_want_lease(call->router->link);
}

void call_grant_anew(struct client_call *call)
{
    call->granted = window_of(call->router);
    call_grant(call);
}

/* Early leases name what has changed; the others name all, for one may have overtaken the request that it speaks of. */
void calls_on_lease(void *user, struct client_link *link, bool all, struct wire_lease *lease)
{
    struct client *client = user;
    struct router *router = router_of(client, link);
    uint32_t window = window_of(router);
    struct client_call *call, *next;
    size_t rows = 0;
    if (window == 0)
        return;
    HASH_ITER(hh, client->sent, call, next)
    {
        if (call->router != router)
            continue;
        uint64_t credit = credit_of(call, window);
        if (all ? credit <= window : credit <= call->granted)
            continue;
        if (rows == CREDIT_ROWS_MAX) {
            client_link_want_lease(link); /* the rest in the next one */
            break;
        }
        call->granted = credit;
        client->credit_streams[rows] = call->stream;
        client->credit_tokens[rows++] = credit;
    }
    lease->credit_streams = wire_span_of(client->credit_streams, rows * sizeof *client->credit_streams);
    lease->credit_tokens = wire_span_of(client->credit_tokens, rows * sizeof *client->credit_tokens);
}
