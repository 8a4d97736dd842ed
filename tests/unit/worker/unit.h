/* unit.h - what every test of this folder includes: the common beginning, and a small generator. */
#ifndef ROOST_TESTS_WORKER_UNIT_H
#define ROOST_TESTS_WORKER_UNIT_H
#include <string.h>
#include "tests/unit/seed.h"
#include "tests/unit/unit.h"

static inline uint64_t rng_next(uint64_t *state) /* splitmix64 */
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static inline uint32_t rng_below(uint64_t *state, uint32_t bound)
{
    return (uint32_t)(rng_next(state) % bound);
}

static inline void source_path(const char *relative, char *path, size_t size)
{
    const char *root = getenv("ROOST_SOURCE_DIR");
    snprintf(path, size, "%s/%s", root != NULL ? root : ".", relative);
}

#endif
