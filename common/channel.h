/* channel.h - a ZeroMQ socket joined to a loop, with bounded outgoing queues and link state.
 *
 * Two kinds:
 *   server: ROUTER, bound, ROUTER_MANDATORY; peers are told apart by the routing id that ZeroMQ gives each connection;
 *   client: DEALER, connected to one endpoint; on_link tells when the ZMTP handshake is done and when the link is lost
 *           (from a socket monitor), after which it connects again by itself.
 * A message is 1 to CHANNEL_FRAMES_MAX frames. Longer ones are read to their end, counted and dropped.
 * Nothing here blocks. Sends that would block wait in a queue per peer, in order, up to queue_bytes_max; over that the send
 * fails with STATUS_LIMIT and the caller decides. Used on the loop's thread only. A callback may destroy its channel.
 *
 * A client's link and its queue:
 *   not up yet       messages wait in the queue; an absent server is tried again every 50 to 1500 ms;
 *   comes up         on_link(true), then the queue is sent, in order;
 *   is lost          messages that had arrived are delivered, then on_link(false), where channel_pending still shows what is
 *                    about to be lost, then the queue is dropped: what was meant for a dead server never reaches the next one.
 *                    From the moment the loss is seen until on_link(false) returns, channel_send fails with STATUS_CLOSED.
 * What ZeroMQ or the network had taken already may be lost with the link without a word: a send is not a receipt.
 * inproc endpoints have no link events: on_link is never called and the link counts as up.
 *
 * Only trusted peers: frame_bytes_max bounds a frame, not the number of frames that ZeroMQ buffers for one message. */
#ifndef ROOST_COMMON_CHANNEL_H
#define ROOST_COMMON_CHANNEL_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <zmq.h>
#include "common/status.h"

struct loop;
struct channel;                       /* opaque */

#define CHANNEL_FRAMES_MAX 4          /* head, body and room for growth */
#define CHANNEL_PEER_ID_MAX 32        /* ZeroMQ's own ids have 5 bytes; messages of a peer that gave itself a longer one are dropped */
#define CHANNEL_QUEUE_OVERHEAD 320    /* bytes a queued message takes beside its frames: 4 zmq_msg_t of 64 and the list entry */

struct channel_peer {                 /* a connection of a server channel; for a client channel size is 0 */
    uint8_t size;
    uint8_t id[CHANNEL_PEER_ID_MAX];
};

struct channel_config {               /* all limits must be set: 0 is refused, except for queue_bytes_max (no queue) */
    bool heartbeat;                   /* ZMTP heartbeats 200/600 ms: control links only; on a data link they would cut a large body */
    size_t frame_bytes_max;           /* ZMQ_MAXMSGSIZE: receiving a longer frame drops the connection */
    int receive_messages_max;         /* ZMQ_RCVHWM, in messages */
    int send_messages_max;            /* ZMQ_SNDHWM, in messages */
    size_t queue_bytes_max;           /* per peer, for what ZeroMQ would not take yet; a longer message never waits, so not less
                                         than the longest one. Each message counts CHANNEL_QUEUE_OVERHEAD on top of its frames. */
    /* One whole message. Frames are borrowed: zmq_msg_move or zmq_msg_copy what must live longer (a copy shares the bytes). */
    void (*on_message)(void *user, const struct channel_peer *peer, zmq_msg_t *frames, unsigned frame_count);
    void (*on_link)(void *user, bool up);   /* client channels only; NULL if not wanted */
    void *user;
};

/* zmq_context is borrowed and outlives the channel. */
enum status channel_create_server(struct loop *loop, void *zmq_context, const struct channel_config *config,
                                  const char *endpoint, struct channel **out);   /* binds; port in use: STATUS_IO with words */
enum status channel_create_client(struct loop *loop, void *zmq_context, const struct channel_config *config,
                                  const char *endpoint, struct channel **out);   /* starts connecting */
void channel_destroy(struct channel **channel);   /* LINGER 0: drops what is queued here and in ZeroMQ */

/* For an orderly exit, once channel_pending is 0: ZeroMQ's I/O thread may take up to linger_ms to write what it was given, and
 * zmq_ctx_term waits for that (channel_pending 0 means that ZeroMQ took it all, not that the network did). Does not block. */
void channel_destroy_lingering(struct channel **channel, unsigned linger_ms);

/* The endpoint as bound, with the real port ("tcp://127.0.0.1:*" became a number). Borrowed. */
const char *channel_endpoint(const struct channel *channel);

/* Sends frames[0..count), taking each message's content in every case (they are empty afterwards, also on failure).
 * peer is ignored by client channels. STATUS_CLOSED: no such peer (any more; its queue was dropped), or the link was lost.
 * STATUS_LIMIT: its queue is full. STATUS_INVALID: count is not 1 to CHANNEL_FRAMES_MAX. */
enum status channel_send(struct channel *channel, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count);
/* The same for one frame that is copied from memory. */
enum status channel_send_bytes(struct channel *channel, const struct channel_peer *peer, const void *data, size_t size);

size_t channel_pending(const struct channel *channel);      /* bytes queued over all peers, CHANNEL_QUEUE_OVERHEAD included */
void channel_forget_peer(struct channel *channel, const struct channel_peer *peer);   /* drops its queue */
uint64_t channel_dropped(const struct channel *channel);    /* messages dropped for too many frames or too long a peer id */

/* Checks that this process may open `needed` more descriptors, raising the soft limit as far as the hard one first. Without
 * descriptors ZeroMQ's I/O thread spins, so programs check at start: one per connection, plus a reserve of 64 that is added
 * here for the log, Redis, the loops and ZeroMQ's own. STATUS_LIMIT with words that say what to raise. */
enum status channel_check_descriptors(unsigned needed);
/* How many may still be opened, that reserve kept; UINT_MAX: no limit. Raises the soft limit as well. */
unsigned channel_descriptors_left(void);

#endif
