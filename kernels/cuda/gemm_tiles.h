/* gemm_tiles.h - the order of tiled weights, and what the kernels that read them share. C and C++; used by gemm*.c, gemm*.cu and their tests.
 *
 * A *strip* is 16 outputs, a *step* 64 of the depth. A *piece*, one strip's part of one step, is 1 KiB, and pieces lie strip by strip, in each
 * by steps:                    piece (strip, step) at (strip * steps + step) * 1024
 * A piece is two halves of 32 of the depth; a half is 16 bytes a lane, which are the lane's registers of mma m16n8k32:
 *     byte 4 r + b of lane 4 g + t:    output 4 (g / 2) + g % 2 + 2 (r % 2),    depth 16 (r / 2) + 4 t + b
 * As left side (weights on M) they are its a[0] .. a[3]. As right side (weights on N) the strip is two columns of tiles, and r % 2 says which:
 * b[0] and b[1] of the first are r = 0 and 2, of the second 1 and 3. The order of outputs makes a lane's sums of the two neighbours: it has
 * the outputs 4t .. 4t + 3 of its row. So one load of 16 bytes a lane, 512 in a row for the warp, serves both kernels, and stores are 16 bytes.
 * What lies beyond the outputs or the depth is zero. */
#ifndef ROOST_KERNELS_CUDA_GEMM_TILES_H
#define ROOST_KERNELS_CUDA_GEMM_TILES_H
#include "kernels/cuda/kernels_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

#define GEMM_STRIP 16u
#define GEMM_STEP 64u
#define GEMM_PIECE_BYTES 1024u
#define GEMM_HALF_BYTES 512u

struct gemm_work {                            /* a job, and what of it is the same for all threads */
    struct cuda_gemm job;
    uint32_t strips, steps;
    bool quads;                               /* four outputs from a multiple of 4 on, all existing, are 16 aligned bytes of out (of raw) */
};

/* Checks the job: false if it is refused. */
bool gemm_prepare(const struct cuda_gemm *job, struct gemm_work *work);

/* How work is cut; it changes no bit. The launchers choose; tests go through all. */

#define GEMM_LARGE_CUTS 3u                    /* 64 x 128, 128 x 128, 128 x 256 rows x outputs; of wide rows half as many */
unsigned gemm_large_choose(const struct gemm_work *work, uint32_t multiprocessors);
bool gemm_large_run(const struct gemm_work *work, unsigned cut, cuda_stream stream);

#define GEMM_SMALL_CUTS 5u                    /* up to 8, 16, 32, 64, 128 columns: rows, of wide rows both halves */
struct gemm_small_cut {
    unsigned cut;
    uint32_t splits;                          /* parts of the depth, whose sums meet in job.scratch; 1: none */
};
struct gemm_small_cut gemm_small_choose(const struct gemm_work *work, uint32_t multiprocessors);
/* false also if scratch is not there or too small for so many splits */
bool gemm_small_run(const struct gemm_work *work, struct gemm_small_cut cut, cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
