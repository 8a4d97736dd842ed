/* known_answer.c - every operation once on a fixed vector; the digest of all results is part of the specification. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/kernels.h"

#define KNOWN_ANSWER 0x573776801b0d6bd9u   /* FNV-1a 64 over all outputs; docs/numerics.md, section 10 */

enum { ROWS = 5, WIDTH = 200, OUTPUTS = 7, HEADS = 3, DIM = 36, PAGES = 18, START = 1090 };
enum { WINDOW = 77, SINKS = 70 };                       /* pages 2 to 14 are then seen by no row */
enum { ROTATED = ROWS * WIDTH / QUANTIZE_ROTATE_BLOCK * QUANTIZE_ROTATE_BLOCK };

struct vector {
    uint64_t random, digest;
    float x[ROWS * WIDTH], up[ROWS * WIDTH], norm[WIDTH], scale[ROWS * HEADS], w_scale[OUTPUTS];
    int8_t q[ROWS * WIDTH], low[ROWS * WIDTH], w[OUTPUTS * WIDTH];
    float out[ROWS * WIDTH], product[ROWS * OUTPUTS], cosine[ROWS * DIM], sine[ROWS * DIM];
    double frequency[DIM];
    struct page {
        float k_scale[ATTENTION_BLOCK], v_scale[ATTENTION_BLOCK];
        int8_t k[ATTENTION_BLOCK * DIM], v[ATTENTION_BLOCK * DIM];
    } page[PAGES];
};

static uint32_t next(struct vector *vector)
{
    vector->random = vector->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(vector->random >> 32);
}

static float next_float(struct vector *vector, float spread)
{
    return ((float)(next(vector) >> 8) * 0x1p-23f - 1.0f) * spread;
}

static void absorb(struct vector *vector, const void *data, size_t size)
{
    const uint8_t *bytes = data;
    for (size_t i = 0; i < size; i++)
        vector->digest = (vector->digest ^ bytes[i]) * 0x100000001b3u;
}

static void fill(struct vector *vector)
{
    vector->random = 1;
    vector->digest = 0xcbf29ce484222325u;
    for (size_t i = 0; i < ROWS * WIDTH; i++) {
        vector->x[i] = next_float(vector, 4.0f);
        vector->up[i] = next_float(vector, 2.0f);
    }
    for (size_t i = 0; i < WIDTH; i++)
        vector->norm[i] = 1.0f + next_float(vector, 0.5f);
    for (size_t i = 0; i < OUTPUTS * WIDTH; i++)
        vector->w[i] = (int8_t)((int)(next(vector) % 255u) - 127);
    for (size_t i = 0; i < OUTPUTS; i++)
        vector->w_scale[i] = 0.01f + next_float(vector, 0.005f);
    for (size_t p = 0; p < PAGES; p++) {
        struct page *page = &vector->page[p];
        for (size_t i = 0; i < ATTENTION_BLOCK; i++) {
            page->k_scale[i] = 0.03f + next_float(vector, 0.02f);
            page->v_scale[i] = 0.03f + next_float(vector, 0.02f);
        }
        for (size_t i = 0; i < ATTENTION_BLOCK * DIM; i++) {
            page->k[i] = (int8_t)((int)(next(vector) % 255u) - 127);
            page->v[i] = (int8_t)((int)(next(vector) % 255u) - 127);
        }
    }
}

static bool run_norm(const struct kernels *kernels, struct vector *vector)
{
    struct rmsnorm norm = {.x = vector->x, .epsilon = 1e-6f, .rows = ROWS, .columns = WIDTH, .out = vector->out};
    bool good = kernels->rmsnorm_rows(&norm);
    absorb(vector, vector->out, sizeof vector->out);
    norm.weight = vector->norm;
    good = kernels->rmsnorm_rows(&norm) && good;
    absorb(vector, vector->out, sizeof vector->out);
    return good;
}

/* Of the normed rows in vector->out. */
static bool run_linear(const struct kernels *kernels, struct vector *vector, void *scratch)
{
    struct gemm_int8 gemm = {.a = vector->q, .a_scale = vector->scale, .w = vector->w, .w_scale = vector->w_scale, .rows = ROWS,
                             .outputs = OUTPUTS, .depth = WIDTH, .out = vector->product, .scratch = scratch};
    bool good = kernels->quantize_rows(vector->out, ROWS, WIDTH, vector->q, vector->scale);
    absorb(vector, vector->q, sizeof vector->q);
    absorb(vector, vector->scale, ROWS * sizeof(float));
    kernels->gemm_int8(&gemm);
    gemm.accumulate = true;
    kernels->gemm_int8(&gemm);

    good = kernels->quantize_wide_rows(vector->out, ROWS, WIDTH, vector->q, vector->low, vector->scale) && good;
    absorb(vector, vector->q, sizeof vector->q);
    absorb(vector, vector->low, sizeof vector->low);
    absorb(vector, vector->scale, ROWS * sizeof(float));
    gemm.a_low = vector->low;
    kernels->gemm_int8(&gemm);
    absorb(vector, vector->product, sizeof vector->product);

    good = kernels->quantize_static_rows(vector->out, ROWS, WIDTH, 50.0f, vector->q) && good;
    absorb(vector, vector->q, sizeof vector->q);
    kernels->rotate_rows(vector->out, 1, ROTATED, vector->out);
    absorb(vector, vector->out, sizeof vector->out);
    kernels->dequantize_row(vector->w, vector->w_scale[0], WIDTH, vector->out);
    absorb(vector, vector->out, WIDTH * sizeof(float));
    return good;
}

static void run_activations(const struct kernels *kernels, struct vector *vector)
{
    memcpy(vector->out, vector->x, sizeof vector->x);
    kernels->silu_gate(vector->out, vector->up, ROWS * WIDTH);
    absorb(vector, vector->out, sizeof vector->out);
    memcpy(vector->out, vector->x, sizeof vector->x);
    kernels->gelu_tanh_gate(vector->out, vector->up, ROWS * WIDTH);
    absorb(vector, vector->out, sizeof vector->out);
    memcpy(vector->out, vector->x, sizeof vector->x);
    kernels->softcap(vector->out, ROWS * WIDTH, 3.0f);
    absorb(vector, vector->out, sizeof vector->out);
}

/* Leaves quantised queries in vector->q and vector->scale. */
static bool run_rotation(const struct kernels *kernels, struct vector *vector)
{
    struct rope rope = {.base = 10000.0, .scale = 1.0, .dim = DIM, .pairs = DIM / 2};
    for (int pass = 0; pass < 2; pass++) {
        rope_frequencies(&rope, vector->frequency);
        kernels->rope_table(vector->frequency, DIM / 2, START, ROWS, vector->cosine, vector->sine);
        absorb(vector, vector->cosine, ROWS * DIM / 2 * sizeof(float));
        absorb(vector, vector->sine, ROWS * DIM / 2 * sizeof(float));
        kernels->rope_rows(vector->x, ROWS, HEADS, DIM, vector->cosine, vector->sine);
        absorb(vector, vector->x, ROWS * HEADS * DIM * sizeof(float));
        rope.scale = 8.0;
        rope.pairs = DIM / 8;
    }
    bool good = kernels->quantize_rows(vector->x, ROWS * HEADS, DIM, vector->q, vector->scale);
    absorb(vector, vector->q, ROWS * HEADS * DIM);
    return good;
}

static bool run_attention(const struct kernels *kernels, struct vector *vector, void *scratch)
{
    void *pages[PAGES];
    for (size_t p = 0; p < PAGES; p++)
        pages[p] = &vector->page[p];
    struct attention attention = {
        .q = vector->q, .q_scale = vector->scale, .rows = ROWS, .heads = HEADS, .kv_heads = 1, .dim = DIM, .start = START,
        .score_scale = 0.125f, .pages = pages, .k_offset = offsetof(struct page, k), .v_offset = offsetof(struct page, v),
        .k_scale_offset = offsetof(struct page, k_scale), .v_scale_offset = offsetof(struct page, v_scale),
        .out = vector->out, .scratch = scratch};
    kernels->attention(&attention);
    absorb(vector, vector->out, ROWS * HEADS * DIM * sizeof(float));
    attention.window = WINDOW;
    kernels->attention(&attention);
    absorb(vector, vector->out, ROWS * HEADS * DIM * sizeof(float));
    attention.sinks = SINKS;
    for (size_t p = (SINKS + ATTENTION_BLOCK - 1) / ATTENTION_BLOCK; p < (START - WINDOW) / ATTENTION_BLOCK; p++)
        pages[p] = NULL;
    kernels->attention(&attention);
    absorb(vector, vector->out, ROWS * HEADS * DIM * sizeof(float));
    return kernels->all_finite(vector->out, ROWS * HEADS * DIM);
}

static bool run_all(const struct kernels *kernels, struct vector *vector, void *scratch)
{
    bool good = run_norm(kernels, vector);
    good = run_linear(kernels, vector, scratch) && good;
    run_activations(kernels, vector);
    good = run_rotation(kernels, vector) && good;
    return run_attention(kernels, vector, scratch) && good;
}

enum status kernels_check(const struct kernels *kernels)
{
    size_t scratch_bytes = attention_scratch_bytes(HEADS, 1, DIM);
    scratch_bytes = scratch_bytes > GEMM_SCRATCH_BYTES(WIDTH) ? scratch_bytes : GEMM_SCRATCH_BYTES(WIDTH);
    struct vector *vector = calloc(1, sizeof *vector);
    void *scratch = aligned_alloc(64, (scratch_bytes + 63) / 64 * 64);
    enum status st = STATUS_OK;
    if (!vector || !scratch) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "kernels: no memory for the known-answer vector");
        goto done;
    }
    fill(vector);
    fenv_t saved;
    kernels_float_enter(&saved);
    bool good = run_all(kernels, vector, scratch);
    kernels_float_leave(&saved);
    if (!good || vector->digest != KNOWN_ANSWER)
        st = STATUS_FAIL(STATUS_CORRUPT, "kernels: level %s answers %016llx, not %016llx", kernels->isa,
                         (unsigned long long)vector->digest, (unsigned long long)KNOWN_ANSWER);
done:
    free(scratch);
    free(vector);
    return st;
}
