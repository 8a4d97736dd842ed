/* The codec's front: the frame header, the order of the checks, the arena, spans and columns, rows of a token batch. */
#include "proto/wire.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"
#include "proto/wire_internal.h"
#include "roost.pb-c.h"

#define ARENA_HEADER_BYTES WIRE_ARENA_ROUND(sizeof(struct wire_arena))

static const struct wire_kind_info kinds[WIRE_KIND_COUNT] = {
    [WIRE_HELLO] = {"hello", &roost__v1__hello__descriptor, WIRE_SMALL_BYTES_MAX},
    [WIRE_WELCOME] = {"welcome", &roost__v1__welcome__descriptor, WIRE_SMALL_BYTES_MAX},
    [WIRE_LEASE] = {"lease", &roost__v1__lease__descriptor, WIRE_LEASE_BYTES_MAX},
    [WIRE_HEAD] = {"head", &roost__v1__head__descriptor, WIRE_HEAD_BYTES_MAX},
    [WIRE_BODY] = {"body", &roost__v1__body__descriptor, WIRE_BODY_BYTES_MAX},
    [WIRE_TOKENS] = {"tokens", &roost__v1__tokens__descriptor, WIRE_TOKENS_BYTES_MAX},
    [WIRE_DONE] = {"done", &roost__v1__done__descriptor, WIRE_SMALL_BYTES_MAX},
    [WIRE_ERROR] = {"error", &roost__v1__error__descriptor, WIRE_SMALL_BYTES_MAX},
    [WIRE_NEED_HISTORY] = {"need_history", &roost__v1__need_history__descriptor, WIRE_SMALL_BYTES_MAX},
    [WIRE_RESEND] = {"resend", &roost__v1__resend__descriptor, WIRE_SMALL_BYTES_MAX},
    [WIRE_WRONG_OWNER] = {"wrong_owner", &roost__v1__wrong_owner__descriptor, WIRE_SMALL_BYTES_MAX},
    [WIRE_ACK] = {"ack", &roost__v1__ack__descriptor, WIRE_SMALL_BYTES_MAX},
    [WIRE_CANCEL] = {"cancel", &roost__v1__cancel__descriptor, WIRE_SMALL_BYTES_MAX},
    [WIRE_ATTACH] = {"attach", &roost__v1__attach__descriptor, WIRE_HEAD_BYTES_MAX},
    [WIRE_ATTACH_REPLY] = {"attach_reply", &roost__v1__attach_reply__descriptor, WIRE_SMALL_BYTES_MAX},
    [WIRE_GOAWAY] = {"goaway", &roost__v1__go_away__descriptor, WIRE_SMALL_BYTES_MAX},
    [WIRE_SUPERSEDED] = {"superseded", &roost__v1__superseded__descriptor, WIRE_SMALL_BYTES_MAX},
    [WIRE_DRAIN] = {"drain", &roost__v1__drain__descriptor, WIRE_SMALL_BYTES_MAX},
    [WIRE_DRAIN_STATUS] = {"drain_status", &roost__v1__drain_status__descriptor, WIRE_SMALL_BYTES_MAX},
};

const struct wire_kind_info *wire_kind_info(enum wire_kind kind)
{
    return &kinds[kind];
}

const char *wire_kind_name(enum wire_kind kind)
{
    return (unsigned)kind < WIRE_KIND_COUNT && kinds[kind].name ? kinds[kind].name : "unknown";
}

size_t wire_frame_bytes_max(enum wire_kind kind)
{
    return (unsigned)kind < WIRE_KIND_COUNT ? kinds[kind].frame_bytes_max : 0;
}

const char *wire_error_name(enum wire_error_code code)
{
    static const char *const names[WIRE_ERROR_COUNT] = {
        [WIRE_ERROR_UNKNOWN] = "unknown",           [WIRE_ERROR_INVALID] = "invalid",
        [WIRE_ERROR_UNAUTHORISED] = "unauthorised", [WIRE_ERROR_UNKNOWN_MODEL] = "unknown model",
        [WIRE_ERROR_TOO_LARGE] = "too large",       [WIRE_ERROR_OVER_CAPACITY] = "over capacity",
        [WIRE_ERROR_DEADLINE] = "deadline",         [WIRE_ERROR_CANCELLED] = "cancelled",
        [WIRE_ERROR_SLOW_READER] = "slow reader",   [WIRE_ERROR_CONFLICT] = "conflict",
        [WIRE_ERROR_NOT_EXACT] = "not exact",       [WIRE_ERROR_UNSUPPORTED] = "unsupported",
        [WIRE_ERROR_WORKER_LOST] = "worker lost",   [WIRE_ERROR_INTERNAL] = "internal",
    };
    return (unsigned)code < WIRE_ERROR_COUNT ? names[code] : "unknown";
}

const char *wire_life_name(enum wire_life life)
{
    static const char *const names[] = {"unknown", "starting", "ready", "draining", "safe to delete", "gone"};
    return (unsigned)life < sizeof names / sizeof *names ? names[life] : "unknown";
}

const char *wire_finish_name(enum wire_finish finish)
{
    static const char *const names[] = {"unknown", "stop", "length", "stop string"};
    return (unsigned)finish < sizeof names / sizeof *names ? names[finish] : "unknown";
}

/* ---- frames ---- */

enum status wire_peek(const void *frame, size_t size, enum wire_kind *kind, uint8_t *version)
{
    const uint8_t *bytes = frame;
    if (size < WIRE_HEADER_BYTES || bytes[0] != 'R' || bytes[3] != 0)
        return STATUS_FAIL(STATUS_INVALID, "not a roost frame: it does not start with 'R', version, kind, 0");
    if (bytes[1] != WIRE_VERSION || bytes[2] == 0 || bytes[2] >= WIRE_KIND_COUNT) {
        if (version)
            *version = bytes[1];
        if (bytes[1] != WIRE_VERSION)
            return STATUS_FAIL(STATUS_UNSUPPORTED, "frame of version %u: this side speaks version %u", bytes[1],
                               WIRE_VERSION);
        return STATUS_FAIL(STATUS_UNSUPPORTED, "frame of the unknown kind %u", bytes[2]);
    }
    *kind = (enum wire_kind)bytes[2];
    if (version)
        *version = bytes[1];
    return STATUS_OK;
}

void *wire_arena_alloc(void *arena_, size_t size)
{
    struct wire_arena *arena = arena_;
    size_t rounded = WIRE_ARENA_ROUND(size);
    if (rounded < size || rounded > arena->size - arena->used)
        return NULL;
    void *at = (uint8_t *)arena + ARENA_HEADER_BYTES + arena->used;
    arena->used += rounded;
    return at;
}

static void arena_keep(void *arena, void *pointer)
{
    (void)arena; /* everything goes with the block */
    (void)pointer;
}

enum status wire_decode(const void *frame, size_t size, struct wire_message *out)
{
    enum wire_kind kind;
    TRY(wire_peek(frame, size, &kind, NULL));
    const struct wire_kind_info *info = &kinds[kind];
    if (size > info->frame_bytes_max)
        return STATUS_FAIL(STATUS_LIMIT, "%s: %zu bytes, at most %zu are allowed", info->name, size,
                           info->frame_bytes_max);
    const uint8_t *data = (const uint8_t *)frame + WIRE_HEADER_BYTES;
    size -= WIRE_HEADER_BYTES;

    struct wire_scan scan;
    TRY(wire_prescan(info->descriptor, data, size, &scan));
    size_t limit = WIRE_ARENA_FACTOR * size + 4096 + (size_t)scan.elements * WIRE_ARENA_ELEMENT_BYTES;
    if (scan.arena_bytes > limit)
        return STATUS_FAIL(STATUS_LIMIT, "%s: would take %zu bytes of memory, at most %zu are allowed", info->name,
                           scan.arena_bytes, limit);
    struct wire_arena *arena = malloc(ARENA_HEADER_BYTES + scan.arena_bytes);
    if (!arena)
        return STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory for %zu bytes", info->name, scan.arena_bytes);
    arena->size = scan.arena_bytes;
    arena->used = 0;

    enum status st;
    ProtobufCAllocator allocator = {wire_arena_alloc, arena_keep, arena};
    ProtobufCMessage *unpacked = protobuf_c_message_unpack(info->descriptor, &allocator, size, data);
    if (!unpacked) {
        st = STATUS_FAIL(STATUS_INVALID, "%s: malformed", info->name);
        goto fail;
    }
    struct wire_message message;
    memset(&message, 0, sizeof message);
    message.kind = kind;
    message.arena = arena;
    TRY_GOTO(wire_convert(unpacked, arena, &message), st, fail);
    TRY_GOTO(wire_validate(&message), st, fail);
    *out = message;
    return STATUS_OK;
fail:
    free(arena);
    return st;
}

void wire_message_free(struct wire_message *message)
{
    free(message->arena);
    message->arena = NULL;
}

/* ---- spans and columns ---- */

uint16_t wire_u16_at(struct wire_span column, size_t row)
{
    const uint8_t *at = column.data + 2 * row;
    return (uint16_t)(at[0] | at[1] << 8);
}

uint32_t wire_u32_at(struct wire_span column, size_t row)
{
    const uint8_t *at = column.data + 4 * row;
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

uint64_t wire_u64_at(struct wire_span column, size_t row)
{
    return (uint64_t)wire_u32_at(column, 2 * row) | (uint64_t)wire_u32_at(column, 2 * row + 1) << 32;
}

float wire_f32_at(struct wire_span column, size_t row)
{
    uint32_t bits = wire_u32_at(column, row);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

struct wire_span wire_span_of(const void *data, size_t size)
{
    return (struct wire_span){data, size};
}

struct wire_span wire_span_str(const char *text)
{
    return (struct wire_span){(const uint8_t *)text, text ? strlen(text) : 0};
}

bool wire_span_equal(struct wire_span a, struct wire_span b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

bool wire_name_valid(struct wire_span name)
{
    if (name.size == 0 || name.size > WIRE_NAME_MAX)
        return false;
    for (size_t i = 0; i < name.size; i++) {
        uint8_t c = name.data[i];
        bool ok = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
                  c == ':' || c == '-';
        if (!ok)
            return false;
    }
    return true;
}

bool wire_utf8_valid(struct wire_span text)
{
    size_t at = 0;
    while (at < text.size) {
        if (text.size - at >= 8) { /* eight ASCII bytes at once: no high bit and no zero byte */
            uint64_t word;
            memcpy(&word, text.data + at, 8);
            const uint64_t high = 0x8080808080808080u, low = 0x0101010101010101u;
            if (!(word & high) && !((word - low) & ~word & high)) {
                at += 8;
                continue;
            }
        }
        uint32_t code_point = 0;
        unsigned size = utf8_decode((const char *)text.data + at, text.size - at, &code_point);
        if (size == 0 || code_point == 0)
            return false;
        at += size;
    }
    return true;
}

/* `count` values of a column of 4-byte ones from value `from` on; empty if the column is. */
static struct wire_span column_part(struct wire_span column, size_t from, size_t count)
{
    return column.size == 0 ? wire_span_of(NULL, 0) : wire_span_of(column.data + 4 * from, 4 * count);
}

bool wire_tokens_next(const struct wire_tokens *tokens, struct wire_tokens_cursor *cursor, struct wire_tokens_row *row)
{
    unsigned i = cursor->row;
    if (i >= tokens->row_count)
        return false;
    row->stream = wire_u32_at(tokens->stream, i);
    row->choice = wire_u16_at(tokens->choice, i);
    row->attempt.client = wire_u32_at(tokens->attempt_client, i);
    row->attempt.router = wire_u32_at(tokens->attempt_router, i);
    row->first = wire_u32_at(tokens->first, i);
    row->count = wire_u16_at(tokens->count, i);
    uint32_t text_bytes = wire_u32_at(tokens->text_bytes, i);
    /* A decoded batch has been checked; one put together by hand must not lead out of its columns. */
    row->alternatives = tokens->alternatives.size ? tokens->alternatives.data[i] : 0;
    size_t alternatives = (size_t)row->count * row->alternatives;
    if ((cursor->ids + row->count) * 4 > tokens->ids.size || text_bytes > tokens->text.size - cursor->text ||
        (cursor->alternatives + alternatives) * 4 > tokens->alternative_ids.size)
        return false;
    row->ids = column_part(tokens->ids, cursor->ids, row->count);
    row->text = wire_span_of(tokens->text.data ? tokens->text.data + cursor->text : NULL, text_bytes);
    row->logprobs = column_part(tokens->logprobs, cursor->ids, row->count);
    if (row->logprobs.size > 0 && isnan(wire_f32_at(row->logprobs, 0)))
        row->logprobs = wire_span_of(NULL, 0); /* it did not ask: the column is there for others */
    row->alternative_ids = column_part(tokens->alternative_ids, cursor->alternatives, alternatives);
    row->alternative_logprobs = column_part(tokens->alternative_logprobs, cursor->alternatives, alternatives);
    cursor->row++;
    cursor->alternatives += alternatives;
    cursor->ids += row->count;
    cursor->text += text_bytes;
    return true;
}
