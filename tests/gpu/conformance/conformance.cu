/* conformance.cu - what every wrapper of kernels/cuda/device.h gives on fixed inputs, as digests: one line a case, "NAME DIGEST". The same source
 * runs on a GPU and under emulation; README.md says what the committed digests prove.
 *
 *     conformance [EXPECTED]      with a file, compares and ends with 1 on a difference; 77: no GPU */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels_cuda.h"
#include "kernels/ref/rope_inline.h"
#include "kernels/ref/rotate_inline.h"

#define THREADS 128u
#define BLOCKS 8u
#define IN_WORDS 16384u                  /* of every case: 8 blocks of 2,048 */
#define BLOCK_WORDS (IN_WORDS / BLOCKS)
#define OUT_WORDS 16384u
#define SHARED_BYTES 8192u

namespace {

/* The block's part of the input, and the thread's 16 words of the output. */
DEVICE const uint32_t *block_in(const uint32_t *in)
{
    return in + block_index() * BLOCK_WORDS;
}
DEVICE uint32_t *thread_out(uint32_t *out)
{
    return out + (block_index() * THREADS + thread_index()) * 16;
}
DEVICE void fill_shared(const uint32_t *in)
{
    uint32_t *s = shared<uint32_t>(0);
    for (uint32_t i = thread_index(); i < BLOCK_WORDS; i += THREADS)
        s[i] = in[i];
    sync_block();
}
/* Which of many NaNs comes out is not promised. */
DEVICE uint32_t one_nan(float x)
{
    return x == x ? float_bits(x) : 0x7fc00000u;
}

/* Rows at scattered places of shared memory. */
template <int count, bool transposed> ENTRY(THREADS) ldmatrix(const uint32_t *in, uint32_t *out)
{
    const uint32_t *from = block_in(in);
    uint32_t *to = thread_out(out);
    fill_shared(from);
    for (uint32_t k = 0; k < 4; k++) {
        uint32_t r[4] = {};
        const uint32_t *row = shared<uint32_t>(0) + 4 * (from[thread_index() + 128 * k] % (BLOCK_WORDS / 4));
        if (count == 4 && !transposed)
            ldmatrix_x4(r, row);
        else if (count == 4)
            ldmatrix_x4_trans(r, row);
        else if (!transposed)
            ldmatrix_x2(r, row);
        else
            ldmatrix_x2_trans(r, row);
        for (uint32_t i = 0; i < 4; i++)
            to[4 * k + i] = r[i];
    }
}

template <bool a_unsigned> ENTRY(THREADS) mma(const uint32_t *in, uint32_t *out)
{
    const uint32_t *from = block_in(in);
    uint32_t *to = thread_out(out);
    for (uint32_t k = 0; k < 4; k++) {
        uint32_t a[4], b[2];
        int32_t d[4];
        for (uint32_t i = 0; i < 4; i++)
            a[i] = from[(thread_index() * 16 + k * 4 + i) % BLOCK_WORDS];
        for (uint32_t i = 0; i < 2; i++)
            b[i] = k == 3 ? 0x7f817f81u : from[(thread_index() * 7 + k * 131 + i) % BLOCK_WORDS];
        for (uint32_t i = 0; i < 4; i++)
            d[i] = static_cast<int32_t>(from[(thread_index() + k * 64 + i) % BLOCK_WORDS]) >> 8;
        if (a_unsigned)
            mma_u8s8(d, a, b);
        else
            mma_s8(d, a, b);
        for (uint32_t i = 0; i < 4; i++)
            to[4 * k + i] = static_cast<uint32_t>(d[i]);
    }
}

/* Two groups, of both sizes, a third of the copies not valid; each thread reads another's. */
ENTRY(THREADS) copies(const uint32_t *in, uint32_t *out)
{
    const uint32_t *from = block_in(in);
    uint32_t *s = shared<uint32_t>(0), *to = thread_out(out);
    uint32_t t = thread_index();
    for (uint32_t k = 0; k < 2; k++)
        cp_async_16(s + 8 * t + 4 * k, from + 4 * (from[t] % 500), from[t + k] % 3 != 0);
    cp_async_commit();
    for (uint32_t k = 0; k < 4; k++)
        cp_async_4(s + 1024 + 4 * t + k, from + from[t + k] % BLOCK_WORDS, from[t + 2 * k] % 3 != 0);
    cp_async_commit();
    cp_async_wait<1>();
    sync_block();
    for (uint32_t k = 0; k < 8; k++)
        to[k] = s[8 * (t ^ 37) + k];
    cp_async_wait<0>();
    sync_block();
    for (uint32_t k = 0; k < 8; k++)
        to[8 + k] = s[1024 + 4 * ((t + 1 + k / 4) % THREADS) + k % 4];
}

ENTRY(THREADS) lanes(const uint32_t *in, uint32_t *out)
{
    uint32_t v = block_in(in)[thread_index()], *to = thread_out(out);
    to[0] = shuffle_xor(v, 1) ^ shuffle_xor(v, 16);
    to[1] = shuffle_down(v, 1);
    to[2] = shuffle_down(v, 31);
    to[3] = shuffle_from(v, v % 32);
    to[4] = float_bits(shuffle_xor(float_from_bits(v & 0x7f7fffffu), 5));
    to[5] = static_cast<uint32_t>(shuffle_from(static_cast<int32_t>(v), 9));
    to[6] = vote_ballot(v & 1u);
    to[7] = vote_any(v % 61 == 0) + 2u * vote_all(v % 61 != 1);
    to[8] = warp_sum(v);
    to[9] = static_cast<uint32_t>(warp_sum(static_cast<int32_t>(v)));
    to[10] = warp_min(v);
    to[11] = static_cast<uint32_t>(warp_min(static_cast<int32_t>(v)));
    to[12] = warp_max(v);
    to[13] = static_cast<uint32_t>(warp_max(static_cast<int32_t>(v)));
    to[14] = sync_block_any(v % 199 == 0);
    to[15] = lane_index() + 100 * warp_index() + 10000 * block_index();
}

ENTRY(THREADS) loads(const uint32_t *in, uint32_t *out)
{
    const uint32_t *from = block_in(in);
    uint32_t *to = thread_out(out), t = thread_index();
    fill_shared(from);
    u32x4 a = load_16(from + 4 * (from[t] % 512)), b = load_16_once(from + 4 * (from[t + 1] % 512)), c = load_16_plain(from + 4 * t);
    u32x4 d = load_shared_16(shared<uint32_t>(0) + 4 * (from[t + 2] % 512));
    store_16(to, a);
    store_16(to + 4, b);
    store_16(to + 8, c);
    sync_block();
    store_shared_16(shared<uint32_t>(0) + 4 * t, d);
    sync_block();
    store_16(to + 12, load_shared_16(shared<uint32_t>(0) + 4 * (t ^ 64)));
}

/* What is left after all have come, whatever the order; and of compare-and-swap, that one wins. */
ENTRY(THREADS) atomics(const uint32_t *in, uint32_t *out)
{
    uint32_t v = block_in(in)[thread_index()], *s = shared<uint32_t>(0), *to = out + block_index() * THREADS * 16;
    uint64_t wide = static_cast<uint64_t>(v) << 32 | block_in(in)[thread_index() + 1];
    if (thread_index() < 16)
        s[thread_index()] = 0;
    sync_block();
    atomic_add(&s[0], v);
    atomic_max(&s[1], v);
    atomic_min(reinterpret_cast<int32_t *>(&s[2]), static_cast<int32_t>(v));
    atomic_add(reinterpret_cast<uint64_t *>(&s[4]), wide);
    uint32_t winner = atomic_compare_swap(&s[6], 0, thread_index() + 1) == 0;
    atomic_add(&s[7], winner);
    atomic_add(&to[0], v);
    atomic_min(&to[1], v);
    atomic_max(&to[2], v);
    atomic_add(reinterpret_cast<int32_t *>(&to[3]), static_cast<int32_t>(v));
    atomic_min(reinterpret_cast<int32_t *>(&to[4]), static_cast<int32_t>(v));
    atomic_max(reinterpret_cast<int32_t *>(&to[5]), static_cast<int32_t>(v));
    atomic_add(reinterpret_cast<uint64_t *>(&to[6]), wide);
    atomic_min(reinterpret_cast<uint64_t *>(&to[8]), wide);
    atomic_max(reinterpret_cast<uint64_t *>(&to[10]), wide);
    atomic_add(&to[12], atomic_exchange(&to[13], 0));
    sync_block();
    if (thread_index() < 8 && thread_index() != 6)
        to[16 + thread_index()] = s[thread_index()];
    fence_device();
}

ENTRY(THREADS) words(const uint32_t *in, uint32_t *out)
{
    const uint32_t *from = block_in(in);
    uint32_t *to = thread_out(out), a = from[thread_index()], b = from[thread_index() + 128], c = from[thread_index() + 256];
    to[0] = static_cast<uint32_t>(dot_s8(static_cast<int32_t>(c >> 4), a, b));
    to[1] = static_cast<uint32_t>(dot_u8s8(static_cast<int32_t>(c >> 4), a, b));
    to[2] = static_cast<uint32_t>(dot_u8s8(0, 0xffffffffu, 0x80808080u));
    to[3] = byte_permute(a, b, c & 0x7777u);
    to[4] = byte_permute(a, b, c & 0xffffu);
    to[5] = bit_count(a) + 100 * leading_zeros(a) + 10000 * lowest_bit(a | 0x80000000u);
    to[6] = leading_zeros(0) + 100 * leading_zeros(a & b & c);
    to[7] = float_bits(static_cast<float>(static_cast<int32_t>(a)));
    to[8] = float_bits(static_cast<float>(a));
    to[9] = float_round_bits(static_cast<float>(static_cast<int32_t>(a) >> 8) * 0.37f);
    to[10] = float_bits(rotate_sign(a % 128));
}

/* Operations on any two or three patterns of bits, infinities, NaNs and denormals among them; and near one. */
template <bool near_one> ENTRY(THREADS) rounding(const uint32_t *in, uint32_t *out)
{
    uint32_t *to = thread_out(out);
    float v[3];
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t bits = block_in(in)[thread_index() * 3 + i];
        v[i] = float_from_bits(near_one ? (bits & 0x81ffffffu) + 0x3f000000u : bits % 7 == 0 ? bits & 0x807fffffu : bits);
    }
    to[0] = one_nan(v[0] + v[1]);
    to[1] = one_nan(v[0] - v[1]);
    to[2] = one_nan(v[0] * v[1]);
    to[3] = one_nan(v[0] * v[1] + v[2]);         /* two roundings */
    to[4] = one_nan(float_fma(v[0], v[1], v[2]));
    to[5] = one_nan(v[0] / v[1]);
    to[6] = one_nan(float_sqrt(float_abs(v[0])));
    to[7] = one_nan(1.0f / float_sqrt(float_abs(v[1])));
    double x = static_cast<double>(v[0]), y = static_cast<double>(v[1]), z = static_cast<double>(v[2]);
    to[8] = one_nan(static_cast<float>(x * y + z));
    to[9] = one_nan(static_cast<float>(x / y - z));
    to[10] = v[0] < v[1];
}

ENTRY(THREADS) functions(const uint32_t *in, uint32_t *out)
{
    uint32_t *to = thread_out(out), bits = block_in(in)[thread_index()];
    float small = static_cast<float>(static_cast<int32_t>(bits)) * 0x1p-24f, any = float_from_bits(bits & 0xff7fffffu);
    to[0] = one_nan(inline_exp2(small));
    to[1] = one_nan(inline_exp2(any));
    to[2] = one_nan(inline_logistic(small, small));
    to[3] = one_nan(inline_tanh(small * 0.1f));
    to[4] = one_nan(inline_log(float_abs(any)));
    to[5] = one_nan(inline_log(any));
    float cosine, sine;
    rope_cos_sin(static_cast<double>(bits >> 12) * 0.731, &cosine, &sine);
    to[6] = float_bits(cosine);
    to[7] = float_bits(sine);
}

struct conformance_case {
    const char *name;
    void (*kernel)(const uint32_t *, uint32_t *);
};

const conformance_case cases[] = {
    {"ldmatrix_x4", ldmatrix<4, false>}, {"ldmatrix_x4_trans", ldmatrix<4, true>}, {"ldmatrix_x2", ldmatrix<2, false>},
    {"ldmatrix_x2_trans", ldmatrix<2, true>}, {"mma_s8", mma<false>}, {"mma_u8s8", mma<true>}, {"cp_async", copies}, {"lanes", lanes},
    {"loads", loads}, {"atomics", atomics}, {"words", words}, {"rounding", rounding<false>}, {"rounding_near_one", rounding<true>},
    {"functions", functions},
};

uint64_t digest_of(const uint32_t *words, size_t count)      /* FNV-1a over bytes */
{
    uint64_t digest = 0xcbf29ce484222325u;
    for (size_t i = 0; i < count; i++)
        for (int shift = 0; shift < 32; shift += 8)
            digest = (digest ^ (words[i] >> shift & 0xffu)) * 0x100000001b3u;
    return digest;
}

bool run(const conformance_case &one, uint64_t seed, uint64_t *digest)
{
    static uint32_t in[IN_WORDS], out[OUT_WORDS];
    for (uint32_t i = 0; i < IN_WORDS; i++) {                /* splitmix64 */
        uint64_t z = (seed + i) * 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        in[i] = static_cast<uint32_t>(((z ^ (z >> 27)) * 0x94D049BB133111EBu) >> 32);
    }
    uint32_t *d_in = nullptr, *d_out = nullptr;
    bool ok = cudaMalloc(reinterpret_cast<void **>(&d_in), sizeof in) == cudaSuccess &&
              cudaMalloc(reinterpret_cast<void **>(&d_out), sizeof out) == cudaSuccess &&
              cudaMemcpy(d_in, in, sizeof in, cudaMemcpyHostToDevice) == cudaSuccess && cudaMemset(d_out, 0, sizeof out) == cudaSuccess;
    if (ok && !LAUNCH(one.kernel, BLOCKS, THREADS, SHARED_BYTES, nullptr, d_in, d_out)) {
        fprintf(stderr, "conformance: %s: %s\n", one.name, cuda_launch_error());
        ok = false;
    }
    cudaError_t error = ok ? cudaMemcpy(out, d_out, sizeof out, cudaMemcpyDeviceToHost) : cudaErrorUnknown;
    if (ok && error != cudaSuccess)
        fprintf(stderr, "conformance: %s: %s\n", one.name, cudaGetErrorString(error));
    (void)cudaFree(d_in);
    (void)cudaFree(d_out);
    *digest = digest_of(out, OUT_WORDS);
    return ok && error == cudaSuccess;
}

} // namespace

int main(int argc, char **argv)
{
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        printf("skipped: no GPU\n");
        return 77;
    }
    FILE *expected = argc > 1 ? fopen(argv[1], "r") : nullptr;
    if (argc > 1 && expected == nullptr) {
        perror(argv[1]);
        return 2;
    }
    unsigned wrong = 0;
    for (uint64_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t digest = 0;
        char line[80], wanted[80] = "";
        if (!run(cases[i], 1 + i * 1000003u, &digest))
            return 2;
        snprintf(line, sizeof line, "%s %016llx\n", cases[i].name, static_cast<unsigned long long>(digest));
        if (expected != nullptr && fgets(wanted, sizeof wanted, expected) == nullptr)
            *wanted = '\0';
        bool same = expected == nullptr || strcmp(line, wanted) == 0;
        wrong += !same;
        printf("%s%s%s", line, same ? "" : "  expected ", same ? "" : wanted[0] != '\0' ? wanted : "nothing\n");
    }
    if (expected != nullptr)
        fclose(expected);
    return wrong != 0;
}
