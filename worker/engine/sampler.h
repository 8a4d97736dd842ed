/* sampler.h - logits to the next token. Pure functions; any thread.
 *
 * Greedy (temperature 0): the highest logit, ties to the lowest id.
 * Otherwise Gumbel-max (Maddison, Tarlow and Minka, 2014): the highest (logit - max) / temperature + noise is a draw from
 * softmax(logit / temperature). The noise is a pure function of (seed, choice, position, token id), so a token depends on its
 * logits and these four numbers and on nothing else: no state, no batch, no order of requests.
 *
 * Pinned (docs/numerics.md; a change is a new numerics revision), all in float, in this order:
 *   h = mix(mix(mix(seed + 1 * G) ^ (choice << 32 | position)) + (id + 1) * G)     64-bit, wrapping
 *   G = 0x9E3779B97F4A7C15; mix is the finaliser of splitmix64 (Steele, Lea and Flood, 2014)
 *   u = (2 * (h >> 41) + 1) * 2^-24          23 bits: exact, within [2^-24, 1 - 2^-24]
 *   noise = -pinned_log(-pinned_log(u))      within about [-2.82, 16.64]
 *   score = (logit - max) / temperature + noise; the lowest id among the highest scores wins
 * max is over the ids that are not masked. */
#ifndef ROOST_WORKER_ENGINE_SAMPLER_H
#define ROOST_WORKER_ENGINE_SAMPLER_H
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

#define SAMPLER_TEMPERATURE_MAX 100.0f

struct sampler {                     /* a plain value */
    float temperature;               /* 0: greedy; finite, 0 to SAMPLER_TEMPERATURE_MAX */
    uint32_t choice;
    uint64_t seed;
    const uint32_t *masked;          /* ids never drawn, ascending; ref, owned by the caller */
    uint32_t masked_count;
};

/* position is the absolute position that the new token will have. STATUS_CORRUPT: a logit that is not masked is NaN or infinite. */
enum status sampler_pick(const struct sampler *sampler, const float *logits, uint32_t vocab_size, uint32_t position, uint32_t *id);

/* The seed of a request that gave none: the first eight bytes, little endian, of BLAKE2b-256("roost seed 1",
 * BLAKE2b-256(tenant), request id, choice as u32 little endian). */
uint64_t sampler_default_seed(const char *tenant, size_t tenant_size, const uint8_t request_id[16], uint32_t choice);

/* The noise alone, for tests. */
float sampler_noise(uint64_t seed, uint32_t choice, uint32_t position, uint32_t id);

#endif
