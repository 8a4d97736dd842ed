/* sampler.h - logits to the next token. One per thread (it holds scratch memory only); the results are pure functions of the arguments.
 *
 * Steps, in this order (docs/numerics.md, section 9; all pinned, a change is a new numerics revision). Floats are float32, each operation
 * rounded once, no fused ones; exp2 and log are those of kernels/pinned_math.h; LOG2E = 0x1.715476p+0f. v[i] is the logit of id i.
 *   1. Ids that may not be drawn are left out: those masked, and the end ids while fewer than tokens_min ids are drawn. They enter
 *      nothing below. Any other logit that is NaN or infinite is an error.
 *   2. Bias: v = v + bias.
 *   3. Repetition penalty r, for ids of the prompt or the reply so far: v = v > 0 ? v / r : v * r.
 *      Then, for ids of the reply so far, drawn `count` times: v = (v - presence) - (frequency * float(count)).
 *      A value that 2 and 3 made infinite becomes the largest float of its sign.
 *   4. Greedy (temperature 0): the highest v, ties to the lowest id. -0 and +0 are equal, here and below.
 *      Otherwise max is the highest v and T the temperature.
 *   5. Candidates, in the order of descending v, ties by ascending id. Each has the integer weight
 *        w = rint(2^32 * exp2((v - max) * c)),  c = LOG2E / T, or the largest float where that is infinite
 *      rint is to even, the product by 2^32 is exact; w is 0 to 2^32 (the highest's, always), sums are exact in uint64.
 *      top-k: the first k stay. top-p: total = the sum of w over what is left; the shortest run of first ones whose sum reaches
 *      ceil(top_p * total), in exact arithmetic, stays (ids of weight 0 go: total is reached before them). min-p: those with
 *      w >= min_p * 2^32 (exact) stay. The highest always stays.
 *   6. Gumbel-max over what is left (Maddison, Tarlow and Minka, 2014): the highest score = (v - max) / T + noise is a draw from
 *      softmax(v / T); the lowest id among the highest wins.
 * The noise is a pure function of (seed, choice, position, token id), so a token depends on its logits, the ids before it and
 * these numbers and on nothing else: no state, no batch, no order of requests.
 *   h = mix(mix(mix(seed + 1 * G) ^ (choice << 32 | position)) + (id + 1) * G)     64-bit, wrapping
 *   G = 0x9E3779B97F4A7C15; mix is the finaliser of splitmix64 (Steele, Lea and Flood, 2014)
 *   u = (2 * (h >> 41) + 1) * 2^-24          23 bits: exact, within [2^-24, 1 - 2^-24]
 *   noise = -log(-log(u))                    within about [-2.82, 16.64]
 *
 * Log probabilities are natural ones of the model's own distribution, softmax of the logits as they came at temperature 1, with nothing
 * left out but logits that are not finite: S = the sum of w as in step 5 with c = LOG2E over all ids, and
 *   logprob = (v - max) - log(float(S) * 2^-32)        float(S) rounded once, to nearest even */
#ifndef ROOST_WORKER_ENGINE_SAMPLER_H
#define ROOST_WORKER_ENGINE_SAMPLER_H
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

#define SAMPLER_TEMPERATURE_MAX 100.0f
#define SAMPLER_BIAS_MAX 1024u           /* ids with a bias; values within [-1000, 1000] */
#define SAMPLER_STOP_IDS_MAX 64u
#define SAMPLER_END_IDS_MAX 72u          /* stop ids and the model's own end ids (MODEL_END_IDS_MAX) */
#define SAMPLER_LOGPROBS_MAX 20u

struct sampler_options {                 /* a plain value; pointers are owned by the caller */
    float temperature;                   /* 0: greedy; finite, 0 to SAMPLER_TEMPERATURE_MAX */
    float top_p;                         /* (0, 1); 0 or 1: off */
    uint32_t top_k;                      /* 0: off */
    float min_p;                         /* [0, 1]; 0: off */
    float repetition_penalty;            /* (0, 10]; 0 or 1: off */
    float presence_penalty, frequency_penalty;   /* [-10, 10] */
    uint64_t seed;
    const uint32_t *bias_ids;  const float *bias_values;  uint32_t bias_count;      /* ids distinct */
    const uint32_t *masked;  uint32_t masked_count;       /* never drawn, ascending */
    const uint32_t *end_ids;  uint32_t end_count;         /* end a reply: end ids of the model and stop ids of the request; not drawn
                                                             before tokens_min */
    uint32_t tokens_min;
};

struct sampler_tally;                    /* opaque: which ids a history holds and how often (sampler_tally.h) */

struct sampler_history {                 /* of one choice */
    const uint32_t *ids;                 /* prompt, then reply */
    uint32_t prompt_count, count;        /* count: both together; the new token's absolute position */
    uint32_t choice;
    struct sampler_tally *tally;         /* NULL: penalties count the ids anew each time. Else it belongs to this choice and keeps the counts
                                            between calls, catching up with the ids added; the result is the same */
};

struct sampler;                          /* opaque: scratch for one thread, 28 bytes per id of the vocabulary */

struct sampler_logprobs {
    float chosen;
    uint32_t ids[SAMPLER_LOGPROBS_MAX];  /* the most likely, descending, ties to the lowest id */
    float values[SAMPLER_LOGPROBS_MAX];
    uint32_t count;
};

/* STATUS_INVALID with the field's name: out of range, NaN, an id not below vocab_size, a bias id given twice. */
enum status sampler_check(const struct sampler_options *options, uint32_t vocab_size);

enum status sampler_create(uint32_t vocab_size, struct sampler **out);
void sampler_destroy(struct sampler **sampler);       /* accepts NULL; sets *sampler to NULL */

/* options passed sampler_check. logits (vocab) are read only. STATUS_CORRUPT: one that may be drawn is NaN or infinite.
 * STATUS_INVALID: nothing may be drawn. STATUS_NO_MEMORY: of the tally. */
enum status sampler_pick(struct sampler *sampler, const struct sampler_options *options, const struct sampler_history *history,
                         const float *logits, uint32_t *id);

/* Of `id` and the `alternatives` (0 .. SAMPLER_LOGPROBS_MAX) most likely ids. -INFINITY for an id whose logit is not finite. */
void sampler_logprobs(struct sampler *sampler, const float *logits, uint32_t id, uint32_t alternatives, struct sampler_logprobs *out);

/* The seed of a request that gave none: the first eight bytes, little endian, of BLAKE2b-256("roost seed 1",
 * BLAKE2b-256(tenant), request id, choice 0 as u32 little endian); choices differ by the noise. */
uint64_t sampler_default_seed(const char *tenant, size_t tenant_size, const uint8_t request_id[16], uint32_t choice);

/* The noise alone, for tests. */
float sampler_noise(uint64_t seed, uint32_t choice, uint32_t position, uint32_t id);

#endif
