#include "proto/client_events.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "common/log.h"

#define BUFFER_BYTES_MIN (64u << 10)

_Static_assert(sizeof(struct client_event) == 32, "bindings read 32 bytes");
_Static_assert(sizeof(struct client_event_end) == 80, "bindings read 80 bytes");

struct buffer {
    uint8_t *data; /* owned */
    size_t used, size;
};

struct client_events {
    int descriptor;
    pthread_mutex_t lock;  /* guards filling and the descriptor's count */
    struct buffer filling; /* by the library's thread */
    struct buffer taken;   /* the taking thread's */
};

struct source {                   /* of the events of one call; lives from client_events_generate to on_end */
    struct client_events *events; /* ref */
    uint64_t tag;
};

/* Room for a record at the end of the queue; locks it, record_end unlocks. A token that is thrown away would be a hole
 * in a reply, so there is no way to fail. */
static uint8_t *record_begin(struct client_events *events, size_t size)
{
    pthread_mutex_lock(&events->lock);
    struct buffer *buffer = &events->filling;
    if (buffer->used + size > buffer->size) {
        size_t wanted = buffer->size ? buffer->size : BUFFER_BYTES_MIN;
        while (wanted < buffer->used + size)
            wanted *= 2;
        uint8_t *data = realloc(buffer->data, wanted);
        if (!data) {
            LOG_ERROR("no memory for %zu bytes of events that nobody took", wanted);
            abort();
        }
        buffer->data = data;
        buffer->size = wanted;
    }
    return buffer->data + buffer->used;
}

static void record_end(struct client_events *events, size_t size)
{
    if (events->filling.used == 0)
        (void)eventfd_write(events->descriptor, 1); /* from 0 to 1: cannot block */
    events->filling.used += size;
    pthread_mutex_unlock(&events->lock);
}

static uint8_t *put(uint8_t *at, const void *data, size_t size)
{
    if (size > 0)
        memcpy(at, data, size);
    return at + size;
}

static size_t padded(size_t size)
{
    return (size + 7) & ~(size_t)7;
}

static void add_tokens(const struct source *source, enum client_event_kind kind, const struct client_tokens *tokens)
{
    size_t column = 4 * (size_t)tokens->count, table = column * tokens->alternatives;
    size_t size =
        sizeof(struct client_event) + column + (tokens->logprobs ? column : 0) + 2 * table + tokens->text_size;
    struct client_event event = {
        .size = (uint32_t)padded(size),
        .kind = (uint16_t)kind,
        .choice = (uint16_t)tokens->choice,
        .tag = source->tag,
        .first = tokens->first,
        .count = tokens->count,
        .text_bytes = (uint32_t)tokens->text_size,
        .has_logprobs = tokens->logprobs != NULL,
        .alternatives = (uint8_t)tokens->alternatives,
    };
    uint8_t *at = put(record_begin(source->events, event.size), &event, sizeof event);
    at = put(at, tokens->ids, column);
    at = put(at, tokens->logprobs, tokens->logprobs ? column : 0);
    at = put(at, tokens->alternative_ids, table);
    at = put(at, tokens->alternative_logprobs, table);
    at = put(at, tokens->text, tokens->text_size);
    memset(at, 0, event.size - size);
    record_end(source->events, event.size);
}

static void on_tokens(void *user, struct client_call *call, const struct client_tokens *tokens)
{
    (void)call;
    add_tokens(user, CLIENT_EVENT_TOKENS, tokens);
}

static void on_prompt(void *user, struct client_call *call, const struct client_tokens *tokens)
{
    (void)call;
    add_tokens(user, CLIENT_EVENT_PROMPT, tokens);
}

static void on_end(void *user, struct client_call *call, const struct client_end *end)
{
    struct source *source = user;
    (void)call;
    struct client_event_end record = {
        .error = end->error,
        .retry_after_ms = end->retry_after_ms,
        .prompt_tokens = end->prompt_tokens,
        .cached_tokens = end->cached_tokens,
        .reply_tokens = end->reply_tokens,
        .dropped_messages = end->dropped_messages,
        .queue_us = end->queue_us,
        .prefill_us = end->prefill_us,
        .decode_us = end->decode_us,
        .route_us = end->route_us,
        .moves = end->moves,
        .inexact = end->inexact,
        .detail_bytes = (uint32_t)strlen(end->detail),
        .worker_bytes = (uint32_t)strlen(end->worker),
        .route_bytes = (uint32_t)strlen(end->route),
    };
    for (unsigned i = 0; i < end->choices; i++)
        record.finishes[i] = (uint8_t)end->finishes[i];
    size_t size =
        sizeof(struct client_event) + sizeof record + record.detail_bytes + record.worker_bytes + record.route_bytes;
    struct client_event event = {
        .size = (uint32_t)padded(size), .kind = CLIENT_EVENT_END, .tag = source->tag, .count = end->choices};
    uint8_t *at = put(record_begin(source->events, event.size), &event, sizeof event);
    at = put(at, &record, sizeof record);
    at = put(at, end->detail, record.detail_bytes);
    at = put(at, end->worker, record.worker_bytes);
    at = put(at, end->route, record.route_bytes);
    memset(at, 0, event.size - size);
    record_end(source->events, event.size);
    free(source);
}

enum status client_events_create(struct client_events **out)
{
    struct client_events *events = calloc(1, sizeof *events);
    if (!events)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a queue of events");
    events->descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (events->descriptor < 0) {
        free(events);
        return STATUS_FAIL(STATUS_IO, "no descriptor for a queue of events: %s", strerror(errno));
    }
    pthread_mutex_init(&events->lock, NULL);
    *out = events;
    return STATUS_OK;
}

void client_events_destroy(struct client_events **events)
{
    if (!*events)
        return;
    close((*events)->descriptor);
    pthread_mutex_destroy(&(*events)->lock);
    free((*events)->filling.data);
    free((*events)->taken.data);
    free(*events);
    *events = NULL;
}

int client_events_fd(const struct client_events *events)
{
    return events->descriptor;
}

enum status client_events_generate(struct client *client, const struct client_request *request,
                                   struct client_events *events, uint64_t tag, struct client_call **out)
{
    static const struct client_callbacks callbacks = {on_tokens, on_end, on_prompt};
    struct source *source = malloc(sizeof *source);
    if (!source)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a call");
    *source = (struct source){events, tag};
    enum status st = client_generate(client, request, &callbacks, source, out);
    if (st != STATUS_OK)
        free(source);
    return st;
}

void client_events_take(struct client_events *events, const void **data, size_t *size)
{
    eventfd_t count;
    pthread_mutex_lock(&events->lock);
    if (events->filling.used > 0)
        (void)eventfd_read(events->descriptor, &count);
    struct buffer empty = events->taken;
    empty.used = 0;
    events->taken = events->filling;
    events->filling = empty;
    pthread_mutex_unlock(&events->lock);
    *data = events->taken.data;
    *size = events->taken.used;
}

void client_events_sizes(uint32_t sizes[CLIENT_EVENTS_SIZES])
{
    const size_t all[CLIENT_EVENTS_SIZES] = {sizeof(struct client_config),   sizeof(struct client_request),
                                             sizeof(struct client_message),  sizeof(struct wire_sampling),
                                             sizeof(struct client_stats),    sizeof(struct client_event),
                                             sizeof(struct client_event_end)};
    for (unsigned i = 0; i < CLIENT_EVENTS_SIZES; i++)
        sizes[i] = (uint32_t)all[i];
}
