/* channel_queue.c - see channel_queue.h. */
#include "channel_queue.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#define HASH_NONFATAL_OOM 1
#include <uthash.h>

static_assert(sizeof(struct channel_message) <= CHANNEL_QUEUE_OVERHEAD, "the overhead that limits count covers the entry");

struct peer_queue {
    struct channel_peer peer; /* the key: zero after its size */
    struct channel_message *head;
    struct channel_message **tail;
    size_t bytes;
    UT_hash_handle hh;
};

static struct channel_peer make_key(const struct channel_peer *peer)
{
    struct channel_peer key;
    memset(&key, 0, sizeof key);
    if (peer) {
        key.size = peer->size;
        memcpy(key.id, peer->id, peer->size);
    }
    return key;
}

static struct peer_queue *find(const struct channel_queues *queues, const struct channel_peer *peer)
{
    struct peer_queue *queue = NULL;
    if (queues->by_peer) {
        struct channel_peer key = make_key(peer);
        HASH_FIND(hh, queues->by_peer, &key, sizeof key, queue);
    }
    return queue;
}

bool channel_queues_has(const struct channel_queues *queues, const struct channel_peer *peer)
{
    return find(queues, peer) != NULL;
}

static void message_destroy(struct channel_message *message)
{
    for (unsigned i = 0; i < message->count; i++)
        zmq_msg_close(&message->frames[i]);
    free(message);
}

static void pop(struct channel_queues *queues, struct peer_queue *queue)
{
    struct channel_message *message = queue->head;
    queue->head = message->next;
    if (!queue->head)
        queue->tail = &queue->head;
    queue->bytes -= message->bytes;
    queues->pending -= message->bytes;
    message_destroy(message);
}

static void remove_queue(struct channel_queues *queues, struct peer_queue *queue)
{
    while (queue->head)
        pop(queues, queue);
    HASH_DELETE(hh, queues->by_peer, queue);
    free(queue);
}

static struct peer_queue *find_or_add(struct channel_queues *queues, const struct channel_peer *peer)
{
    struct peer_queue *queue = find(queues, peer);
    if (queue)
        return queue;
    queue = calloc(1, sizeof *queue);
    if (!queue)
        return NULL;
    queue->peer = make_key(peer);
    queue->tail = &queue->head;
    HASH_ADD(hh, queues->by_peer, peer, sizeof queue->peer, queue);
    if (!queue->hh.tbl) { /* how uthash says that it had no memory */
        free(queue);
        return NULL;
    }
    return queue;
}

enum status channel_queues_append(struct channel_queues *queues, const struct channel_peer *peer, size_t bytes_max,
                                  zmq_msg_t *frames, unsigned count)
{
    size_t bytes = CHANNEL_QUEUE_OVERHEAD;
    for (unsigned i = 0; i < count; i++)
        bytes += zmq_msg_size(&frames[i]);
    const struct peer_queue *existing = find(queues, peer);
    size_t queued = existing ? existing->bytes : 0;
    if (bytes > bytes_max || queued > bytes_max - bytes)
        return STATUS_FAIL(STATUS_LIMIT, "the peer reads too slowly: %zu bytes wait for it and %zu more are over the limit of %zu",
                           queued, bytes, bytes_max);
    struct channel_message *message = malloc(sizeof *message);
    struct peer_queue *queue = message ? find_or_add(queues, peer) : NULL;
    if (!queue) {
        free(message);
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory to queue a message of %zu bytes", bytes);
    }
    message->next = NULL;
    message->bytes = bytes;
    message->count = count;
    for (unsigned i = 0; i < count; i++) {
        zmq_msg_init(&message->frames[i]);
        zmq_msg_move(&message->frames[i], &frames[i]);
    }
    *queue->tail = message;
    queue->tail = &message->next;
    queue->bytes += bytes;
    queues->pending += bytes;
    return STATUS_OK;
}

void channel_queues_drop(struct channel_queues *queues, const struct channel_peer *peer)
{
    struct peer_queue *queue = find(queues, peer);
    if (queue)
        remove_queue(queues, queue);
}

void channel_queues_drop_all(struct channel_queues *queues)
{
    struct peer_queue *queue, *next;
    HASH_ITER(hh, queues->by_peer, queue, next)
        remove_queue(queues, queue);
    assert(queues->pending == 0);
}

void channel_queues_flush(struct channel_queues *queues,
                          enum status (*send)(void *user, const struct channel_peer *peer, struct channel_message *message),
                          void *user)
{
    struct peer_queue *queue, *next;
    HASH_ITER(hh, queues->by_peer, queue, next) {
        enum status st = STATUS_OK;
        while (queue->head && (st = send(user, &queue->peer, queue->head)) == STATUS_OK)
            pop(queues, queue);
        if (!queue->head || st != STATUS_AGAIN)
            remove_queue(queues, queue);
    }
}
