/* wire_internal.h - what the files of the codec share. Not for anybody else, not installed.
 *
 *     frame --wire_prescan--> sizes and counts known --protobuf-c into one arena--> generated structs
 *           --wire_convert--> our struct --wire_validate--> out
 *
 * The pre-scan rejects whatever protobuf-c would accept too easily and adds up the memory that protobuf-c will ask for,
 * so the arena is one allocation of the right size and its limit is checked before it is made. */
#ifndef ROOST_PROTO_WIRE_INTERNAL_H
#define ROOST_PROTO_WIRE_INTERNAL_H
#include <protobuf-c/protobuf-c.h>
#include "proto/wire.h"

#define WIRE_UNKNOWN_MAX         64u  /* unknown fields in a frame: a younger schema adds a few ... */
#define WIRE_UNKNOWN_PER_ELEMENT 4u   /* ... and so many more for each repeated element, which may have grown too */
#define WIRE_FREE_NAME_MAX       256u /* speaker names, which are free text */
#define WIRE_ENDPOINT_MAX        256u
#define WIRE_BUILD_MAX           64u

struct wire_kind_info {
    const char *name; /* "head" */
    const ProtobufCMessageDescriptor *descriptor;
    size_t frame_bytes_max; /* header included */
};
const struct wire_kind_info *wire_kind_info(enum wire_kind kind); /* kind is valid */

/* What unpacking the bytes will need. */
struct wire_scan {
    size_t arena_bytes; /* what protobuf-c allocates, plus our arrays */
    unsigned elements;  /* repeated elements */
    unsigned unknown;   /* unknown fields */
};
enum status wire_prescan(const ProtobufCMessageDescriptor *descriptor, const uint8_t *data, size_t size,
                         struct wire_scan *out);

/* One block, handed out from the front, freed as a whole. */
struct wire_arena {
    size_t size, used; /* bytes after this header */
};
#define WIRE_ARENA_ALIGN        16u
#define WIRE_ARENA_ROUND(bytes) (((bytes) + WIRE_ARENA_ALIGN - 1) & ~(size_t)(WIRE_ARENA_ALIGN - 1))
void *wire_arena_alloc(void *arena, size_t size); /* NULL when it is full; the type is protobuf-c's */

/* From generated structs to ours; our arrays come from the arena. Only shapes are handled here, rules are
 * wire_validate's. */
enum status wire_convert(const ProtobufCMessage *from, struct wire_arena *arena, struct wire_message *to);

#endif
