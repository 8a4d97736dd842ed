/* The trainer's library against the kernels called directly, as the engine calls them: equal bits. Pages here are laid out otherwise than the
 * library does it, each a piece of memory of its own, and hold rubbish behind the last position. */
#include <fenv.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "tests/unit/kernels/reference.h"
#include "worker/train/train_kernels.h"

#define LOG2_E 0x1.715476p+0f
#define ROWS 70u                    /* more than the matrix product works on at a time */
#define COLUMNS_MAX 200u

static const struct kernels *kernels;

static int open_both(void **state)
{
    (void)state;
    const char *isa = train_kernels_open();
    assert_int_equal(kernels_select(&kernels), STATUS_OK);
    assert_non_null(isa);
    assert_string_equal(isa, kernels->isa);
    return 0;
}

static void *grab(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    assert_non_null(memory);
    return memory;
}

static void rows_and_norms(void **state)
{
    (void)state;
    static const size_t columns[] = {1, 16, 64, 127, COLUMNS_MAX};
    static float x[ROWS * COLUMNS_MAX], weight[COLUMNS_MAX], out[ROWS * COLUMNS_MAX], want[ROWS * COLUMNS_MAX], scale[ROWS], want_scale[ROWS];
    static int8_t q[ROWS * COLUMNS_MAX], want_q[ROWS * COLUMNS_MAX];
    struct random random = {1};
    for (unsigned kind = 0; kind < RANDOM_KINDS; kind++)
        for (size_t c = 0; c < sizeof columns / sizeof *columns; c++) {
            const size_t n = columns[c], bytes = ROWS * n * sizeof *out;
            random_row(&random, kind, x, ROWS * n);
            random_row(&random, 0, weight, n);
            assert_true(train_quantize_rows(x, ROWS, n, q, scale));
            assert_true(kernels->quantize_rows(x, ROWS, n, want_q, want_scale));
            assert_memory_equal(q, want_q, ROWS * n);
            assert_memory_equal(scale, want_scale, sizeof scale);

            train_dequantize_rows(q, scale, ROWS, n, out);
            for (size_t r = 0; r < ROWS; r++)
                kernels->dequantize_row(q + r * n, scale[r], n, want + r * n);
            assert_memory_equal(out, want, bytes);

            for (unsigned with = 0; with < 2; with++) {
                struct rmsnorm norm = {.x = x, .weight = with ? weight : NULL, .epsilon = 1e-6f, .rows = ROWS, .columns = n, .out = want};
                assert_true(kernels->rmsnorm_rows(&norm));
                assert_true(train_rmsnorm(x, norm.weight, 1e-6f, ROWS, n, out));
                assert_memory_equal(out, want, bytes);
            }
        }
}

static void linear(void **state)
{
    (void)state;
    static const size_t shapes[][3] = {{1, 1, 1}, {3, 5, 16}, {64, 33, 192}, {ROWS, 100, COLUMNS_MAX}, {200, 7, 65}};
    struct random random = {2};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        const size_t rows = shapes[s][0], outputs = shapes[s][1], depth = shapes[s][2];
        int8_t *q = grab(rows * depth), *w = grab(outputs * depth);
        float *q_scale = grab(rows * sizeof *q_scale), *w_scale = grab(outputs * sizeof *w_scale);
        float *out = grab(rows * outputs * sizeof *out), *want = grab(rows * outputs * sizeof *want);
        for (size_t i = 0; i < rows * depth; i++)
            q[i] = random_int8(&random);
        for (size_t i = 0; i < outputs * depth; i++)
            w[i] = random_int8(&random);
        random_row(&random, 0, q_scale, rows);
        random_row(&random, 0, w_scale, outputs);
        struct gemm_int8 gemm = {.a = q, .a_scale = q_scale, .w = w, .w_scale = w_scale, .rows = rows, .outputs = outputs, .depth = depth,
                                 .out = want, .scratch = grab(GEMM_SCRATCH_BYTES(depth))};
        kernels->gemm_int8(&gemm);
        assert_true(train_linear(q, q_scale, w, w_scale, rows, outputs, depth, out));
        assert_memory_equal(out, want, rows * outputs * sizeof *out);
        free(q), free(w), free(q_scale), free(w_scale), free(out), free(want), free(gemm.scratch);
    }
}

static void rotary_positions(void **state)
{
    (void)state;
    enum { HEADS = 3, COUNT = 130 };
    static const unsigned dims[] = {2, 16, 64, TRAIN_DIM_MAX};
    static float cosine[COUNT * TRAIN_DIM_MAX / 2], sine[COUNT * TRAIN_DIM_MAX / 2], want_cosine[COUNT * TRAIN_DIM_MAX / 2],
        want_sine[COUNT * TRAIN_DIM_MAX / 2], x[COUNT * HEADS * TRAIN_DIM_MAX], want[COUNT * HEADS * TRAIN_DIM_MAX];
    double frequency[TRAIN_DIM_MAX / 2];
    struct random random = {3};
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
        const size_t table = COUNT * dims[d] / 2 * sizeof *cosine, count = (size_t)COUNT * HEADS * dims[d];
        rope_frequencies(&(struct rope){.base = 1e5, .scale = 1, .dim = dims[d], .pairs = dims[d] / 2}, frequency);
        kernels->rope_table(frequency, dims[d] / 2, 0, COUNT, want_cosine, want_sine);
        train_rope_table(1e5, dims[d], COUNT, cosine, sine);
        assert_memory_equal(cosine, want_cosine, table);
        assert_memory_equal(sine, want_sine, table);
        random_row(&random, 0, x, count);
        memcpy(want, x, count * sizeof *x);
        kernels->rope_rows(want, COUNT, HEADS, dims[d], want_cosine, want_sine);
        train_rope_rows(x, COUNT, HEADS, dims[d], cosine, sine);
        assert_memory_equal(x, want, count * sizeof *x);
    }
}

static void gates(void **state)
{
    (void)state;
    enum { COUNT = 1001 };
    static float gate[COUNT], up[COUNT], want[COUNT];
    struct random random = {4};
    for (unsigned kind = 0; kind < RANDOM_KINDS; kind++) {
        random_row(&random, kind, gate, COUNT);
        random_row(&random, 0, up, COUNT);
        memcpy(want, gate, sizeof want);
        kernels->silu_gate(want, up, COUNT);
        train_silu_gate(gate, up, COUNT);
        assert_memory_equal(gate, want, sizeof want);
    }
}

/* ---- attention ---- */

struct sequence {
    struct train_attention job;
    int8_t *q, *k, *v;
    float *q_scale, *k_scale, *v_scale, *want;
};

static void sequence_create(struct sequence *sequence, struct random *random, size_t length, size_t heads, size_t kv_heads, size_t dim, size_t window)
{
    const size_t queries = length * heads, keys = length * kv_heads;
    *sequence = (struct sequence){.q = grab(queries * dim), .k = grab(keys * dim), .v = grab(keys * dim), .q_scale = grab(queries * sizeof(float)),
                                  .k_scale = grab(keys * sizeof(float)), .v_scale = grab(keys * sizeof(float)),
                                  .want = grab(queries * dim * sizeof(float))};
    for (size_t i = 0; i < queries * dim; i++)
        sequence->q[i] = random_int8(random);
    for (size_t i = 0; i < keys * dim; i++) {
        sequence->k[i] = random_int8(random);
        sequence->v[i] = random_int8(random);
    }
    for (size_t i = 0; i < queries; i++)
        sequence->q_scale[i] = 0.02f + random_float(random, 0.015f);
    for (size_t i = 0; i < keys; i++) {
        sequence->k_scale[i] = 0.02f + random_float(random, 0.015f);
        sequence->v_scale[i] = 0.02f + random_float(random, 0.015f);
    }
    sequence->job = (struct train_attention){
        .q = sequence->q, .q_scale = sequence->q_scale, .k = sequence->k, .v = sequence->v, .k_scale = sequence->k_scale,
        .v_scale = sequence->v_scale, .length = length, .heads = heads, .kv_heads = kv_heads, .dim = dim, .window = window,
        .attention_scale = 1 / sqrt((double)dim), .out = grab(queries * dim * sizeof(float))};
}

static void sequence_destroy(struct sequence *sequence)
{
    free(sequence->q), free(sequence->k), free(sequence->v), free(sequence->q_scale), free(sequence->k_scale), free(sequence->v_scale);
    free(sequence->want), free(sequence->job.out);
}

/* A page with the scales first, V before K. */
static char *write_page(const struct train_attention *job, size_t block)
{
    const size_t plane = job->kv_heads * ATTENTION_BLOCK * job->dim, scales = job->kv_heads * ATTENTION_BLOCK * sizeof(float);
    char *page = grab(2 * scales + 2 * plane);
    memset(page, 0x80, 2 * scales + 2 * plane);
    float *v_scale = (float *)page, *k_scale = (float *)(page + scales);
    int8_t *v = (int8_t *)(page + 2 * scales), *k = v + plane;
    for (size_t t = block * ATTENTION_BLOCK; t < job->length && t < (block + 1) * ATTENTION_BLOCK; t++)
        for (size_t h = 0; h < job->kv_heads; h++) {
            const size_t at = h * ATTENTION_BLOCK + t % ATTENTION_BLOCK, from = t * job->kv_heads + h;
            k_scale[at] = job->k_scale[from];
            v_scale[at] = job->v_scale[from];
            memcpy(k + at * job->dim, job->k + from * job->dim, job->dim);
            for (size_t d = 0; d < job->dim; d++)
                v[(h * job->dim + d) * ATTENTION_BLOCK + t % ATTENTION_BLOCK] = job->v[from * job->dim + d];
        }
    return page;
}

/* As the engine decodes: one position after the other. */
static void decode(const struct train_attention *job, float *out)
{
    const size_t count = (job->length + ATTENTION_BLOCK - 1) / ATTENTION_BLOCK, width = job->heads * job->dim;
    const size_t plane = job->kv_heads * ATTENTION_BLOCK * job->dim, scales = job->kv_heads * ATTENTION_BLOCK * sizeof(float);
    void **pages = grab(count * sizeof *pages), *scratch = grab(attention_scratch_bytes(job->heads, job->kv_heads, job->dim));
    for (size_t b = 0; b < count; b++)
        pages[b] = write_page(job, b);
    for (size_t t = 0; t < job->length; t++)
        kernels->attention(&(struct attention){
            .q = job->q + t * width, .q_scale = job->q_scale + t * job->heads, .rows = 1, .start = (uint32_t)t, .heads = job->heads,
            .kv_heads = job->kv_heads, .dim = job->dim, .window = (uint32_t)job->window, .score_scale = (float)job->attention_scale * LOG2_E,
            .pages = pages, .k_offset = 2 * scales + plane, .v_offset = 2 * scales, .k_scale_offset = scales, .v_scale_offset = 0,
            .out = out + t * width, .scratch = scratch});
    for (size_t b = 0; b < count; b++)
        free(pages[b]);
    free(pages), free(scratch);
}

static void attention(void **state)
{
    (void)state;
    static const size_t shapes[][3] = {{4, 1, 32}, {4, 2, 24}, {4, 4, 40}, {1, 1, 16}};        /* heads, KV heads, dim */
    static const size_t lengths[] = {1, 63, 64, 65, 150}, windows[] = {0, 1, 24, 64, 1000};
    struct random random = {5};
    struct sequence sequence;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
            for (size_t w = 0; w < sizeof windows / sizeof *windows; w++) {
                sequence_create(&sequence, &random, lengths[l], shapes[s][0], shapes[s][1], shapes[s][2], windows[w]);
                decode(&sequence.job, sequence.want);
                assert_true(train_attention(&sequence.job));
                assert_memory_equal(sequence.job.out, sequence.want, lengths[l] * shapes[s][0] * shapes[s][2] * sizeof(float));
                sequence_destroy(&sequence);
            }
    sequence_create(&sequence, &random, 1100, 2, 1, 16, 0);         /* over the end of a unit */
    decode(&sequence.job, sequence.want);
    assert_true(train_attention(&sequence.job));
    assert_memory_equal(sequence.job.out, sequence.want, (size_t)1100 * 2 * 16 * sizeof(float));
    sequence_destroy(&sequence);
}

/* ---- what callers may rely on ---- */

static void not_a_number_is_refused(void **state)
{
    (void)state;
    static const float wrong[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        float x[8] = {1, 2, 3, 4, 5, 6, 7, wrong[i]}, out[8], scale[2];
        int8_t q[8];
        assert_false(train_quantize_rows(x, 2, 4, q, scale));
        assert_false(train_rmsnorm(x, NULL, 1e-6f, 2, 4, out));
    }
}

/* The caller's rounding neither reaches a bit nor is it lost. */
static void rounding_of_the_caller(void **state)
{
    (void)state;
    struct random random = {6};
    struct sequence sequence;
    float x[96], up[96], norm[2][96], gate[2][96], scale[2][1], out[2][96], cosine[2][96], sine[2][96], back[2][96];
    int8_t q[2][96];
    random_row(&random, 0, x, 96);
    random_row(&random, 0, up, 96);
    sequence_create(&sequence, &random, 70, 2, 1, 16, 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(fesetround(i ? FE_UPWARD : FE_TONEAREST), 0);
        train_quantize_rows(x, 1, 96, q[i], scale[i]);
        train_dequantize_rows(q[i], scale[i], 1, 96, back[i]);
        train_rmsnorm(x, up, 1e-6f, 1, 96, norm[i]);
        train_linear(q[i], scale[i], q[i], up, 1, 1, 96, out[i]);
        train_rope_table(1e4, 8, 24, cosine[i], sine[i]);
        memcpy(gate[i], x, sizeof x);
        train_rope_rows(gate[i], 24, 1, 4, cosine[i], sine[i]);
        train_silu_gate(gate[i], up, 96);
        train_attention(&sequence.job);
        if (i == 0)
            memcpy(sequence.want, sequence.job.out, (size_t)70 * 2 * 16 * sizeof(float));
        const int rounding = fegetround();
        fesetround(FE_TONEAREST);
        assert_int_equal(rounding, i ? FE_UPWARD : FE_TONEAREST);
    }
    assert_memory_equal(q[0], q[1], sizeof q[0]);
    assert_memory_equal(scale[0], scale[1], sizeof scale[0]);
    assert_memory_equal(back[0], back[1], sizeof back[0]);
    assert_memory_equal(norm[0], norm[1], sizeof norm[0]);
    assert_memory_equal(out[0], out[1], sizeof(float));
    assert_memory_equal(cosine[0], cosine[1], sizeof cosine[0]);
    assert_memory_equal(sine[0], sine[1], sizeof sine[0]);
    assert_memory_equal(gate[0], gate[1], sizeof gate[0]);
    assert_memory_equal(sequence.want, sequence.job.out, (size_t)70 * 2 * 16 * sizeof(float));
    sequence_destroy(&sequence);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_and_norms),
        cmocka_unit_test(linear),
        cmocka_unit_test(rotary_positions),
        cmocka_unit_test(gates),
        cmocka_unit_test(attention),
        cmocka_unit_test(not_a_number_is_refused),
        cmocka_unit_test(rounding_of_the_caller),
    };
    return cmocka_run_group_tests_name("train_kernels", tests, open_both, NULL);
}
