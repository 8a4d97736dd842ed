/* device_ptx.h - device.h's names under nvcc; included by it only. The one file with PTX. Names and layouts are those of the PTX ISA,
 * sections "Warp-level matrix instructions" (ldmatrix, mma.m16n8k32) and "Data movement: asynchronous copies" (cp.async). */
#ifndef ROOST_KERNELS_CUDA_DEVICE_PTX_H
#define ROOST_KERNELS_CUDA_DEVICE_PTX_H
#include <cuda_runtime.h>

#define ENTRY(threads) static __global__ void __launch_bounds__(threads)
#define ENTRY_BLOCKS(threads, blocks) static __global__ void __launch_bounds__(threads, blocks)
#define DEVICE static __device__ __forceinline__
#define DEVICE_PRAGMA(text) _Pragma(#text)
#define UNROLL _Pragma("unroll")                /* in front of a loop that has to be unrolled whole */
#define UNROLL_BY(n) DEVICE_PRAGMA(unroll n)     /* 1: not at all */

#define WARP_ALL 0xffffffffu

DEVICE uint32_t thread_index() { return threadIdx.x; }
DEVICE uint32_t block_index() { return blockIdx.x; }
DEVICE uint32_t block_index_y() { return blockIdx.y; }
DEVICE uint32_t block_index_z() { return blockIdx.z; }
DEVICE uint32_t block_threads() { return blockDim.x; }
DEVICE uint32_t grid_blocks() { return gridDim.x; }
DEVICE uint32_t grid_blocks_y() { return gridDim.y; }
DEVICE uint32_t grid_blocks_z() { return gridDim.z; }
DEVICE uint32_t lane_index() { return threadIdx.x % WARP_THREADS; }
DEVICE uint32_t warp_index() { return threadIdx.x / WARP_THREADS; }

extern __shared__ __align__(128) unsigned char device_shared[];
DEVICE unsigned char *shared_bytes() { return device_shared; }
template <typename T> DEVICE T *shared(uint32_t offset) { return reinterpret_cast<T *>(device_shared + offset); }

DEVICE void sync_block() { __syncthreads(); }
DEVICE bool sync_block_any(bool v) { return __syncthreads_or(v) != 0; }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE void fence_device() { __threadfence(); }

template <typename T> DEVICE T shuffle_xor(T v, uint32_t mask) { return __shfl_xor_sync(WARP_ALL, v, static_cast<int>(mask)); }
template <typename T> DEVICE T shuffle_down(T v, uint32_t delta) { return __shfl_down_sync(WARP_ALL, v, delta); }
template <typename T> DEVICE T shuffle_from(T v, uint32_t lane) { return __shfl_sync(WARP_ALL, v, static_cast<int>(lane)); }
DEVICE uint32_t vote_ballot(bool v) { return __ballot_sync(WARP_ALL, v); }
DEVICE bool vote_any(bool v) { return __any_sync(WARP_ALL, v) != 0; }
DEVICE bool vote_all(bool v) { return __all_sync(WARP_ALL, v) != 0; }
template <typename T> DEVICE T warp_sum(T v) { return __reduce_add_sync(WARP_ALL, v); }
template <typename T> DEVICE T warp_min(T v) { return __reduce_min_sync(WARP_ALL, v); }
template <typename T> DEVICE T warp_max(T v) { return __reduce_max_sync(WARP_ALL, v); }

DEVICE uint32_t atomic_add(uint32_t *p, uint32_t v) { return atomicAdd(p, v); }
DEVICE int32_t atomic_add(int32_t *p, int32_t v) { return atomicAdd(p, v); }
DEVICE uint64_t atomic_add(uint64_t *p, uint64_t v) { return atomicAdd(reinterpret_cast<unsigned long long *>(p), v); }
DEVICE uint32_t atomic_min(uint32_t *p, uint32_t v) { return atomicMin(p, v); }
DEVICE int32_t atomic_min(int32_t *p, int32_t v) { return atomicMin(p, v); }
DEVICE uint64_t atomic_min(uint64_t *p, uint64_t v) { return atomicMin(reinterpret_cast<unsigned long long *>(p), v); }
DEVICE uint32_t atomic_max(uint32_t *p, uint32_t v) { return atomicMax(p, v); }
DEVICE int32_t atomic_max(int32_t *p, int32_t v) { return atomicMax(p, v); }
DEVICE uint64_t atomic_max(uint64_t *p, uint64_t v) { return atomicMax(reinterpret_cast<unsigned long long *>(p), v); }
DEVICE uint32_t atomic_exchange(uint32_t *p, uint32_t v) { return atomicExch(p, v); }
DEVICE uint32_t atomic_compare_swap(uint32_t *p, uint32_t expected, uint32_t v) { return atomicCAS(p, expected, v); }

DEVICE u32x4 load_16(const void *p)
{
    u32x4 r;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(r.v[0]), "=r"(r.v[1]), "=r"(r.v[2]), "=r"(r.v[3]) : "l"(__cvta_generic_to_global(p)));
    return r;
}

DEVICE u32x4 load_16_once(const void *p)
{
    u32x4 r;
    asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(r.v[0]), "=r"(r.v[1]), "=r"(r.v[2]), "=r"(r.v[3]) : "l"(__cvta_generic_to_global(p)));
    return r;
}

DEVICE u32x4 load_16_plain(const void *p) { return *static_cast<const u32x4 *>(p); }
DEVICE void store_16(void *p, u32x4 v) { *static_cast<u32x4 *>(p) = v; }
DEVICE u32x4 load_shared_16(const void *p) { return *static_cast<const u32x4 *>(p); }
DEVICE void store_shared_16(void *p, u32x4 v) { *static_cast<u32x4 *>(p) = v; }

DEVICE uint32_t shared_address(const void *p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

DEVICE void cp_async_16(void *to, const void *from, bool valid)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :: "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(valid ? 16u : 0u) : "memory");
}

DEVICE void cp_async_4(void *to, const void *from, bool valid)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :: "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(valid ? 4u : 0u) : "memory");
}

DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }

DEVICE void ldmatrix_x4(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

DEVICE void ldmatrix_x4_trans(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

DEVICE void ldmatrix_x2(uint32_t r[2], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}

DEVICE void ldmatrix_x2_trans(uint32_t r[2], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}

DEVICE void mma_s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE void mma_u8s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE int32_t dot_s8(int32_t c, uint32_t a, uint32_t b) { return __dp4a(static_cast<int>(a), static_cast<int>(b), c); }

DEVICE int32_t dot_u8s8(int32_t c, uint32_t a, uint32_t b)
{
    int32_t d;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

DEVICE uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }
DEVICE uint32_t bit_count(uint32_t v) { return static_cast<uint32_t>(__popc(v)); }
DEVICE uint32_t leading_zeros(uint32_t v) { return static_cast<uint32_t>(__clz(static_cast<int>(v))); }
DEVICE uint32_t lowest_bit(uint32_t v) { return static_cast<uint32_t>(__ffs(static_cast<int>(v)) - 1); }
DEVICE float float_sqrt(float x) { return __fsqrt_rn(x); }

template <typename... P>
static inline bool device_launch(const char *name, void (*kernel)(P...), grid_size grid, uint32_t block, size_t shared_size, cudaStream_t stream,
                                 typename launch_argument<P>::type... arguments)
{
    cudaError_t error = cudaSuccess;
    if (shared_size > 48 * 1024)            /* above it a kernel has to be allowed to, once a device; cheap enough to say every time */
        error = cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_size));
    void *pointers[sizeof...(P) + 1] = {const_cast<void *>(static_cast<const void *>(&arguments))..., nullptr};
    if (error == cudaSuccess)
        error = cudaLaunchKernel(reinterpret_cast<const void *>(kernel), dim3(grid.x, grid.y, grid.z), dim3(block), pointers, shared_size, stream);
    if (error == cudaSuccess)
        return true;
    (void)cudaGetLastError();               /* the next call's error shall be its own */
    return launch_refused(name, static_cast<int>(error), "", grid.x * grid.y * grid.z, block, shared_size);
}

#endif
