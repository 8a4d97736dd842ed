/* matrix.h - the equality matrix: in how many ways a reply can come about, and rows that cover every pair of them.
 *
 * An axis is one of these ways (batch, chunk, state of the cache, ...); a row has one value of each. All rows that agree in what may
 * change a reply (recipe, prompt, sampling) must give the same tokens and the same bits of logits. */
#ifndef ROOST_TESTS_EQUALITY_MATRIX_H
#define ROOST_TESTS_EQUALITY_MATRIX_H
#include <stdbool.h>
#include <stdint.h>

enum matrix_axis {
    MATRIX_BATCH,          /* alone, or in a batch of 2, 7, 32 with strangers */
    MATRIX_CHUNK,          /* prefill chunks of 1, 17, 64, 256 tokens, or whole */
    MATRIX_STATE,          /* of the cache when the request comes: enum matrix_state */
    MATRIX_THREADS,        /* 1, 2 */
    MATRIX_CHOICES,        /* n: 1, 3 */
    MATRIX_DEPTH,          /* early exit on, off */
    MATRIX_PROMPT,         /* a few pages; beyond two units of 1,024 */
    MATRIX_SAMPLING,       /* greedy, sampled */
    MATRIX_RECIPE,         /* activation schemes: enum random_recipe */
    MATRIX_RESUME,         /* undisturbed; or its worker is lost in the middle, and another one goes on */
    MATRIX_AXES,
};

enum matrix_state {
    MATRIX_COLD,
    MATRIX_CACHED,         /* all but the last token is there */
    MATRIX_INSIDE,         /* the match ends inside a page */
    MATRIX_HOST,           /* what is there lies in the host tier */
    MATRIX_EVICTED,        /* it was there, and had to go */
    MATRIX_PREEMPTED,      /* suspended while it decodes, its pages to the host tier */
    MATRIX_RECOMPUTED,     /* suspended without a host tier: computed again */
    MATRIX_STATES,
};

struct matrix_row { uint8_t value[MATRIX_AXES]; };      /* an index into the axis' values */

extern const uint32_t matrix_axis_size[MATRIX_AXES];
extern const char *const matrix_state_names[MATRIX_STATES];
uint32_t matrix_batch(const struct matrix_row *row);
uint32_t matrix_chunk(const struct matrix_row *row, uint32_t whole);
uint32_t matrix_choices(const struct matrix_row *row);

/* Rows that hold every pair of values of two axes at least once; greedy, the same rows for a seed on every machine. Returns how many;
 * *rows is the caller's to free. */
uint32_t matrix_pairwise(uint64_t seed, struct matrix_row **rows);

/* The number-th row of the full product over all axes but prompt, recipe and resume, which stay 0; false behind the last. */
bool matrix_product(uint32_t number, struct matrix_row *row);

#endif
