/* channel_queue.h - inside of channel: messages that ZeroMQ would not take yet, a queue per peer. Owns the messages.
 * Always true: pending == the sum of bytes over all queues; no queue is empty (an empty one is removed at once). */
#ifndef ROOST_COMMON_CHANNEL_QUEUE_H
#define ROOST_COMMON_CHANNEL_QUEUE_H
#include "common/channel.h"

struct channel_message {
    struct channel_message *next;
    size_t bytes; /* of the frames, and CHANNEL_QUEUE_OVERHEAD */
    unsigned count;
    zmq_msg_t frames[CHANNEL_FRAMES_MAX];
};

struct peer_queue; /* opaque: uthash stays in channel_queue.c */

struct channel_queues {
    struct peer_queue *by_peer;
    size_t pending;
};

bool channel_queues_has(const struct channel_queues *queues, const struct channel_peer *peer);

/* Moves frames to the end of the peer's queue. STATUS_LIMIT or STATUS_NO_MEMORY: frames are as they were. */
enum status channel_queues_append(struct channel_queues *queues, const struct channel_peer *peer, size_t bytes_max,
                                  zmq_msg_t *frames, unsigned count);
void channel_queues_drop(struct channel_queues *queues, const struct channel_peer *peer);
void channel_queues_drop_all(struct channel_queues *queues);

/* Offers every peer's messages, in order, to send(user, peer, message), until it says STATUS_AGAIN (which leaves the message
 * as it was; on to the next peer) or any other failure (the peer's queue is dropped). send must not touch the queues. */
void channel_queues_flush(struct channel_queues *queues,
                          enum status (*send)(void *user, const struct channel_peer *peer, struct channel_message *message),
                          void *user);

#endif
