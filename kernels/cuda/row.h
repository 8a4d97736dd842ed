/* row.h - rows of floats on the device: the pinned sum of squares (docs/numerics.md, section 4), rows as integers (section 3). For kernels of
 * one row a block, or one row a warp.
 *
 * A *row* is a type with a row_four(row, i): its elements i .. i + 3, zeros beyond its end; i is a multiple of 4. A block walks a row by quads,
 * thread t of n taking the elements 4t .. 4t + 3, 4(t + n) .. and so on, always the same ones. So a warp reads and writes whole lines, and a
 * warp's quads are a block of the rotation, 128 columns.
 * The block functions use the first ROW_SHARED_BYTES of shared memory, are called by all threads and begin with a barrier. */
#ifndef ROOST_KERNELS_CUDA_ROW_H
#define ROOST_KERNELS_CUDA_ROW_H
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels_cuda.h"
#include "kernels/ref/rotate_inline.h"

#define ROW_LANES 128u                       /* of the sum of squares; the threads of a block that takes one */
#define ROW_SHARED_BYTES 512u                /* a float a lane; or a word a warp, of at most 32 */
#define ROW_AHEAD 8u                         /* loads of a thread under way; the sum itself is a chain */
#define ROW_ABSMAX_MIN 0x1p-100f             /* rows below it become zeros (QUANTIZE_ABSMAX_MIN) */
#define ROW_NOT_FINITE 0x7f800000u           /* the bits of |x| from here on are infinity and NaN */
#define ROW_FINITE_MAX 0x1.fffffep+127f

struct row_quad {
    float v[4];
};

DEVICE bool row_aligned(const void *p, uint32_t stride_bytes, uint32_t to)
{
    return (reinterpret_cast<uintptr_t>(p) | stride_bytes) % to == 0;
}

/* ---- rows ---- */

struct row_plain {                           /* in device memory */
    const float *x;
    uint32_t columns;
    bool whole;                              /* its quads are whole and aligned */
};

DEVICE row_plain row_plain_at(const float *x, uint32_t columns)
{
    return row_plain{x, columns, row_aligned(x, columns * 4, 16)};
}

DEVICE row_quad row_four(const row_plain &row, uint32_t i)
{
    row_quad r = {};
    if (row.whole) {
        const u32x4 words = load_16_plain(row.x + i);
        for (uint32_t k = 0; k < 4; k++)
            r.v[k] = float_from_bits(words.v[k]);
    } else {
        for (uint32_t k = 0; k < 4; k++)
            r.v[k] = i + k < row.columns ? row.x[i + k] : 0.0f;
    }
    return r;
}

struct row_kept {                            /* in shared memory, 16-byte aligned and padded to whole quads: each thread keeps its own */
    float *x;
};

DEVICE row_quad row_four(const row_kept &row, uint32_t i)
{
    const u32x4 words = load_shared_16(row.x + i);
    row_quad r;
    for (uint32_t k = 0; k < 4; k++)
        r.v[k] = float_from_bits(words.v[k]);
    return r;
}

DEVICE void row_keep(const row_kept &row, uint32_t i, const row_quad &quad)
{
    u32x4 words;
    for (uint32_t k = 0; k < 4; k++)
        words.v[k] = float_bits(quad.v[k]);
    store_shared_16(row.x + i, words);
}

template <typename R> struct row_rotated {   /* another row's blocks of 128, rotated; columns a multiple of 128 */
    R row;
    uint32_t flip[4];                        /* the sign bits of this thread's columns: the same in every block */
};

template <typename R> DEVICE row_rotated<R> row_rotate(const R &row)
{
    row_rotated<R> r = {row, {}};
    for (uint32_t k = 0; k < 4; k++)
        r.flip[k] = rotate_sign(4 * lane_index() + k) < 0.0f ? 0x80000000u : 0u;
    return r;
}

DEVICE void row_butterfly(float &a, float &b)
{
    const float sum = a + b, difference = a - b;
    a = sum;
    b = difference;
}

template <typename R> DEVICE row_quad row_four(const row_rotated<R> &rotated, uint32_t i)
{
    row_quad t = row_four(rotated.row, i);
    for (uint32_t k = 0; k < 4; k++)
        t.v[k] = float_from_bits(float_bits(t.v[k]) ^ rotated.flip[k]);
    row_butterfly(t.v[0], t.v[1]);
    row_butterfly(t.v[2], t.v[3]);
    row_butterfly(t.v[0], t.v[2]);
    row_butterfly(t.v[1], t.v[3]);
    for (uint32_t distance = 1; distance < WARP_THREADS; distance *= 2)      /* in lanes: 4 .. 64 columns */
        for (uint32_t k = 0; k < 4; k++) {
            const float other = shuffle_xor(t.v[k], distance);
            t.v[k] = lane_index() & distance ? other - t.v[k] : t.v[k] + other;
        }
    return t;
}

/* ---- stores; whole: quads are whole and aligned ---- */

DEVICE void row_store_floats(float *out, uint32_t columns, bool whole, uint32_t i, const row_quad &quad)
{
    if (whole) {
        u32x4 words;
        for (uint32_t k = 0; k < 4; k++)
            words.v[k] = float_bits(quad.v[k]);
        store_16(out + i, words);
    } else {
        for (uint32_t k = 0; k < 4; k++)
            if (i + k < columns)
                out[i + k] = quad.v[k];
    }
}

DEVICE void row_store_bytes(int8_t *out, uint32_t columns, bool whole, uint32_t i, uint32_t bytes)
{
    if (whole) {
        *reinterpret_cast<uint32_t *>(out + i) = bytes;
    } else {
        for (uint32_t k = 0; k < 4; k++)
            if (i + k < columns)
                out[i + k] = static_cast<int8_t>(bytes >> (8 * k) & 0xffu);
    }
}

/* ---- sums and maxima ---- */

DEVICE uint32_t row_magnitude(const row_quad &quad, uint32_t top)
{
    for (uint32_t k = 0; k < 4; k++) {
        const uint32_t bits = float_bits(quad.v[k]) & 0x7fffffffu;
        top = bits > top ? bits : top;
    }
    return top;
}

/* The largest v of the block, in every thread. */
DEVICE uint32_t row_block_max(uint32_t v)
{
    uint32_t *slots = shared<uint32_t>(0);
    const uint32_t top = warp_max(v);
    sync_block();
    if (lane_index() == 0)
        slots[warp_index()] = top;
    sync_block();
    return warp_max(lane_index() < block_threads() / WARP_THREADS ? slots[lane_index()] : 0u);
}

/* max |x| as bits, which compare like the numbers, in any order; NaN and infinity come out on top. */
template <typename R> DEVICE uint32_t row_absmax(const R &row, uint32_t columns)
{
    uint32_t top = 0;
    for (uint32_t i = 4 * thread_index(); i < columns; i += 4 * block_threads())
        top = row_magnitude(row_four(row, i), top);
    return row_block_max(top);
}

/* Lanes 0 .. 31 of the tree's last steps hold theirs; the sum in every lane. */
DEVICE float row_warp_tree(float lane)
{
    for (uint32_t distance = WARP_THREADS / 2; distance > 0; distance /= 2)
        lane = lane + shuffle_down(lane, distance);        /* lanes from `distance` on hold nothing that is read again */
    return shuffle_from(lane, 0);
}

/* By a block of ROW_LANES threads, a thread a lane; in every thread. */
DEVICE float row_block_squares(const float *x, uint32_t columns)
{
    float *lanes = shared<float>(0);
    float sum = 0.0f;
    for (uint32_t at = thread_index(); at < columns; at += ROW_AHEAD * ROW_LANES) {
        float v[ROW_AHEAD];
        for (uint32_t k = 0; k < ROW_AHEAD; k++)
            v[k] = at + k * ROW_LANES < columns ? x[at + k * ROW_LANES] : 0.0f;
        for (uint32_t k = 0; k < ROW_AHEAD; k++)
            sum = float_fma(v[k], v[k], sum);              /* a square of 0 changes no bit: the sum is never -0 */
    }
    sync_block();
    lanes[thread_index()] = sum;
    sync_block();
    const uint32_t l = lane_index();                       /* every warp does the same */
    return row_warp_tree((lanes[l] + lanes[l + 64]) + (lanes[l + 32] + lanes[l + 96]));
}

/* By one warp, of x_i * factor: thread l has the lanes l, l + 32, l + 64 and l + 96; in every thread. */
DEVICE float row_warp_squares(const float *x, uint32_t columns, float factor)
{
    float sum[4] = {};
    for (uint32_t at = lane_index(); at < columns; at += ROW_LANES)
        for (uint32_t k = 0; k < 4; k++)
            if (at + WARP_THREADS * k < columns) {
                const float v = x[at + WARP_THREADS * k] * factor;
                sum[k] = float_fma(v, v, sum[k]);
            }
    return row_warp_tree((sum[0] + sum[2]) + (sum[1] + sum[3]));
}

/* 1 / sqrt(mean + epsilon); false: the mean is not finite. */
DEVICE bool row_inverse(float squares, uint32_t columns, float epsilon, float *inverse)
{
    const float mean = squares / static_cast<float>(columns);
    *inverse = 1.0f / float_sqrt(mean + epsilon);
    return mean <= ROW_FINITE_MAX;
}

/* ---- integers ---- */

struct row_scale {
    float scale, inverse;
    float limit;                             /* beyond it products are clamped: static rows; others do not reach it */
};

DEVICE row_scale row_scale_of(enum cuda_scheme scheme, float input_scale, uint32_t absmax_bits)
{
    if (scheme == CUDA_SCHEME_STATIC)
        return row_scale{input_scale, 1.0f / input_scale, 127.0f};
    const float limit = scheme == CUDA_SCHEME_WIDE ? 32512.0f : 127.0f, absmax = float_from_bits(absmax_bits);
    if (absmax < ROW_ABSMAX_MIN)
        return row_scale{1.0f, 0.0f, limit};
    return row_scale{absmax / limit, limit / absmax, limit};
}

/* rint(x * inverse), as two's complement. */
DEVICE uint32_t row_integer(float x, const row_scale &s)
{
    float v = x * s.inverse;                 /* clamped before it is rounded: it may be infinite; the bounds are integers */
    v = v > s.limit ? s.limit : v;
    v = v < -s.limit ? -s.limit : v;
    return float_round_bits(v);
}

DEVICE uint32_t row_integers(const row_quad &quad, const row_scale &s)
{
    uint32_t bytes = 0;
    for (uint32_t k = 0; k < 4; k++)
        bytes |= (row_integer(quad.v[k], s) & 0xffu) << (8 * k);
    return bytes;
}

/* Row `number` of into, from what absmax says of it. */
template <typename R>
DEVICE void row_store_integers(const R &row, uint32_t columns, uint32_t number, const cuda_rows_int8 &into, uint32_t absmax_bits, uint32_t *bad_row)
{
    const row_scale s = row_scale_of(into.scheme, into.input_scale, absmax_bits);
    const bool wide = into.scheme == CUDA_SCHEME_WIDE;
    int8_t *q = into.q + size_t(number) * columns, *low = wide ? into.q_low + size_t(number) * columns : nullptr;
    const bool whole = row_aligned(q, columns, 4) && row_aligned(low, columns, 4);
    if (thread_index() == 0) {
        into.scale[number] = s.scale;
        if (absmax_bits >= ROW_NOT_FINITE)
            atomic_min(bad_row, number);
    }
    for (uint32_t i = 4 * thread_index(); i < columns; i += 4 * block_threads()) {
        const row_quad quad = row_four(row, i);
        if (wide) {
            uint32_t high_bytes = 0, low_bytes = 0;
            for (uint32_t k = 0; k < 4; k++) {
                const uint32_t n = row_integer(quad.v[k], s);
                high_bytes |= ((n + 128u) >> 8 & 0xffu) << (8 * k);
                low_bytes |= (n & 0xffu) << (8 * k);       /* what is left lies in [-128, 127]: the low byte as it stands */
            }
            row_store_bytes(q, columns, whole, i, high_bytes);
            row_store_bytes(low, columns, whole, i, low_bytes);
        } else {
            row_store_bytes(q, columns, whole, i, row_integers(quad, s));
        }
    }
}

/* Row `number` of into. absmax: of the row as it is, if known. */
template <typename R>
DEVICE void row_quantize(const R &row, uint32_t columns, uint32_t number, const cuda_rows_int8 &into, const uint32_t *absmax, uint32_t *bad_row)
{
    if (into.scheme == CUDA_SCHEME_ROTATED) {
        const row_rotated<R> rotated = row_rotate(row);
        row_store_integers(rotated, columns, number, into, row_absmax(rotated, columns), bad_row);
    } else {
        row_store_integers(row, columns, number, into, absmax ? *absmax : row_absmax(row, columns), bad_row);
    }
}

#endif
