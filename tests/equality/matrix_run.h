/* matrix_run.h - makes a row of the matrix happen in an engine of its own, and digests what came out. */
#ifndef ROOST_TESTS_EQUALITY_MATRIX_RUN_H
#define ROOST_TESTS_EQUALITY_MATRIX_RUN_H
#include <stdint.h>
#include "common/status.h"
#include "tests/equality/matrix.h"

#define MATRIX_CHOICES_MAX 3u
#define MATRIX_CONTEXT 2560u

struct matrix_digest { uint8_t bytes[32]; };    /* over each row of logits with its position, then the tokens, of one choice */

struct matrix_outcome {
    struct matrix_digest choices[MATRIX_CHOICES_MAX];
    uint32_t cached_tokens;
    bool suspended;                              /* some plan suspended the request looked at */
};

/* dir: a model with the shipped tokenizer and a context of MATRIX_CONTEXT. kv_bytes_per_token as the engine's info says. */
enum status matrix_run(const char *dir, uint32_t kv_bytes_per_token, const struct matrix_row *row, struct matrix_outcome *out);

/* The bytes a token takes in both groups, of an engine made for the question. */
enum status matrix_kv_bytes(const char *dir, uint32_t *bytes);

#endif
