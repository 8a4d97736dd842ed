/* page.cu - the beginning of a page into another one, zeros behind it. */
#include <assert.h>
#include "kernels/cuda/page_words.h"

#define THREADS 256u

/* One thread a word; all of a page are whole words. */
ENTRY(THREADS) page_copy_prefix(cuda_page_layout layout, uint32_t *dst, const uint32_t *src, uint32_t tokens)
{
    const size_t words = layout.slots * layout.slot_bytes / 4;
    for (size_t i = size_t(block_index()) * THREADS + thread_index(); i < words; i += size_t(grid_blocks()) * THREADS)
        dst[i] = page_word(layout, i * 4 % layout.slot_bytes, tokens, src[i]);
}

bool cuda_page_copy_prefix(const struct cuda_page_layout *layout, void *dst, const void *src, uint32_t tokens, cuda_stream stream)
{
    assert(tokens <= PAGE && layout->slot_bytes % 16 == 0);
    const size_t words = layout->slots * layout->slot_bytes / 4, blocks = (words + THREADS - 1) / THREADS;
    return LAUNCH(page_copy_prefix, static_cast<uint32_t>(blocks < 1024 ? blocks : 1024), THREADS, 0, stream, *layout, static_cast<uint32_t *>(dst),
                  static_cast<const uint32_t *>(src), tokens);
}
