/* inflight.c - see inflight.h. Hash keys are chosen by clients, so they are hashed with a random seed. */
#include "common/hash.h"
#define HASH_NONFATAL_OOM 1
static unsigned key_hash(const void *key, size_t size);
#define HASH_FUNCTION(keyptr, keylen, hashv) ((hashv) = key_hash((keyptr), (keylen)))
#include "router/inflight.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

TAILQ_HEAD(request_list, request);

struct inflight {
    struct inflight_config config;
    struct request_list lists[REQUEST_STATE_COUNT];
    unsigned counts[REQUEST_STATE_COUNT], count;
    uint64_t bytes;
    struct request *ids, *streams, *backends; /* hash tables */
    uint32_t last_backend_stream;
};

static uint64_t hash_seed; /* random, set once before the first table is used */

static unsigned key_hash(const void *key, size_t size)
{
    uint64_t hash = hash_fast(key, size, hash_seed);
    return (unsigned)(hash ^ (hash >> 32));
}

enum status inflight_create(const struct inflight_config *config, struct inflight **out)
{
    struct inflight *inflight = calloc(1, sizeof *inflight);
    if (!inflight)
        return STATUS_FAIL(STATUS_NO_MEMORY, "the in-flight table");
    if (hash_seed == 0)
        hash_random(&hash_seed, sizeof hash_seed);
    inflight->config = *config;
    for (unsigned i = 0; i < REQUEST_STATE_COUNT; i++)
        TAILQ_INIT(&inflight->lists[i]);
    *out = inflight;
    return STATUS_OK;
}

void inflight_destroy(struct inflight **inflight)
{
    if (!*inflight)
        return;
    for (unsigned i = 0; i < REQUEST_STATE_COUNT; i++)
        while (inflight_first(*inflight, i))
            inflight_remove(*inflight, inflight_first(*inflight, i));
    free(*inflight);
    *inflight = NULL;
}

static void make_id_key(struct wire_span tenant, struct wire_span id, struct request_id_key *out)
{
    memset(out, 0, sizeof *out);
    memcpy(out->id, id.data, id.size < sizeof out->id ? id.size : sizeof out->id);
    memcpy(out->tenant, tenant.data, tenant.size < WIRE_NAME_MAX ? tenant.size : WIRE_NAME_MAX);
}

static void make_stream_key(struct wire_span session, uint32_t stream, struct request_stream_key *out)
{
    memset(out, 0, sizeof *out);
    memcpy(out->session, session.data, session.size < sizeof out->session ? session.size : sizeof out->session);
    out->stream = stream;
}

struct request *inflight_find_id(const struct inflight *inflight, struct wire_span tenant, struct wire_span id)
{
    struct request_id_key key;
    struct request *found;
    if (tenant.size == 0 || id.size != WIRE_ID_BYTES)
        return NULL;
    make_id_key(tenant, id, &key);
    HASH_FIND(by_id, inflight->ids, &key, sizeof key, found);
    return found;
}

struct request *inflight_find_stream(const struct inflight *inflight, struct wire_span session, uint32_t stream)
{
    struct request_stream_key key;
    struct request *found;
    if (session.size != WIRE_ID_BYTES)
        return NULL;
    make_stream_key(session, stream, &key);
    HASH_FIND(by_stream, inflight->streams, &key, sizeof key, found);
    return found;
}

struct request *inflight_find_backend(const struct inflight *inflight, const struct worker *worker,
                                      uint32_t backend_stream)
{
    struct request *found;
    HASH_FIND(by_backend, inflight->backends, &backend_stream, sizeof backend_stream, found);
    return found && found->worker == worker ? found : NULL;
}

static bool request_hash(struct inflight *inflight, struct request *request)
{
    HASH_ADD(by_id, inflight->ids, id_key, sizeof request->id_key, request);
    if (!request->by_id.tbl)
        return false;
    HASH_ADD(by_stream, inflight->streams, stream_key, sizeof request->stream_key, request);
    if (!request->by_stream.tbl) {
        HASH_DELETE(by_id, inflight->ids, request);
        return false;
    }
    return true;
}

enum status inflight_add(struct inflight *inflight, struct session *session, zmq_msg_t *head_frame,
                         struct wire_message *head, zmq_msg_t *body_frame, struct request **out)
{
    size_t bytes = zmq_msg_size(head_frame) + zmq_msg_size(body_frame);
    if (inflight->count >= inflight->config.requests_max)
        return STATUS_FAIL(STATUS_LIMIT, "%u requests are in flight", inflight->count);
    if (bytes > inflight->config.bytes_max - inflight->bytes)
        return STATUS_FAIL(STATUS_LIMIT, "%llu bytes of requests are in flight", (unsigned long long)inflight->bytes);
    if (inflight_find_id(inflight, head->head.tenant, head->head.request_id))
        return STATUS_FAIL(STATUS_EXISTS, "this request id is in flight");
    if (inflight_find_stream(inflight, head->head.session, head->head.stream))
        return STATUS_FAIL(STATUS_EXISTS, "stream %u is in use", head->head.stream);
    struct request *request = calloc(1, sizeof *request);
    if (!request)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a request");
    make_id_key(head->head.tenant, head->head.request_id, &request->id_key);
    make_stream_key(head->head.session, head->head.stream, &request->stream_key);
    if (!request_hash(inflight, request)) {
        free(request);
        return STATUS_FAIL(STATUS_NO_MEMORY, "the in-flight table");
    }
    const void *head_bytes = zmq_msg_data(head_frame);
    zmq_msg_init(&request->head_frame);
    zmq_msg_init(&request->body_frame);
    zmq_msg_move(&request->head_frame, head_frame);
    zmq_msg_move(&request->body_frame, body_frame);
    /* The decoded head points into the frame. A frame this long keeps its bytes in a block that moves along. */
    assert(zmq_msg_data(&request->head_frame) == head_bytes);
    (void)head_bytes;
    request->head = *head;
    memset(head, 0, sizeof *head);
    request->session = session;
    request->bytes = bytes;
    request->client_attempt = request->head.head.attempt;
    request->loss_count = request->head.head.loss_count;
    request->state = REQUEST_PLACING;
    TAILQ_INSERT_TAIL(&inflight->lists[REQUEST_PLACING], request, in_state);
    inflight->counts[REQUEST_PLACING]++;
    inflight->count++;
    inflight->bytes += bytes;
    *out = request;
    return STATUS_OK;
}

void inflight_remove(struct inflight *inflight, struct request *request)
{
    inflight_unbind(inflight, request);
    HASH_DELETE(by_id, inflight->ids, request);
    HASH_DELETE(by_stream, inflight->streams, request);
    TAILQ_REMOVE(&inflight->lists[request->state], request, in_state);
    inflight->counts[request->state]--;
    inflight->count--;
    inflight->bytes -= request->bytes;
    wire_message_free(&request->head);
    zmq_msg_close(&request->head_frame);
    zmq_msg_close(&request->body_frame);
    free(request);
}

void inflight_move(struct inflight *inflight, struct request *request, enum request_state state)
{
    TAILQ_REMOVE(&inflight->lists[request->state], request, in_state);
    inflight->counts[request->state]--;
    request->state = state;
    TAILQ_INSERT_TAIL(&inflight->lists[state], request, in_state);
    inflight->counts[state]++;
}

enum status inflight_rename(struct inflight *inflight, struct request *request, uint32_t stream)
{
    if (stream == request->stream_key.stream)
        return STATUS_OK;
    uint32_t old = request->stream_key.stream;
    struct wire_span session = wire_span_of(request->stream_key.session, WIRE_ID_BYTES);
    if (inflight_find_stream(inflight, session, stream))
        return STATUS_FAIL(STATUS_EXISTS, "stream %u is in use", stream);
    HASH_DELETE(by_stream, inflight->streams, request);
    request->stream_key.stream = stream;
    HASH_ADD(by_stream, inflight->streams, stream_key, sizeof request->stream_key, request);
    if (request->by_stream.tbl)
        return STATUS_OK;
    request->stream_key.stream = old; /* its room is still there */
    HASH_ADD(by_stream, inflight->streams, stream_key, sizeof request->stream_key, request);
    return STATUS_FAIL(STATUS_NO_MEMORY, "the in-flight table");
}

enum status inflight_bind(struct inflight *inflight, struct request *request, struct worker *worker)
{
    assert(!request->worker);
    struct request *taken;
    do { /* wraps after 4 billion dispatches; by then low numbers are free again but for very old streams */
        request->backend_stream = ++inflight->last_backend_stream;
        HASH_FIND(by_backend, inflight->backends, &request->backend_stream, sizeof request->backend_stream, taken);
    } while (taken);
    HASH_ADD(by_backend, inflight->backends, backend_stream, sizeof request->backend_stream, request);
    if (!request->by_backend.tbl)
        return STATUS_FAIL(STATUS_NO_MEMORY, "the in-flight table");
    request->worker = worker;
    return STATUS_OK;
}

void inflight_unbind(struct inflight *inflight, struct request *request)
{
    if (!request->worker)
        return;
    HASH_DELETE(by_backend, inflight->backends, request);
    request->worker = NULL;
}

struct request *inflight_first(const struct inflight *inflight, enum request_state state)
{
    return TAILQ_FIRST(&inflight->lists[state]);
}

struct request *inflight_next(const struct request *request)
{
    return TAILQ_NEXT(request, in_state);
}

unsigned inflight_count(const struct inflight *inflight)
{
    return inflight->count;
}

unsigned inflight_count_in(const struct inflight *inflight, enum request_state state)
{
    return inflight->counts[state];
}

uint64_t inflight_bytes(const struct inflight *inflight)
{
    return inflight->bytes;
}
