/* Our structs to frames. Generated structs live on the stack; a body's messages are packed one at a time, so no table
 * of them is built. Size and bytes come from one function, so they cannot disagree. */
#include <string.h>

#include "proto/wire_internal.h"
#include "roost.pb-c.h"

static ProtobufCBinaryData bytes(struct wire_span span)
{
    return (ProtobufCBinaryData){span.size, (uint8_t *)(uintptr_t)span.data}; /* only read while packing */
}

static size_t put_header(enum wire_kind kind, uint8_t *out)
{
    if (out) {
        out[0] = 'R';
        out[1] = WIRE_VERSION;
        out[2] = (uint8_t)kind;
        out[3] = 0;
    }
    return WIRE_HEADER_BYTES;
}

static size_t put(enum wire_kind kind, const ProtobufCMessage *message, uint8_t *out)
{
    size_t size = put_header(kind, out);
    return size + (out ? protobuf_c_message_pack(message, out + size) : protobuf_c_message_get_packed_size(message));
}

static Roost__V1__Attempt attempt(struct wire_attempt from)
{
    Roost__V1__Attempt to = ROOST__V1__ATTEMPT__INIT;
    to.client = from.client;
    to.router = from.router;
    return to;
}

static Roost__V1__Resume resume(struct wire_resume from)
{
    Roost__V1__Resume to = ROOST__V1__RESUME__INIT;
    to.counts = bytes(from.counts);
    to.ids = bytes(from.ids);
    return to;
}

static size_t put_hello(const struct wire_hello *from, uint8_t *out)
{
    Roost__V1__Hello m = ROOST__V1__HELLO__INIT;
    m.version_min = from->version_min;
    m.version_max = from->version_max;
    m.session = bytes(from->session);
    m.role = (Roost__V1__PeerRole)from->role;
    m.connection = (Roost__V1__Connection)from->connection;
    m.name = bytes(from->name);
    m.build = bytes(from->build);
    m.lease_ms = from->lease_ms;
    m.capabilities = from->capabilities;
    return put(WIRE_HELLO, &m.base, out);
}

static size_t put_welcome(const struct wire_welcome *from, uint8_t *out)
{
    Roost__V1__Welcome m = ROOST__V1__WELCOME__INIT;
    Roost__V1__Limits limits = ROOST__V1__LIMITS__INIT;
    m.version = from->version;
    m.session = bytes(from->session);
    m.name = bytes(from->name);
    m.build = bytes(from->build);
    m.data_endpoint = bytes(from->data_endpoint);
    m.lease_ms = from->lease_ms;
    m.lease_expiry_ms = from->lease_expiry_ms;
    m.model = bytes(from->model);
    m.weights_digest = bytes(from->weights_digest);
    m.numerics_id = bytes(from->numerics_id);
    m.state = (Roost__V1__LifeState)from->state;
    m.kv_tokens_max = from->kv_tokens_max;
    m.capabilities = from->capabilities;
    m.limits = &limits;
    limits.body_bytes_max = from->limits.body_bytes_max;
    limits.head_bytes_max = from->limits.head_bytes_max;
    limits.unacknowledged_bytes_max = from->limits.unacknowledged_bytes_max;
    limits.streams_max = from->limits.streams_max;
    limits.stream_credit_tokens = from->limits.stream_credit_tokens;
    limits.prompt_tokens_max = from->limits.prompt_tokens_max;
    limits.messages_max = from->limits.messages_max;
    return put(WIRE_WELCOME, &m.base, out);
}

static size_t put_lease(const struct wire_lease *from, uint8_t *out)
{
    Roost__V1__Lease m = ROOST__V1__LEASE__INIT;
    Roost__V1__Load load = ROOST__V1__LOAD__INIT;
    Roost__V1__Device device = ROOST__V1__DEVICE__INIT;
    m.session = bytes(from->session);
    m.number = from->number;
    m.echo = from->echo;
    m.state = (Roost__V1__LifeState)from->state;
    if (from->has_load) {
        m.load = &load;
        load.queued_requests = from->load.queued_requests;
        load.running_requests = from->load.running_requests;
        load.queued_tokens = from->load.queued_tokens;
        load.running_tokens = from->load.running_tokens;
        load.kv_tokens_used = from->load.kv_tokens_used;
        load.kv_tokens_max = from->load.kv_tokens_max;
        load.steps = from->load.steps;
        load.step_age_ms = from->load.step_age_ms;
        load.step_median_us = from->load.step_median_us;
        load.token_ns = from->load.token_ns;
        if (from->load.has_device) {
            load.device = &device;
            device.memory_bytes = from->load.device.memory_bytes;
            device.memory_used_bytes = from->load.device.memory_used_bytes;
            device.ecc_uncorrected = from->load.device.ecc_uncorrected;
            device.sm_mhz = from->load.device.sm_mhz;
            device.memory_mhz = from->load.device.memory_mhz;
            device.throttle_reasons = from->load.device.throttle_reasons;
        }
    }
    m.credit_streams = bytes(from->credit_streams);
    m.credit_tokens = bytes(from->credit_tokens);
    m.credit_connection_bytes = from->credit_connection_bytes;
    m.acknowledged_bytes = from->acknowledged_bytes;
    return put(WIRE_LEASE, &m.base, out);
}

static size_t put_head(const struct wire_head *from, uint8_t *out)
{
    Roost__V1__Head m = ROOST__V1__HEAD__INIT;
    Roost__V1__Attempt a = attempt(from->attempt);
    Roost__V1__Resume r = resume(from->resume);
    m.request_id = bytes(from->request_id);
    m.session = bytes(from->session);
    m.stream = from->stream;
    m.tenant = bytes(from->tenant);
    m.conversation = bytes(from->conversation);
    m.model = bytes(from->model);
    m.links = bytes(from->links);
    m.deadline_ms = from->deadline_ms;
    m.priority = from->priority;
    m.resume = from->resume.counts.size || from->resume.ids.size ? &r : NULL;
    m.attempt = &a;
    m.loss_count = from->loss_count;
    m.seed = from->seed;
    m.seed_given = from->seed_given;
    m.incarnation = bytes(from->incarnation);
    m.cache_id = bytes(from->cache_id);
    m.epoch = from->epoch;
    m.numerics_id = bytes(from->numerics_id);
    m.inexact_allowed = from->inexact_allowed;
    m.body_bytes = from->body_bytes;
    m.placement = bytes(from->placement);
    return put(WIRE_HEAD, &m.base, out);
}

static size_t put_varint(uint64_t value, uint8_t *out)
{
    size_t size = 0;
    do {
        uint8_t byte = value & 0x7f;
        value >>= 7;
        if (out)
            out[size] = byte | (value ? 0x80 : 0);
        size++;
    } while (value);
    return size;
}

static size_t put_body(const struct wire_body *from, uint8_t *out)
{
    const struct wire_sampling *f = &from->sampling;
    Roost__V1__Body m = ROOST__V1__BODY__INIT;
    Roost__V1__Sampling s = ROOST__V1__SAMPLING__INIT;
    ProtobufCBinaryData stops[WIRE_STOPS_MAX];

    if (f->stop_count > WIRE_STOPS_MAX)
        return 0;
    size_t size = put_header(WIRE_BODY, out);
    for (unsigned i = 0; i < from->message_count; i++) {
        Roost__V1__Message message = ROOST__V1__MESSAGE__INIT;
        message.role = (Roost__V1__MessageRole)from->messages[i].role;
        message.name = bytes(from->messages[i].name);
        message.text = bytes(from->messages[i].text);
        size += put_varint(1u << 3 | 2, out ? out + size : NULL); /* Body.messages = 1, with a length */
        size_t message_size = protobuf_c_message_get_packed_size(&message.base);
        size += put_varint(message_size, out ? out + size : NULL);
        if (out)
            protobuf_c_message_pack(&message.base, out + size);
        size += message_size;
    }
    m.prompt_ids = bytes(from->prompt_ids);
    m.sampling = &s;
    s.temperature = f->temperature;
    s.top_p = f->top_p;
    s.top_k = f->top_k;
    s.min_p = f->min_p;
    s.repetition_penalty = f->repetition_penalty;
    s.presence_penalty = f->presence_penalty;
    s.frequency_penalty = f->frequency_penalty;
    s.tokens_max = f->tokens_max;
    s.tokens_min = f->tokens_min;
    s.choices = f->choices;
    for (unsigned i = 0; i < f->stop_count; i++)
        stops[i] = bytes(f->stops[i]);
    s.n_stop = f->stop_count;
    s.stop = stops;
    s.stop_ids = bytes(f->stop_ids);
    s.bias_ids = bytes(f->bias_ids);
    s.bias_values = bytes(f->bias_values);
    s.logprobs = f->logprobs;
    s.token_logprobs = f->token_logprobs;
    s.prompt_logprobs = f->prompt_logprobs;
    m.reply_name = bytes(from->reply_name);
    m.history = bytes(from->history);
    m.truncate = from->truncate;
    return size + (out ? protobuf_c_message_pack(&m.base, out + size) : protobuf_c_message_get_packed_size(&m.base));
}

static size_t put_tokens(const struct wire_tokens *from, uint8_t *out)
{
    Roost__V1__Tokens m = ROOST__V1__TOKENS__INIT;
    m.stream = bytes(from->stream);
    m.choice = bytes(from->choice);
    m.attempt_client = bytes(from->attempt_client);
    m.attempt_router = bytes(from->attempt_router);
    m.first = bytes(from->first);
    m.count = bytes(from->count);
    m.ids = bytes(from->ids);
    m.text_bytes = bytes(from->text_bytes);
    m.text = bytes(from->text);
    m.logprobs = bytes(from->logprobs);
    m.alternatives = bytes(from->alternatives);
    m.alternative_ids = bytes(from->alternative_ids);
    m.alternative_logprobs = bytes(from->alternative_logprobs);
    return put(WIRE_TOKENS, &m.base, out);
}

static size_t put_done(const struct wire_done *from, uint8_t *out)
{
    Roost__V1__Done m = ROOST__V1__DONE__INIT;
    Roost__V1__Attempt a = attempt(from->attempt);
    Roost__V1__Usage usage = ROOST__V1__USAGE__INIT;
    Roost__V1__Timings timings = ROOST__V1__TIMINGS__INIT;
    m.request_id = bytes(from->request_id);
    m.stream = from->stream;
    m.attempt = &a;
    m.finish = bytes(from->finish);
    m.usage = &usage;
    usage.prompt_tokens = from->prompt_tokens;
    usage.cached_tokens = from->cached_tokens;
    usage.reply_tokens = from->reply_tokens;
    usage.dropped_messages = from->dropped_messages;
    m.timings = &timings;
    timings.queue_us = from->queue_us;
    timings.prefill_us = from->prefill_us;
    timings.decode_us = from->decode_us;
    timings.route_us = from->route_us;
    m.worker = bytes(from->worker);
    m.numerics_id = bytes(from->numerics_id);
    m.cache_id = bytes(from->cache_id);
    m.inexact = from->inexact;
    m.route = bytes(from->route);
    m.epoch = from->epoch;
    m.released = from->released;
    return put(WIRE_DONE, &m.base, out);
}

static size_t put_error(const struct wire_error *from, uint8_t *out)
{
    Roost__V1__Error m = ROOST__V1__ERROR__INIT;
    Roost__V1__Attempt a = attempt(from->attempt);
    m.request_id = bytes(from->request_id);
    m.stream = from->stream;
    m.attempt = &a;
    m.code = (Roost__V1__ErrorCode)from->code;
    m.detail = bytes(from->detail);
    m.retry_after_ms = from->retry_after_ms;
    return put(WIRE_ERROR, &m.base, out);
}

static size_t put_stream_ref(enum wire_kind kind, const struct wire_stream_ref *from, uint8_t *out)
{
    Roost__V1__Attempt a = attempt(from->attempt);
    switch (kind) {
    case WIRE_NEED_HISTORY: {
        Roost__V1__NeedHistory m = ROOST__V1__NEED_HISTORY__INIT;
        m.request_id = bytes(from->request_id);
        m.stream = from->stream;
        m.attempt = &a;
        return put(kind, &m.base, out);
    }
    case WIRE_RESEND: {
        Roost__V1__Resend m = ROOST__V1__RESEND__INIT;
        m.request_id = bytes(from->request_id);
        m.stream = from->stream;
        m.attempt = &a;
        return put(kind, &m.base, out);
    }
    case WIRE_WRONG_OWNER: {
        Roost__V1__WrongOwner m = ROOST__V1__WRONG_OWNER__INIT;
        m.request_id = bytes(from->request_id);
        m.stream = from->stream;
        m.attempt = &a;
        m.owner = bytes(from->owner);
        m.epoch = from->epoch;
        return put(kind, &m.base, out);
    }
    case WIRE_ACK: {
        Roost__V1__Ack m = ROOST__V1__ACK__INIT;
        m.request_id = bytes(from->request_id);
        m.stream = from->stream;
        m.attempt = &a;
        m.cache_id = bytes(from->cache_id);
        m.numerics_id = bytes(from->numerics_id);
        m.started = from->started;
        return put(kind, &m.base, out);
    }
    default: {
        Roost__V1__Superseded m = ROOST__V1__SUPERSEDED__INIT;
        m.request_id = bytes(from->request_id);
        m.attempt = &a;
        return put(kind, &m.base, out);
    }
    }
}

static size_t put_attach(const struct wire_attach *from, uint8_t *out)
{
    Roost__V1__Attach m = ROOST__V1__ATTACH__INIT;
    Roost__V1__Attempt a = attempt(from->attempt);
    Roost__V1__Resume r = resume(from->resume);
    m.request_id = bytes(from->request_id);
    m.tenant = bytes(from->tenant);
    m.conversation = bytes(from->conversation);
    m.session = bytes(from->session);
    m.stream = from->stream;
    m.resume = from->resume.counts.size || from->resume.ids.size ? &r : NULL;
    m.attempt = &a;
    return put(WIRE_ATTACH, &m.base, out);
}

/* Writes to out, or only measures when it is NULL. */
static size_t encode(const struct wire_message *message, uint8_t *out)
{
    switch (message->kind) {
    case WIRE_HELLO: return put_hello(&message->hello, out);
    case WIRE_WELCOME: return put_welcome(&message->welcome, out);
    case WIRE_LEASE: return put_lease(&message->lease, out);
    case WIRE_HEAD: return put_head(&message->head, out);
    case WIRE_BODY: return put_body(&message->body, out);
    case WIRE_TOKENS: return put_tokens(&message->tokens, out);
    case WIRE_DONE: return put_done(&message->done, out);
    case WIRE_ERROR: return put_error(&message->error, out);
    case WIRE_NEED_HISTORY:
    case WIRE_RESEND:
    case WIRE_WRONG_OWNER:
    case WIRE_ACK:
    case WIRE_SUPERSEDED: return put_stream_ref(message->kind, &message->stream_ref, out);
    case WIRE_ATTACH: return put_attach(&message->attach, out);
    case WIRE_CANCEL: {
        Roost__V1__Cancel m = ROOST__V1__CANCEL__INIT;
        m.request_id = bytes(message->cancel.request_id);
        m.tenant = bytes(message->cancel.tenant);
        m.conversation = bytes(message->cancel.conversation);
        Roost__V1__Attempt a = attempt(message->cancel.attempt);
        m.session = bytes(message->cancel.session);
        m.attempt = message->cancel.attempt.client ? &a : NULL;
        return put(WIRE_CANCEL, &m.base, out);
    }
    case WIRE_ATTACH_REPLY: {
        Roost__V1__AttachReply m = ROOST__V1__ATTACH_REPLY__INIT;
        m.request_id = bytes(message->attach_reply.request_id);
        m.known = message->attach_reply.known;
        m.released = bytes(message->attach_reply.released);
        m.tenant = bytes(message->attach_reply.tenant);
        m.running = message->attach_reply.running;
        return put(WIRE_ATTACH_REPLY, &m.base, out);
    }
    case WIRE_GOAWAY: {
        Roost__V1__GoAway m = ROOST__V1__GO_AWAY__INIT;
        m.session = bytes(message->goaway.session);
        m.deadline_ms = message->goaway.deadline_ms;
        m.detail = bytes(message->goaway.detail);
        return put(WIRE_GOAWAY, &m.base, out);
    }
    case WIRE_DRAIN: {
        Roost__V1__Drain m = ROOST__V1__DRAIN__INIT;
        m.worker = bytes(message->drain.worker);
        m.deadline_ms = message->drain.deadline_ms;
        m.cancel = message->drain.cancel;
        return put(WIRE_DRAIN, &m.base, out);
    }
    case WIRE_DRAIN_STATUS: {
        Roost__V1__DrainStatus m = ROOST__V1__DRAIN_STATUS__INIT;
        m.worker = bytes(message->drain_status.worker);
        m.state = (Roost__V1__LifeState)message->drain_status.state;
        m.streams = message->drain_status.streams;
        m.bytes_left = message->drain_status.bytes_left;
        m.abandoned = message->drain_status.abandoned;
        return put(WIRE_DRAIN_STATUS, &m.base, out);
    }
    case WIRE_KIND_COUNT: break;
    }
    return 0;
}

size_t wire_encoded_size(const struct wire_message *message)
{
    return encode(message, NULL);
}

size_t wire_encode(const struct wire_message *message, void *buffer)
{
    return encode(message, buffer);
}
