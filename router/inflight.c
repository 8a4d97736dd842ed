/* inflight.c - see inflight.h. Hash keys are chosen by clients, so they are hashed with a random seed. */
#include "common/hash.h"
#define HASH_NONFATAL_OOM 1
static unsigned key_hash(const void *key, size_t size);
#define HASH_FUNCTION(keyptr, keylen, hashv) ((hashv) = key_hash((keyptr), (keylen)))
#include "router/inflight.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { REPLY_ROOM_MIN = 256 }; /* bytes: 64 ids */

TAILQ_HEAD(request_list, request);

struct inflight_tenant { /* while it has a request here */
    uint8_t name[WIRE_NAME_MAX + 1];
    unsigned requests;
    uint64_t bytes;
    struct request_list kept; /* oldest acknowledged first */
    UT_hash_handle hh;
};

struct loss { /* of a request that its client was asked for again */
    struct request_id_key key;
    uint32_t count;
};

struct inflight {
    struct inflight_config config;
    struct request_list lists[REQUEST_STATE_COUNT];
    unsigned counts[REQUEST_STATE_COUNT], count;
    uint64_t bytes, tenant_bytes_max, shed_count;
    struct request_list kept; /* oldest acknowledged first */
    struct inflight_tenant *tenants;
    struct request *ids, *streams; /* hash tables */
    struct request **backends;     /* those with a worker, each at backend_stream & backend_mask. 2 to 4 places for each of
                                      requests_max: 128 KB for 8,192 */
    uint32_t last_backend_stream, backend_mask;
    struct loss losses[INFLIGHT_LOSSES_KEPT]; /* in a circle; count 0: empty */
    unsigned losses_at;
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
    inflight->backend_mask = 1;
    while (inflight->backend_mask + 1 < 2 * (uint64_t)config->requests_max)
        inflight->backend_mask = 2 * inflight->backend_mask + 1;
    inflight->backends = calloc((size_t)inflight->backend_mask + 1, sizeof *inflight->backends);
    if (!inflight->backends) {
        free(inflight);
        return STATUS_FAIL(STATUS_NO_MEMORY, "the in-flight table");
    }
    for (unsigned i = 0; i < REQUEST_STATE_COUNT; i++)
        TAILQ_INIT(&inflight->lists[i]);
    TAILQ_INIT(&inflight->kept);
    inflight->tenant_bytes_max = config->bytes_max / INFLIGHT_TENANT_SHARE;
    if (inflight->tenant_bytes_max < INFLIGHT_REQUEST_BYTES_MAX)
        inflight->tenant_bytes_max = INFLIGHT_REQUEST_BYTES_MAX;
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
    free((*inflight)->backends);
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
    struct request *found = inflight->backends[backend_stream & inflight->backend_mask];
    return found && found->backend_stream == backend_stream && found->worker == worker ? found : NULL;
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

/* ---- tenants and bytes ---- */

static struct inflight_tenant *tenant_join(struct inflight *inflight, const uint8_t *name)
{
    struct inflight_tenant *tenant;
    HASH_FIND(hh, inflight->tenants, name, sizeof tenant->name, tenant);
    if (!tenant) {
        if (!(tenant = calloc(1, sizeof *tenant)))
            return NULL;
        memcpy(tenant->name, name, sizeof tenant->name);
        TAILQ_INIT(&tenant->kept);
        HASH_ADD(hh, inflight->tenants, name, sizeof tenant->name, tenant);
        if (!tenant->hh.tbl) {
            free(tenant);
            return NULL;
        }
    }
    tenant->requests++;
    return tenant;
}

static void tenant_leave(struct inflight *inflight, struct inflight_tenant *tenant)
{
    if (--tenant->requests > 0)
        return;
    HASH_DELETE(hh, inflight->tenants, tenant);
    free(tenant);
}

static void hold(struct inflight *inflight, struct request *request, size_t bytes)
{
    request->bytes += bytes;
    request->tenant->bytes += bytes;
    inflight->bytes += bytes;
}

static void let_go(struct inflight *inflight, struct request *request, size_t bytes)
{
    request->bytes -= bytes;
    request->tenant->bytes -= bytes;
    inflight->bytes -= bytes;
}

static void unkeep(struct inflight *inflight, struct request *request)
{
    if (!request->kept)
        return;
    request->kept = false;
    TAILQ_REMOVE(&inflight->kept, request, in_kept);
    TAILQ_REMOVE(&request->tenant->kept, request, in_tenant);
}

void inflight_acknowledged(struct inflight *inflight, struct request *request)
{
    if (request->kept || request->shed)
        return;
    request->kept = true;
    TAILQ_INSERT_TAIL(&inflight->kept, request, in_kept);
    TAILQ_INSERT_TAIL(&request->tenant->kept, request, in_tenant);
}

static size_t ids_room(const struct request *request)
{
    size_t bytes = 0;
    for (unsigned i = 0; i < WIRE_CHOICES_MAX; i++)
        bytes += request->replies[i].room;
    return bytes;
}

static void free_ids(struct request *request)
{
    for (unsigned i = 0; i < WIRE_CHOICES_MAX; i++)
        free(request->replies[i].ids);
    memset(request->replies, 0, sizeof request->replies);
}

void inflight_shed(struct inflight *inflight, struct request *request)
{
    if (request->shed)
        return;
    unkeep(inflight, request);
    let_go(inflight, request, zmq_msg_size(&request->body_frame) + ids_room(request));
    zmq_msg_close(&request->body_frame);
    zmq_msg_init(&request->body_frame);
    free_ids(request);
    request->shed = true;
    inflight->shed_count++;
}

/* Sheds others until `bytes` more fit. False: they do not, whoever goes. */
static bool make_room(struct inflight *inflight, struct inflight_tenant *tenant, size_t bytes)
{
    struct request *oldest;
    while (tenant->bytes + bytes > inflight->tenant_bytes_max && (oldest = TAILQ_FIRST(&tenant->kept)))
        inflight_shed(inflight, oldest);
    if (tenant->bytes + bytes > inflight->tenant_bytes_max)
        return false;
    while (inflight->bytes + bytes > inflight->config.bytes_max && (oldest = TAILQ_FIRST(&inflight->kept)))
        inflight_shed(inflight, oldest);
    return inflight->bytes + bytes <= inflight->config.bytes_max;
}

void inflight_keep_ids(struct inflight *inflight, struct request *request, unsigned choice, struct wire_span ids)
{
    struct request_reply *reply = &request->replies[choice];
    if (request->shed || ids.size == 0)
        return;
    request->ids_count += ids.size / 4;
    if (reply->size + ids.size > reply->room) {
        size_t room = reply->room ? 2 * reply->room : REPLY_ROOM_MIN;
        while (room < reply->size + ids.size)
            room *= 2;
        bool fits = request->ids_count <= REQUEST_RESUME_IDS_MAX &&
                    make_room(inflight, request->tenant, room - reply->room) && !request->shed;
        uint8_t *grown = fits ? realloc(reply->ids, room) : NULL;
        if (!grown) {
            inflight_shed(inflight, request);
            return;
        }
        hold(inflight, request, room - reply->room);
        reply->ids = grown;
        reply->room = room;
    }
    memcpy(reply->ids + reply->size, ids.data, ids.size);
    reply->size += ids.size;
}

/* ---- frames ---- */

/* What the request holds of these frames, and of the ids of their resume. */
static size_t bytes_of(const zmq_msg_t *head_frame, const struct wire_message *head, const zmq_msg_t *body_frame)
{
    return zmq_msg_size(head_frame) + zmq_msg_size(body_frame) + head->head.resume.ids.size;
}

/* The replies of a head's resume. */
static enum status copy_resume(const struct wire_resume *resume, struct request_reply replies[WIRE_CHOICES_MAX])
{
    size_t at = 0;
    memset(replies, 0, WIRE_CHOICES_MAX * sizeof *replies);
    for (unsigned i = 0; i < resume->counts.size / 4; i++) {
        struct request_reply *reply = &replies[i];
        reply->size = reply->room = 4 * (size_t)wire_u32_at(resume->counts, i);
        if (reply->size && !(reply->ids = malloc(reply->size))) {
            for (unsigned j = 0; j < i; j++)
                free(replies[j].ids);
            return STATUS_FAIL(STATUS_NO_MEMORY, "the tokens of a resume");
        }
        if (reply->size)
            memcpy(reply->ids, resume->ids.data + at, reply->size);
        at += reply->size;
    }
    return STATUS_OK;
}

/* Frames, head and replies become the request's; what it had is freed already. */
static void take(struct inflight *inflight, struct request *request, zmq_msg_t *head_frame, struct wire_message *head,
                 zmq_msg_t *body_frame, const struct request_reply replies[WIRE_CHOICES_MAX])
{
    const void *head_bytes = zmq_msg_data(head_frame);
    hold(inflight, request, bytes_of(head_frame, head, body_frame));
    request->body_bytes = zmq_msg_size(body_frame);
    zmq_msg_init(&request->head_frame);
    zmq_msg_init(&request->body_frame);
    zmq_msg_move(&request->head_frame, head_frame);
    zmq_msg_move(&request->body_frame, body_frame);
    /* The decoded head points into the frame. A frame this long keeps its bytes in a block that moves along. */
    assert(zmq_msg_data(&request->head_frame) == head_bytes);
    (void)head_bytes;
    request->head = *head;
    memset(head, 0, sizeof *head);
    const struct wire_head *given = &request->head.head;
    request->shed = false;
    memcpy(request->replies, replies, sizeof request->replies);
    request->ids_count = request->released = given->resume.ids.size / 4;
    request->choices = (unsigned)(given->resume.counts.size / 4);
    memset(request->next, 0, sizeof request->next);
    for (unsigned i = 0; i < request->choices; i++)
        request->next[i] = (uint32_t)(replies[i].size / 4);
    request->ended = 0;
    request->client_attempt = given->attempt;
    request->has_numerics = request->released > 0 && given->numerics_id.size == REQUEST_NUMERICS_BYTES;
    if (request->has_numerics)
        memcpy(request->numerics_id, given->numerics_id.data, REQUEST_NUMERICS_BYTES);
}

static void free_frames(struct request *request)
{
    wire_message_free(&request->head);
    zmq_msg_close(&request->head_frame);
    zmq_msg_close(&request->body_frame);
    free_ids(request);
}

/* ---- members ---- */

static enum status add_member(struct inflight *inflight, struct session *session, const struct wire_head *head,
                              struct request **out)
{
    struct request *request = calloc(1, sizeof *request);
    if (!request)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a request");
    make_id_key(head->tenant, head->request_id, &request->id_key);
    make_stream_key(head->session, head->stream, &request->stream_key);
    request->session = session;
    request->tenant = tenant_join(inflight, request->id_key.tenant);
    if (!request->tenant || !request_hash(inflight, request)) {
        if (request->tenant)
            tenant_leave(inflight, request->tenant);
        free(request);
        return STATUS_FAIL(STATUS_NO_MEMORY, "the in-flight table");
    }
    request->state = REQUEST_PLACING;
    TAILQ_INSERT_TAIL(&inflight->lists[REQUEST_PLACING], request, in_state);
    inflight->counts[REQUEST_PLACING]++;
    inflight->count++;
    *out = request;
    return STATUS_OK;
}

static void remove_member(struct inflight *inflight, struct request *request)
{
    unkeep(inflight, request);
    let_go(inflight, request, request->bytes);
    tenant_leave(inflight, request->tenant);
    HASH_DELETE(by_id, inflight->ids, request);
    HASH_DELETE(by_stream, inflight->streams, request);
    TAILQ_REMOVE(&inflight->lists[request->state], request, in_state);
    inflight->counts[request->state]--;
    inflight->count--;
    free(request);
}

void inflight_keep_losses(struct inflight *inflight, const struct request *request)
{
    if (request->loss_count == 0)
        return;
    inflight->losses[inflight->losses_at] = (struct loss){request->id_key, request->loss_count};
    inflight->losses_at = (inflight->losses_at + 1) % INFLIGHT_LOSSES_KEPT;
}

/* Those that it had here before its client was asked for it again count too: clients do not know them. */
static uint32_t losses_of(const struct inflight *inflight, const struct request *request)
{
    uint32_t most = request->head.head.loss_count;
    if (request->client_attempt.client < 2)
        return most;
    for (unsigned i = 0; i < INFLIGHT_LOSSES_KEPT; i++)
        if (inflight->losses[i].count > most &&
            memcmp(&inflight->losses[i].key, &request->id_key, sizeof request->id_key) == 0)
            most = inflight->losses[i].count;
    return most;
}

enum status inflight_add(struct inflight *inflight, struct session *session, zmq_msg_t *head_frame,
                         struct wire_message *head, zmq_msg_t *body_frame, struct request **out)
{
    struct request_reply replies[WIRE_CHOICES_MAX];
    struct request *request = NULL;
    if (inflight_find_id(inflight, head->head.tenant, head->head.request_id))
        return STATUS_FAIL(STATUS_EXISTS, "this request id is in flight");
    if (inflight_find_stream(inflight, head->head.session, head->head.stream))
        return STATUS_FAIL(STATUS_EXISTS, "stream %u is in use", head->head.stream);
    if (inflight->count >= inflight->config.requests_max)
        return STATUS_FAIL(STATUS_LIMIT, "%u requests are in flight", inflight->count);
    TRY(add_member(inflight, session, &head->head, &request));
    enum status st;
    if (head->head.resume.ids.size / 4 > REQUEST_RESUME_IDS_MAX ||
        !make_room(inflight, request->tenant, bytes_of(head_frame, head, body_frame)))
        st = STATUS_FAIL(STATUS_LIMIT, "%llu bytes of requests are in flight", (unsigned long long)inflight->bytes);
    else
        st = copy_resume(&head->head.resume, replies);
    if (st != STATUS_OK) {
        remove_member(inflight, request);
        return st;
    }
    take(inflight, request, head_frame, head, body_frame, replies);
    request->loss_count = losses_of(inflight, request);
    *out = request;
    return STATUS_OK;
}

void inflight_remove(struct inflight *inflight, struct request *request)
{
    inflight_unbind(inflight, request);
    free_frames(request);
    remove_member(inflight, request);
}

static enum status rename_stream(struct inflight *inflight, struct request *request, uint32_t stream)
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

enum status inflight_replace(struct inflight *inflight, struct request *request, zmq_msg_t *head_frame,
                             struct wire_message *head, zmq_msg_t *body_frame)
{
    struct request_reply replies[WIRE_CHOICES_MAX];
    size_t bytes = bytes_of(head_frame, head, body_frame), had = request->bytes;
    bool kept = request->kept;
    unkeep(inflight, request);
    let_go(inflight, request, had);
    enum status st;
    if (head->head.resume.ids.size / 4 > REQUEST_RESUME_IDS_MAX || !make_room(inflight, request->tenant, bytes))
        st = STATUS_FAIL(STATUS_LIMIT, "%llu bytes of requests are in flight", (unsigned long long)inflight->bytes);
    else
        st = copy_resume(&head->head.resume, replies);
    if (st == STATUS_OK && (st = rename_stream(inflight, request, head->head.stream)) != STATUS_OK)
        for (unsigned i = 0; i < WIRE_CHOICES_MAX; i++)
            free(replies[i].ids);
    if (st != STATUS_OK) {
        hold(inflight, request, had);
        if (kept)
            inflight_acknowledged(inflight, request);
        return st;
    }
    free_frames(request);
    take(inflight, request, head_frame, head, body_frame, replies);
    return STATUS_OK;
}

void inflight_move(struct inflight *inflight, struct request *request, enum request_state state)
{
    TAILQ_REMOVE(&inflight->lists[request->state], request, in_state);
    inflight->counts[request->state]--;
    request->state = state;
    TAILQ_INSERT_TAIL(&inflight->lists[state], request, in_state);
    inflight->counts[state]++;
}

void inflight_bind(struct inflight *inflight, struct request *request, struct worker *worker)
{
    assert(!request->worker);
    struct request **place;
    do /* numbers come again after 2 billion dispatches and more; at least half of the places are free */
        place = &inflight->backends[++inflight->last_backend_stream & inflight->backend_mask];
    while (*place);
    *place = request;
    request->backend_stream = inflight->last_backend_stream;
    request->worker = worker;
}

void inflight_unbind(struct inflight *inflight, struct request *request)
{
    if (!request->worker)
        return;
    unkeep(inflight, request);
    inflight->backends[request->backend_stream & inflight->backend_mask] = NULL;
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

uint64_t inflight_shed_count(const struct inflight *inflight)
{
    return inflight->shed_count;
}
