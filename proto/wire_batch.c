/* A token batch under construction: one growing buffer per column, packed when it is taken. Buffers are kept for the
 * next batch, so a running builder allocates nothing. Always true: the frame of the rows held is at most
 * WIRE_TOKENS_BYTES_MAX. */
#include <stdlib.h>
#include <string.h>

#include "proto/wire.h"

#define ROW_BYTES 25u /* 4 stream + 2 choice + 8 attempts + 4 first + 2 count + 4 text bytes + 1 alternatives */
#define OVERHEAD_BYTES                                                                                                 \
    64u /* 4 of header, 13 times a tag of 1 and a length of at most 3 (256 KiB < 2^21), rounded up */
#define LOGPROB_NONE 0x7fc00000u

struct column {
    uint8_t *data; /* owned */
    size_t size, room;
};

enum {
    STREAM,
    CHOICE,
    ATTEMPT_CLIENT,
    ATTEMPT_ROUTER,
    FIRST,
    COUNT,
    IDS,
    TEXT_BYTES,
    TEXT,
    LOGPROBS,
    ALTERNATIVES,
    ALTERNATIVE_IDS,
    ALTERNATIVE_LOGPROBS,
    FRAME,
    COLUMN_COUNT
};

struct wire_batch {
    struct column columns[COLUMN_COUNT]; /* FRAME holds the frame last taken */
    unsigned row_count;
    bool has_logprobs, has_alternatives;
};

enum status wire_batch_create(struct wire_batch **out)
{
    struct wire_batch *batch = calloc(1, sizeof *batch);
    if (!batch)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a token batch");
    *out = batch;
    return STATUS_OK;
}

void wire_batch_destroy(struct wire_batch **batch)
{
    if (!*batch)
        return;
    for (unsigned i = 0; i < COLUMN_COUNT; i++)
        free((*batch)->columns[i].data);
    free(*batch);
    *batch = NULL;
}

static enum status column_reserve(struct column *column, size_t more)
{
    if (more <= column->room - column->size)
        return STATUS_OK;
    size_t room = column->room ? 2 * column->room : 256;
    while (room - column->size < more)
        room *= 2;
    uint8_t *data = realloc(column->data, room);
    if (!data)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a token batch of %zu bytes", room);
    column->data = data;
    column->room = room;
    return STATUS_OK;
}

static void column_put(struct column *column, struct wire_span bytes) /* reserved before */
{
    if (bytes.size > 0)
        memcpy(column->data + column->size, bytes.data, bytes.size);
    column->size += bytes.size;
}

static void column_put_number(struct column *column, uint32_t value, unsigned width) /* reserved before */
{
    for (unsigned i = 0; i < width; i++)
        column->data[column->size++] = (uint8_t)(value >> 8 * i);
}

/* Of the frame with so many rows, and so many bytes of ids, of ids of alternatives and of text. */
static size_t frame_bytes(size_t rows, size_t ids_bytes, size_t alternatives_bytes, size_t text_bytes, bool logprobs)
{
    return OVERHEAD_BYTES + rows * ROW_BYTES + ids_bytes * (logprobs ? 2 : 1) + 2 * alternatives_bytes + text_bytes;
}

/* With `row` added; NULL: as it is. */
static size_t held_bytes(const struct wire_batch *batch, const struct wire_tokens_row *row)
{
    static const struct wire_tokens_row nothing;
    const struct column *columns = batch->columns;
    const struct wire_tokens_row *more = row ? row : &nothing;
    return frame_bytes(batch->row_count + (row != NULL), columns[IDS].size + more->ids.size,
                       columns[ALTERNATIVE_IDS].size + more->alternative_ids.size, columns[TEXT].size + more->text.size,
                       batch->has_logprobs || more->logprobs.size > 0);
}

static enum status check_row(const struct wire_tokens_row *row)
{
    size_t alternatives = 4 * (size_t)row->count * row->alternatives;
    bool logprobs = row->logprobs.size > 0;
    if (row->ids.size != 4 * (size_t)row->count || (logprobs && row->logprobs.size != row->ids.size))
        return STATUS_FAIL(STATUS_INVALID, "a row of %u tokens has %zu bytes of ids, %zu of text and %zu of logprobs",
                           row->count, row->ids.size, row->text.size, row->logprobs.size);
    if (row->alternative_ids.size != alternatives || row->alternative_logprobs.size != alternatives ||
        (alternatives > 0 && !logprobs))
        return STATUS_FAIL(STATUS_INVALID, "a row of %u tokens with %u alternatives has %zu bytes of their ids",
                           row->count, row->alternatives, row->alternative_ids.size);
    size_t size = frame_bytes(1, row->ids.size, alternatives, row->text.size, logprobs);
    if (size > WIRE_TOKENS_BYTES_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "a row of %u tokens and %zu bytes of text is over %u bytes", row->count,
                           row->text.size, WIRE_TOKENS_BYTES_MAX);
    return STATUS_OK;
}

/* One value per id up to here: those before this row had none. */
static void fill_logprobs(struct wire_batch *batch)
{
    while (batch->columns[LOGPROBS].size < batch->columns[IDS].size)
        column_put_number(&batch->columns[LOGPROBS], LOGPROB_NONE, 4);
}

static void fill_alternatives(struct wire_batch *batch)
{
    while (batch->columns[ALTERNATIVES].size < batch->row_count)
        column_put_number(&batch->columns[ALTERNATIVES], 0, 1);
}

enum status wire_batch_add(struct wire_batch *batch, const struct wire_tokens_row *row)
{
    static const uint8_t widths[COLUMN_COUNT] = {[STREAM] = 4, [CHOICE] = 2, [ATTEMPT_CLIENT] = 4, [ATTEMPT_ROUTER] = 4,
                                                 [FIRST] = 4,  [COUNT] = 2,  [TEXT_BYTES] = 4};
    bool logprobs = batch->has_logprobs || row->logprobs.size > 0;
    bool alternatives = batch->has_alternatives || row->alternative_ids.size > 0;
    struct column *columns = batch->columns;

    TRY(check_row(row));
    if (held_bytes(batch, row) > WIRE_TOKENS_BYTES_MAX)
        return STATUS_FAIL(STATUS_AGAIN, "no room for the row in this frame");

    for (unsigned i = 0; i < COLUMN_COUNT; i++)
        TRY(column_reserve(&columns[i], widths[i]));
    TRY(column_reserve(&columns[IDS], row->ids.size));
    TRY(column_reserve(&columns[TEXT], row->text.size));
    if (logprobs)
        TRY(column_reserve(&columns[LOGPROBS], columns[IDS].size + row->ids.size - columns[LOGPROBS].size));
    TRY(column_reserve(&columns[ALTERNATIVES], batch->row_count + 1 - columns[ALTERNATIVES].size));
    TRY(column_reserve(&columns[ALTERNATIVE_IDS], row->alternative_ids.size));
    TRY(column_reserve(&columns[ALTERNATIVE_LOGPROBS], row->alternative_logprobs.size));

    /* Nothing below can fail, so the columns stay in step. */
    column_put_number(&columns[STREAM], row->stream, 4);
    column_put_number(&columns[CHOICE], row->choice, 2);
    column_put_number(&columns[ATTEMPT_CLIENT], row->attempt.client, 4);
    column_put_number(&columns[ATTEMPT_ROUTER], row->attempt.router, 4);
    column_put_number(&columns[FIRST], row->first, 4);
    column_put_number(&columns[COUNT], row->count, 2);
    column_put_number(&columns[TEXT_BYTES], (uint32_t)row->text.size, 4);
    if (logprobs)
        fill_logprobs(batch);
    if (alternatives)
        fill_alternatives(batch);
    column_put(&columns[IDS], row->ids);
    column_put(&columns[TEXT], row->text);
    column_put(&columns[LOGPROBS], row->logprobs);
    if (logprobs)
        fill_logprobs(batch);
    if (alternatives)
        column_put_number(&columns[ALTERNATIVES], row->alternatives, 1);
    column_put(&columns[ALTERNATIVE_IDS], row->alternative_ids);
    column_put(&columns[ALTERNATIVE_LOGPROBS], row->alternative_logprobs);
    batch->has_logprobs = logprobs;
    batch->has_alternatives = alternatives;
    batch->row_count++;
    return STATUS_OK;
}

bool wire_batch_empty(const struct wire_batch *batch)
{
    return batch->row_count == 0;
}

bool wire_batch_full(const struct wire_batch *batch)
{
    return held_bytes(batch, NULL) + WIRE_BATCH_RESERVE_BYTES > WIRE_TOKENS_BYTES_MAX;
}

static struct wire_span column_span(const struct wire_batch *batch, unsigned column)
{
    return wire_span_of(batch->columns[column].data, batch->columns[column].size);
}

struct wire_span wire_batch_take(struct wire_batch *batch)
{
    struct column *frame = &batch->columns[FRAME];
    struct wire_message message = {.kind = WIRE_TOKENS};
    if (batch->row_count == 0)
        return wire_span_of(NULL, 0);
    message.tokens = (struct wire_tokens){
        .row_count = batch->row_count,
        .stream = column_span(batch, STREAM),
        .choice = column_span(batch, CHOICE),
        .attempt_client = column_span(batch, ATTEMPT_CLIENT),
        .attempt_router = column_span(batch, ATTEMPT_ROUTER),
        .first = column_span(batch, FIRST),
        .count = column_span(batch, COUNT),
        .ids = column_span(batch, IDS),
        .text_bytes = column_span(batch, TEXT_BYTES),
        .text = column_span(batch, TEXT),
        .logprobs = column_span(batch, LOGPROBS),
        .alternatives = column_span(batch, ALTERNATIVES),
        .alternative_ids = column_span(batch, ALTERNATIVE_IDS),
        .alternative_logprobs = column_span(batch, ALTERNATIVE_LOGPROBS),
    };
    frame->size = 0;
    size_t size = wire_encoded_size(&message);
    if (column_reserve(frame, size) == STATUS_OK)
        frame->size = wire_encode(&message, frame->data);
    batch->row_count = 0;
    batch->has_logprobs = batch->has_alternatives = false;
    for (unsigned i = 0; i < COLUMN_COUNT; i++)
        if (i != FRAME)
            batch->columns[i].size = 0;
    return wire_span_of(frame->data, frame->size);
}
