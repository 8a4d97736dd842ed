/* bench-kernels.c - how fast one core runs the operations of docs/numerics.md, on every instruction-set level.
 *
 *     bench-kernels [--width N] [--rows N] [--context N]
 *
 * Products: rows of N integers times N x N weights, narrow and wide, as in prefill (--rows) and in decode (one row). Attention: 8 query
 * heads over one KV head, heads of 128 and 256, at the end of --context positions. Rows: floats to integers. Times are processor time
 * of the thread, the best of REPEATS. Products and attention are in 1e9 multiplications and additions a second (of one key both
 * that with K and that with V count), rows in elements a nanosecond. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "kernels/kernels.h"
#include "tests/bench/bench.h"

#define REPEATS 7
#define SECONDS_MIN 0.02         /* of one repeat */
#define HEADS 8u
#define DIM_MAX 256u

struct bench {
    const struct kernels *kernels;
    uint32_t width, rows, context;
    int8_t *a, *a_low, *w;       /* (rows, width), (rows, width), (width, width) */
    float *x, *out;              /* (rows, width or HEADS * DIM_MAX) */
    float *scale;                /* (width or rows * HEADS) */
    void **pages;                /* all of them the same page */
    void *scratch;
};

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static double multiply(struct bench *bench, uint32_t rows, bool wide)
{
    struct gemm_int8 gemm = {.a = bench->a, .a_low = wide ? bench->a_low : NULL, .a_scale = bench->scale, .w = bench->w,
                             .w_scale = bench->scale, .rows = rows, .outputs = bench->width, .depth = bench->width,
                             .out = bench->out, .scratch = bench->scratch};
    bench->kernels->gemm_int8(&gemm);
    return (double)rows * bench->width * bench->width;
}

static double gemm_narrow(struct bench *bench)
{
    return multiply(bench, bench->rows, false);
}

static double gemm_wide(struct bench *bench)
{
    return multiply(bench, bench->rows, true);
}

static double decode_narrow(struct bench *bench)
{
    return multiply(bench, 1, false);
}

static double decode_wide(struct bench *bench)
{
    return multiply(bench, 1, true);
}

static double attend(struct bench *bench, uint32_t rows, size_t dim)
{
    size_t plane = ATTENTION_BLOCK * dim;
    struct attention attention = {
        .q = bench->a, .q_scale = bench->scale, .rows = rows, .heads = HEADS, .kv_heads = 1, .dim = dim, .start = bench->context - rows,
        .score_scale = 0.01f, .pages = bench->pages, .v_offset = plane, .k_scale_offset = 2 * plane,
        .v_scale_offset = 2 * plane + ATTENTION_BLOCK * sizeof(float), .out = bench->out, .scratch = bench->scratch};
    float *scale = (float *)((char *)bench->pages[0] + 2 * plane);
    for (size_t i = 0; i < 2 * ATTENTION_BLOCK; i++)
        scale[i] = 0.01f + 1e-4f * (float)i;
    bench->kernels->attention(&attention);
    return 2.0 * HEADS * (double)dim * rows * (bench->context - 0.5 * (rows - 1));
}

static double attend_rows_128(struct bench *bench)
{
    return attend(bench, bench->rows, 128);
}

static double attend_rows_256(struct bench *bench)
{
    return attend(bench, bench->rows, 256);
}

static double attend_one_128(struct bench *bench)
{
    return attend(bench, 1, 128);
}

static double attend_one_256(struct bench *bench)
{
    return attend(bench, 1, 256);
}

static double elements(const struct bench *bench)
{
    return (double)bench->rows * bench->width;
}

static double quantize(struct bench *bench)
{
    bench->kernels->quantize_rows(bench->x, bench->rows, bench->width, bench->a, bench->scale);
    return elements(bench);
}

static double quantize_wide(struct bench *bench)
{
    bench->kernels->quantize_wide_rows(bench->x, bench->rows, bench->width, bench->a, bench->a_low, bench->scale);
    return elements(bench);
}

static double rotate(struct bench *bench)
{
    bench->kernels->rotate_rows(bench->x, bench->rows, bench->width, bench->out);
    return elements(bench);
}

static double norm(struct bench *bench)
{
    struct rmsnorm job = {.x = bench->x, .weight = bench->x, .epsilon = 1e-6f, .rows = bench->rows, .columns = bench->width,
                          .out = bench->out};
    bench->kernels->rmsnorm_rows(&job);
    return elements(bench);
}

static const struct {
    const char *name;
    double (*run)(struct bench *bench);   /* returns the work done */
} cases_[] = {
    {"product", gemm_narrow}, {"product_wide", gemm_wide}, {"product_one_row", decode_narrow}, {"product_one_row_wide", decode_wide},
    {"attention_128", attend_rows_128}, {"attention_256", attend_rows_256}, {"attention_one_row_128", attend_one_128},
    {"attention_one_row_256", attend_one_256}, {"dynamic_rows", quantize}, {"wide_rows", quantize_wide}, {"rotation", rotate},
    {"norm", norm},
};

/* 1e9 units of work a second. */
static double measure(struct bench *bench, double (*run)(struct bench *bench))
{
    double best = 0;
    for (int i = 0; i < REPEATS; i++) {
        double begin = now(), seconds, work = 0;
        do
            work += run(bench);
        while ((seconds = now() - begin) < SECONDS_MIN);
        best = work / seconds > best ? work / seconds : best;
    }
    return 1e-9 * best;
}

static void *memory(size_t bytes)
{
    void *at = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!at) {
        fprintf(stderr, "bench-kernels: no memory for %zu bytes\n", bytes);
        exit(1);
    }
    uint32_t random = 1;
    for (size_t i = 0; i < bytes; i++) {
        random = random * 1664525u + 1013904223u;
        ((int8_t *)at)[i] = (int8_t)((int)(random >> 24) % 255 - 127);
    }
    return at;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void create(struct bench *bench)
{
    size_t widest = larger(bench->width, HEADS * DIM_MAX), count = bench->rows * widest, pages = (bench->context + 63) / 64;
    bench->a = memory(count);
    bench->a_low = memory(count);
    bench->w = memory((size_t)bench->width * bench->width);
    bench->x = memory(count * sizeof *bench->x);
    bench->out = memory(count * sizeof *bench->out);
    bench->scale = memory(larger(bench->width, bench->rows * HEADS) * sizeof *bench->scale);
    bench->scratch = memory(larger(GEMM_SCRATCH_BYTES(bench->width), attention_scratch_bytes(HEADS, 1, DIM_MAX)));
    bench->pages = memory(pages * sizeof *bench->pages);
    bench->pages[0] = memory(2 * ATTENTION_BLOCK * (DIM_MAX + sizeof(float)));
    for (size_t p = 1; p < pages; p++)
        bench->pages[p] = bench->pages[0];
    for (size_t i = 0; i < count; i++)
        bench->x[i] = (float)bench->a[i] * 0.01f;
    for (size_t i = 0; i < larger(bench->width, bench->rows * HEADS); i++)
        bench->scale[i] = 0.01f;
}

static void destroy(struct bench *bench)
{
    free(bench->pages[0]);
    free(bench->a), free(bench->a_low), free(bench->w), free(bench->x), free(bench->out), free(bench->scale);
    free(bench->scratch), free(bench->pages);
}

int main(int argc, char **argv)
{
    struct bench bench = {.width = 2048, .rows = 64, .context = 2048};
    const struct bench_options options = {"bench-kernels", "[--width N] [--rows N] [--context N]"};
    const struct bench_flag flags[] = {{"--width", &bench.width, 128, GEMM_DEPTH_MAX}, {"--rows", &bench.rows, 1, 1024},
                                       {"--context", &bench.context, 1024, 1u << 20}, {NULL, NULL, 0, 0}};
    (void)bench_arguments(&options, argc, argv, flags);
    bench.width = bench.width / QUANTIZE_ROTATE_BLOCK * QUANTIZE_ROTATE_BLOCK;
    create(&bench);
    char *json = NULL;
    size_t json_size;
    FILE *out = open_memstream(&json, &json_size);
    if (!out)
        return 1;
    bench_json_begin(out, &options, argc, argv);
    fputs(",\"levels\":[", out);
    printf("%u rows, width %u, context %u\n%-24s", bench.rows, bench.width, bench.context, "");
    for (unsigned level = 0; (bench.kernels = kernels_at(level)); level++) {
        printf(" %11s", bench.kernels->isa);
        fprintf(out, "%s\"%s\"", level ? "," : "", bench.kernels->isa);
    }
    fputs("]", out);
    for (size_t i = 0; i < sizeof cases_ / sizeof *cases_; i++) {
        printf("\n%-24s", cases_[i].name);
        fprintf(out, ",\"%s\":[", cases_[i].name);
        for (unsigned level = 0; (bench.kernels = kernels_at(level)); level++) {
            double rate = measure(&bench, cases_[i].run);
            printf(" %11.2f", rate);
            fprintf(out, "%s%.3g", level ? "," : "", rate);
        }
        fputs("]", out);
    }
    fclose(out);
    printf("\n%s}\n", json);
    free(json);
    destroy(&bench);
    return 0;
}
