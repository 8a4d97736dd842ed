/* attention_tile.h - one task of attention: up to 64 (row, head) pairs over the blocks of whole units (docs/numerics.md, section 7). Included by
 * attention_decode.cu and attention_prefill.cu, which choose the shape of the block of threads.
 *
 *   scores (pairs x 64 keys) = Q K^T      integers; pairs on M, keys on N, 16 pairs and 64 / N keys a warp
 *   weights P, sums, gain a pair          float, in the registers that hold the scores; row maxima over 4 lanes, then over the N warps
 *   unit O (pairs x dim) folds P V        integers, 16 pairs and D / N dimensions a warp; each 16 x 8 piece folds as it leaves the multiplication
 *
 * Planes come by cp.async, K and V in turn, DEPTH of each: V of a block loads under its scores, the next K under its values.
 *   K(i+DEPTH-1) asked for | wait K(i), barrier, ask V(i+DEPTH-1) | scores, P | wait V(i), barrier, ask K(i+DEPTH) | values | ...
 * Rows of K lie in shared memory in the order in which a lane's columns of the scores are four keys in a row: so P of a lane is one word of the
 * left operand of P V, and with one warp over all keys P never leaves the registers.
 *
 * Bits. A fold into nothing and a fold of nothing need no branch: top -infinity gives keep = 2^-infinity = 0; sums begin at -0, and -0 + x = x
 * for every x; a pair that sees no key of a block has P = 0, keep = 1 and scale -0, so that O becomes +0 * -0 + O = O, -0 included. */
#ifndef ROOST_KERNELS_CUDA_ATTENTION_TILE_H
#define ROOST_KERNELS_CUDA_ATTENTION_TILE_H
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels_cuda.h"

#define ATTENTION_KEYS 64u                   /* of a block, which is a page */
#define ATTENTION_UNIT 16u                   /* blocks of a unit */
#define ATTENTION_NOTHING (-__builtin_inff())

/* Bytes of shared memory: Q | DEPTH K planes | DEPTH V planes | DEPTH x (64 K scales, 64 V scales) | with N > 1: P, two rounds of row results.
 *   M N D DEPTH       Q      planes   scales  P     rows  sum
 *   1 4  64  2     1024       16384    1024  1024   768    20224
 *   1 4 128  2     2048       32768    1024  1024   768    37632
 *   1 4 256  2     4096       65536    1024  1024   768    72448
 *   1 4 512  1     8192       65536     512  1024   768    76032
 *   4 1  64  2     4096       16384    1024     0     0    21504
 *   4 1 128  2     8192       32768    1024     0     0    41984
 *   4 2 256  2    16384       65536    1024  4096  1536    88576    the most: <= 99 KiB = 101376
 *   2 4 512  1    16384       65536     512  2048  1536    86016 */
template <uint32_t M_, uint32_t N_, uint32_t D_> struct attention_shape {
    static constexpr uint32_t M = M_, N = N_, D = D_;                  /* warps over pairs, over keys and dimensions; dim rounded up */
    static constexpr uint32_t THREADS = M * N * WARP_THREADS, PAIRS = 16 * M;
    static constexpr uint32_t DEPTH = D > 256 ? 1 : 2;
    static constexpr uint32_t BLOCKS = D > 128 ? 0 : M == 1 ? 4 : D > 64 ? 2 : 3;      /* on a multiprocessor at least; 0: the compiler's choice. So
                                                                                          that no register is spilled */
    static constexpr uint32_t SCORE_TILES = ATTENTION_KEYS / N / 8, VALUE_TILES = D / N / 8;      /* of 8 columns, a warp's */
    static constexpr uint32_t PLANE = ATTENTION_KEYS * D;
    static constexpr uint32_t Q = 0, K = Q + PAIRS * D, V = K + DEPTH * PLANE, SCALES = V + DEPTH * PLANE;
    static constexpr uint32_t SCALES_BYTES = 2 * ATTENTION_KEYS * 4;
    static constexpr uint32_t P = SCALES + DEPTH * SCALES_BYTES;
    static constexpr uint32_t ROWS = N > 1 ? P + PAIRS * ATTENTION_KEYS : 0;                      /* (PAIRS, N) tops, largest, sums */
    static constexpr uint32_t BYTES = N > 1 ? ROWS + 3 * PAIRS * N * 4 : P;
    static_assert(BYTES <= 99 * 1024, "what every device since compute capability 8.0 gives one block");
};

/* Where chunk (16 bytes) `chunk` of a row of `row_bytes` lies: eight rows' chunks of one number fall into eight different groups of banks. */
template <uint32_t ROW_BYTES> DEVICE uint32_t attention_chunk(uint32_t row, uint32_t chunk)
{
    return row * ROW_BYTES + (ROW_BYTES == 64 ? chunk ^ (row / 2 % 4) : chunk ^ (row % 8)) * 16;
}

/* The row of shared memory for a key of a block: column c of score tile 2i is key 16i + 4 (c / 2) + c % 2, of tile 2i + 1 two further. */
DEVICE uint32_t attention_key_row(uint32_t key)
{
    return key / 16 * 16 + key / 2 % 2 * 8 + key / 4 % 4 * 2 + key % 2;
}

DEVICE int32_t attention_order(float x)      /* integers that order like floats */
{
    const int32_t bits = static_cast<int32_t>(float_bits(x));
    return bits ^ static_cast<int32_t>(static_cast<uint32_t>(bits >> 31) & 0x7fffffffu);
}

DEVICE float attention_from_order(int32_t order)
{
    return float_from_bits(static_cast<uint32_t>(order) ^ (static_cast<uint32_t>(order >> 31) & 0x7fffffffu));
}

static_assert(attention_shape<1, 4, 512>::BYTES == 76032 && attention_shape<4, 2, 256>::BYTES == 88576 && attention_shape<2, 4, 512>::BYTES == 86016,
              "the table above");

struct attention_fold {                      /* O = fma(part, join, O * keep) */
    float keep, join;
};

/* Folds (part_top, part_sum) into (top, sum). A part of which nothing is seen changes no bit. */
DEVICE attention_fold attention_join(float &top, float &sum, float part_top, float part_sum, bool seen)
{
    const float higher = top > part_top ? top : part_top;
    const float keep = inline_exp2(top - higher), join = inline_exp2(part_top - higher);
    if (!seen)
        return attention_fold{1.0f, 0.0f};
    top = higher;
    sum = float_fma(part_sum, join, sum * keep);
    return attention_fold{keep, join};
}

/* The blocks that a row of the task sees, ascending: [0, sinks_end) and [first, end). */
struct attention_walk {
    uint32_t sinks_end, first, end;
};

DEVICE uint32_t attention_walk_jump(const attention_walk &walk, uint32_t block)
{
    return block >= walk.sinks_end && block < walk.first ? walk.first : block;
}

struct attention_row {                       /* one of a lane's two pairs */
    uint32_t position;
    float scale;
    float top, sum;                          /* of this unit */
    float total_top, total_sum;              /* of those before */
};

/* What a thread knows. Kept small, and the rest computed anew: most registers hold O. */
template <typename S> struct attention_tile {
    const cuda_attention &job;
    const cuda_attention_task &task;
    attention_walk walk;
    uint32_t ahead;                          /* the block whose K is asked for next; from walk.end on: none */
    const unsigned char *page_ahead, *page_last;       /* the slot in its page; in that of the K asked for last. NULL: none */
    attention_row row[2];                    /* pairs attention_pair(h) */
    float o[S::VALUE_TILES][4];              /* of this unit: tile j, as the multiplication leaves it */
};

/* Pairs g and g + 8 of the warp's 16. */
DEVICE uint32_t attention_pair(uint32_t warp_m, uint32_t h)
{
    return 16 * warp_m + lane_index() / 4 + 8 * h;
}

template <typename S> DEVICE bool attention_is_pair(const attention_tile<S> &t, uint32_t pair)
{
    return pair < t.task.rows * t.task.heads;
}

/* The pair's (row, head) in q_scale, and in units of dim in q and out. */
template <typename S> DEVICE size_t attention_place(const attention_tile<S> &t, uint32_t pair)
{
    const uint32_t row = t.job.spans[t.task.span].row + t.task.row + pair / t.task.heads;
    return size_t(row) * t.job.geometry.heads + t.task.head + pair % t.task.heads;
}

/* ---- copies ---- */

/* One chunk of a row of int8; `there` bytes of it exist, the rest becomes zero. */
DEVICE void attention_copy_chunk(unsigned char *to, const int8_t *from, uint32_t there, uint32_t dim)
{
    if (dim % 16 == 0) {
        cp_async_16(to, from, there != 0);
    } else if (dim % 4 == 0) {
        for (uint32_t i = 0; i < 16; i += 4)
            cp_async_4(to + i, from + i, i < there);
    } else {
        u32x4 words = {};
        for (uint32_t i = 0; i < 16; i++)
            words.v[i / 4] |= i < there ? uint32_t(static_cast<uint8_t>(from[i])) << (i % 4 * 8) : 0u;
        store_shared_16(to, words);
    }
}

DEVICE uint32_t attention_there(uint32_t at, uint32_t dim)
{
    return at >= dim ? 0u : dim - at < 16u ? dim - at : 16u;
}

template <typename S> DEVICE const unsigned char *attention_page(const attention_tile<S> &t, uint32_t block)
{
    if (block >= t.walk.end)
        return nullptr;
    return static_cast<const unsigned char *>(t.job.pages[t.job.spans[t.task.span].page_first + block]) + t.job.slot * t.job.layout.slot_bytes;
}

template <typename S> DEVICE void attention_ask_q(const attention_tile<S> &t)
{
    const uint32_t dim = t.job.geometry.dim;
    unsigned char *to = shared<unsigned char>(S::Q);
    UNROLL_BY(1)
    for (uint32_t i = thread_index(); i < S::PAIRS * (S::D / 16); i += S::THREADS) {
        const uint32_t pair = i / (S::D / 16), at = i % (S::D / 16) * 16, there = attention_is_pair(t, pair) ? attention_there(at, dim) : 0;
        const int8_t *from = there ? t.job.q + attention_place(t, pair) * dim + at : t.job.q;
        attention_copy_chunk(to + attention_chunk<S::D>(pair, at / 16), from, there, dim);
    }
}

/* K and both planes' scales of the block `ahead`, which moves on. Always one group of copies. */
template <typename S> DEVICE void attention_ask_k(attention_tile<S> &t, uint32_t place)
{
    t.page_last = t.page_ahead;
    if (t.page_ahead) {
        const uint32_t dim = t.job.geometry.dim, kv_heads = t.job.geometry.kv_heads, kv_head = t.task.head / (t.job.geometry.heads / kv_heads);
        const uint32_t head_bytes = ATTENTION_KEYS * dim;
        const int8_t *k = reinterpret_cast<const int8_t *>(t.page_ahead + size_t(kv_head) * head_bytes);
        unsigned char *to = shared<unsigned char>(S::K + place * S::PLANE);
        UNROLL_BY(1)
        for (uint32_t i = thread_index(); i < ATTENTION_KEYS * (S::D / 16); i += S::THREADS) {
            const uint32_t key = i / (S::D / 16), at = i % (S::D / 16) * 16, there = attention_there(at, dim);
            attention_copy_chunk(to + attention_chunk<S::D>(attention_key_row(key), at / 16), k + (there ? key * dim + at : 0), there, dim);
        }
        if (thread_index() < S::SCALES_BYTES / 16) {
            const uint32_t value = thread_index() / 16, at = thread_index() % 16 * 16;
            const unsigned char *from = t.page_ahead + 2 * size_t(kv_heads) * head_bytes + (value * kv_heads + kv_head) * (ATTENTION_KEYS * 4) + at;
            cp_async_16(shared<unsigned char>(S::SCALES + place * S::SCALES_BYTES + value * ATTENTION_KEYS * 4 + at), from, true);
        }
        t.ahead = attention_walk_jump(t.walk, t.ahead + 1);
        t.page_ahead = attention_page(t, t.ahead);       /* long before it is needed */
    }
    cp_async_commit();
}

/* V of the block whose K was asked for last. Always one group. */
template <typename S> DEVICE void attention_ask_v(const attention_tile<S> &t, uint32_t place)
{
    if (t.page_last) {
        const uint32_t dim = t.job.geometry.dim, kv_heads = t.job.geometry.kv_heads, kv_head = t.task.head / (t.job.geometry.heads / kv_heads);
        const unsigned char *v = t.page_last + size_t(kv_heads + kv_head) * (ATTENTION_KEYS * dim);
        unsigned char *to = shared<unsigned char>(S::V + place * S::PLANE);
        UNROLL_BY(1)
        for (uint32_t i = thread_index(); i < S::D * 4; i += S::THREADS)
            cp_async_16(to + attention_chunk<ATTENTION_KEYS>(i / 4, i % 4), v + (i / 4 < dim ? i * 16 : 0), i / 4 < dim);
    }
    cp_async_commit();
}

/* ---- scores ---- */

template <typename S> DEVICE void attention_scores(uint32_t place, uint32_t warp_m, uint32_t warp_n, int32_t score[S::SCORE_TILES][4])
{
    const uint32_t lane = lane_index();
    const unsigned char *q = shared<unsigned char>(S::Q), *k = shared<unsigned char>(S::K + place * S::PLANE);
    const uint32_t q_row = 16 * warp_m + lane % 16, k_row = warp_n * (ATTENTION_KEYS / S::N) + lane % 8;
    UNROLL
    for (uint32_t j = 0; j < S::SCORE_TILES; j++)
        UNROLL
        for (uint32_t e = 0; e < 4; e++)
            score[j][e] = 0;
    UNROLL_BY(2)
    for (uint32_t c = 0; c < S::D / 16; c += 4) {            /* 64 bytes of depth: two steps of the multiplication */
        uint32_t a[2][4];
        ldmatrix_x4(a[0], q + attention_chunk<S::D>(q_row, c + lane / 16));
        ldmatrix_x4(a[1], q + attention_chunk<S::D>(q_row, c + 2 + lane / 16));
        UNROLL
        for (uint32_t j = 0; j < S::SCORE_TILES; j++) {
            uint32_t b[4];
            ldmatrix_x4(b, k + attention_chunk<S::D>(k_row + 8 * j, c + lane / 8));
            mma_s8(score[j], a[0], b);
            mma_s8(score[j], a[1], b + 2);
        }
    }
}

/* ---- weights ---- */

/* What a row's keys give together: over the 4 lanes that hold them, and with several warps over the keys, over what each of those left. */
DEVICE int32_t attention_higher(int32_t a, int32_t b) { return a > b ? a : b; }

DEVICE int32_t attention_lanes_highest(int32_t v)
{
    v = attention_higher(v, shuffle_xor(v, 1));
    return attention_higher(v, shuffle_xor(v, 2));
}

DEVICE uint32_t attention_lanes_sum(uint32_t v)
{
    v += shuffle_xor(v, 1);
    return v + shuffle_xor(v, 2);
}

struct attention_seen {                      /* of one block and row: keys [low, low + span) and [0, sinks) */
    uint32_t low, span, sinks;
};

DEVICE attention_seen attention_row_sees(const cuda_attention_geometry &g, uint32_t position, uint32_t begin)
{
    const uint32_t end = begin + ATTENTION_KEYS, from = g.window && position >= g.window ? position - g.window + 1 : 0;
    const uint32_t sinks = !g.window ? 0 : g.sinks < position + 1 ? g.sinks : position + 1;
    attention_seen seen = {0, 0, 0};
    if (from < end && position >= begin) {
        seen.low = from > begin ? from - begin : 0;
        seen.span = (position < end ? position - begin + 1 : ATTENTION_KEYS) - seen.low;
    }
    if (sinks > begin)
        seen.sinks = sinks < end ? sinks - begin : ATTENTION_KEYS;
    return seen;
}

struct attention_step {                      /* of one block, for a lane's two rows */
    attention_fold fold[2];                  /* join: times the gain; -0 where nothing is seen */
};

/* Turns the scores into P, the left operands of P V: words[4 i ..] for the keys [32 i, 32 i + 32). Folds tops and sums. With N > 1 it contains
 * barriers of the block, and P goes through shared memory. */
template <typename S>
DEVICE attention_step attention_weights(attention_tile<S> &t, uint32_t block, uint32_t place, uint32_t warp_m, uint32_t warp_n,
                                        const int32_t score[S::SCORE_TILES][4], uint32_t words[S::SCORE_TILES])
{
    const uint32_t quad = lane_index() % 4, key_first = warp_n * (ATTENTION_KEYS / S::N) + 4 * quad;
    const float *scales = shared<float>(S::SCALES + place * S::SCALES_BYTES);
    const uint32_t warp_row = 16 * warp_m + lane_index() / 4;
    int32_t *tops = shared<int32_t>(S::ROWS), *larges = tops + S::PAIRS * S::N;
    uint32_t *sums = shared<uint32_t>(S::ROWS + 2 * S::PAIRS * S::N * 4);
    const attention_seen seen[2] = {attention_row_sees(t.job.geometry, t.row[0].position, block * ATTENTION_KEYS),
                                    attention_row_sees(t.job.geometry, t.row[1].position, block * ATTENTION_KEYS)};

    float s[S::SCORE_TILES / 2][2][4];       /* (16 keys, row, key of the lane's four) */
    int32_t top[2] = {INT32_MIN, INT32_MIN};
    UNROLL
    for (uint32_t i = 0; i < S::SCORE_TILES / 2; i++) {
        const u32x4 k_scale = load_shared_16(scales + key_first + 16 * i);
        UNROLL
        for (uint32_t h = 0; h < 2; h++)
            UNROLL
            for (uint32_t c = 0; c < 4; c++) {
                const uint32_t key = key_first + 16 * i + c;
                const float value = (static_cast<float>(score[2 * i + c / 2][2 * h + c % 2]) * t.row[h].scale) * float_from_bits(k_scale.v[c]);
                s[i][h][c] = (key - seen[h].low < seen[h].span) | (key < seen[h].sinks) ? value : ATTENTION_NOTHING;
                top[h] = attention_higher(top[h], attention_order(s[i][h][c]));
            }
    }
    UNROLL
    for (uint32_t h = 0; h < 2; h++) {
        top[h] = attention_lanes_highest(top[h]);
        if (S::N > 1 && quad == 0)
            tops[(warp_row + 8 * h) * S::N + warp_n] = top[h];
    }
    if (S::N > 1) {
        sync_block();
        UNROLL
        for (uint32_t h = 0; h < 2; h++)
            UNROLL
            for (uint32_t n = 0; n < S::N; n++)
                top[h] = attention_higher(top[h], tops[(warp_row + 8 * h) * S::N + n]);
    }

    int32_t large[2] = {0, 0};
    uint32_t sum[2] = {0, 0};
    UNROLL
    for (uint32_t i = 0; i < S::SCORE_TILES / 2; i++) {
        const u32x4 v_scale = load_shared_16(scales + ATTENTION_KEYS + key_first + 16 * i);
        UNROLL
        for (uint32_t h = 0; h < 2; h++)
            UNROLL
            for (uint32_t c = 0; c < 4; c++) {
                const float e = inline_exp2(s[i][h][c] - attention_from_order(top[h]));
                sum[h] += float_round_bits(e * 65536.0f);
                s[i][h][c] = s[i][h][c] == ATTENTION_NOTHING ? 0.0f : e * float_from_bits(v_scale.v[c]);
                large[h] = attention_higher(large[h], static_cast<int32_t>(float_bits(s[i][h][c]) & 0x7fffffffu));
            }
    }
    UNROLL
    for (uint32_t h = 0; h < 2; h++) {
        large[h] = attention_lanes_highest(large[h]);
        sum[h] = attention_lanes_sum(sum[h]);
        if (S::N > 1 && quad == 0) {
            larges[(warp_row + 8 * h) * S::N + warp_n] = large[h];
            sums[(warp_row + 8 * h) * S::N + warp_n] = sum[h];
        }
    }
    if (S::N > 1) {
        sync_block();
        UNROLL
        for (uint32_t h = 0; h < 2; h++) {
            sum[h] = 0;
            UNROLL
            for (uint32_t n = 0; n < S::N; n++) {
                large[h] = attention_higher(large[h], larges[(warp_row + 8 * h) * S::N + n]);
                sum[h] += sums[(warp_row + 8 * h) * S::N + n];
            }
        }
    }

    attention_step step;
    UNROLL
    for (uint32_t h = 0; h < 2; h++) {
        const float peak = float_from_bits(static_cast<uint32_t>(large[h]));
        float inverse = 255.0f / peak;
        inverse = inverse < __builtin_inff() ? inverse : 0.0f;       /* a peak of (nearly) 0: the low byte of a CPU's NaN is 0, of a GPU's 255 */
        UNROLL
        for (uint32_t i = 0; i < S::SCORE_TILES / 2; i++) {
            uint32_t word = 0;
            UNROLL
            for (uint32_t c = 0; c < 4; c++)
                word |= (float_round_bits(s[i][h][c] * inverse) & 0xffu) << (8 * c);
            words[2 * i + h] = word;
        }
        const bool sees = (seen[h].span | seen[h].sinks) != 0;
        const float block_sum = static_cast<float>(static_cast<int32_t>(sum[h])) * 0x1p-16f;
        step.fold[h] = attention_join(t.row[h].top, t.row[h].sum, attention_from_order(top[h]), block_sum, sees);
        step.fold[h].join = sees ? (peak / 255.0f) * step.fold[h].join : -0.0f;
    }
    if (S::N > 1) {
        UNROLL
        for (uint32_t i = 0; i < S::SCORE_TILES / 2; i++)
            UNROLL
            for (uint32_t h = 0; h < 2; h++) {
                const uint32_t chunk = warp_n * (ATTENTION_KEYS / S::N / 16) + i;
                *shared<uint32_t>(S::P + attention_chunk<ATTENTION_KEYS>(warp_row + 8 * h, chunk) + 4 * quad) = words[2 * i + h];
            }
    }
    return step;
}

/* ---- values ---- */

template <typename S>
DEVICE void attention_values(attention_tile<S> &t, uint32_t place, uint32_t warp_m, uint32_t warp_n, const attention_step &step,
                             const uint32_t words[S::SCORE_TILES])
{
    const uint32_t lane = lane_index();
    const unsigned char *v = shared<unsigned char>(S::V + place * S::PLANE);
    uint32_t a[2][4];
    UNROLL
    for (uint32_t i = 0; i < 2; i++) {
        if (S::N > 1) {
            const uint32_t at = attention_chunk<ATTENTION_KEYS>(16 * warp_m + lane % 16, 2 * i + lane / 16);
            ldmatrix_x4(a[i], shared<unsigned char>(S::P + at));
        } else {
            UNROLL
            for (uint32_t n = 0; n < 4; n++)
                a[i][n] = words[(4 * i + n) % S::SCORE_TILES];
        }
    }
    UNROLL
    for (uint32_t j = 0; j < S::VALUE_TILES; j++) {
        uint32_t b[4];
        int32_t part[4] = {0, 0, 0, 0};
        ldmatrix_x4(b, v + attention_chunk<ATTENTION_KEYS>((warp_n * S::VALUE_TILES + j) * 8 + lane % 8, lane / 8));
        mma_u8s8(part, a[0], b);
        mma_u8s8(part, a[1], b + 2);
        UNROLL
        for (uint32_t e = 0; e < 4; e++)
            t.o[j][e] = float_fma(static_cast<float>(part[e]), step.fold[e / 2].join, t.o[j][e] * step.fold[e / 2].keep);
    }
}

/* ---- units ---- */

template <typename S> DEVICE void attention_unit_begin(attention_tile<S> &t)
{
    UNROLL
    for (uint32_t h = 0; h < 2; h++) {
        t.row[h].top = ATTENTION_NOTHING;
        t.row[h].sum = 0.0f;
    }
    UNROLL
    for (uint32_t j = 0; j < S::VALUE_TILES; j++)
        UNROLL
        for (uint32_t e = 0; e < 4; e++)
            t.o[j][e] = -0.0f;
}

/* A unit's partial: tops (pairs_max), sums (pairs_max), O (pairs_max, dim). */
template <typename S> DEVICE void attention_unit_partial(const attention_tile<S> &t, uint32_t index, uint32_t warp_m, uint32_t warp_n)
{
    const uint32_t dim = t.job.geometry.dim, stride = t.job.pairs_max, at = warp_n * S::VALUE_TILES * 8 + 2 * (lane_index() % 4);
    float *partial = static_cast<float *>(t.job.partials) + size_t(index) * stride * (dim + 2);
    UNROLL
    for (uint32_t h = 0; h < 2; h++) {
        const uint32_t pair = attention_pair(warp_m, h), end = attention_is_pair(t, pair) && at < dim ? dim - at : 0;
        float *to = partial + 2 * stride + size_t(pair) * dim + at;
        if (end > 0 && at == 0) {
            partial[pair] = t.row[h].top;
            partial[stride + pair] = t.row[h].sum;
        }
        UNROLL
        for (uint32_t j = 0; j < S::VALUE_TILES; j++)
            UNROLL
            for (uint32_t e = 0; e < 2; e++)
                if (8 * j + e < end)
                    to[8 * j + e] = t.o[j][2 * h + e];
    }
}

/* Folds the unit into the result, which between units lies in out: a thread reads back what it wrote itself. The barrier keeps the compiler from
 * having all of that under way at once: more than there are registers. */
template <typename S> DEVICE void attention_unit_fold(attention_tile<S> &t, bool first, bool last, uint32_t warp_m, uint32_t warp_n)
{
    const uint32_t dim = t.job.geometry.dim, at = warp_n * S::VALUE_TILES * 8 + 2 * (lane_index() % 4);
    UNROLL
    for (uint32_t h = 0; h < 2; h++) {
        attention_row &row = t.row[h];
        const attention_fold fold = attention_join(row.total_top, row.total_sum, row.top, row.sum, row.top != ATTENTION_NOTHING);
        const float inverse = last ? 1.0f / row.total_sum : 1.0f;
        const uint32_t pair = attention_pair(warp_m, h), end = attention_is_pair(t, pair) && at < dim ? dim - at : 0;
        float *out = t.job.out + (end > 0 ? attention_place(t, pair) * dim + at : 0);
        UNROLL
        for (uint32_t j = 0; j < S::VALUE_TILES; j++) {
            UNROLL
            for (uint32_t e = 0; e < 2; e++)
                if (8 * j + e < end)
                    out[8 * j + e] = float_fma(t.o[j][2 * h + e], fold.join, (first ? -0.0f : out[8 * j + e]) * fold.keep) * inverse;
            sync_warp();
        }
    }
}

/* ---- the task ---- */

template <typename S> DEVICE void attention_tile_begin(attention_tile<S> &t, uint32_t warp_m)
{
    const cuda_attention_geometry &g = t.job.geometry;
    const uint32_t first = t.job.spans[t.task.span].start + t.task.row, last = first + t.task.rows - 1;      /* positions */
    UNROLL
    for (uint32_t h = 0; h < 2; h++) {
        const uint32_t pair = attention_pair(warp_m, h);         /* behind the last: as that, with zeros for a query; never stored */
        const bool valid = attention_is_pair(t, pair);
        t.row[h].position = valid ? first + pair / t.task.heads : last;
        t.row[h].scale = valid ? t.job.q_scale[attention_place(t, pair)] * t.job.score_scale : 0.0f;
        t.row[h].total_top = ATTENTION_NOTHING;
        t.row[h].total_sum = 0.0f;
    }
    const uint32_t sinks = !g.window ? 0 : g.sinks < last + 1 ? g.sinks : last + 1, units_end = (t.task.unit + t.task.units) * ATTENTION_UNIT;
    t.walk.sinks_end = (sinks + ATTENTION_KEYS - 1) / ATTENTION_KEYS;
    t.walk.first = (g.window && first >= g.window ? first - g.window + 1 : 0) / ATTENTION_KEYS;
    t.walk.end = last / ATTENTION_KEYS + 1 < units_end ? last / ATTENTION_KEYS + 1 : units_end;
    t.ahead = attention_walk_jump(t.walk, t.task.unit * ATTENTION_UNIT);
    t.page_ahead = attention_page(t, t.ahead);
    t.page_last = nullptr;
}

/* Has the warp pairs? Without a part in the barriers of attention_weights it may stand aside if not. */
DEVICE bool attention_is_warp(const cuda_attention_task &task, uint32_t warp_m)
{
    return 16 * warp_m < task.rows * task.heads;
}

template <typename S> DEVICE void attention_task(const cuda_attention &job, const cuda_attention_task &task)
{
    const uint32_t warp_m = warp_index() % S::M, warp_n = warp_index() / S::M;
    const bool busy = S::N > 1 || attention_is_warp(task, warp_m);
    attention_tile<S> t = {job, task, {}, 0, nullptr, nullptr, {}, {}};
    attention_tile_begin(t, warp_m);
    uint32_t block = t.ahead, partial = task.partial;
    attention_ask_q(t);
    attention_ask_k(t, 0);
    if (S::DEPTH == 2) {
        attention_ask_v(t, 0);
        attention_ask_k(t, 1);
    }
    attention_unit_begin(t);
    bool first = true;
    for (uint32_t i = 0; block < t.walk.end; i++) {
        const uint32_t place = i % S::DEPTH;
        int32_t score[S::SCORE_TILES][4];
        uint32_t words[S::SCORE_TILES];
        attention_step step = {};
        cp_async_wait<2 * S::DEPTH - 2>();
        sync_block();                        /* K of this block is there; nobody reads the last one's V any more */
        attention_ask_v(t, (i + S::DEPTH - 1) % S::DEPTH);
        if (busy) {
            attention_scores<S>(place, warp_m, warp_n, score);
            step = attention_weights(t, block, place, warp_m, warp_n, score, words);
        }
        cp_async_wait<2 * S::DEPTH - 2>();
        sync_block();                        /* V is there, and P; nobody reads K and the scales any more */
        attention_ask_k(t, place);
        if (busy)
            attention_values(t, place, warp_m, warp_n, step, words);

        const uint32_t next = attention_walk_jump(t.walk, block + 1);
        if (next >= t.walk.end || next / ATTENTION_UNIT != block / ATTENTION_UNIT) {
            if (partial == UINT32_MAX)
                attention_unit_fold(t, first, next >= t.walk.end, warp_m, warp_n);
            else
                attention_unit_partial(t, partial++, warp_m, warp_n);
            first = false;
            attention_unit_begin(t);
        }
        block = next;
    }
    cp_async_wait<0>();
}

/* One task a block of threads, the heaviest first. */
template <typename S> ENTRY_BLOCKS(S::THREADS, S::BLOCKS) attention_tasks(cuda_attention job)
{
    const cuda_attention_task task = job.tasks[block_index()];
    if (task.rows > 0)
        attention_task<S>(job, task);
}

template <typename S> static inline bool attention_launch(const struct cuda_attention *job, cuda_stream stream)
{
    return LAUNCH(attention_tasks<S>, job->task_count, S::THREADS, S::BYTES, stream, *job);
}

#endif
