/* device.h - everything a kernel source may use, and nothing else of CUDA. Under nvcc the names below are intrinsics and PTX (device_ptx.h,
 * the only file of the project with PTX); with ROOST_CUDA_EMULATION they are tests/cuda_emulation's. No kernel source has an #ifdef.
 *
 * A kernel:
 *     ENTRY(256) scale_rows(const float *in, float factor, float *out)         the most threads of a block; ENTRY_BLOCKS(256, 2): and the
 *     {                                                                        least blocks a multiprocessor shall hold
 *         float *row = shared<float>(0);                                       dynamic shared memory from byte 0 on
 *         ...
 *         sync_block();
 *     }
 *     bool cuda_scale_rows(...) { return LAUNCH(scale_rows, rows, 256, bytes, stream, in, factor, out); }
 *
 * Rules, which the emulator enforces:
 *  1. Blocks are whole warps of 32. Warp collectives (sync_warp, shuffles, votes, warp sums, ldmatrix, mma) are called by all 32 lanes at one
 *     place of the source; sync_block by all threads of the block at one place.
 *  2. Between one thread's write of a shared byte and another's access of it, or a read and another's write, lies a sync_block, or a sync_warp
 *     if they are of one warp. A shuffle or a vote orders no memory. Shared bytes are written before they are read.
 *  3. A copy of cp_async_* is there for the thread that issued it after its cp_async_wait, for others after a barrier behind that. Every copy is
 *     waited for before the kernel ends.
 *  4. Pointers are to device or pinned memory, within one allocation, aligned to what is accessed: 16 bytes for the _16 functions.
 *  5. Shared memory is dynamic: no __shared__ variables. Arguments of kernels are trivially copyable, by value.
 *  6. Warp and block indices are what thread_index() says: thread t is lane t % 32 of warp t / 32.
 *
 * Float operations are + - * / as written (no contraction, IEEE division), float_fma, float_sqrt, and the pinned functions of
 * kernels/ref/inline.h, which this header includes.
 *
 *     thread_index() block_index() block_index_y() block_index_z() block_threads() grid_blocks() grid_blocks_y() grid_blocks_z()
 *     lane_index() warp_index()                            uint32_t
 *     shared_bytes()                                       unsigned char *: the block's dynamic shared memory, aligned to 128
 *     shared<T>(offset)                                    T *: the same, from a byte offset on
 *     sync_block() sync_warp() fence_device()
 *     sync_block_any(bool)                                 a sync_block that tells whether any thread of the block said true
 *     shuffle_xor(v, mask) shuffle_down(v, delta) shuffle_from(v, lane)        v: uint32_t, int32_t, float; out of range: the own value
 *     vote_ballot(bool) -> uint32_t, vote_any(bool), vote_all(bool) -> bool
 *     warp_sum(v) warp_min(v) warp_max(v)                  v: uint32_t, int32_t; the result in every lane
 *     atomic_add(p, v) atomic_min(p, v) atomic_max(p, v)   -> the old value; p: uint32_t *, int32_t *, uint64_t *, device or shared
 *     atomic_exchange(p, v) atomic_compare_swap(p, expected, v)                p: uint32_t *
 *     load_16(p) load_16_once(p) -> struct u32x4           device memory that no thread of this kernel writes; _once: not kept in L1
 *     load_16_plain(p), store_16(p, v)                     any device memory
 *     load_shared_16(p), store_shared_16(p, v)             shared memory
 *     cp_async_16(shared, global, valid) cp_async_4(...)   not valid: zeros are written and global is not read
 *     cp_async_commit() cp_async_wait<N>()                 wait: until at most N of the own newest groups are under way
 *     ldmatrix_x4(r, row) ldmatrix_x2 ldmatrix_x4_trans ldmatrix_x2_trans      uint32_t r[4] or r[2]; `row` is 16 bytes of shared memory:
 *                                                          lane 8 i + j gives row j of matrix i (x2: lanes 0 to 15). Matrices are 8 x 8 of 16 bits
 *     mma_s8(d, a, b) mma_u8s8(d, a, b)                    int32_t d[4] += uint32_t a[4] (16 x 32, row-major) * uint32_t b[2] (32 x 8, columns):
 *         lane = 4 g + t.  a[0]: row g, columns 4t .. 4t+3;  a[1]: row g+8;  a[2]: row g, columns 16+4t ..;  a[3]: row g+8, columns 16+4t ..
 *         b[0]: rows 4t .. 4t+3 of column g;  b[1]: rows 16+4t ..    d[0], d[1]: row g, columns 2t, 2t+1;  d[2], d[3]: row g+8
 *     dot_s8(c, a, b) dot_u8s8(c, a, b)                    int32_t c + the four byte products of a word; u8s8: a unsigned
 *     byte_permute(a, b, selector) bit_count(v) leading_zeros(v) lowest_bit(v)     lowest_bit: of v != 0
 *     float_sqrt(x)                                        rounded to nearest
 *     UNROLL, UNROLL_BY(n)                                 in front of a loop: unrolled whole; by n, 1: not at all
 */
#ifndef ROOST_KERNELS_CUDA_DEVICE_H
#define ROOST_KERNELS_CUDA_DEVICE_H
#include <stddef.h>
#include <stdint.h>
#include "kernels/cuda/launch_error.h"
#include "kernels/cuda/runtime.h"
#include "kernels/ref/inline.h"

#define WARP_THREADS 32u

struct alignas(16) u32x4 {
    uint32_t v[4];
};

struct grid_size {                      /* an integer converts to it */
    uint32_t x, y, z;
    constexpr grid_size(uint32_t blocks_x, uint32_t blocks_y = 1, uint32_t blocks_z = 1) : x(blocks_x), y(blocks_y), z(blocks_z) {}
};

/* Keeps a template's parameter from being deduced, so that arguments convert to the kernel's own types. */
template <typename T> struct launch_argument {
    typedef T type;
};

/* bool: was the launch accepted? If not, cuda_launch_error() says why. A template with commas goes in parentheses. `block` threads, a multiple
 * of 32; `shared_size` bytes of dynamic shared memory, up to the device's own limit for one block. */
#define LAUNCH(kernel, grid, block, shared_size, stream, ...) \
    device_launch(#kernel, (kernel), (grid), (block), (shared_size), (stream), ##__VA_ARGS__)

#ifdef ROOST_CUDA_EMULATION
#include "tests/cuda_emulation/device_emulated.h"
#else
#include "kernels/cuda/device_ptx.h"
#endif

#endif
