/* sampler_weights.h - the integer weights of step 5 of sampler.h. Pure functions; any thread.
 * Sums are exact, so they may be taken in any order and by any number of lanes. */
#ifndef ROOST_WORKER_ENGINE_SAMPLER_WEIGHTS_H
#define ROOST_WORKER_ENGINE_SAMPLER_WEIGHTS_H
#include <stdbool.h>
#include <stdint.h>

/* c of sampler.h: log2(e) / temperature, finite. temperature > 0. */
float sampler_weight_scale(float temperature);
/* rint(2^32 * exp2((value - max) * scale)); value <= max. */
uint64_t sampler_weight(float value, float max, float scale);
/* sampler_weight of values[0 .. count), into out (NULL: nowhere). Returns their sum. `vector` false: one by one, for tests; both give
 * the same. */
uint64_t sampler_weights(const float *values, uint32_t count, float max, float scale, bool vector, uint64_t *out);

#endif
