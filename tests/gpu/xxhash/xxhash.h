/* xxhash.h - the one function of xxHash that worker/engine/kv uses, on machines without it (tests/gpu): another hash, whose values stay in the
 * process. */
#ifndef ROOST_TESTS_GPU_XXHASH_H
#define ROOST_TESTS_GPU_XXHASH_H
#include <stddef.h>
#include <stdint.h>

static inline uint64_t XXH3_64bits(const void *data, size_t size)
{
    const unsigned char *bytes = data;
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3u;         /* FNV-1a */
    return hash ^ hash >> 32;
}

#endif
