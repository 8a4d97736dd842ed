/* The rules of docs/protocol.md, one function per kind. Every failure names the field as the schema does. */
#include <math.h>
#include <string.h>

#include "proto/wire_internal.h"

#define TOKENS_PER_REPLY_MAX (1u << 24)
#define INTERVAL_MS_MAX      3600000u

static enum status check_fixed(struct wire_span bytes, size_t size, bool required, const char *field)
{
    if (bytes.size == size || (bytes.size == 0 && !required))
        return STATUS_OK;
    return STATUS_FAIL(STATUS_INVALID, "%s: %zu bytes, it must have %zu%s", field, bytes.size, size,
                       required ? "" : " or none");
}

static enum status check_name(struct wire_span name, bool required, const char *field)
{
    if (name.size == 0 && !required)
        return STATUS_OK;
    if (wire_name_valid(name))
        return STATUS_OK;
    if (name.size == 0)
        return STATUS_FAIL(STATUS_INVALID, "%s: missing", field);
    return STATUS_FAIL(STATUS_INVALID, "%s: not a name of 1 to %u characters A-Z a-z 0-9 . _ : -", field,
                       WIRE_NAME_MAX);
}

static enum status check_text(struct wire_span text, size_t max, const char *field)
{
    if (text.size > max)
        return STATUS_FAIL(STATUS_LIMIT, "%s: %zu bytes, at most %zu are allowed", field, text.size, max);
    if (!wire_utf8_valid(text))
        return STATUS_FAIL(STATUS_INVALID, "%s: not valid UTF-8 without NUL", field);
    return STATUS_OK;
}

static enum status check_column(struct wire_span column, size_t width, size_t rows_max, const char *field)
{
    if (column.size % width != 0)
        return STATUS_FAIL(STATUS_INVALID, "%s: %zu bytes are not a column of %zu-byte values", field, column.size,
                           width);
    if (column.size / width > rows_max)
        return STATUS_FAIL(STATUS_LIMIT, "%s: %zu values, at most %zu are allowed", field, column.size / width,
                           rows_max);
    return STATUS_OK;
}

/* NaN fails every comparison, so the test is for being inside. */
static enum status check_range(float value, float min, float max, const char *field)
{
    if (value >= min && value <= max)
        return STATUS_OK;
    return STATUS_FAIL(STATUS_INVALID, "%s: %g is not within [%g, %g]", field, (double)value, (double)min, (double)max);
}

static enum status check_max(uint64_t value, uint64_t max, const char *field)
{
    if (value <= max)
        return STATUS_OK;
    return STATUS_FAIL(STATUS_INVALID, "%s: %llu, at most %llu is allowed", field, (unsigned long long)value,
                       (unsigned long long)max);
}

static enum status check_resume(const struct wire_resume *resume, const char *field)
{
    uint64_t total = 0;
    TRY(check_column(resume->counts, 4, WIRE_CHOICES_MAX, field));
    TRY(check_column(resume->ids, 4, WIRE_HEAD_BYTES_MAX / 4, field));
    for (size_t i = 0; i < resume->counts.size / 4; i++)
        total += wire_u32_at(resume->counts, i);
    if (total != resume->ids.size / 4)
        return STATUS_FAIL(STATUS_INVALID, "%s: the counts add up to %llu and there are %zu ids", field,
                           (unsigned long long)total, resume->ids.size / 4);
    return STATUS_OK;
}

static enum status validate_hello(const struct wire_hello *m)
{
    if (m->version_min == 0 || m->version_min > m->version_max)
        return STATUS_FAIL(STATUS_INVALID, "hello.version_min: %u to %u is not a range of versions", m->version_min,
                           m->version_max);
    TRY(check_fixed(m->session, WIRE_ID_BYTES, true, "hello.session"));
    if (m->role < WIRE_ROLE_CLIENT || m->role > WIRE_ROLE_AUTOSCALER)
        return STATUS_FAIL(STATUS_INVALID, "hello.role: %d is not a role", (int)m->role);
    if (m->connection != WIRE_CONNECTION_CONTROL && m->connection != WIRE_CONNECTION_DATA)
        return STATUS_FAIL(STATUS_INVALID, "hello.connection: %d is neither control nor data", (int)m->connection);
    TRY(check_name(m->name, false, "hello.name"));
    TRY(check_text(m->build, WIRE_BUILD_MAX, "hello.build"));
    return check_max(m->lease_ms, INTERVAL_MS_MAX, "hello.lease_ms");
}

static enum status validate_welcome(const struct wire_welcome *m)
{
    if (m->version == 0)
        return STATUS_FAIL(STATUS_INVALID, "welcome.version: missing");
    TRY(check_fixed(m->session, WIRE_ID_BYTES, true, "welcome.session"));
    TRY(check_name(m->name, false, "welcome.name"));
    TRY(check_text(m->build, WIRE_BUILD_MAX, "welcome.build"));
    TRY(check_text(m->data_endpoint, WIRE_ENDPOINT_MAX, "welcome.data_endpoint"));
    TRY(check_max(m->lease_ms, INTERVAL_MS_MAX, "welcome.lease_ms"));
    TRY(check_max(m->lease_expiry_ms, INTERVAL_MS_MAX, "welcome.lease_expiry_ms"));
    if (m->lease_expiry_ms < m->lease_ms)
        return STATUS_FAIL(STATUS_INVALID, "welcome.lease_expiry_ms: %u is shorter than lease_ms %u",
                           m->lease_expiry_ms, m->lease_ms);
    TRY(check_name(m->model, false, "welcome.model"));
    TRY(check_fixed(m->weights_digest, 32, false, "welcome.weights_digest"));
    return check_fixed(m->numerics_id, 32, false, "welcome.numerics_id");
}

static enum status validate_lease(const struct wire_lease *m)
{
    TRY(check_fixed(m->session, WIRE_ID_BYTES, true, "lease.session"));
    if (m->number == 0)
        return STATUS_FAIL(STATUS_INVALID, "lease.number: missing, it counts up from 1");
    TRY(check_column(m->credit_streams, 4, WIRE_LEASE_BYTES_MAX / 4, "lease.credit_streams"));
    TRY(check_column(m->credit_tokens, 8, WIRE_LEASE_BYTES_MAX / 8, "lease.credit_tokens"));
    if (m->credit_streams.size / 4 != m->credit_tokens.size / 8)
        return STATUS_FAIL(STATUS_INVALID, "lease.credit_tokens: %zu rows, credit_streams has %zu",
                           m->credit_tokens.size / 8, m->credit_streams.size / 4);
    return STATUS_OK;
}

static enum status validate_head(const struct wire_head *m)
{
    TRY(check_fixed(m->request_id, WIRE_ID_BYTES, true, "head.request_id"));
    TRY(check_fixed(m->session, WIRE_ID_BYTES, true, "head.session"));
    TRY(check_name(m->tenant, true, "head.tenant"));
    TRY(check_name(m->conversation, false, "head.conversation"));
    TRY(check_name(m->model, false, "head.model"));
    TRY(check_column(m->links, 32, WIRE_LINKS_MAX, "head.links"));
    TRY(check_max(m->deadline_ms, WIRE_DEADLINE_MS_MAX, "head.deadline_ms"));
    if (m->priority < -100 || m->priority > 100)
        return STATUS_FAIL(STATUS_INVALID, "head.priority: %d is not within [-100, 100]", m->priority);
    TRY(check_resume(&m->resume, "head.resume"));
    TRY(check_fixed(m->incarnation, WIRE_ID_BYTES, false, "head.incarnation"));
    TRY(check_fixed(m->cache_id, WIRE_ID_BYTES, false, "head.cache_id"));
    TRY(check_fixed(m->numerics_id, 32, false, "head.numerics_id"));
    return check_fixed(m->placement, WIRE_ID_BYTES, false, "head.placement");
}

static enum status validate_sampling(const struct wire_sampling *m)
{
    TRY(check_range(m->temperature, 0, 100, "sampling.temperature"));
    TRY(check_range(m->top_p, 0, 1, "sampling.top_p"));
    TRY(check_range(m->min_p, 0, 1, "sampling.min_p"));
    if (m->repetition_penalty != 0)
        TRY(check_range(m->repetition_penalty, 0.01f, 10, "sampling.repetition_penalty"));
    TRY(check_range(m->presence_penalty, -10, 10, "sampling.presence_penalty"));
    TRY(check_range(m->frequency_penalty, -10, 10, "sampling.frequency_penalty"));
    TRY(check_max(m->tokens_max, TOKENS_PER_REPLY_MAX, "sampling.tokens_max"));
    TRY(check_max(m->tokens_min, TOKENS_PER_REPLY_MAX, "sampling.tokens_min"));
    if (m->tokens_max != 0 && m->tokens_min > m->tokens_max)
        return STATUS_FAIL(STATUS_INVALID, "sampling.tokens_min: %u is over tokens_max %u", m->tokens_min,
                           m->tokens_max);
    TRY(check_max(m->choices, WIRE_CHOICES_MAX, "sampling.choices"));
    if (m->stop_count > WIRE_STOPS_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "sampling.stop: %u strings, at most %u are allowed", m->stop_count,
                           WIRE_STOPS_MAX);
    for (unsigned i = 0; i < m->stop_count; i++) {
        if (m->stops[i].size == 0)
            return STATUS_FAIL(STATUS_INVALID, "sampling.stop: an empty string");
        TRY(check_text(m->stops[i], WIRE_STOP_BYTES_MAX, "sampling.stop"));
    }
    TRY(check_column(m->stop_ids, 4, WIRE_STOP_IDS_MAX, "sampling.stop_ids"));
    TRY(check_column(m->bias_ids, 4, WIRE_BIAS_MAX, "sampling.bias_ids"));
    TRY(check_column(m->bias_values, 4, WIRE_BIAS_MAX, "sampling.bias_values"));
    if (m->bias_ids.size != m->bias_values.size)
        return STATUS_FAIL(STATUS_INVALID, "sampling.bias_values: %zu rows, bias_ids has %zu", m->bias_values.size / 4,
                           m->bias_ids.size / 4);
    for (size_t i = 0; i < m->bias_values.size / 4; i++) {
        TRY(check_range(wire_f32_at(m->bias_values, i), -100, 100, "sampling.bias_values"));
    }
    return check_max(m->logprobs, WIRE_ALTERNATIVES_MAX, "sampling.logprobs");
}

static enum status validate_body(const struct wire_body *m)
{
    if (m->message_count > WIRE_MESSAGES_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "body.messages: %u of them, at most %u are allowed", m->message_count,
                           WIRE_MESSAGES_MAX);
    if ((m->message_count > 0) == (m->prompt_ids.size > 0))
        return STATUS_FAIL(STATUS_INVALID, "body: exactly one of messages and prompt_ids must be given");
    for (unsigned i = 0; i < m->message_count; i++) {
        const struct wire_chat_message *message = &m->messages[i];
        if ((unsigned)message->role > WIRE_MESSAGE_SYSTEM)
            return STATUS_FAIL(STATUS_INVALID, "message.role: %d is not a role (message %u)", (int)message->role, i);
        TRY(check_text(message->name, WIRE_FREE_NAME_MAX, "message.name"));
        TRY(check_text(message->text, WIRE_BODY_BYTES_MAX, "message.text"));
    }
    TRY(check_column(m->prompt_ids, 4, WIRE_BODY_BYTES_MAX / 4, "body.prompt_ids"));
    TRY(check_text(m->reply_name, WIRE_FREE_NAME_MAX, "body.reply_name"));
    TRY(check_fixed(m->history, 32, false, "body.history"));
    return validate_sampling(&m->sampling);
}

/* After the columns of rows: each row's count is known. */
static enum status validate_alternatives(const struct wire_tokens *m)
{
    uint64_t values = 0, ids = 0;
    if (m->alternatives.size != 0 && m->alternatives.size != m->row_count)
        return STATUS_FAIL(STATUS_INVALID, "tokens.alternatives: %zu bytes, it must be empty or one per row",
                           m->alternatives.size);
    for (size_t i = 0; i < m->alternatives.size; i++) {
        if (m->alternatives.data[i] > WIRE_ALTERNATIVES_MAX)
            return STATUS_FAIL(STATUS_INVALID, "tokens.alternatives: %u, there are at most %u", m->alternatives.data[i],
                               WIRE_ALTERNATIVES_MAX);
        uint64_t here = (uint64_t)wire_u16_at(m->count, i) * m->alternatives.data[i];
        if (here > 0 && (m->logprobs.size == 0 || isnan(wire_f32_at(m->logprobs, ids))))
            return STATUS_FAIL(STATUS_INVALID, "tokens.logprobs: missing, there are alternatives");
        ids += wire_u16_at(m->count, i);
        values += here;
    }
    if (m->alternative_ids.size != 4 * values)
        return STATUS_FAIL(STATUS_INVALID, "tokens.alternative_ids: %zu bytes, the rows add up to %llu ids",
                           m->alternative_ids.size, (unsigned long long)values);
    if (m->alternative_logprobs.size != m->alternative_ids.size)
        return STATUS_FAIL(STATUS_INVALID, "tokens.alternative_logprobs: %zu bytes, alternative_ids has %zu",
                           m->alternative_logprobs.size, m->alternative_ids.size);
    for (size_t i = 0; i < values; i++)
        if (isnan(wire_f32_at(m->alternative_logprobs, i)))
            return STATUS_FAIL(STATUS_INVALID, "tokens.alternative_logprobs: not a number");
    return STATUS_OK;
}

/* A row of `count` tokens that begins with token `at` has log probabilities of all of them (*told), or NaN for each. */
static enum status check_logprobs(const struct wire_tokens *m, uint64_t at, uint16_t count, bool *told)
{
    *told = false;
    if (count == 0 || m->logprobs.size < 4 * (at + count)) /* empty, or too short, which validate_tokens refuses */
        return STATUS_OK;
    *told = !isnan(wire_f32_at(m->logprobs, at));
    for (uint16_t i = 1; i < count; i++)
        if (isnan(wire_f32_at(m->logprobs, at + i)) == *told)
            return STATUS_FAIL(STATUS_INVALID, "tokens.logprobs: a row has them for some of its tokens only");
    return STATUS_OK;
}

static enum status validate_tokens(const struct wire_tokens *m)
{
    size_t rows = m->row_count;
    const struct {
        struct wire_span column;
        size_t width;
        const char *field;
    } per_row[] = {
        {m->stream, 4, "tokens.stream"},
        {m->choice, 2, "tokens.choice"},
        {m->attempt_client, 4, "tokens.attempt_client"},
        {m->attempt_router, 4, "tokens.attempt_router"},
        {m->first, 4, "tokens.first"},
        {m->count, 2, "tokens.count"},
        {m->text_bytes, 4, "tokens.text_bytes"},
    };
    if (rows == 0)
        return STATUS_FAIL(STATUS_INVALID, "tokens.stream: no rows");
    for (size_t i = 0; i < sizeof per_row / sizeof *per_row; i++)
        if (per_row[i].column.size != rows * per_row[i].width)
            return STATUS_FAIL(STATUS_INVALID, "%s: %zu bytes, %zu rows need %zu", per_row[i].field,
                               per_row[i].column.size, rows, rows * per_row[i].width);
    uint64_t ids = 0, text = 0;
    for (size_t i = 0; i < rows; i++) {
        uint32_t text_bytes = wire_u32_at(m->text_bytes, i);
        uint16_t count = wire_u16_at(m->count, i);
        uint16_t choice = wire_u16_at(m->choice, i);
        if (choice > WIRE_CHOICE_PROMPT)
            return STATUS_FAIL(STATUS_INVALID, "tokens.choice: %u, there are at most %u", choice, WIRE_CHOICES_MAX);
        bool told;
        TRY(check_logprobs(m, ids, count, &told));
        if (choice == WIRE_CHOICE_PROMPT && (text_bytes > 0 || (count > 0 && !told)))
            return STATUS_FAIL(STATUS_INVALID, "tokens.choice: a row of the prompt has logprobs and no text");
        if (count > UINT32_MAX - wire_u32_at(m->first, i))
            return STATUS_FAIL(STATUS_INVALID, "tokens.first: the sequence number overflows");
        if (text_bytes > m->text.size - text)
            return STATUS_FAIL(STATUS_INVALID, "tokens.text_bytes: more than the %zu bytes of text", m->text.size);
        if (!wire_utf8_valid(wire_span_of(m->text.data ? m->text.data + text : NULL, text_bytes)))
            return STATUS_FAIL(STATUS_INVALID, "tokens.text: not valid UTF-8 without NUL, or a character is split");
        ids += count;
        text += text_bytes;
    }
    if (m->ids.size != 4 * ids)
        return STATUS_FAIL(STATUS_INVALID, "tokens.ids: %zu bytes, the counts add up to %llu ids", m->ids.size,
                           (unsigned long long)ids);
    if (m->text.size != text)
        return STATUS_FAIL(STATUS_INVALID, "tokens.text: %zu bytes, text_bytes adds up to %llu", m->text.size,
                           (unsigned long long)text);
    if (m->logprobs.size != 0 && m->logprobs.size != m->ids.size)
        return STATUS_FAIL(STATUS_INVALID, "tokens.logprobs: %zu bytes, it must be empty or one value per id",
                           m->logprobs.size);
    return validate_alternatives(m);
}

static enum status validate_done(const struct wire_done *m)
{
    TRY(check_fixed(m->request_id, WIRE_ID_BYTES, true, "done.request_id"));
    TRY(check_column(m->finish, 1, WIRE_CHOICES_MAX, "done.finish"));
    TRY(check_name(m->worker, false, "done.worker"));
    TRY(check_fixed(m->numerics_id, 32, false, "done.numerics_id"));
    TRY(check_fixed(m->cache_id, WIRE_ID_BYTES, false, "done.cache_id"));
    return check_name(m->route, false, "done.route");
}

static enum status validate_error(const struct wire_error *m)
{
    TRY(check_fixed(m->request_id, WIRE_ID_BYTES, false, "error.request_id"));
    if (m->code <= WIRE_ERROR_UNKNOWN || m->code >= WIRE_ERROR_COUNT)
        return STATUS_FAIL(STATUS_INVALID, "error.code: %d is not a code", (int)m->code);
    return check_text(m->detail, WIRE_DETAIL_MAX, "error.detail");
}

static enum status validate_stream_ref(const struct wire_stream_ref *m)
{
    TRY(check_fixed(m->request_id, WIRE_ID_BYTES, true, "request_id"));
    TRY(check_name(m->owner, false, "wrong_owner.owner"));
    TRY(check_fixed(m->numerics_id, 32, false, "ack.numerics_id"));
    return check_fixed(m->cache_id, WIRE_ID_BYTES, false, "ack.cache_id");
}

static enum status validate_cancel(const struct wire_cancel *m)
{
    TRY(check_fixed(m->request_id, WIRE_ID_BYTES, true, "cancel.request_id"));
    TRY(check_name(m->tenant, true, "cancel.tenant"));
    TRY(check_name(m->conversation, false, "cancel.conversation"));
    return check_fixed(m->session, WIRE_ID_BYTES, false, "cancel.session");
}

static enum status validate_attach(const struct wire_attach *m)
{
    TRY(check_fixed(m->request_id, WIRE_ID_BYTES, true, "attach.request_id"));
    TRY(check_name(m->tenant, true, "attach.tenant"));
    TRY(check_name(m->conversation, false, "attach.conversation"));
    TRY(check_fixed(m->session, WIRE_ID_BYTES, true, "attach.session"));
    return check_resume(&m->resume, "attach.resume");
}

enum status wire_validate(const struct wire_message *message)
{
    switch (message->kind) {
    case WIRE_HELLO: return validate_hello(&message->hello);
    case WIRE_WELCOME: return validate_welcome(&message->welcome);
    case WIRE_LEASE: return validate_lease(&message->lease);
    case WIRE_HEAD: return validate_head(&message->head);
    case WIRE_BODY: return validate_body(&message->body);
    case WIRE_TOKENS: return validate_tokens(&message->tokens);
    case WIRE_DONE: return validate_done(&message->done);
    case WIRE_ERROR: return validate_error(&message->error);
    case WIRE_NEED_HISTORY:
    case WIRE_RESEND:
    case WIRE_WRONG_OWNER:
    case WIRE_ACK:
    case WIRE_SUPERSEDED: return validate_stream_ref(&message->stream_ref);
    case WIRE_CANCEL: return validate_cancel(&message->cancel);
    case WIRE_ATTACH: return validate_attach(&message->attach);
    case WIRE_ATTACH_REPLY:
        TRY(check_fixed(message->attach_reply.request_id, WIRE_ID_BYTES, true, "attach_reply.request_id"));
        TRY(check_name(message->attach_reply.tenant, false, "attach_reply.tenant"));
        return check_column(message->attach_reply.released, 4, WIRE_CHOICES_MAX, "attach_reply.released");
    case WIRE_GOAWAY:
        TRY(check_fixed(message->goaway.session, WIRE_ID_BYTES, true, "goaway.session"));
        return check_text(message->goaway.detail, WIRE_DETAIL_MAX, "goaway.detail");
    case WIRE_DRAIN: return check_name(message->drain.worker, true, "drain.worker");
    case WIRE_DRAIN_STATUS: return check_name(message->drain_status.worker, true, "drain_status.worker");
    case WIRE_KIND_COUNT: break;
    }
    return STATUS_FAIL(STATUS_INVALID, "kind %d is not a kind", (int)message->kind);
}
