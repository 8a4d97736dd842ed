/* Generated structs to ours. Shapes only: the rules are in wire_validate.c, so that senders can ask for them too. */
#include "proto/wire_internal.h"

#include "roost.pb-c.h"

static struct wire_span span(ProtobufCBinaryData bytes)
{
    return wire_span_of(bytes.data, bytes.len);
}

static struct wire_attempt attempt(const Roost__V1__Attempt *from)
{
    return from ? (struct wire_attempt){from->client, from->router} : (struct wire_attempt){0, 0};
}

static struct wire_resume resume(const Roost__V1__Resume *from)
{
    struct wire_resume to = {{NULL, 0}, {NULL, 0}};
    if (from) {
        to.counts = span(from->counts);
        to.ids = span(from->ids);
    }
    return to;
}

/* A value that a younger schema added reads as "unknown" where nothing depends on it. */
static enum wire_life life(int from)
{
    return from >= 0 && from <= WIRE_LIFE_GONE ? (enum wire_life)from : WIRE_LIFE_UNKNOWN;
}

static void convert_hello(const Roost__V1__Hello *from, struct wire_hello *to)
{
    to->version_min = from->version_min;
    to->version_max = from->version_max;
    to->session = span(from->session);
    to->role = (enum wire_role)from->role;
    to->connection = (enum wire_connection)from->connection;
    to->name = span(from->name);
    to->build = span(from->build);
    to->lease_ms = from->lease_ms;
    to->capabilities = from->capabilities;
}

static void convert_welcome(const Roost__V1__Welcome *from, struct wire_welcome *to)
{
    to->version = from->version;
    to->session = span(from->session);
    to->name = span(from->name);
    to->build = span(from->build);
    to->data_endpoint = span(from->data_endpoint);
    to->lease_ms = from->lease_ms;
    to->lease_expiry_ms = from->lease_expiry_ms;
    to->model = span(from->model);
    to->weights_digest = span(from->weights_digest);
    to->numerics_id = span(from->numerics_id);
    to->state = life(from->state);
    to->kv_tokens_max = from->kv_tokens_max;
    to->capabilities = from->capabilities;
    if (from->limits) {
        to->limits.body_bytes_max = from->limits->body_bytes_max;
        to->limits.head_bytes_max = from->limits->head_bytes_max;
        to->limits.unacknowledged_bytes_max = from->limits->unacknowledged_bytes_max;
        to->limits.streams_max = from->limits->streams_max;
        to->limits.stream_credit_tokens = from->limits->stream_credit_tokens;
        to->limits.prompt_tokens_max = from->limits->prompt_tokens_max;
        to->limits.messages_max = from->limits->messages_max;
    }
}

static void convert_device(const Roost__V1__Device *from, struct wire_device *to)
{
    to->memory_bytes = from->memory_bytes;
    to->memory_used_bytes = from->memory_used_bytes;
    to->ecc_uncorrected = from->ecc_uncorrected;
    to->sm_mhz = from->sm_mhz;
    to->memory_mhz = from->memory_mhz;
    to->throttle_reasons = from->throttle_reasons;
}

static void convert_lease(const Roost__V1__Lease *from, struct wire_lease *to)
{
    to->session = span(from->session);
    to->number = from->number;
    to->echo = from->echo;
    to->state = life(from->state);
    to->has_load = from->load != NULL;
    if (from->load) {
        to->load.queued_requests = from->load->queued_requests;
        to->load.running_requests = from->load->running_requests;
        to->load.queued_tokens = from->load->queued_tokens;
        to->load.running_tokens = from->load->running_tokens;
        to->load.kv_tokens_used = from->load->kv_tokens_used;
        to->load.kv_tokens_max = from->load->kv_tokens_max;
        to->load.steps = from->load->steps;
        to->load.step_age_ms = from->load->step_age_ms;
        to->load.step_median_us = from->load->step_median_us;
        to->load.token_ns = from->load->token_ns;
        to->load.has_device = from->load->device != NULL;
        if (from->load->device)
            convert_device(from->load->device, &to->load.device);
    }
    to->credit_streams = span(from->credit_streams);
    to->credit_tokens = span(from->credit_tokens);
    to->credit_connection_bytes = from->credit_connection_bytes;
    to->acknowledged_bytes = from->acknowledged_bytes;
}

static void convert_head(const Roost__V1__Head *from, struct wire_head *to)
{
    to->request_id = span(from->request_id);
    to->session = span(from->session);
    to->stream = from->stream;
    to->tenant = span(from->tenant);
    to->conversation = span(from->conversation);
    to->model = span(from->model);
    to->links = span(from->links);
    to->deadline_ms = from->deadline_ms ? from->deadline_ms : WIRE_DEADLINE_MS_DEFAULT;
    to->priority = from->priority;
    to->resume = resume(from->resume);
    to->attempt = attempt(from->attempt);
    to->loss_count = from->loss_count;
    to->seed = from->seed;
    to->seed_given = from->seed_given;
    to->incarnation = span(from->incarnation);
    to->cache_id = span(from->cache_id);
    to->epoch = from->epoch;
    to->numerics_id = span(from->numerics_id);
    to->inexact_allowed = from->inexact_allowed;
    to->body_bytes = from->body_bytes;
    to->placement = span(from->placement);
}

static enum status convert_sampling(const Roost__V1__Sampling *from, struct wire_arena *arena, struct wire_sampling *to)
{
    to->choices = 1;
    if (!from)
        return STATUS_OK;
    to->temperature = from->temperature;
    to->top_p = from->top_p;
    to->top_k = from->top_k;
    to->min_p = from->min_p;
    to->repetition_penalty = from->repetition_penalty;
    to->presence_penalty = from->presence_penalty;
    to->frequency_penalty = from->frequency_penalty;
    to->tokens_max = from->tokens_max;
    to->tokens_min = from->tokens_min;
    to->choices = from->choices ? from->choices : 1;
    if (from->n_stop > 0) {
        to->stops = wire_arena_alloc(arena, from->n_stop * sizeof *to->stops);
        if (!to->stops)
            return STATUS_FAIL(STATUS_LIMIT, "sampling.stop: over the memory limit of a frame");
        for (size_t i = 0; i < from->n_stop; i++)
            to->stops[i] = span(from->stop[i]);
        to->stop_count = (unsigned)from->n_stop;
    }
    to->stop_ids = span(from->stop_ids);
    to->bias_ids = span(from->bias_ids);
    to->bias_values = span(from->bias_values);
    to->logprobs = from->logprobs;
    to->token_logprobs = from->token_logprobs;
    to->prompt_logprobs = from->prompt_logprobs;
    return STATUS_OK;
}

static enum status convert_body(const Roost__V1__Body *from, struct wire_arena *arena, struct wire_body *to)
{
    if (from->n_messages > 0) {
        to->messages = wire_arena_alloc(arena, from->n_messages * sizeof *to->messages);
        if (!to->messages)
            return STATUS_FAIL(STATUS_LIMIT, "body.messages: over the memory limit of a frame");
        for (size_t i = 0; i < from->n_messages; i++) {
            to->messages[i].role = (enum wire_message_role)from->messages[i]->role;
            to->messages[i].name = span(from->messages[i]->name);
            to->messages[i].text = span(from->messages[i]->text);
        }
        to->message_count = (unsigned)from->n_messages;
    }
    to->prompt_ids = span(from->prompt_ids);
    to->reply_name = span(from->reply_name);
    to->history = span(from->history);
    to->truncate = from->truncate;
    return convert_sampling(from->sampling, arena, &to->sampling);
}

static void convert_tokens(const Roost__V1__Tokens *from, struct wire_tokens *to)
{
    to->stream = span(from->stream);
    to->choice = span(from->choice);
    to->attempt_client = span(from->attempt_client);
    to->attempt_router = span(from->attempt_router);
    to->first = span(from->first);
    to->count = span(from->count);
    to->ids = span(from->ids);
    to->text_bytes = span(from->text_bytes);
    to->text = span(from->text);
    to->logprobs = span(from->logprobs);
    to->alternatives = span(from->alternatives);
    to->alternative_ids = span(from->alternative_ids);
    to->alternative_logprobs = span(from->alternative_logprobs);
    to->row_count = (unsigned)(to->stream.size / 4);
}

static void convert_done(const Roost__V1__Done *from, struct wire_done *to)
{
    to->request_id = span(from->request_id);
    to->stream = from->stream;
    to->attempt = attempt(from->attempt);
    to->finish = span(from->finish);
    if (from->usage) {
        to->prompt_tokens = from->usage->prompt_tokens;
        to->cached_tokens = from->usage->cached_tokens;
        to->reply_tokens = from->usage->reply_tokens;
        to->dropped_messages = from->usage->dropped_messages;
    }
    if (from->timings) {
        to->queue_us = from->timings->queue_us;
        to->prefill_us = from->timings->prefill_us;
        to->decode_us = from->timings->decode_us;
        to->route_us = from->timings->route_us;
    }
    to->worker = span(from->worker);
    to->numerics_id = span(from->numerics_id);
    to->cache_id = span(from->cache_id);
    to->inexact = from->inexact;
    to->route = span(from->route);
    to->epoch = from->epoch;
    to->released = from->released;
}

static void convert_error(const Roost__V1__Error *from, struct wire_error *to)
{
    to->request_id = span(from->request_id);
    to->stream = from->stream;
    to->attempt = attempt(from->attempt);
    /* An ERROR is a terminal whatever its code: none, and one from a younger schema, read as internal. */
    int code = (int)from->code;
    to->code = code > WIRE_ERROR_UNKNOWN && code < WIRE_ERROR_COUNT ? (enum wire_error_code)code : WIRE_ERROR_INTERNAL;
    to->detail = span(from->detail);
    to->retry_after_ms = from->retry_after_ms;
}

enum status wire_convert(const ProtobufCMessage *from, struct wire_arena *arena, struct wire_message *to)
{
    switch (to->kind) {
    case WIRE_HELLO: convert_hello((const Roost__V1__Hello *)from, &to->hello); return STATUS_OK;
    case WIRE_WELCOME: convert_welcome((const Roost__V1__Welcome *)from, &to->welcome); return STATUS_OK;
    case WIRE_LEASE: convert_lease((const Roost__V1__Lease *)from, &to->lease); return STATUS_OK;
    case WIRE_HEAD: convert_head((const Roost__V1__Head *)from, &to->head); return STATUS_OK;
    case WIRE_BODY: return convert_body((const Roost__V1__Body *)from, arena, &to->body);
    case WIRE_TOKENS: convert_tokens((const Roost__V1__Tokens *)from, &to->tokens); return STATUS_OK;
    case WIRE_DONE: convert_done((const Roost__V1__Done *)from, &to->done); return STATUS_OK;
    case WIRE_ERROR: convert_error((const Roost__V1__Error *)from, &to->error); return STATUS_OK;
    case WIRE_NEED_HISTORY: {
        const Roost__V1__NeedHistory *m = (const Roost__V1__NeedHistory *)from;
        to->stream_ref.request_id = span(m->request_id);
        to->stream_ref.stream = m->stream;
        to->stream_ref.attempt = attempt(m->attempt);
        return STATUS_OK;
    }
    case WIRE_RESEND: {
        const Roost__V1__Resend *m = (const Roost__V1__Resend *)from;
        to->stream_ref.request_id = span(m->request_id);
        to->stream_ref.stream = m->stream;
        to->stream_ref.attempt = attempt(m->attempt);
        return STATUS_OK;
    }
    case WIRE_WRONG_OWNER: {
        const Roost__V1__WrongOwner *m = (const Roost__V1__WrongOwner *)from;
        to->stream_ref.request_id = span(m->request_id);
        to->stream_ref.stream = m->stream;
        to->stream_ref.attempt = attempt(m->attempt);
        to->stream_ref.owner = span(m->owner);
        to->stream_ref.epoch = m->epoch;
        return STATUS_OK;
    }
    case WIRE_ACK: {
        const Roost__V1__Ack *m = (const Roost__V1__Ack *)from;
        to->stream_ref.request_id = span(m->request_id);
        to->stream_ref.stream = m->stream;
        to->stream_ref.attempt = attempt(m->attempt);
        to->stream_ref.cache_id = span(m->cache_id);
        to->stream_ref.numerics_id = span(m->numerics_id);
        to->stream_ref.started = m->started;
        return STATUS_OK;
    }
    case WIRE_SUPERSEDED: {
        const Roost__V1__Superseded *m = (const Roost__V1__Superseded *)from;
        to->stream_ref.request_id = span(m->request_id);
        to->stream_ref.attempt = attempt(m->attempt);
        return STATUS_OK;
    }
    case WIRE_CANCEL: {
        const Roost__V1__Cancel *m = (const Roost__V1__Cancel *)from;
        to->cancel.request_id = span(m->request_id);
        to->cancel.tenant = span(m->tenant);
        to->cancel.conversation = span(m->conversation);
        to->cancel.session = span(m->session);
        to->cancel.attempt = attempt(m->attempt);
        return STATUS_OK;
    }
    case WIRE_ATTACH: {
        const Roost__V1__Attach *m = (const Roost__V1__Attach *)from;
        to->attach.request_id = span(m->request_id);
        to->attach.tenant = span(m->tenant);
        to->attach.conversation = span(m->conversation);
        to->attach.session = span(m->session);
        to->attach.stream = m->stream;
        to->attach.resume = resume(m->resume);
        to->attach.attempt = attempt(m->attempt);
        return STATUS_OK;
    }
    case WIRE_ATTACH_REPLY: {
        const Roost__V1__AttachReply *m = (const Roost__V1__AttachReply *)from;
        to->attach_reply.request_id = span(m->request_id);
        to->attach_reply.known = m->known;
        to->attach_reply.released = span(m->released);
        to->attach_reply.tenant = span(m->tenant);
        to->attach_reply.running = m->running;
        return STATUS_OK;
    }
    case WIRE_GOAWAY: {
        const Roost__V1__GoAway *m = (const Roost__V1__GoAway *)from;
        to->goaway.session = span(m->session);
        to->goaway.deadline_ms = m->deadline_ms;
        to->goaway.detail = span(m->detail);
        return STATUS_OK;
    }
    case WIRE_DRAIN: {
        const Roost__V1__Drain *m = (const Roost__V1__Drain *)from;
        to->drain.worker = span(m->worker);
        to->drain.deadline_ms = m->deadline_ms;
        to->drain.cancel = m->cancel;
        return STATUS_OK;
    }
    case WIRE_DRAIN_STATUS: {
        const Roost__V1__DrainStatus *m = (const Roost__V1__DrainStatus *)from;
        to->drain_status.worker = span(m->worker);
        to->drain_status.state = life(m->state);
        to->drain_status.streams = m->streams;
        to->drain_status.bytes_left = m->bytes_left;
        to->drain_status.abandoned = m->abandoned;
        return STATUS_OK;
    }
    case WIRE_KIND_COUNT: break;
    }
    return STATUS_FAIL(STATUS_INTERNAL, "kind %d has no conversion", (int)to->kind);
}
