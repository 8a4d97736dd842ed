/* page_words.h - which bytes of a page belong to its first positions. */
#ifndef ROOST_KERNELS_CUDA_PAGE_WORDS_H
#define ROOST_KERNELS_CUDA_PAGE_WORDS_H
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels_cuda.h"

#define PAGE 64u                             /* tokens */

/* Of the word at byte `at` of a slot what belongs to the first `tokens` positions, the rest zero. A word of a page belongs to a line of V (64
 * tokens a byte each), to scales (a token each) or to rows of K (dim bytes a token, perhaps not whole words). */
DEVICE uint32_t page_word(const cuda_page_layout &layout, size_t at, uint32_t tokens, uint32_t word)
{
    const size_t plane_bytes = size_t(layout.kv_heads) * PAGE * layout.dim;
    uint32_t kept = 0;                       /* the first so many bytes of the word */
    if (at < plane_bytes) {
        const uint32_t in_head = static_cast<uint32_t>(at % (PAGE * layout.dim)), end = tokens * layout.dim;
        kept = in_head >= end ? 0u : end - in_head < 4u ? end - in_head : 4u;
    } else if (at < 2 * plane_bytes) {
        const uint32_t token = static_cast<uint32_t>(at - plane_bytes) % PAGE;
        kept = token >= tokens ? 0u : tokens - token < 4u ? tokens - token : 4u;
    } else {
        kept = static_cast<uint32_t>((at - 2 * plane_bytes) / 4) % PAGE < tokens ? 4u : 0u;
    }
    return kept == 0 ? 0u : word & (0xffffffffu >> (32 - 8 * kept));
}

#endif
