/* seed.h - where tests that draw at random begin: ROOST_TEST_SEED, 1 without it (tests/run --long counts it up). */
#ifndef ROOST_TESTS_SEED_H
#define ROOST_TESTS_SEED_H
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Mixed with `which`, so that two uses in one program differ. Printed once, so that a failure can be repeated. */
static inline uint64_t test_seed(uint64_t which)
{
    static uint64_t seed;
    if (seed == 0) {
        const char *text = getenv("ROOST_TEST_SEED");
        seed = text != NULL && *text != '\0' ? strtoull(text, NULL, 10) : 1;
        seed += seed == 0;
        printf("ROOST_TEST_SEED=%" PRIu64 "\n", seed);
        fflush(stdout);
    }
    uint64_t z = (seed + which) * 0x9E3779B97F4A7C15u;   /* splitmix64's finaliser */
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return z != 0 ? z : 1;
}

#endif
