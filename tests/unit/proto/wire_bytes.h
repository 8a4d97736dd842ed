/* wire_bytes.h - for tests of the codec: frames put together by hand, and frames decoded where a byte too far is seen.
 */
#ifndef ROOST_TESTS_WIRE_BYTES_H
#define ROOST_TESTS_WIRE_BYTES_H
#include <stddef.h>
#include <stdint.h>
#include "proto/wire.h"

#define FOR_EACH_KIND(kind) for (enum wire_kind kind = WIRE_HELLO; kind < WIRE_KIND_COUNT; kind++)

struct buffer { /* zeroed at first; its data is free()d by whoever filled it */
    uint8_t *data;
    size_t size, room;
};

void append(struct buffer *b, const void *data, size_t size);
void append_byte(struct buffer *b, unsigned byte);
void append_varint(struct buffer *b, uint64_t value);
/* A field of a protobuf message. */
void append_number(struct buffer *b, unsigned field, uint64_t value);
void append_bytes(struct buffer *b, unsigned field, const void *data, size_t size);
void header(struct buffer *b, enum wire_kind kind); /* the buffer begins with it anew */
struct buffer encoded(const struct wire_message *message);

/* Decodes a copy in a block of exactly its size, so that a sanitizer sees the first byte too far; reads all that came
 * out. */
enum status decode_exact(const void *data, size_t size);
enum status decode_message(const struct wire_message *message);

#endif
