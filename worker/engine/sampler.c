#include "worker/engine/sampler.h"
#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>
#include "common/hash.h"
#include "kernels/pinned_math.h"

#define NOISE_MAX 17.0f /* above every value of noise: -log(-log(1 - 2^-24)) is 16.64 */

static const uint64_t gamma_ = 0x9E3779B97F4A7C15u;

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static uint64_t position_state(uint64_t seed, uint32_t choice, uint32_t position)
{
    return mix(mix(seed + gamma_) ^ ((uint64_t)choice << 32 | position));
}

/* The 23 bits that u is made of. */
static uint32_t noise_bits(uint64_t state, uint32_t id)
{
    return (uint32_t)(mix(state + ((uint64_t)id + 1) * gamma_) >> 41);
}

static float noise(uint32_t bits)
{
    const float u = (float)(2 * bits + 1) * 0x1p-24f;
    return -pinned_log(-pinned_log(u));
}

/* At least noise(bits), without logarithms: -log(u) >= 1 - u = v, so noise <= -log(v) <= (24 - b) * log(2) for v >=
 * 2^(b - 24). 0.01 is far more than pinned_log can be wrong by. */
static float noise_bound(uint32_t bits)
{
    const uint32_t v = (1u << 24) - (2 * bits + 1); /* odd: at least 1 */
    const int b = 31 - __builtin_clz(v);
    return (float)(24 - b) * 0.693148f + 0.01f;
}

float sampler_noise(uint64_t seed, uint32_t choice, uint32_t position, uint32_t id)
{
    return noise(noise_bits(position_state(seed, choice, position), id));
}

/* Walks the masked ids beside the ids. */
static bool is_masked(const struct sampler *sampler, uint32_t id, uint32_t *next)
{
    if (*next < sampler->masked_count && sampler->masked[*next] == id) {
        ++*next;
        return true;
    }
    return false;
}

enum status sampler_pick(const struct sampler *sampler, const float *logits, uint32_t vocab_size, uint32_t position,
                         uint32_t *id)
{
    uint32_t best = UINT32_MAX, next = 0;
    for (uint32_t i = 0; i < vocab_size; i++) {
        if (is_masked(sampler, i, &next))
            continue;
        if (!isfinite(logits[i]))
            return STATUS_FAIL(STATUS_CORRUPT, "logit %u at position %u is not a finite number", i, position);
        if (best == UINT32_MAX || logits[i] > logits[best])
            best = i;
    }
    if (best == UINT32_MAX)
        return STATUS_FAIL(STATUS_INTERNAL, "every id is masked");
    if (sampler->temperature > 0) {
        const uint64_t state = position_state(sampler->seed, sampler->choice, position);
        const float max = logits[best];
        float best_score = 0;
        best = UINT32_MAX;
        next = 0;
        for (uint32_t i = 0; i < vocab_size; i++) {
            if (is_masked(sampler, i, &next))
                continue;
            const float scaled = (logits[i] - max) / sampler->temperature;
            if (best != UINT32_MAX && scaled + NOISE_MAX <= best_score)
                continue; /* no noise can lift it: rounding is monotonic and ties go to the lower id */
            const uint32_t bits = noise_bits(state, i);
            if (best != UINT32_MAX && scaled + noise_bound(bits) <= best_score)
                continue; /* its own cannot: most ids end here, and logarithms are what costs */
            const float score = scaled + noise(bits);
            if (best == UINT32_MAX || score > best_score) {
                best = i;
                best_score = score;
            }
        }
    }
    *id = best;
    return STATUS_OK;
}

uint64_t sampler_default_seed(const char *tenant, size_t tenant_size, const uint8_t request_id[16], uint32_t choice)
{
    struct {
        char domain[12];
        uint8_t tenant[HASH_DIGEST_BYTES];
        uint8_t request_id[16];
        uint8_t choice[4];
    } input;
    uint8_t digest[HASH_DIGEST_BYTES];
    uint64_t seed = 0;
    static_assert(sizeof input == 12 + HASH_DIGEST_BYTES + 16 + 4, "no padding is hashed");
    memcpy(input.domain, "roost seed 1", sizeof input.domain);
    hash_digest(tenant, tenant_size, NULL, 0, input.tenant);
    memcpy(input.request_id, request_id, sizeof input.request_id);
    for (unsigned i = 0; i < 4; i++)
        input.choice[i] = (uint8_t)(choice >> (8 * i));
    hash_digest(&input, sizeof input, NULL, 0, digest);
    for (unsigned i = 0; i < 8; i++)
        seed |= (uint64_t)digest[i] << (8 * i);
    return seed;
}
