/* request.c - owns nothing but the requests it hands out. Thread-safe: no state (a request itself belongs to one thread
 * at a time). */
#include "worker/server/request.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"

void refusal_set(struct refusal *refusal, enum wire_error_code code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    refusal->code = code;
    refusal->retry_after_ms = 0;
    vsnprintf(refusal->detail, sizeof refusal->detail, format, args);
    va_end(args);
}

enum wire_error_code refusal_code(enum status st, enum wire_error_code limit)
{
    switch (st) {
    case STATUS_TIMEOUT: return WIRE_ERROR_DEADLINE;
    case STATUS_CANCELLED: return WIRE_ERROR_CANCELLED;
    case STATUS_LIMIT: return limit;
    case STATUS_AGAIN: return WIRE_ERROR_OVER_CAPACITY;
    case STATUS_INVALID: return WIRE_ERROR_INVALID;
    case STATUS_UNSUPPORTED: return WIRE_ERROR_UNSUPPORTED;
    default: return WIRE_ERROR_INTERNAL;
    }
}

static enum status check_head(const struct wire_head *head, size_t body_size, struct refusal *refusal)
{
    if (body_size > wire_frame_bytes_max(WIRE_BODY)) {
        refusal_set(refusal, WIRE_ERROR_TOO_LARGE, "body: %zu bytes, at most %zu are taken", body_size,
                    wire_frame_bytes_max(WIRE_BODY));
        return STATUS_LIMIT;
    }
    if (head->body_bytes != body_size) {
        refusal_set(refusal, WIRE_ERROR_INVALID, "the head says %u bytes of body, %zu came", head->body_bytes,
                    body_size);
        return STATUS_INVALID;
    }
    return STATUS_OK;
}

static enum engine_role role_of(enum wire_message_role role)
{
    switch (role) {
    case WIRE_MESSAGE_ASSISTANT: return ENGINE_ROLE_ASSISTANT;
    case WIRE_MESSAGE_SYSTEM: return ENGINE_ROLE_SYSTEM;
    default: return ENGINE_ROLE_USER;
    }
}

static enum status take_messages(struct request *request, const struct wire_body *body)
{
    request->messages = calloc(body->message_count, sizeof *request->messages);
    if (!request->messages)
        return STATUS_NO_MEMORY;
    for (unsigned i = 0; i < body->message_count; i++) {
        const struct wire_chat_message *from = &body->messages[i];
        request->messages[i] = (struct engine_message){
            .role = role_of(from->role),
            .name = (const char *)from->name.data,
            .name_size = from->name.size,
            .text = (const char *)from->text.data,
            .text_size = from->text.size,
        };
    }
    request->engine.messages = request->messages;
    request->engine.message_count = body->message_count;
    return STATUS_OK;
}

/* Copies a column, which is not aligned, to *at, which moves on. */
static const uint32_t *take_column(struct wire_span column, uint32_t **at, uint32_t *count)
{
    const uint32_t *values = *at;
    *count = (uint32_t)(column.size / sizeof(uint32_t));
    for (uint32_t i = 0; i < *count; i++)
        *(*at)++ = wire_u32_at(column, i);
    return *count ? values : NULL;
}

/* What the body and the head ask for agrees, and is built. */
static enum status check_request(const struct wire_head *head, const struct wire_body *body, struct refusal *refusal)
{
    size_t counts = head->resume.counts.size / sizeof(uint32_t);
    if (body->history.size > 0) {
        refusal_set(refusal, WIRE_ERROR_UNSUPPORTED, "history is not supported by this worker yet");
        return STATUS_UNSUPPORTED;
    }
    if (counts > 0 && counts != body->sampling.choices) {
        refusal_set(refusal, WIRE_ERROR_INVALID, "resume.counts: %zu counts for %u choices", counts,
                    body->sampling.choices);
        return STATUS_INVALID;
    }
    return STATUS_OK;
}

static enum status take_ids(struct request *request, const struct wire_head *head, const struct wire_body *body)
{
    static const struct wire_resume none;
    const struct wire_resume *resume = head->resume.ids.size ? &head->resume : &none;
    const struct wire_sampling *sampling = &body->sampling;
    struct engine_request *engine = &request->engine;
    size_t size = body->prompt_ids.size + sampling->stop_ids.size + sampling->bias_ids.size + resume->counts.size +
                  resume->ids.size;
    uint32_t count;
    if (size == 0)
        return STATUS_OK;
    uint32_t *at = request->ids = malloc(size);
    if (!at)
        return STATUS_NO_MEMORY;
    engine->prompt_ids = take_column(body->prompt_ids, &at, &engine->prompt_id_count);
    engine->stop_ids = take_column(sampling->stop_ids, &at, &engine->stop_id_count);
    engine->sampling.bias_ids = take_column(sampling->bias_ids, &at, &engine->sampling.bias_count);
    engine->resume_counts = take_column(resume->counts, &at, &count);
    engine->resume_ids = take_column(resume->ids, &at, &count);
    return STATUS_OK;
}

static enum status take_bias_values(struct request *request, struct wire_span column)
{
    size_t count = column.size / sizeof(float);
    if (count == 0)
        return STATUS_OK;
    request->bias_values = malloc(count * sizeof *request->bias_values);
    if (!request->bias_values)
        return STATUS_NO_MEMORY;
    for (size_t i = 0; i < count; i++)
        request->bias_values[i] = wire_f32_at(column, i);
    request->engine.sampling.bias_values = request->bias_values;
    return STATUS_OK;
}

static void take_stops(struct request *request, const struct wire_sampling *sampling)
{
    for (unsigned i = 0; i < sampling->stop_count; i++) {
        request->stops[i] = (const char *)sampling->stops[i].data;
        request->stop_sizes[i] = sampling->stops[i].size;
    }
    request->engine.stops = request->stops;
    request->engine.stop_sizes = request->stop_sizes;
    request->engine.stop_count = sampling->stop_count;
}

static enum status take_sampling(struct request *request, const struct wire_sampling *from)
{
    struct engine_request *engine = &request->engine;
    struct sampler_options *to = &engine->sampling;
    to->temperature = from->temperature;
    to->top_p = from->top_p;
    to->top_k = from->top_k;
    to->min_p = from->min_p;
    to->repetition_penalty = from->repetition_penalty;
    to->presence_penalty = from->presence_penalty;
    to->frequency_penalty = from->frequency_penalty;
    to->tokens_min = from->tokens_min;
    engine->tokens_max = from->tokens_max;
    engine->choices = from->choices;
    engine->logprobs = from->token_logprobs || from->logprobs > 0;
    engine->alternatives = from->logprobs;
    engine->prompt_logprobs = from->prompt_logprobs;
    take_stops(request, from);
    return take_bias_values(request, from->bias_values);
}

static void take_head(struct request *request, const struct wire_head *head, uint64_t now_ms)
{
    struct engine_request *engine = &request->engine;
    memcpy(engine->request_id, head->request_id.data, sizeof engine->request_id);
    memcpy(request->tenant, head->tenant.data, head->tenant.size);
    engine->tenant = request->tenant;
    engine->tenant_size = head->tenant.size;
    engine->seed = head->seed;
    engine->seed_given = head->seed_given;
    engine->priority = head->priority;
    engine->apart = head->loss_count > 0;
    engine->deadline_ms = now_ms + (head->deadline_ms ? head->deadline_ms : WIRE_DEADLINE_MS_DEFAULT);
}

static enum status take_body(struct request *request, const struct wire_head *head)
{
    const struct wire_body *body = &request->body.body;
    struct engine_request *engine = &request->engine;
    engine->reply_name = (const char *)body->reply_name.data;
    engine->reply_name_size = body->reply_name.size;
    engine->truncate = body->truncate;
    TRY(take_sampling(request, &body->sampling));
    TRY(take_ids(request, head, body));
    return body->message_count ? take_messages(request, body) : STATUS_OK;
}

enum status request_create(const struct wire_head *head, zmq_msg_t *body_frame, uint64_t now_ms, struct request **out,
                           struct refusal *refusal)
{
    TRY(check_head(head, zmq_msg_size(body_frame), refusal));
    struct request *request = calloc(1, sizeof *request);
    if (!request) {
        refusal_set(refusal, WIRE_ERROR_OVER_CAPACITY, "no memory for the request");
        return STATUS_NO_MEMORY;
    }
    zmq_msg_init(&request->frame);
    /* Decoded where it stays: ZeroMQ keeps small messages inside zmq_msg_t, so spans must point into the final one. */
    zmq_msg_move(&request->frame, body_frame);
    enum wire_kind kind;
    enum status st = wire_peek(zmq_msg_data(&request->frame), zmq_msg_size(&request->frame), &kind, NULL);
    if (st == STATUS_OK && kind != WIRE_BODY)
        st = STATUS_FAIL(STATUS_INVALID, "the second frame of a request is a body, not %s", wire_kind_name(kind));
    if (st == STATUS_OK)
        st = wire_decode(zmq_msg_data(&request->frame), zmq_msg_size(&request->frame), &request->body);
    if (st != STATUS_OK) {
        refusal_set(refusal, refusal_code(st, WIRE_ERROR_TOO_LARGE), "body: %s", status_detail());
        goto fail;
    }
    if ((st = check_request(head, &request->body.body, refusal)) != STATUS_OK)
        goto fail;
    take_head(request, head, now_ms);
    if ((st = take_body(request, head)) != STATUS_OK) {
        refusal_set(refusal, WIRE_ERROR_OVER_CAPACITY, "no memory for the request");
        goto fail;
    }
    *out = request;
    return STATUS_OK;
fail:
    zmq_msg_move(body_frame, &request->frame);
    request_destroy(&request);
    return st;
}

void request_destroy(struct request **request_pointer)
{
    struct request *request = request_pointer ? *request_pointer : NULL;
    if (!request)
        return;
    wire_message_free(&request->body);
    zmq_msg_close(&request->frame);
    free(request->messages);
    free(request->ids);
    free(request->bias_values);
    free(request);
    *request_pointer = NULL;
}

/* Fixed-width lengths before each piece, so that two different requests never give the same bytes. */
void request_content(const struct wire_head *head, const void *body, size_t body_size, uint8_t out[32])
{
    uint8_t digests[32 + 2 * (1 + WIRE_NAME_MAX) + 9] = {0};
    size_t at = 32;
    hash_digest(body, body_size, NULL, 0, digests);
    const struct wire_span names[] = {head->conversation, head->model};
    for (size_t i = 0; i < 2; i++) {
        digests[at++] = (uint8_t)names[i].size;
        if (names[i].size)
            memcpy(digests + at, names[i].data, names[i].size);
        at += names[i].size;
    }
    digests[at++] = head->seed_given;
    memcpy(digests + at, &head->seed, sizeof head->seed);
    hash_digest(digests, at + sizeof head->seed, NULL, 0, out);
}
