#include "wire_bytes.h"
#include <string.h>
#include "tests/unit/unit.h"

void append(struct buffer *b, const void *data, size_t size)
{
    if (b->size + size > b->room) {
        b->room = 2 * (b->size + size) + 64;
        b->data = realloc(b->data, b->room);
        assert_non_null(b->data);
    }
    if (size > 0)
        memcpy(b->data + b->size, data, size);
    b->size += size;
}

void append_byte(struct buffer *b, unsigned byte)
{
    uint8_t c = (uint8_t)byte;
    append(b, &c, 1);
}

void append_varint(struct buffer *b, uint64_t value)
{
    for (; value > 0x7f; value >>= 7)
        append_byte(b, (unsigned)(value & 0x7f) | 0x80);
    append_byte(b, (unsigned)value);
}

void append_number(struct buffer *b, unsigned field, uint64_t value)
{
    append_varint(b, field << 3);
    append_varint(b, value);
}

void append_bytes(struct buffer *b, unsigned field, const void *data, size_t size)
{
    append_varint(b, field << 3 | 2);
    append_varint(b, size);
    append(b, data, size);
}

void header(struct buffer *b, enum wire_kind kind)
{
    b->size = 0;
    append_byte(b, 'R');
    append_byte(b, WIRE_VERSION);
    append_byte(b, kind);
    append_byte(b, 0);
}

struct buffer encoded(const struct wire_message *message)
{
    struct buffer b = {0};
    b.size = b.room = wire_encoded_size(message);
    b.data = malloc(b.size);
    assert_non_null(b.data);
    assert_int_equal(wire_encode(message, b.data), b.size);
    return b;
}

enum status decode_exact(const void *data, size_t size)
{
    struct wire_message message;
    uint8_t *copy = malloc(size ? size : 1);
    assert_non_null(copy);
    if (size > 0)
        memcpy(copy, data, size);
    memset(&message, 0x5a, sizeof message);
    enum status st = wire_decode(copy, size, &message);
    if (st == STATUS_OK) {
        struct buffer again = encoded(&message);
        if (message.kind == WIRE_TOKENS) {
            struct wire_tokens_cursor cursor = {0};
            struct wire_tokens_row row;
            unsigned rows = 0;
            while (wire_tokens_next(&message.tokens, &cursor, &row))
                rows++;
            assert_int_equal(rows, message.tokens.row_count);
        }
        free(again.data);
        wire_message_free(&message);
    } else {
        uint8_t untouched[sizeof message];
        memset(untouched, 0x5a, sizeof untouched);
        assert_memory_equal(&message, untouched, sizeof message);
        assert_string_not_equal(status_detail(), "");
    }
    free(copy);
    return st;
}

enum status decode_message(const struct wire_message *message)
{
    struct buffer b = encoded(message);
    enum status st = decode_exact(b.data, b.size);
    free(b.data);
    return st;
}
