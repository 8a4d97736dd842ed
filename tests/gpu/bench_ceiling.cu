/* bench_ceiling.cu - what the device can do, in the same run as what is held against it: reading memory, multiplying bytes by mma.sync, copies. */
#include "bench.h"
#include "kernels/cuda/device.h"

namespace {

#define READ_THREADS 512u
#define READ_AHEAD 8u               /* loads of a thread under way: 8 x 16 bytes x 2,048 threads = 256 KiB a multiprocessor */
#define MMA_THREADS 256u
#define MMA_CHAINS 8u               /* products of a warp under way */

ENTRY(READ_THREADS) read_all(const unsigned char *from, uint64_t chunks, uint32_t *out)
{
    const uint64_t stride = uint64_t(grid_blocks()) * READ_THREADS;
    uint32_t sum = 0;
    uint64_t at = uint64_t(block_index()) * READ_THREADS + thread_index();
    for (; at + (READ_AHEAD - 1) * stride < chunks; at += READ_AHEAD * stride) {
        u32x4 v[READ_AHEAD];
        UNROLL
        for (uint32_t i = 0; i < READ_AHEAD; i++)
            v[i] = load_16_once(from + 16 * (at + i * stride));
        UNROLL
        for (uint32_t i = 0; i < READ_AHEAD; i++)
            sum ^= v[i].v[0] ^ v[i].v[1] ^ v[i].v[2] ^ v[i].v[3];
    }
    for (; at < chunks; at += stride) {
        const u32x4 v = load_16_once(from + 16 * at);
        sum ^= v.v[0] ^ v.v[1] ^ v.v[2] ^ v.v[3];
    }
    if (sum == 0x12345678u)          /* what was read is used */
        *out = sum;
}

ENTRY(MMA_THREADS) multiply_all(uint32_t rounds, int32_t *out)
{
    int32_t d[MMA_CHAINS][4] = {};
    const uint32_t lane = lane_index(), a[4] = {lane * 0x01020304u, lane * 0x05060708u, ~lane, lane << 8}, b[2] = {lane * 0x11131517u, ~lane * 3u};
    for (uint32_t round = 0; round < rounds; round++) {
        UNROLL
        for (uint32_t i = 0; i < MMA_CHAINS; i++)
            mma_s8(d[i], a, b);
    }
    int32_t sum = 0;
    UNROLL
    for (uint32_t i = 0; i < MMA_CHAINS; i++)
        sum ^= d[i][0] ^ d[i][1] ^ d[i][2] ^ d[i][3];
    if (sum == 0x12345678)
        *out = sum;
}

struct ceiling {
    const void *from;
    void *to;
    uint64_t bytes;
    uint32_t blocks, rounds;
    cudaMemcpyKind kind;
};

bool launch_read(void *user, uint32_t, cudaStream_t stream)
{
    const ceiling *c = static_cast<const ceiling *>(user);
    return LAUNCH(read_all, c->blocks, READ_THREADS, 0, stream, static_cast<const unsigned char *>(c->from), c->bytes / 16,
                  static_cast<uint32_t *>(c->to));
}

bool launch_multiply(void *user, uint32_t, cudaStream_t stream)
{
    const ceiling *c = static_cast<const ceiling *>(user);
    return LAUNCH(multiply_all, c->blocks, MMA_THREADS, 0, stream, c->rounds, static_cast<int32_t *>(c->to));
}

bool launch_copy(void *user, uint32_t, cudaStream_t stream)
{
    const ceiling *c = static_cast<const ceiling *>(user);
    return cudaMemcpyAsync(c->to, c->from, c->bytes, c->kind, stream) == cudaSuccess;
}

void copies(bench *b, uint64_t bytes)
{
    const bench_rates *rates = &b->rates;
    void *host = nullptr;
    bench_result *onto = bench_add(b, "ceilings", 2.0 * bytes, 0, 2.0 * bytes / (rates->read_gbs * 1e3), "copy on the device, %llu MiB",
                                   static_cast<unsigned long long>(bytes >> 20));
    if (!b->dry) {
        ceiling c = {bench_bytes(b, bytes), bench_new(b, bytes), bytes, 0, 0, cudaMemcpyDeviceToDevice};
        onto->microseconds = bench_time(b, launch_copy, &c);
        if (cudaMallocHost(&host, bytes) != cudaSuccess)
            bench_fail(b, "no %llu MiB of pinned memory", static_cast<unsigned long long>(bytes >> 20));
    }
    for (int in = 0; in < 2; in++) {                         /* PCI Express 5 of 16 lanes: 55 GB/s of its 63 */
        bench_result *r = bench_add(b, "ceilings", static_cast<double>(bytes), 0, bytes / 55e3, "copy %s pinned memory, %llu MiB", in ? "from" : "to",
                                    static_cast<unsigned long long>(bytes >> 20));
        if (!b->dry && host) {
            void *memory = bench_bytes(b, bytes);
            ceiling c = {in ? host : memory, in ? memory : host, bytes, 0, 0, in ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost};
            r->microseconds = bench_time(b, launch_copy, &c);
        }
    }
    if (host)
        (void)cudaFreeHost(host);
}

} // namespace

void bench_ceilings(bench *b)
{
    const uint32_t processors = b->tiny ? 2 : b->rates.multiprocessors;
    const uint64_t bytes = b->tiny ? 1u << 16 : uint64_t(2) << 30;
    const uint32_t rounds = b->tiny ? 4 : 20000;
    const double ops = 2.0 * 16 * 8 * 32 * MMA_CHAINS * (MMA_THREADS / WARP_THREADS) * 2.0 * processors * rounds;
    const bench_rates *rates = &b->rates;
    bench_result *read = bench_add(b, "ceilings", static_cast<double>(bytes), 0, bytes / (rates->read_gbs * 1e3), "read, %llu MiB",
                                   static_cast<unsigned long long>(bytes >> 20));
    if (!b->dry) {
        ceiling c = {bench_bytes(b, bytes), bench_new(b, 4), bytes, 4 * processors, 0, cudaMemcpyDefault};
        read->microseconds = bench_time(b, launch_read, &c);
        b->read_gbs = bytes / read->microseconds * 1e-3;
        if (!(rates->read_gbs > 0))
            b->rates.read_gbs = b->read_gbs;                 /* a device that no table knows */
        bench_release(b);
    }
    bench_result *multiply = bench_add(b, "ceilings", 0, ops, ops / (2 * rates->products * rates->clock_ghz * 1e3 * processors), "multiply, mma.sync s8");
    if (!b->dry) {
        ceiling c = {nullptr, bench_new(b, 4), 0, 2 * processors, rounds, cudaMemcpyDefault};
        multiply->microseconds = bench_time(b, launch_multiply, &c);
        b->mma_tops = ops / multiply->microseconds * 1e-6;
        bench_release(b);
    }
    copies(b, b->tiny ? 1u << 16 : 256u << 20);
    if (!b->dry)
        bench_release(b);
}
