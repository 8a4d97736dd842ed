/* random_model.h - writes a model directory with random weights, for tests. The same description gives the same bytes on
 * every machine (integers and IEEE operations only). Scores are spread so that attention is neither flat nor one-hot.
 *
 *     struct random_model shape = random_model_small();
 *     char dir[RANDOM_MODEL_PATH_MAX];
 *     assert_int_equal(random_model_create(&shape, dir), STATUS_OK);   // a fresh folder under $TMPDIR or /tmp
 *     ...
 *     random_model_remove(dir); */
#ifndef ROOST_TESTS_RANDOM_MODEL_H
#define ROOST_TESTS_RANDOM_MODEL_H
#include <stdbool.h>
#include <stdint.h>
#include "common/status.h"

#define RANDOM_MODEL_PATH_MAX 512

struct random_model {
    uint64_t seed;
    uint32_t vocab_size, hidden_size, intermediate_size;
    uint32_t head_count, kv_head_count, head_dim;
    uint32_t context_tokens, window;
    const char *layers;            /* one letter a layer: L sliding_attention, G full_attention */
    const unsigned *kv_producer;   /* (layers), or NULL: every layer its own */
    const char *activation;        /* "silu" or "gelu_pytorch_tanh" */
    bool tokenizer;                /* also copies deploy/models/folio/tokenizer.model (vocab_size must be 4096 then) */
};

/* MQA, 4 heads of 32, LLGLLG, shared KV (0,0,2,3,3,2), window 24, vocabulary 512, context 2048, silu. */
struct random_model random_model_small(void);

/* Writes config.json, model.safetensors and perhaps tokenizer.model into dir, which exists. */
enum status random_model_write(const struct random_model *shape, const char *dir);

/* Makes a fresh folder, writes into it and puts its path into dir. */
enum status random_model_create(const struct random_model *shape, char dir[RANDOM_MODEL_PATH_MAX]);
void random_model_remove(const char *dir);   /* the three files, known_answer.json and the folder */

#endif
