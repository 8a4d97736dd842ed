/* attention.c - blocks of 64 keys, folded into units of 1,024 tokens, folded into the result (docs/numerics.md, section 7).
 *
 * Work goes by tiles of (row, head) pairs that share one KV head:
 *   for each block:  scores of all pairs (integer tiles) -> weights P and sums per pair -> P times V (integer tiles) -> fold
 * A pair that sees nothing of a block takes no part in it, and a block that no pair of the tile sees is not touched. */
#include "kernels/attention.h"
#include <stdbool.h>
#include "kernels/ref/dot.h"
#include "kernels/ref/inline.h"
#include "kernels/ref/levels.h"

DOT_TILE(score_4x4, dot_operand, DOT_RIGHT, 4, 4)
DOT_TILE(score_1x4, dot_operand, DOT_RIGHT, 1, 4)
DOT_TILE(value_4x4, dot_weight, DOT_PLAIN, 4, 4)
DOT_TILE(value_1x4, dot_weight, DOT_PLAIN, 1, 4)
DOT_TILE(value_1x1, dot_weight, DOT_PLAIN, 1, 1)

#define BLOCK ATTENTION_BLOCK

struct partial {               /* a softmax state: sum and o are relative to 2^top */
    float top, sum;
    uint32_t used;             /* 0: nothing folded in yet */
};

struct tile {                  /* the pairs at work; arrays in the caller's scratch memory */
    const struct attention *job;
    size_t kv_head, head, heads;             /* query heads [head, head + heads), all of one KV head */
    size_t first_row, rows, pairs;           /* pair p: row first_row + p / heads, head + p % heads */
    const dot_operand *q;      /* (pairs, dim) */
    int32_t *q_offset;         /* (pairs) */
    int32_t *score;            /* (pairs, 64) */
    dot_weight *weight;        /* (pairs, 64) */
    int32_t *value;            /* (pairs, dim) */
    float *gain;               /* (pairs): what an integer of value is worth */
    struct partial *block, *unit, *total;      /* (pairs) */
    float *unit_o, *total_o;   /* (pairs, dim) */
};

/* A row at `position` sees the keys from here up to itself, and the sinks. */
static uint32_t row_first_key(const struct attention *job, uint32_t position)
{
    return job->window && position >= job->window ? position - job->window + 1u : 0u;
}

static uint32_t row_sinks_end(const struct attention *job, uint32_t position)
{
    if (!job->window)
        return 0;
    return job->sinks < position + 1u ? job->sinks : position + 1u;
}

static size_t pair_row(const struct tile *tile, size_t pair)
{
    return tile->first_row + pair / tile->heads;
}

/* Of the rows and heads of the job: where a pair's values are. */
static size_t pair_index(const struct tile *tile, size_t pair)
{
    return pair_row(tile, pair) * tile->job->heads + tile->head + pair % tile->heads;
}

/* Integers that order like floats. */
static inline int32_t float_order(float x)
{
    int32_t bits = (int32_t)float_bits(x);
    return bits ^ (int32_t)((uint32_t)(bits >> 31) & 0x7fffffffu);
}

static inline float float_from_order(int32_t order)
{
    return float_from_bits((uint32_t)order ^ ((uint32_t)(order >> 31) & 0x7fffffffu));
}

struct visible {               /* of one block and row: keys [low, high) and, at the block's start, [0, sinks) */
    uint32_t low, high, sinks;
};

static struct visible block_visible(const struct attention *job, uint32_t position, uint32_t begin)
{
    uint32_t from = row_first_key(job, position), sinks_end = row_sinks_end(job, position), end = begin + BLOCK;
    struct visible visible = {0, 0, 0};
    if (from < end && position >= begin) {
        visible.low = from > begin ? from - begin : 0;
        visible.high = position < end ? position - begin + 1 : BLOCK;
    }
    if (sinks_end > begin)
        visible.sinks = sinks_end < end ? sinks_end - begin : BLOCK;
    return visible;
}

/* One pair and one block, of which at least one key is visible. */
static void softmax_block(const int32_t *restrict score, float q_scale, const float *restrict k_scale,
                          const float *restrict v_scale, struct visible visible, dot_weight *restrict weight,
                          struct partial *restrict block, float *restrict gain)
{
    float s[BLOCK], a[BLOCK];
    int32_t top = INT32_MIN;
    uint32_t low = visible.low, span = visible.high - visible.low, sinks = visible.sinks;
    for (uint32_t j = 0; j < BLOCK; j++) {
        float value = ((float)score[j] * q_scale) * k_scale[j];
        value = (j - low < span) | (j < sinks) ? value : -__builtin_inff();
        s[j] = value;
        int32_t order = float_order(value);
        top = order > top ? order : top;
    }
    float m = float_from_order(top);
    int32_t largest = 0;
    uint32_t sum = 0;
    for (uint32_t j = 0; j < BLOCK; j++) {
        float e = inline_exp2(s[j] - m);
        float scaled = e * v_scale[j];
        scaled = (j - low < span) | (j < sinks) ? scaled : 0.0f;
        a[j] = scaled;
        sum += float_round_bits(e * 65536.0f);
        int32_t bits = (int32_t)(float_bits(scaled) & 0x7fffffffu);   /* a NaN comes out on top and ends in the result */
        largest = bits > largest ? bits : largest;
    }
    float peak = float_from_bits((uint32_t)largest);
    float inverse = 255.0f / peak;
    for (uint32_t j = 0; j < BLOCK; j++)
        weight[j] = (dot_weight)float_round_bits(a[j] * inverse);
    block->top = m;
    block->sum = (float)(int32_t)sum * 0x1p-16f;
    block->used = 1;
    *gain = peak / 255.0f;
}

/* into = into + (part, part_o * gain), both seen from the higher top. */
static void fold(struct partial *restrict into, float *restrict into_o, float top, float sum, float c_gain,
                 const float *restrict part_o, const int32_t *restrict part_integer, size_t dim)
{
    if (!into->used) {
        into->top = top;
        into->sum = sum;
        into->used = 1;
        for (size_t d = 0; d < dim; d++)
            into_o[d] = part_integer ? (float)part_integer[d] * c_gain : part_o[d];
        return;
    }
    float higher = into->top > top ? into->top : top;
    float keep = inline_exp2(into->top - higher);
    float join = inline_exp2(top - higher);
    into->top = higher;
    into->sum = float_fma(sum, join, into->sum * keep);
    if (part_integer) {
        float scale = c_gain * join;
        for (size_t d = 0; d < dim; d++)
            into_o[d] = float_fma((float)part_integer[d], scale, into_o[d] * keep);
    } else {
        for (size_t d = 0; d < dim; d++)
            into_o[d] = float_fma(part_o[d], join, into_o[d] * keep);
    }
}

static void close_unit(const struct tile *tile)
{
    size_t dim = tile->job->dim;
    for (size_t p = 0; p < tile->pairs; p++) {
        struct partial *unit = &tile->unit[p];
        if (!unit->used)
            continue;
        fold(&tile->total[p], tile->total_o + p * dim, unit->top, unit->sum, 1.0f, tile->unit_o + p * dim, NULL, dim);
        unit->used = 0;
    }
}

static void score_block(const struct tile *tile, const int8_t *k, uint32_t low, uint32_t high)
{
    size_t dim = tile->job->dim;
    for (size_t j = low / 4 * 4; j < high; j += 4) {
        size_t p = 0;
        for (; p + 4 <= tile->pairs; p += 4)
            score_4x4(tile->q + p * dim, dim, k + j * dim, dim, dim, tile->q_offset + p, tile->score + p * BLOCK + j, BLOCK);
        for (; p < tile->pairs; p++)
            score_1x4(tile->q + p * dim, dim, k + j * dim, dim, dim, tile->q_offset + p, tile->score + p * BLOCK + j, BLOCK);
    }
}

static void value_block(const struct tile *tile, const int8_t *v)
{
    size_t dim = tile->job->dim, d = 0;
    for (; d + 4 <= dim; d += 4) {
        size_t p = 0;
        for (; p + 4 <= tile->pairs; p += 4)
            value_4x4(tile->weight + p * BLOCK, BLOCK, v + d * BLOCK, BLOCK, BLOCK, NULL, tile->value + p * dim + d, dim);
        for (; p < tile->pairs; p++)
            value_1x4(tile->weight + p * BLOCK, BLOCK, v + d * BLOCK, BLOCK, BLOCK, NULL, tile->value + p * dim + d, dim);
    }
    for (; d < dim; d++)
        for (size_t p = 0; p < tile->pairs; p++)
            value_1x1(tile->weight + p * BLOCK, BLOCK, v + d * BLOCK, BLOCK, BLOCK, NULL, tile->value + p * dim + d, dim);
}

static void attend_block(const struct tile *tile, uint32_t b)
{
    const struct attention *job = tile->job;
    const char *page = job->pages[b];
    const int8_t *k = (const int8_t *)(page + job->k_offset) + tile->kv_head * BLOCK * job->dim;
    const int8_t *v = (const int8_t *)(page + job->v_offset) + tile->kv_head * BLOCK * job->dim;
    const float *k_scale = (const float *)(page + job->k_scale_offset) + tile->kv_head * BLOCK;
    const float *v_scale = (const float *)(page + job->v_scale_offset) + tile->kv_head * BLOCK;
    uint32_t begin = b * BLOCK, end = begin + BLOCK;

    /* The first row's window reaches back furthest; the last row sees the most sinks. */
    uint32_t first = row_first_key(job, job->start + (uint32_t)tile->first_row);
    uint32_t last = job->start + (uint32_t)(tile->first_row + tile->rows - 1);
    bool from_start = row_sinks_end(job, last) > begin || first < begin;
    score_block(tile, k, from_start ? 0 : first - begin, last < end ? last - begin + 1 : BLOCK);

    for (size_t p = 0; p < tile->pairs; p++) {
        struct visible visible = block_visible(job, job->start + (uint32_t)pair_row(tile, p), begin);
        tile->block[p].used = 0;
        if (visible.high == 0 && visible.sinks == 0) {
            memset(tile->weight + p * BLOCK, 0, BLOCK * sizeof *tile->weight);
            continue;
        }
        float q_scale = job->q_scale[pair_index(tile, p)] * job->score_scale;
        softmax_block(tile->score + p * BLOCK, q_scale, k_scale, v_scale, visible, tile->weight + p * BLOCK, &tile->block[p],
                      &tile->gain[p]);
    }
    value_block(tile, v);
    for (size_t p = 0; p < tile->pairs; p++)
        if (tile->block[p].used)
            fold(&tile->unit[p], tile->unit_o + p * job->dim, tile->block[p].top, tile->block[p].sum, tile->gain[p], NULL,
                 tile->value + p * job->dim, job->dim);
}

static void prepare_queries(struct tile *tile, dot_operand *q_copy)
{
    size_t dim = tile->job->dim;
    for (size_t p = 0; p < tile->pairs; p++) {
        const dot_operand *ready = dot_prepare(tile->job->q + pair_index(tile, p) * dim, dim, q_copy + p * dim, &tile->q_offset[p]);
        if (ready != q_copy + p * dim)       /* with several KV heads the pairs are not contiguous: make them so */
            memcpy(q_copy + p * dim, ready, dim * sizeof *ready);
    }
    tile->q = q_copy;
}

static void attend_tile(struct tile *tile, dot_operand *q_copy)
{
    const struct attention *job = tile->job;
    size_t dim = job->dim;
    prepare_queries(tile, q_copy);
    for (size_t p = 0; p < tile->pairs; p++)
        tile->unit[p].used = tile->total[p].used = 0;

    uint32_t last_key = job->start + (uint32_t)(tile->first_row + tile->rows - 1);
    uint32_t first = row_first_key(job, job->start + (uint32_t)tile->first_row) / BLOCK, last = last_key / BLOCK;
    uint32_t sink_blocks = (row_sinks_end(job, last_key) + BLOCK - 1) / BLOCK;
    uint32_t b = sink_blocks ? 0 : first, unit = b / ATTENTION_UNIT_BLOCKS;
    while (b <= last) {
        if (b / ATTENTION_UNIT_BLOCKS != unit)
            close_unit(tile);
        unit = b / ATTENTION_UNIT_BLOCKS;
        attend_block(tile, b);
        b++;
        if (b >= sink_blocks && b < first)       /* from the sinks to the window */
            b = first;
    }
    close_unit(tile);

    for (size_t p = 0; p < tile->pairs; p++) {
        float *out = job->out + pair_index(tile, p) * dim;
        float inverse = 1.0f / tile->total[p].sum;
        for (size_t d = 0; d < dim; d++)
            out[d] = tile->total_o[p * dim + d] * inverse;
    }
}

static void *carve(char **at, size_t bytes)
{
    void *piece = *at;
    *at += (bytes + 63) / 64 * 64;
    return piece;
}

/* All rows of the heads [first, end) of one KV head. */
static void attend_heads(struct tile *tile, size_t first, size_t end, dot_operand *q_copy)
{
    tile->head = first;
    tile->heads = end - first;
    size_t rows = tile->job->rows, rows_max = tile->heads < ATTENTION_PAIRS ? ATTENTION_PAIRS / tile->heads : 1;
    for (tile->first_row = 0; tile->first_row < rows; tile->first_row += rows_max) {
        size_t left = rows - tile->first_row;
        tile->rows = left < rows_max ? left : rows_max;
        tile->pairs = tile->rows * tile->heads;
        attend_tile(tile, q_copy);
    }
}

void KERNEL(attention)(const struct attention *job)
{
    size_t group = job->heads / job->kv_heads, dim = job->dim;
    size_t pairs = group < ATTENTION_PAIRS ? ATTENTION_PAIRS : group;
    char *at = job->scratch;
    struct tile tile = {.job = job};
    dot_operand *q_copy = carve(&at, pairs * dim * sizeof *q_copy);
    tile.q_offset = carve(&at, pairs * sizeof *tile.q_offset);
    tile.score = carve(&at, pairs * BLOCK * sizeof *tile.score);
    tile.weight = carve(&at, pairs * BLOCK * sizeof *tile.weight);
    tile.value = carve(&at, pairs * dim * sizeof *tile.value);
    tile.gain = carve(&at, pairs * sizeof *tile.gain);
    tile.block = carve(&at, pairs * sizeof *tile.block);
    tile.unit = carve(&at, pairs * sizeof *tile.unit);
    tile.total = carve(&at, pairs * sizeof *tile.total);
    tile.unit_o = carve(&at, pairs * dim * sizeof *tile.unit_o);
    tile.total_o = carve(&at, pairs * dim * sizeof *tile.total_o);
    memset(tile.score, 0, pairs * BLOCK * sizeof *tile.score);

    size_t head = job->head_first, end = job->head_count ? head + job->head_count : job->heads;
    while (head < end) {
        tile.kv_head = head / group;
        size_t group_end = (tile.kv_head + 1) * group, stop = group_end < end ? group_end : end;
        attend_heads(&tile, head, stop, q_copy);
        head = stop;
    }
}
