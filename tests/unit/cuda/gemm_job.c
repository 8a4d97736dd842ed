#include "gemm_job.h"
#include <math.h>
#include <string.h>

static void *take(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 64) / 64 * 64);
    assert_non_null(p);
    return p;
}

static int8_t *integers(struct random *random, size_t count, int lowest)
{
    int8_t *p = take(count);
    for (size_t i = 0; i < count; i++)
        p[i] = (int8_t)((int)random_below(random, (uint32_t)(128 - lowest)) + lowest);
    return p;
}

static float *floats(struct random *random, size_t count, float spread)
{
    float *p = take(count * sizeof *p);
    for (size_t i = 0; i < count; i++)
        p[i] = random_float(random, spread);
    return p;
}

static size_t out_count(const struct gemm_case *c)
{
    return c->shift + (size_t)(c->rows - 1) * c->stride + c->outputs;
}

struct gemm_case *gemm_case_new(struct random *random, uint32_t rows, uint32_t outputs, uint32_t depth, unsigned options)
{
    struct gemm_case *c = take(sizeof *c);
    *c = (struct gemm_case){.rows = rows, .outputs = outputs, .depth = depth, .stride = outputs, .options = options};
    if (options & GEMM_STRIDE)
        c->stride = (outputs + 3) / 4 * 4 + outputs % 3 * 4;     /* whole quads, though the row may end within one */
    if (options & GEMM_ODD_STRIDE)
        c->stride = outputs + 3;
    c->shift = options & GEMM_UNALIGNED ? 1 : 0;
    c->a = integers(random, (size_t)rows * depth, -127);
    c->a_low = options & GEMM_WIDE ? integers(random, (size_t)rows * depth, -128) : NULL;
    c->w = integers(random, (size_t)outputs * depth, -127);
    c->a_scale = floats(random, rows, 1e-3f);
    c->w_scale = floats(random, outputs, 1e-3f);
    c->bias = options & GEMM_BIAS ? floats(random, outputs, 2.0f) : NULL;
    c->out = floats(random, out_count(c), 3.0f);
    c->logit_cap = options & GEMM_CAP ? 5.0f : 0.0f;
    c->expected = take(out_count(c) * sizeof(float));
    c->row_max = take(rows * sizeof(uint32_t));
    c->raw = take((size_t)rows * outputs * sizeof(int32_t));
    gemm_case_expect(c);
    return c;
}

void gemm_case_drop(struct gemm_case *c)
{
    void *owned[] = {c->a, c->a_low, c->w, c->a_scale, c->w_scale, c->bias, c->out, c->expected, c->row_max, c->raw, c};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        free(owned[i]);
}

static void expect_raw(struct gemm_case *c)
{
    for (uint32_t row = 0; row < c->rows; row++)
        for (uint32_t o = 0; o < c->outputs; o++) {
            const int8_t *a = c->a + (size_t)row * c->depth, *w = c->w + (size_t)o * c->depth;
            int32_t sum = 0;
            for (uint32_t k = 0; k < c->depth; k++)
                sum += a[k] * w[k];
            c->raw[(size_t)row * c->outputs + o] = sum;
        }
}

void gemm_case_expect(struct gemm_case *c)
{
    if (c->options & GEMM_RAW) {
        expect_raw(c);
        return;
    }
    const struct kernels *kernels;
    assert_int_equal(kernels_select(&kernels), STATUS_OK);
    memcpy(c->expected, c->out, out_count(c) * sizeof(float));
    struct gemm_int8 gemm = {.a = c->a, .a_low = c->a_low, .a_scale = c->a_scale, .w = c->w, .w_scale = c->w_scale, .rows = c->rows,
                             .outputs = c->outputs, .depth = c->depth, .out = c->expected + c->shift, .out_stride = c->stride,
                             .accumulate = c->options & GEMM_ACCUMULATE, .scratch = take(GEMM_SCRATCH_BYTES(c->depth))};
    kernels->gemm_int8(&gemm);
    free(gemm.scratch);
    c->bad_row = CUDA_NO_BAD_ROW;
    for (uint32_t row = c->rows; row-- > 0;) {
        float *out = c->expected + c->shift + (size_t)row * c->stride;
        c->row_max[row] = 0;
        for (uint32_t o = 0; o < c->outputs; o++) {
            if (c->bias)
                out[o] = out[o] + c->bias[o];
            if (!isfinite(out[o]))
                c->bad_row = row;
        }
        if (c->logit_cap > 0)
            kernels->softcap(out, c->outputs, c->logit_cap);
        for (uint32_t o = 0; o < c->outputs; o++) {
            uint32_t bits;
            memcpy(&bits, &out[o], sizeof bits);
            bits &= 0x7fffffffu;
            c->row_max[row] = bits > c->row_max[row] ? bits : c->row_max[row];
        }
    }
}

/* ---- on the device ---- */

static void put(struct gemm_case *c)
{
    const size_t bytes = (size_t)c->rows * c->depth;
    int8_t *w = device_put(c->w, (size_t)c->outputs * c->depth), *tiled = device_new(cuda_gemm_tiled_bytes(c->outputs, c->depth));
    launched(cuda_gemm_tile(w, c->outputs, c->depth, tiled, NULL));
    c->job = (struct cuda_gemm){.a = device_put(c->a, bytes),
                                .a_low = device_put(c->a_low, bytes),
                                .w_tiled = tiled,
                                .rows = c->rows,
                                .outputs = c->outputs,
                                .depth = c->depth,
                                .scratch = device_new(CUDA_GEMM_SCRATCH_BYTES)};
    device_drop(w);
    assert_int_equal(cudaMemset(c->job.scratch, 0, CUDA_GEMM_SCRATCH_BYTES), cudaSuccess);
    if (c->options & GEMM_RAW) {
        c->job.raw = device_new((size_t)c->rows * c->outputs * sizeof(int32_t));
        return;
    }
    c->job.a_scale = device_put(c->a_scale, c->rows * sizeof(float));
    c->job.w_scale = device_put(c->w_scale, c->outputs * sizeof(float));
    c->job.bias = device_put(c->bias, c->outputs * sizeof(float));
    c->job.out = (float *)device_new(out_count(c) * sizeof(float)) + c->shift;
    c->job.out_stride = c->stride;
    c->job.accumulate = c->options & GEMM_ACCUMULATE;
    c->job.logit_cap = c->logit_cap;
    c->job.row_max = c->options & GEMM_ROW_MAX ? device_new(c->rows * sizeof(uint32_t)) : NULL;
    c->job.bad_row = c->options & GEMM_BAD_ROW ? device_new(sizeof(uint32_t)) : NULL;
}

static void drop(struct gemm_case *c)
{
    const void *owned[] = {c->job.a, c->job.a_low, c->job.w_tiled, c->job.a_scale, c->job.w_scale, c->job.bias, c->job.row_max, c->job.bad_row,
                           c->job.raw, c->job.scratch, c->job.out ? c->job.out - c->shift : NULL};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        device_drop(owned[i]);
}

/* The outputs as they are before. */
static void begin(const struct gemm_case *c)
{
    if (c->job.raw) {
        assert_int_equal(cudaMemset(c->job.raw, 0x5a, (size_t)c->rows * c->outputs * sizeof(int32_t)), cudaSuccess);
        return;
    }
    assert_int_equal(cudaMemcpy(c->job.out - c->shift, c->out, out_count(c) * sizeof(float), cudaMemcpyHostToDevice), cudaSuccess);
    if (c->job.row_max)
        assert_int_equal(cudaMemset(c->job.row_max, 0, c->rows * sizeof(uint32_t)), cudaSuccess);
    if (c->job.bad_row)
        assert_int_equal(cudaMemset(c->job.bad_row, 0xff, sizeof(uint32_t)), cudaSuccess);
}

static void compare(const struct gemm_case *c, const char *what, size_t at, const void *got, const void *expected)
{
    if (memcmp(got, expected, 4) != 0) {
        uint32_t words[2];
        memcpy(&words[0], got, 4);
        memcpy(&words[1], expected, 4);
        fail_msg("%u x %u x %u, options %u, %s: word %zu is %08x, not %08x", c->rows, c->outputs, c->depth, c->options, what, at, words[0], words[1]);
    }
}

static void check(const struct gemm_case *c, const char *what)
{
    uint32_t bad_row = CUDA_NO_BAD_ROW;
    if (c->job.raw) {
        const size_t count = (size_t)c->rows * c->outputs;
        int32_t *raw = take(count * sizeof *raw);
        device_get(raw, c->job.raw, count * sizeof *raw);
        for (size_t i = 0; i < count; i++)
            compare(c, what, i, &raw[i], &c->raw[i]);
        free(raw);
        return;
    }
    if (c->job.bad_row) {
        device_get(&bad_row, c->job.bad_row, sizeof bad_row);
        compare(c, "bad row", 0, &bad_row, &c->bad_row);
    }
    float *out = take(out_count(c) * sizeof *out);
    uint32_t *row_max = take(c->rows * sizeof *row_max);
    device_get(out, c->job.out - c->shift, out_count(c) * sizeof *out);
    if (c->job.row_max)
        device_get(row_max, c->job.row_max, c->rows * sizeof *row_max);
    for (size_t i = 0; i < out_count(c); i++)                /* and what lies between the rows */
        if (c->bad_row == CUDA_NO_BAD_ROW || i < c->shift || (i - c->shift) / c->stride < c->bad_row || (i - c->shift) % c->stride >= c->outputs)
            compare(c, what, i, &out[i], &c->expected[i]);
    for (uint32_t row = 0; c->job.row_max && row < c->rows && row < c->bad_row; row++)
        compare(c, "row maximum", row, &row_max[row], &c->row_max[row]);
    free(out);
    free(row_max);
}

static void check_scratch(const struct gemm_case *c)
{
    static unsigned char scratch[CUDA_GEMM_SCRATCH_BYTES], zeros[CUDA_GEMM_SCRATCH_BYTES];
    device_get(scratch, c->job.scratch, sizeof scratch);
    assert_memory_equal(scratch, zeros, sizeof zeros);
}

static void run_one(const struct gemm_case *c, gemm_run_fn *run, const void *how, const char *what)
{
    begin(c);
    launched(run(&c->job, how));
    check(c, what);
}

void gemm_case_check(struct gemm_case *c, gemm_run_fn *run, const void *how, const char *what)
{
    put(c);
    run_one(c, run, how, what);
    drop(c);
}

static bool run_large(const struct cuda_gemm *job, const void *how)
{
    struct gemm_work work;
    return gemm_prepare(job, &work) && gemm_large_run(&work, *(const unsigned *)how, NULL);
}

static bool run_small(const struct cuda_gemm *job, const void *how)
{
    struct gemm_work work;
    return gemm_prepare(job, &work) && gemm_small_run(&work, *(const struct gemm_small_cut *)how, NULL);
}

static bool run_chosen(const struct cuda_gemm *job, const void *how)
{
    (void)how;
    return cuda_gemm_int8(job, NULL);
}

static void all_large(const struct gemm_case *c)
{
    static const char *const names[GEMM_LARGE_CUTS] = {"64 x 128", "128 x 128", "128 x 256"};
    for (unsigned cut = 0; cut < GEMM_LARGE_CUTS; cut++)
        run_one(c, run_large, &cut, names[cut]);
}

static void all_small(const struct gemm_case *c)
{
    static const uint32_t splits[] = {1, 2, 3, 7};
    static const char *const names[GEMM_SMALL_CUTS] = {"8 columns", "16 columns", "32 columns", "64 columns", "128 columns"};
    const uint32_t columns = c->a_low ? 2 * c->rows : c->rows;
    for (unsigned cut = 0; cut < GEMM_SMALL_CUTS && 8u << cut <= 4 * columns + 8; cut++)       /* those that fit, and the next one */
        for (size_t s = 0; s < sizeof splits / sizeof *splits && columns <= 8u << cut; s++) {
            struct gemm_small_cut how = {cut, splits[s]};
            run_one(c, run_small, &how, names[cut]);
        }
    check_scratch(c);
}

void gemm_case_check_large(struct gemm_case *c)
{
    put(c);
    all_large(c);
    drop(c);
}

void gemm_case_check_small(struct gemm_case *c)
{
    put(c);
    all_small(c);
    drop(c);
}

void gemm_case_check_all(struct gemm_case *c)
{
    put(c);
    if (c->rows <= CUDA_GEMM_ROWS_SMALL)
        all_small(c);
    all_large(c);
    run_one(c, run_chosen, NULL, "chosen");
    drop(c);
}
