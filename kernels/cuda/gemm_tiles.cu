#include "kernels/cuda/gemm_tiles.h"
#include <assert.h>
#include "kernels/cuda/device.h"

/* Sixteen bytes a thread, each block four pieces. Once, at load. */
ENTRY(256) gemm_tile(const int8_t *weight, uint32_t outputs, uint32_t depth, uint32_t steps, uint32_t pieces, int8_t *tiled)
{
    const uint32_t piece = block_index() * 4 + thread_index() / 64, unit = thread_index() % 64;
    if (piece >= pieces)
        return;
    const uint32_t half = unit / WARP_THREADS, g = unit % WARP_THREADS / 4, t = unit % 4;
    u32x4 words;
    for (uint32_t r = 0; r < 4; r++) {
        const uint32_t output = piece / steps * GEMM_STRIP + 4 * (g / 2) + g % 2 + 2 * (r % 2);
        const uint32_t k = piece % steps * GEMM_STEP + 32 * half + 16 * (r / 2) + 4 * t;
        words.v[r] = output < outputs && k < depth ? *reinterpret_cast<const uint32_t *>(weight + size_t(output) * depth + k) : 0u;
    }
    store_16(tiled + size_t(piece) * GEMM_PIECE_BYTES + unit * 16, words);
}

bool cuda_gemm_tile(const int8_t *weight, uint32_t outputs, uint32_t depth, int8_t *tiled, cuda_stream stream)
{
    assert(depth % 16 == 0 && reinterpret_cast<uintptr_t>(weight) % 4 == 0 && reinterpret_cast<uintptr_t>(tiled) % 16 == 0);
    const size_t pieces = cuda_gemm_tiled_bytes(outputs, depth) / GEMM_PIECE_BYTES;
    assert(pieces < 1u << 31);                /* 2 TiB */
    return pieces == 0 || LAUNCH(gemm_tile, uint32_t((pieces + 3) / 4), 256, 0, stream, weight, outputs, depth, (depth + GEMM_STEP - 1) / GEMM_STEP,
                                 uint32_t(pieces), tiled);
}
