/* random_weights.h - a roost directory of a known shape with random int8 weights, for benchmarks and memory tests. The same options give the
 * same bytes on every machine. Weights are drawn as int8, uniformly, with scales that keep rows at their size: matrices have
 * standard deviation 1/sqrt(columns); q and k norms make attention scores spread by about 3; logits spread by about 3. */
#ifndef ROOST_WORKER_CONVERT_RANDOM_WEIGHTS_H
#define ROOST_WORKER_CONVERT_RANDOM_WEIGHTS_H
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include "common/status.h"

struct random_options {
    const char *shape, *destination;      /* shapes.h */
    uint32_t layers, vocab_size;          /* 0: as the shape has it */
    uint64_t seed;
    const char *recipe_path, *scheme;     /* as convert.h */
    uint32_t threads;
    FILE *progress;                       /* NULL: none */
    const volatile sig_atomic_t *stop;    /* as convert.h */
};

enum status random_weights(const struct random_options *options);

#endif
