/* client_events.h - what happens to many calls, in one queue: for programs that have a loop of their own, and for bindings of
 * other languages, which pay for each crossing into them and not for each token.
 *
 *     struct client_events *events;
 *     client_events_create(&events);                                // watch client_events_fd(events) for reading
 *     client_events_generate(client, &request, events, tag, &call);
 *     ...
 *     const void *data; size_t size;                                // the descriptor became readable
 *     client_events_take(events, &data, &size);                     // records, one after the other
 *
 * Owns the records between the library's thread, which writes them, and the one thread that takes them. Always true: the
 * descriptor is readable if and only if there is something to take; the records of a call are in order, and its end is the last
 * and the only one of its kind. Outlives its calls: destroy it after they have ended (client_destroy ends them).
 * A queue grows with what is not taken: let calls have credit_tokens, and say client_consumed. */
#ifndef ROOST_PROTO_CLIENT_EVENTS_H
#define ROOST_PROTO_CLIENT_EVENTS_H
#include <stddef.h>
#include <stdint.h>
#include "proto/client.h"

struct client_events;

enum client_event_kind { CLIENT_EVENT_TOKENS = 1, CLIENT_EVENT_PROMPT, CLIENT_EVENT_END };

/* Followed by count ids, (if has_logprobs) count float log probabilities, count * alternatives ids, as many float log
 * probabilities, and text_bytes of text; for an end by struct client_event_end. Records start at multiples of 8 bytes. */
struct client_event {
    uint32_t size;                    /* of the whole record */
    uint16_t kind, choice;
    uint64_t tag;                     /* of client_events_generate */
    uint32_t first, count;            /* as in struct client_tokens; of an end: 0, and its finishes */
    uint32_t text_bytes;
    uint8_t has_logprobs, alternatives;
    uint16_t reserved;
};

/* As struct client_end. Followed by the detail, the worker's name and the route, without NUL. */
struct client_event_end {
    uint32_t error, retry_after_ms, prompt_tokens, cached_tokens, reply_tokens, dropped_messages;
    uint32_t queue_us, prefill_us, decode_us, route_us, moves, inexact;
    uint8_t finishes[WIRE_CHOICES_MAX];
    uint32_t detail_bytes, worker_bytes, route_bytes, reserved;
};

enum status client_events_create(struct client_events **out);
void client_events_destroy(struct client_events **events);
int client_events_fd(const struct client_events *events);   /* borrowed; do not read from it */

/* client_generate with this queue in the place of callbacks. */
enum status client_events_generate(struct client *client, const struct client_request *request, struct client_events *events,
                                   uint64_t tag, struct client_call **out);

/* All records so far; *data is borrowed until the next call. No record: *size is 0. */
void client_events_take(struct client_events *events, const void **data, size_t *size);

/* The sizes of the structures that cross the boundary, so that a binding that mirrors them can refuse a library of another
 * build: client_config, client_request, client_message, wire_sampling, client_stats, client_event, client_event_end. */
#define CLIENT_EVENTS_SIZES 7
void client_events_sizes(uint32_t sizes[CLIENT_EVENTS_SIZES]);

#endif
