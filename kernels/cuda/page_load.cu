/* page_load.cu - one layer's part of the pages that come from the host, gathered by one kernel. */
#include <assert.h>
#include "kernels/cuda/page_words.h"

#define THREADS 256u
#define PIECES 4u                            /* of 16 bytes that a thread has under way */
#define BLOCKS 32u                           /* x THREADS x PIECES x 16 = 512 KiB under way: over 50 GB/s x some 2 us of the bus, on a few multiprocessors only */

/* Thread by thread the next 16 bytes, of all pages' slots one after another. */
ENTRY(THREADS) page_load_slot(cuda_page_layout layout, uint32_t slot, const cuda_page_copy *copies, uint32_t count)
{
    const size_t first = slot * layout.slot_bytes;
    const uint32_t pieces = static_cast<uint32_t>(layout.slot_bytes / 16), total = pieces * count, stride = grid_blocks() * THREADS;
    for (uint32_t i = block_index() * THREADS + thread_index(); i < total; i += PIECES * stride) {
        u32x4 words[PIECES] = {};
        UNROLL
        for (uint32_t k = 0; k < PIECES; k++) {
            const uint32_t at = i + k * stride;
            if (at < total)
                words[k] = load_16_plain(static_cast<const char *>(copies[at / pieces].src) + first + size_t(at % pieces) * 16);
        }
        UNROLL
        for (uint32_t k = 0; k < PIECES; k++) {
            const uint32_t at = i + k * stride;
            if (at >= total)
                continue;
            const cuda_page_copy &copy = copies[at / pieces];
            for (uint32_t w = 0; copy.tokens < PAGE && w < 4; w++)
                words[k].v[w] = page_word(layout, size_t(at % pieces) * 16 + w * 4, copy.tokens, words[k].v[w]);
            store_16(static_cast<char *>(copy.dst) + first + size_t(at % pieces) * 16, words[k]);
        }
    }
}

bool cuda_page_load_slot(const struct cuda_page_layout *layout, uint32_t slot, const struct cuda_page_copy *copies, uint32_t count, cuda_stream stream)
{
    const size_t pieces = layout->slot_bytes / 16 * count, blocks = (pieces + THREADS - 1) / THREADS;
    assert(slot < layout->slots && layout->slot_bytes % 16 == 0 && pieces < UINT32_MAX / 2);
    return count == 0 || LAUNCH(page_load_slot, static_cast<uint32_t>(blocks < BLOCKS ? blocks : BLOCKS), THREADS, 0, stream, *layout, slot, copies,
                                count);
}
