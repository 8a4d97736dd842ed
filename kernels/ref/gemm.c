/* gemm.c - blocks of 64 rows (32 wide ones); within one, every four weight rows meet all rows while they are in the first cache.
 * A wide row is two rows to the integer tiles; its sums meet in store_wide. */
#include "kernels/gemm.h"
#include "kernels/ref/dot.h"
#include "kernels/ref/inline.h"
#include "kernels/ref/levels.h"

DOT_TILE(tile_4x4, dot_operand, DOT_RIGHT, 4, 4)
DOT_TILE(tile_1x4, dot_operand, DOT_RIGHT, 1, 4)
DOT_TILE(tile_1x1, dot_operand, DOT_RIGHT, 1, 1)

DOT_INLINE void store(const struct gemm_int8 *gemm, size_t row, size_t rows, size_t column, size_t columns, const int32_t *sum)
{
    for (size_t r = 0; r < rows; r++) {
        float *out = gemm->out + (row + r) * gemm->out_stride + column;
        float a_scale = gemm->a_scale[row + r];
        for (size_t c = 0; c < columns; c++) {
            float value = ((float)sum[r * columns + c] * a_scale) * gemm->w_scale[column + c];
            out[c] = gemm->accumulate ? out[c] + value : value;
        }
    }
}

/* The same for wide rows: 256 * high + low has at most 40 bits, so a double holds it and the way to float rounds once. */
DOT_INLINE void store_wide(const struct gemm_int8 *gemm, size_t row, size_t rows, size_t column, size_t columns, const int32_t *high,
                       const int32_t *low)
{
    for (size_t r = 0; r < rows; r++) {
        float *out = gemm->out + (row + r) * gemm->out_stride + column;
        float a_scale = gemm->a_scale[row + r];
        for (size_t c = 0; c < columns; c++) {
            double sum = (double)high[r * columns + c] * 256.0 + (double)low[r * columns + c];
            float value = ((float)sum * a_scale) * gemm->w_scale[column + c];
            out[c] = gemm->accumulate ? out[c] + value : value;
        }
    }
}

struct block {                 /* rows at work, prepared as the left side of a dot product */
    size_t first, rows;
    const dot_operand *a;      /* (rows, depth) */
    const int32_t *offset;     /* (rows) */
    const dot_operand *a_low;  /* of wide rows, else NULL */
    const int32_t *offset_low;
};

typedef void tile_fn(const dot_operand *restrict left, size_t left_stride, const int8_t *restrict right, size_t right_stride,
                     size_t depth, const int32_t *restrict offset, int32_t *restrict out, size_t out_stride);

/* Inlined with a tile and sizes that are constants: rows few enough leave no time for calls. */
DOT_INLINE void multiply_part(const struct gemm_int8 *gemm, const struct block *block, bool wide, tile_fn *tile, size_t row,
                              size_t rows, size_t column, size_t columns)
{
    size_t depth = gemm->depth;
    const int8_t *w = gemm->w + column * depth;
    int32_t sum[DOT_ROWS * DOT_COLUMNS], sum_low[DOT_ROWS * DOT_COLUMNS];
    tile(block->a + row * depth, depth, w, depth, depth, block->offset + row, sum, columns);
    if (wide) {
        tile(block->a_low + row * depth, depth, w, depth, depth, block->offset_low + row, sum_low, columns);
        store_wide(gemm, block->first + row, rows, column, columns, sum, sum_low);
    } else {
        store(gemm, block->first + row, rows, column, columns, sum);
    }
}

DOT_INLINE void multiply_block(const struct gemm_int8 *gemm, const struct block *block, bool wide)
{
    size_t column = 0;
    for (; column + DOT_COLUMNS <= gemm->outputs; column += DOT_COLUMNS) {
        size_t row = 0;
        for (; row + DOT_ROWS <= block->rows; row += DOT_ROWS)
            multiply_part(gemm, block, wide, tile_4x4, row, DOT_ROWS, column, DOT_COLUMNS);
        for (; row < block->rows; row++)
            multiply_part(gemm, block, wide, tile_1x4, row, 1, column, DOT_COLUMNS);
    }
    for (; column < gemm->outputs; column++)
        for (size_t row = 0; row < block->rows; row++)
            multiply_part(gemm, block, wide, tile_1x1, row, 1, column, 1);
}

static void multiply_narrow(const struct gemm_int8 *gemm, const struct block *block)
{
    multiply_block(gemm, block, false);
}

static void multiply_wide(const struct gemm_int8 *gemm, const struct block *block)
{
    multiply_block(gemm, block, true);
}

static const dot_operand *prepare_rows(const int8_t *source, size_t rows, size_t depth, dot_operand *copy, int32_t *offset)
{
    const dot_operand *first = dot_prepare(source, depth, copy, offset);
    for (size_t row = 1; row < rows; row++)
        (void)dot_prepare(source + row * depth, depth, copy + row * depth, &offset[row]);
    return first;
}

void KERNEL(gemm_int8)(const struct gemm_int8 *job)
{
    struct gemm_int8 gemm = *job;
    gemm.out_stride = job->out_stride ? job->out_stride : job->outputs;
    size_t depth = gemm.depth, rows_max = gemm.a_low ? GEMM_ROWS_BLOCK / 2 : GEMM_ROWS_BLOCK;   /* the scratch memory holds both halves */
    int32_t *offset = gemm.scratch, *offset_low = offset + rows_max;
    dot_operand *copy = (dot_operand *)(offset + GEMM_ROWS_BLOCK), *copy_low = copy + rows_max * depth;
    for (size_t first = 0; first < gemm.rows; first += rows_max) {
        struct block block = {.first = first, .rows = gemm.rows - first < rows_max ? gemm.rows - first : rows_max,
                              .offset = offset, .offset_low = offset_low};
        block.a = prepare_rows(gemm.a + first * depth, block.rows, depth, copy, offset);
        if (gemm.a_low) {
            block.a_low = prepare_rows(gemm.a_low + first * depth, block.rows, depth, copy_low, offset_low);
            multiply_wide(&gemm, &block);
        } else {
            multiply_narrow(&gemm, &block);
        }
    }
}
