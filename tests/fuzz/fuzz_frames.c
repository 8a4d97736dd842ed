/* fuzz_frames.c - one frame, as a peer may send it. Whatever wire_decode takes keeps the rules of senders, and survives
 * another round. */
#include <stdlib.h>
#include <string.h>
#include "proto/wire.h"
#include "tests/fuzz/fuzz.h"

/* Reads all that a receiver reads of a batch. */
static void read_rows(const struct wire_tokens *tokens)
{
    struct wire_tokens_cursor cursor = {0};
    struct wire_tokens_row row;
    uint64_t sum = 0;
    while (wire_tokens_next(tokens, &cursor, &row)) {
        for (size_t i = 0; i < row.count; i++)
            sum += wire_u32_at(row.ids, i);
        for (size_t i = 0; i < row.text.size; i++)
            sum += ((const uint8_t *)row.text.data)[i];
    }
    FUZZ_CHECK(sum < UINT64_MAX); /* so that it is read */
}

static void *encode(const struct wire_message *message, size_t *size)
{
    *size = wire_encoded_size(message);
    FUZZ_CHECK(*size > 0);
    void *frame = malloc(*size);
    if (!frame)
        abort();
    FUZZ_CHECK(wire_encode(message, frame) == *size);
    return frame;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum wire_kind kind;
    struct wire_message message, again;
    uint8_t version;
    if (wire_peek(data, size, &kind, &version) != STATUS_OK)
        return 0;
    if (wire_decode(data, size, &message) != STATUS_OK)
        return 0;
    FUZZ_CHECK(message.kind == kind && size <= wire_frame_bytes_max(kind));
    FUZZ_CHECK(wire_validate(&message) == STATUS_OK);
    if (kind == WIRE_TOKENS)
        read_rows(&message.tokens);
    size_t once_size, twice_size;
    void *once = encode(&message, &once_size);
    if (once_size <= wire_frame_bytes_max(kind)) { /* ours may be a few bytes longer than a packed one */
        FUZZ_CHECK(wire_decode(once, once_size, &again) == STATUS_OK);
        void *twice = encode(&again, &twice_size);
        FUZZ_CHECK(once_size == twice_size && memcmp(once, twice, once_size) == 0);
        free(twice);
        wire_message_free(&again);
    }
    free(once);
    wire_message_free(&message);
    return 0;
}
