/* Walks the raw protobuf bytes before protobuf-c sees them. Always true afterwards:
 *   1. every tag, varint and length is minimal, in range and inside its message; groups do not occur;
 *   2. a known field has the wire type of the schema and a singular one occurs at most once;
 *   3. repeated elements and unknown fields are within their limits;
 *   4. scan->arena_bytes is at least what protobuf-c 1.4 will allocate for the message. */
#include "proto/wire_internal.h"
#include <stdbool.h>

#include "roost.pb-c.h"

#define DEPTH_MAX 8 /* the schema nests 3 deep and is not recursive */
#define SCANNED_MEMBER_BYTES                                                                                           \
    32 /* protobuf-c: ScannedMember; the first 16 are on its stack, then slabs of 32, 64, ... */
#define SCANNED_MEMBER_FIRST 16

enum { TYPE_VARINT = 0, TYPE_64BIT = 1, TYPE_LENGTH = 2, TYPE_32BIT = 5 };

struct reader {
    const uint8_t *at, *end;
};

/* False: cut off, longer than ten bytes, over 64 bits, or longer than needed. */
static bool read_varint(struct reader *reader, uint64_t *out)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < 10; i++) {
        if (reader->at == reader->end)
            return false;
        uint8_t byte = *reader->at++;
        if (i == 9 && byte > 1)
            return false;
        value |= (uint64_t)(byte & 0x7f) << (7 * i);
        if (!(byte & 0x80)) {
            *out = value;
            return byte != 0 || i == 0;
        }
    }
    return false;
}

static unsigned repeated_max(const ProtobufCMessageDescriptor *descriptor)
{
    if (descriptor == &roost__v1__body__descriptor)
        return WIRE_MESSAGES_MAX;
    if (descriptor == &roost__v1__sampling__descriptor)
        return WIRE_STOPS_MAX;
    return 0;
}

static unsigned wire_type_of(const ProtobufCFieldDescriptor *field)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_DOUBLE: return TYPE_64BIT;
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_FLOAT: return TYPE_32BIT;
    case PROTOBUF_C_TYPE_BYTES:
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE: return TYPE_LENGTH;
    default: return TYPE_VARINT;
    }
}

static bool varint_fits(const ProtobufCFieldDescriptor *field, uint64_t value)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_UINT32: return value <= UINT32_MAX;
    case PROTOBUF_C_TYPE_INT32: return (int64_t)value >= INT32_MIN && (int64_t)value <= INT32_MAX;
    case PROTOBUF_C_TYPE_ENUM: return value <= INT32_MAX;
    case PROTOBUF_C_TYPE_BOOL: return value <= 1;
    default: return true;
    }
}

static enum status scan_message(const ProtobufCMessageDescriptor *descriptor, const uint8_t *data, size_t size,
                                unsigned depth, struct wire_scan *scan)
{
    const char *name = descriptor->short_name;
    struct reader reader = {data, data + size};
    size_t members = 0;
    unsigned repeated = 0;
    uint64_t seen = 0; /* by index in the descriptor; checked to be below 64 */

    if (depth > DEPTH_MAX)
        return STATUS_FAIL(STATUS_INVALID, "%s: nested too deep", name);
    scan->arena_bytes += WIRE_ARENA_ROUND(descriptor->sizeof_message);
    while (reader.at < reader.end) {
        const uint8_t *start = reader.at;
        uint64_t tag, value = 0, length = 0;
        if (!read_varint(&reader, &tag) || tag > UINT32_MAX || (tag >> 3) == 0)
            return STATUS_FAIL(STATUS_INVALID, "%s: a malformed field tag", name);
        const ProtobufCFieldDescriptor *field =
            protobuf_c_message_descriptor_get_field(descriptor, (unsigned)(tag >> 3));
        const char *field_name = field ? field->name : "an unknown field";
        unsigned type = tag & 7;

        if (field && wire_type_of(field) != type)
            return STATUS_FAIL(STATUS_INVALID, "%s.%s: wrong wire type %u", name, field_name, type);
        switch (type) {
        case TYPE_VARINT:
            if (!read_varint(&reader, &value))
                return STATUS_FAIL(STATUS_INVALID, "%s.%s: a malformed number", name, field_name);
            break;
        case TYPE_64BIT: length = 8; break;
        case TYPE_32BIT: length = 4; break;
        case TYPE_LENGTH:
            if (!read_varint(&reader, &length))
                return STATUS_FAIL(STATUS_INVALID, "%s.%s: a malformed length", name, field_name);
            break;
        default: return STATUS_FAIL(STATUS_INVALID, "%s.%s: wire type %u is not used", name, field_name, type);
        }
        if (length > (uint64_t)(reader.end - reader.at))
            return STATUS_FAIL(STATUS_INVALID, "%s.%s: longer than what is left of the frame", name, field_name);
        const uint8_t *content = reader.at;
        reader.at += length;
        members++;

        if (!field) {
            scan->unknown++;
            scan->arena_bytes +=
                WIRE_ARENA_ROUND(sizeof(ProtobufCMessageUnknownField)) + WIRE_ARENA_ROUND((size_t)(reader.at - start));
            continue;
        }
        if (field->label == PROTOBUF_C_LABEL_REPEATED) {
            scan->elements++;
            if (++repeated > repeated_max(descriptor))
                return STATUS_FAIL(STATUS_LIMIT, "%s.%s: more than %u of them", name, field_name,
                                   repeated_max(descriptor));
        } else {
            unsigned index = (unsigned)(field - descriptor->fields);
            if (index > 63 || (seen & 1ull << index))
                return STATUS_FAIL(STATUS_INVALID, "%s.%s: given twice", name, field_name);
            seen |= 1ull << index;
        }
        if (type == TYPE_VARINT && !varint_fits(field, value))
            return STATUS_FAIL(STATUS_INVALID, "%s.%s: out of the range of its type", name, field_name);
        if (field->type == PROTOBUF_C_TYPE_BYTES)
            scan->arena_bytes += WIRE_ARENA_ROUND((size_t)length);
        else if (field->type == PROTOBUF_C_TYPE_MESSAGE)
            TRY(scan_message(field->descriptor, content, (size_t)length, depth + 1, scan));
    }
    if (repeated > 0) {
        /* protobuf-c: an array of pointers or of byte strings. We: an array of messages (the larger) or of spans. */
        scan->arena_bytes += WIRE_ARENA_ROUND(repeated * sizeof(ProtobufCBinaryData));
        scan->arena_bytes += WIRE_ARENA_ROUND(repeated * sizeof(struct wire_chat_message));
    }
    for (size_t room = SCANNED_MEMBER_FIRST, slab = 2 * room; room < members; room += slab, slab *= 2)
        scan->arena_bytes += slab * SCANNED_MEMBER_BYTES;
    return STATUS_OK;
}

enum status wire_prescan(const ProtobufCMessageDescriptor *descriptor, const uint8_t *data, size_t size,
                         struct wire_scan *out)
{
    struct wire_scan scan = {0, 0, 0};
    TRY(scan_message(descriptor, data, size, 0, &scan));
    if (scan.unknown > WIRE_UNKNOWN_MAX + WIRE_UNKNOWN_PER_ELEMENT * scan.elements)
        return STATUS_FAIL(STATUS_LIMIT, "%s: %u unknown fields", descriptor->short_name, scan.unknown);
    *out = scan;
    return STATUS_OK;
}
