/* redis_bound.h - what one reply may make hiredis reserve: its elements over all levels, and the bytes of its strings.
 *
 * hiredis reserves 8 bytes for each element that an array announces before the first one has come: `*700000000` is 5.6
 * GB (before 1.0.1 up to 16 GB; from then on REDIS_READER_MAX_ARRAY_ELEMENTS, 2^32 - 1). A string is reserved as it
 * comes, so what is unread is bounded by whoever reads (redis_link.c); but an array of long ones, or arrays in arrays,
 * are kept until the reply is complete. Both limits are of a whole reply, and what breaks them is refused before it is
 * reserved: hiredis then ends the connection.
 *
 * Takes the place of a reader's table of functions; a reader frees with it, so redis_bound_remove comes before the end
 * of either. One thread. */
#ifndef ROOST_COMMON_REDIS_BOUND_H
#define ROOST_COMMON_REDIS_BOUND_H
#include <hiredis/hiredis.h>
#include <stdbool.h>
#include <stddef.h>

/* The largest reply that we ask for is the names of a directory: 1,025 of them. Four times that; with replies of 64
 * bytes and pointers 300 KB. */
#define REDIS_REPLY_ELEMENTS_MAX 4096u
/* The same, with 1,025 names of 64 bytes: 66 KB. A poisoned set or hash cannot send more: scripts look before they
 * read. What is unread may be as much once more. */
#define REDIS_REPLY_BYTES_MAX (4u << 20)

struct redis_bound {
    redisReplyObjectFunctions functions; /* the reader's, while it is bound */
    redisReplyObjectFunctions *unbound;  /* ref: hiredis' own; NULL: not bound */
    size_t elements, bytes;              /* of the reply that is being read */
    bool broken;                         /* a reply was over a limit: this connection is of no use any more */
};

void redis_bound_set(struct redis_bound *bound, redisReader *reader);
void redis_bound_remove(struct redis_bound *bound, redisReader *reader); /* no-op if it is not bound */

#endif
