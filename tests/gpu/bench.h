/* bench.h - benchmarks on a GPU: what every case uses. One thread, one device, one stream.
 *
 * A case works out what it reads, multiplies and is expected to take, and adds a result. Without a device (`dry`) that is all it does; else it
 * makes its buffers, which live until bench_release, and is timed. A case that fails is a result without a time and with words, and counts. */
#ifndef ROOST_TESTS_GPU_BENCH_H
#define ROOST_TESTS_GPU_BENCH_H
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "kernels/cuda/kernels_cuda.h"
#include "kernels/cuda/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

struct bench_rates {               /* what expectations are worked out from; docs/performance/gpu.md says where each comes from */
    double read_gbs;               /* a copy's share of the memory's rate */
    double clock_ghz;
    double products;               /* of mma.sync, int8, a multiprocessor and cycle */
    uint32_t multiprocessors;
};

struct bench_result {
    const char *group;
    char name[96];
    double microseconds;           /* median; NAN: not measured */
    double bytes, ops;             /* that the task needs at least: read and written, multiplied and added; 0: not counted */
    double expected;               /* microseconds; NAN: none */
    const char *peer;              /* NULL: none */
    double peer_microseconds;      /* NAN: not there */
    char note[160];
};

struct bench {
    bool dry, tiny;                /* tiny: shapes for the emulator, one repeat */
    uint32_t repeats;
    char device[256];
    int driver, runtime;           /* versions, 1000 * major + 10 * minor */
    uint32_t multiprocessors;
    size_t l2_bytes, memory_bytes;
    double read_gbs, mma_tops;     /* ceilings, measured; NAN before */
    struct bench_rates rates;
    const char *torch_file;        /* lines "name microseconds"; NULL: none */
    cudaStream_t stream;
    struct bench_result *results;  /* owned */
    uint32_t result_count, result_capacity;
    uint32_t failures;
    void **owned;                  /* device memory, until bench_release */
    uint32_t owned_count, owned_capacity;
    unsigned char *pattern;        /* owned: BENCH_PATTERN random bytes */
};
#define BENCH_PATTERN ((size_t)1 << 20)

/* ---- bench_time.c ---- */

bool bench_open(struct bench *bench);                        /* false: no device */
void bench_close(struct bench *bench);
void *bench_new(struct bench *bench, size_t bytes);          /* device memory; NULL: none, noted */
void *bench_put(struct bench *bench, const void *from, size_t bytes);
void *bench_bytes(struct bench *bench, size_t bytes);        /* random ones, never -128 */
float *bench_floats(struct bench *bench, size_t count, float low, float high);
void *bench_repeat(struct bench *bench, const void *piece, size_t bytes, size_t count);      /* count times the piece */
void bench_release(struct bench *bench);
/* How many copies of so many bytes are gone from the L2 cache before they come round again. */
uint32_t bench_copies(const struct bench *bench, size_t bytes);

/* Puts the work on the stream, for the turn-th time. */
typedef bool bench_launch_fn(void *user, uint32_t turn, cudaStream_t stream);
/* Microseconds of one launch: the median over repeats of a graph of many. NAN: refused, noted. */
double bench_time(struct bench *bench, bench_launch_fn *launch, void *user);
double bench_median(double *values, uint32_t count);         /* sorts them */
double bench_clock(void);                                    /* microseconds of the host's clock */

/* ---- bench_report.c ---- */

struct bench_result *bench_add(struct bench *bench, const char *group, double bytes, double ops, double expected, const char *format, ...)
    __attribute__((format(printf, 6, 7)));                   /* lives until the next one is added */
void bench_fail(struct bench *bench, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool bench_write(const struct bench *bench, const char *checks_file, const char *dir);       /* gpu-NAME.json and gpu-NAME.md */
void bench_name(const struct bench *bench, char *name, size_t size);                         /* "nvidia-h200" */
void bench_print_tables(const struct bench *bench, void *file);                              /* FILE *: Markdown */

/* ---- bench_expect.c ---- */

bool bench_rates_of(const char *device, struct bench_rates *rates);                          /* false: not a known one */
double bench_expect_bytes(const struct bench_rates *rates, double bytes);
double bench_expect_matrix(const struct bench_rates *rates, uint32_t rows, uint32_t outputs, uint32_t depth);
/* Of a plan for those spans; bytes: of keys and values. */
double bench_expect_attention(const struct bench_rates *rates, const struct cuda_attention_geometry *geometry, const struct cuda_attention_span *spans,
                              uint32_t span_count);
double bench_attention_bytes(const struct cuda_attention_geometry *geometry, const struct cuda_attention_span *spans, uint32_t span_count);
double bench_attention_scores(const struct cuda_attention_geometry *geometry, const struct cuda_attention_span *spans, uint32_t span_count);

/* ---- cases ---- */

void bench_ceilings(struct bench *bench);                    /* bench_ceiling.cu; first: others are shares of it */
void bench_matrices(struct bench *bench);
void bench_attention(struct bench *bench);
void bench_rows(struct bench *bench);
void bench_steps(struct bench *bench);

/* bench_scale.cu: the job's out from its sums (rows, outputs), as the kernels of gemm_*.cu end. */
bool bench_scale(const struct bench *bench, const struct cuda_gemm *job, const int32_t *sums, cudaStream_t stream);

/* bench_lt.c: the job by cuBLASLt, opened if it is there: int8 to int32, weights[turn % copies] (outputs, depth), then bench_scale. NAN: not there, or
 * no kernel for it; rows_taken, touched only where it is there: what the product was given, more than the job's where it has none for so few. */
double bench_lt(struct bench *bench, const struct cuda_gemm *job, void *const *weights, uint32_t copies, uint32_t *rows_taken);

#ifdef __cplusplus
}
#endif
#endif
