/* page.cu - the beginning of a page into another one, zeros behind it. */
#include <assert.h>
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels_cuda.h"

#define PAGE 64u                             /* tokens */
#define THREADS 256u

/* A word of a page belongs to a line of V (64 tokens a byte each), to scales (a token each) or to rows of K (dim bytes a token, perhaps not whole
 * words). One thread a word; all of a page are whole words. */
ENTRY(THREADS) page_copy_prefix(cuda_page_layout layout, uint32_t *dst, const uint32_t *src, uint32_t tokens)
{
    const size_t plane_bytes = size_t(layout.kv_heads) * PAGE * layout.dim, words = layout.slots * layout.slot_bytes / 4;
    for (size_t i = size_t(block_index()) * THREADS + thread_index(); i < words; i += size_t(grid_blocks()) * THREADS) {
        const size_t at = i * 4 % layout.slot_bytes;
        uint32_t kept = 0;                   /* the first so many bytes of the word */
        if (at < plane_bytes) {
            const uint32_t in_head = static_cast<uint32_t>(at % (PAGE * layout.dim)), end = tokens * layout.dim;
            kept = in_head >= end ? 0u : end - in_head < 4u ? end - in_head : 4u;
        } else if (at < 2 * plane_bytes) {
            const uint32_t token = static_cast<uint32_t>(at - plane_bytes) % PAGE;
            kept = token >= tokens ? 0u : tokens - token < 4u ? tokens - token : 4u;
        } else {
            kept = static_cast<uint32_t>((at - 2 * plane_bytes) / 4) % PAGE < tokens ? 4u : 0u;
        }
        dst[i] = kept == 0 ? 0u : src[i] & (0xffffffffu >> (32 - 8 * kept));
    }
}

bool cuda_page_copy_prefix(const struct cuda_page_layout *layout, void *dst, const void *src, uint32_t tokens, cuda_stream stream)
{
    assert(tokens <= PAGE && layout->slot_bytes % 16 == 0);
    const size_t words = layout->slots * layout->slot_bytes / 4, blocks = (words + THREADS - 1) / THREADS;
    return LAUNCH(page_copy_prefix, static_cast<uint32_t>(blocks < 1024 ? blocks : 1024), THREADS, 0, stream, *layout, static_cast<uint32_t *>(dst),
                  static_cast<const uint32_t *>(src), tokens);
}
