/* frame_mutator.c - changes a frame as a frame: fields of a message are removed, doubled, swapped or changed, nested
 * ones too, and lengths are put right, so that a change gets behind the first length that is wrong. A third of the time
 * libFuzzer does as it likes. */
#include <stdlib.h>
#include <string.h>
#include "tests/fuzz/fuzz.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t size_max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t size_max, unsigned seed);

enum { HEADER = 4, FIELDS_MAX = 64, DEPTH_MAX = 3, KINDS = 24, CONTENT_MAX = 1 << 16 };

struct field {
    size_t at, size;                 /* with its tag */
    size_t content_at, content_size; /* of a length-delimited one; otherwise 0 */
};

static unsigned draw(unsigned *seed, unsigned below)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (*seed >> 8) % below;
}

/* Bytes of the varint at data; 0: there is none. */
static size_t read_varint(const uint8_t *data, size_t size, uint64_t *out)
{
    *out = 0;
    for (size_t i = 0; i < size && i < 10; i++) {
        *out |= (uint64_t)(data[i] & 0x7f) << (7 * i);
        if (!(data[i] & 0x80))
            return i + 1;
    }
    return 0;
}

static size_t write_varint(uint8_t *out, uint64_t value)
{
    size_t size = 0;
    for (; value >= 0x80; value >>= 7)
        out[size++] = (uint8_t)(value | 0x80);
    out[size++] = (uint8_t)value;
    return size;
}

/* How many fields these bytes are; 0: they are no message. */
static unsigned split(const uint8_t *data, size_t size, struct field *fields)
{
    unsigned count = 0;
    for (size_t at = 0; at < size;) {
        uint64_t tag, value;
        size_t step = read_varint(data + at, size - at, &tag);
        struct field field = {.at = at};
        if (step == 0 || count == FIELDS_MAX)
            return 0;
        at += step;
        if ((tag & 7) == 0 || (tag & 7) == 2) {
            step = read_varint(data + at, size - at, &value);
            if (step == 0)
                return 0;
            at += step;
            if ((tag & 7) == 2) {
                if (value > size - at)
                    return 0;
                field.content_at = at;
                field.content_size = (size_t)value;
                at += (size_t)value;
            }
        } else if ((tag & 7) == 1 || (tag & 7) == 5) {
            step = (tag & 7) == 1 ? 8 : 4;
            if (step > size - at)
                return 0;
            at += step;
        } else {
            return 0;
        }
        field.size = at - field.at;
        fields[count++] = field;
    }
    return count;
}

/* Puts `content` where the field's was, with its new length; the new size of the message, or 0: no room. */
static size_t put_content(uint8_t *data, size_t size, size_t size_max, const struct field *field,
                          const uint8_t *content, size_t content_size)
{
    uint8_t length[10];
    uint64_t tag;
    size_t tag_size = read_varint(data + field->at, field->size, &tag),
           length_size = write_varint(length, content_size);
    size_t end = field->at + field->size, new_size = size - field->size + tag_size + length_size + content_size;
    if (new_size > size_max)
        return 0;
    memmove(data + field->at + tag_size + length_size + content_size, data + end, size - end);
    memcpy(data + field->at + tag_size, length, length_size);
    memcpy(data + field->at + tag_size + length_size, content, content_size);
    return new_size;
}

static size_t mutate_message(uint8_t *data, size_t size, size_t size_max, unsigned *seed, unsigned depth);

static size_t mutate_content(uint8_t *data, size_t size, size_t size_max, const struct field *field, unsigned *seed,
                             unsigned depth)
{
    static uint8_t parts[DEPTH_MAX][CONTENT_MAX];
    uint8_t *part = parts[depth];
    size_t part_size = field->content_size;
    if (part_size > CONTENT_MAX / 2)
        return 0;
    memcpy(part, data + field->content_at, part_size);
    if (depth + 1 < DEPTH_MAX && draw(seed, 2))
        part_size = mutate_message(part, part_size, CONTENT_MAX, seed, depth + 1);
    else
        part_size = LLVMFuzzerMutate(part, part_size, part_size + 64);
    return put_content(data, size, size_max, field, part, part_size);
}

static size_t mutate_message(uint8_t *data, size_t size, size_t size_max, unsigned *seed, unsigned depth)
{
    struct field fields[FIELDS_MAX];
    unsigned count = split(data, size, fields);
    if (count == 0)
        return LLVMFuzzerMutate(data, size, size_max);
    const struct field *field = &fields[draw(seed, count)], *other = &fields[draw(seed, count)];
    size_t changed = 0;
    switch (draw(seed, 8)) {
    case 0: /* remove */
        memmove(data + field->at, data + field->at + field->size, size - field->at - field->size);
        return size - field->size;
    case 1: /* double */
        if (size + field->size > size_max)
            break;
        memmove(data + field->at + field->size, data + field->at, size - field->at);
        return size + field->size;
    case 2: /* the content of one becomes that of another: columns of different lengths, ids for names */
        if (field->content_at && other->content_at && other->content_size <= 4096) {
            uint8_t copy[4096];
            memcpy(copy, data + other->content_at, other->content_size);
            changed = put_content(data, size, size_max, field, copy, other->content_size);
        }
        break;
    case 3: /* a field of another number */
        data[field->at] = (uint8_t)((data[field->at] & 7) | draw(seed, 32) << 3);
        return size;
    default:
        if (field->content_at)
            changed = mutate_content(data, size, size_max, field, seed, depth);
        else
            data[field->at + field->size - 1] ^= (uint8_t)(1u << draw(seed, 7));
        if (!field->content_at)
            return size;
    }
    return changed ? changed : LLVMFuzzerMutate(data, size, size_max);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t size_max, unsigned seed)
{
    unsigned what = draw(&seed, 12);
    if (size <= HEADER || what < 4)
        return LLVMFuzzerMutate(data, size, size_max);
    memcpy(data, (uint8_t[]){'R', 1, data[2], 0}, HEADER);
    if (what == 4) {
        data[2] = (uint8_t)draw(&seed, KINDS);
        return size;
    }
    return HEADER + mutate_message(data + HEADER, size - HEADER, size_max - HEADER, &seed, 0);
}
