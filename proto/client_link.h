/* client_link.h - one router as the client library sees it: the control and the data connection, hello, leases, loss.
 *
 *     DOWN --control link up, HELLO sent--> GREETED --WELCOME: data connection opened--> WELCOMED --data link up, HELLO
 * sent--> READY ^                                      |                                            | |
 *       +---- link down, no echo for lease_expiry, no WELCOME within 5 s, an ERROR about the connection
 * -----------------+
 *
 * After a loss of the control link ZeroMQ connects again by itself; after any other the connection is made anew, with a
 * back-off of 0.1 to 2 s. Used on the loop's thread only. Always true: on_ready and on_lost alternate, on_ready first.
 */
#ifndef ROOST_PROTO_CLIENT_LINK_H
#define ROOST_PROTO_CLIENT_LINK_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"
#include "proto/wire.h"

struct loop;
struct client_link;

struct client_link_config {
    struct loop *loop;      /* ref */
    void *zmq_context;      /* ref */
    const char *endpoint;   /* control endpoint; copied */
    const char *name;       /* for the router's log; copied */
    const uint8_t *session; /* WIRE_ID_BYTES; copied */
    void (*on_ready)(void *user, struct client_link *link);
    void (*on_lost)(void *user, struct client_link *link);
    /* Everything but hello, welcome and lease. The message is borrowed. */
    void (*on_message)(void *user, struct client_link *link, const struct wire_message *message);
    /* Fills in the credit columns of a lease for the control connection, which are borrowed until it is sent. all: those of every
     * stream, not only what is new. */
    void (*on_lease)(void *user, struct client_link *link, bool all, struct wire_lease *lease);
    void (*on_dropped)(void *user); /* a frame that is malformed, forged, replayed or out of place */
    void *user;
};

/* STATUS_INVALID or STATUS_IO: the endpoint cannot be used at all. */
enum status client_link_create(const struct client_link_config *config, struct client_link **out);
void client_link_destroy(struct client_link **link); /* no callbacks from now on */

void client_link_tick(struct client_link *link, uint64_t now_ms,
                      bool expire); /* about every 50 ms; expire: silence may be judged */
bool client_link_ready(const struct client_link *link);
bool client_link_can(const struct client_link *link, enum wire_capability capability); /* the router said so */
void client_link_want_lease(struct client_link *link); /* new credit: the next client_link_flush sends a lease early */
void client_link_flush(struct client_link *link);      /* at the end of each turn */
const struct wire_limits *
client_link_limits(const struct client_link *link);              /* of the last WELCOME, defaults filled in */
const char *client_link_trouble(const struct client_link *link); /* why it was lost last, "" if never */
void client_link_set_busy(struct client_link *link,
                          bool busy); /* bodies are under way: a slow link may be silent longer */

/* Two frames on the data connection. The body is copied. STATUS_LIMIT or STATUS_CLOSED: not now. */
enum status client_link_send_request(struct client_link *link, const struct wire_message *head, const void *body,
                                     size_t body_size);
void client_link_say_goodbye(struct client_link *link); /* GOAWAY: this session is over */
enum status client_link_send_control(struct client_link *link, const struct wire_message *message);

#endif
