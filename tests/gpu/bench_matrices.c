/* bench_matrices.c - int8 products with scales, weights cold; beside them cuBLASLt's int8 product with the same epilogue behind it, and what that
 * epilogue takes alone. */
#include <stdio.h>
#include "bench.h"

struct matrices {
    const struct bench *bench;
    struct cuda_gemm job;
    int32_t *sums;
    int8_t *weights[128];
    uint32_t copies;
};

static bool launch(void *user, uint32_t turn, cudaStream_t stream)
{
    const struct matrices *all = user;
    struct cuda_gemm job = all->job;
    job.w_tiled = all->weights[turn % all->copies];
    return cuda_gemm_int8(&job, stream);
}

static bool launch_scale(void *user, uint32_t turn, cudaStream_t stream)
{
    const struct matrices *all = user;
    (void)turn;
    return bench_scale(all->bench, &all->job, all->sums, stream);
}

static void measure(struct bench *bench, struct bench_result *result, struct matrices *all, uint32_t rows, uint32_t outputs, uint32_t depth)
{
    all->job = (struct cuda_gemm){
        .a = bench_bytes(bench, (size_t)rows * depth), .a_scale = bench_floats(bench, rows, 0.01f, 0.02f),
        .w_scale = bench_floats(bench, outputs, 0.01f, 0.02f), .rows = rows, .outputs = outputs, .depth = depth,
        .w_tiled = all->weights[0], .out = bench_new(bench, (size_t)rows * outputs * sizeof(float)), .out_stride = outputs, .scratch = bench_new(bench, CUDA_GEMM_SCRATCH_BYTES)};
    if (!all->job.scratch || cudaMemset(all->job.scratch, 0, CUDA_GEMM_SCRATCH_BYTES) != cudaSuccess)
        return;
    result->microseconds = bench_time(bench, launch, all);
    uint32_t taken = 0;
    result->peer_microseconds = bench_lt(bench, &all->job, (void *const *)all->weights, all->copies, &taken);
    if (taken > 0 && isnan(result->peer_microseconds))
        snprintf(result->note, sizeof result->note, "cuBLASLt has no kernel for it");
    else if (taken > rows)
        snprintf(result->note, sizeof result->note, "cuBLASLt with %u rows", taken);
}

void bench_matrices(struct bench *bench)
{
    static const struct shape {
        const char *of;
        uint32_t outputs, depth;
    } real[] = {{"8B-like o", 4096, 4096}, {"8B-like gate and up", 28672, 4096}, {"8B-like down", 4096, 14336},
                {"4B-like gate and up", 20480, 2560}, {"4B-like down", 2560, 10240}}, tiny[] = {{"tiny", 96, 64}, {"tiny", 40, 272}};
    static const uint32_t real_rows[] = {1, 8, 64, 512, 4096}, tiny_rows[] = {1, 70};
    const struct shape *shapes = bench->tiny ? tiny : real;
    const uint32_t *rows = bench->tiny ? tiny_rows : real_rows, shape_count = bench->tiny ? 2 : 5, row_count = bench->tiny ? 2 : 5;
    for (uint32_t s = 0; s < shape_count; s++) {
        const uint32_t outputs = shapes[s].outputs, depth = shapes[s].depth;
        const size_t bytes = cuda_gemm_tiled_bytes(outputs, depth);
        struct matrices all = {.bench = bench, .copies = bench->dry ? 0 : bench_copies(bench, bytes)};
        for (uint32_t i = 0; i < all.copies; i++)
            all.weights[i] = bench_bytes(bench, bytes);      /* any bytes are some matrix's tiles */
        for (uint32_t r = 0; r < row_count; r++) {
            const double read = (double)outputs * depth + (double)rows[r] * depth + 4.0 * rows[r] * outputs;
            struct bench_result *result = bench_add(bench, "matrices", read, 2.0 * rows[r] * outputs * depth,
                                                    bench_expect_matrix(&bench->rates, rows[r], outputs, depth), "%u x %u x %u (%s)", rows[r], outputs,
                                                    depth, shapes[s].of);
            result->peer = "cuBLASLt int8 and our epilogue";
            if (!bench->dry)
                measure(bench, result, &all, rows[r], outputs, depth);
            if (s > 0)
                continue;
            result = bench_add(bench, "matrices", 8.0 * rows[r] * outputs, 0, bench_expect_bytes(&bench->rates, 8.0 * rows[r] * outputs),
                               "the peer's epilogue, %u x %u", rows[r], outputs);
            all.sums = bench->dry ? NULL : bench_bytes(bench, 4 * (size_t)rows[r] * outputs);
            if (all.sums)
                result->microseconds = bench_time(bench, launch_scale, &all);
        }
        bench_release(bench);
    }
}
