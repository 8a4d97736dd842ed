/* bench_scale.cu - our epilogue as a kernel of its own, behind a product that ends in int32: what cuBLASLt needs to do the same work. */
#include "bench.h"
#include "kernels/cuda/gemm_finish.h"

#define THREADS 256u

/* A thread a quad. */
ENTRY(THREADS) scale_sums(gemm_work work, const int32_t *sums)
{
    const uint32_t outputs = work.job.outputs, quads = (outputs + 3) / 4, total = quads * work.job.rows;
    for (uint32_t i = block_index() * THREADS + thread_index(); i < total; i += grid_blocks() * THREADS) {
        const uint32_t row = i / quads, output = i % quads * 4;
        const int32_t *from = sums + size_t(row) * outputs + output;
        gemm_sums sum = {};
        if (gemm_whole(work, output)) {
            const u32x4 words = load_16_once(from);
            for (uint32_t k = 0; k < 4; k++)
                sum.v[k] = static_cast<int32_t>(words.v[k]);
        } else {
            for (uint32_t k = 0; k < 4; k++)
                if (output + k < outputs)
                    sum.v[k] = from[k];
        }
        gemm_store(work, row, output, gemm_narrow(sum), gemm_of_outputs(work, work.job.w_scale, output), gemm_of_outputs(work, work.job.bias, output));
    }
}

bool bench_scale(const struct bench *bench, const struct cuda_gemm *job, const int32_t *sums, cudaStream_t stream)
{
    gemm_work work;
    return gemm_prepare(job, &work) && LAUNCH(scale_sums, 8 * bench->rates.multiprocessors, THREADS, 0, stream, work, sums);
}
