/* backend_simulate.h - a backend without weights, for many workers on one small machine: a real engine (scheduler, KV cache, sampler,
 * stop strings) over pages that hold hashes, in the time that a profile says, with almost no CPU. `roost-worker --simulate PROFILE`.
 *
 * The KV of a position is a running hash of all tokens up to it, one 8-byte value in each group's page. Logits are a function of values
 * read back from the pages: the position's own, one at a drawn earlier position (group 0) and one within the window (group 1). So
 * they are a pure function of (ids so far, seed), whatever the cache, the chunks and the neighbours did, and a page that was lost or
 * mixed up changes them. A row that was never written is STATUS_CORRUPT.
 *
 * A row of logits is 0 but for SIMULATE_PROPOSALS ids between 64 and 67, so that greedy, temperature, top-k, penalties and biases all have
 * something to choose from. They are whole words of the vocabulary, mostly: its first eighth (control and byte pieces) and its last
 * thirty-second part are never proposed. Once in `reply` positions, where the hash says so, the end id alone is likely: replies end by
 * themselves after `reply` tokens on average (geometrically: of mean 200, half are longer than 140).
 *
 * A step takes step_us + prefill_us * (prompt tokens) + decode_us * (sequences that decode), times the factor of backend_simulate_slow, of
 * which what is left after the hashes is slept.
 *
 * PROFILE is a built-in name, then overrides: "fast", "gpu,seed=7", "fast,step_us=2000,poison=4000". Whole numbers:
 *   step_us, prefill_us, decode_us   the times above; up to 60 s, 1 s and 1 s
 *   context      tokens of a conversation, BACKEND_PAGE_TOKENS to MODEL_CONTEXT_MAX; 0: as config.json says
 *   kv_tokens    tokens in conversations of full context that the device tier keeps, instead of the engine's kv_bytes; 0: kv_bytes
 *   reply        mean length of a reply; 0: only limits and stop strings end it
 *   seed         another one is another model; only workers of one seed (and reply, config.json, tokenizer) have the same numerics id
 *   poison       an id; computing it aborts the process. Not proposed if it is in the last thirty-second part of the vocabulary
 *
 *   name   step_us  prefill_us  decode_us  kv_tokens  made for
 *   fast       500           2         10    262,144  tests: 64 sequences get some 900 tokens a second each
 *   gpu      8,000          40        100    400,000  an 8 billion parameter model on one 80 GB accelerator. 16 GB of bfloat16 weights at 2 TB/s
 *                                                      is a step of 8 ms; 16 GFLOP a token at 400 TFLOP/s are 40 us; 128 KiB of KV a token, at
 *                                                      1,600 tokens of context, are 210 MB, 100 us; (80 - 16 - 12) GB / 128 KiB are 400,000 */
#ifndef ROOST_WORKER_ENGINE_BACKEND_SIMULATE_H
#define ROOST_WORKER_ENGINE_BACKEND_SIMULATE_H
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"
#include "worker/engine/backend/backend.h"

#define SIMULATE_PROPOSALS 8u
#define SIMULATE_NO_POISON UINT64_MAX
#define SIMULATE_FACTOR_MAX 1e6

struct simulate_profile {            /* a plain value */
    uint64_t step_us, prefill_us, decode_us;
    uint64_t context, kv_tokens, reply, seed;
    uint64_t poison;                 /* SIMULATE_NO_POISON: none */
};

/* STATUS_INVALID with the part that is wrong and what would be right. */
enum status simulate_profile_parse(const char *text, struct simulate_profile *out);

/* What the tokens depend on, for the model's digest (model_load_shape): seed and reply. */
#define SIMULATE_IDENTITY_BYTES 32u
void simulate_profile_identity(const struct simulate_profile *profile, uint8_t out[SIMULATE_IDENTITY_BYTES]);

/* What a step with this batch takes, at factor 1. A run of one token with logits decodes; the tokens of others are of prompts. */
uint64_t simulate_step_us(const struct simulate_profile *profile, const struct backend_batch *batch);

/* Every step of this process takes `factor` times as long from now on, the running one too (within 50 ms): 0 (no time at all) to
 * SIMULATE_FACTOR_MAX (hung), 1 at start. STATUS_INVALID: another number. From any thread. */
enum status backend_simulate_slow(double factor);
double backend_simulate_factor(void);

extern const struct backend_ops backend_simulate_ops;   /* wants backend_config.simulate */

#endif
