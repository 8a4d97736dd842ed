/* gemm.c - blocks of 64 rows; within one, every four weight rows meet all rows while they are in the first cache. */
#include "kernels/gemm.h"
#include "kernels/ref/dot.h"
#include "kernels/ref/inline.h"
#include "kernels/ref/levels.h"

DOT_TILE(tile_4x4, dot_operand, DOT_RIGHT, 4, 4)
DOT_TILE(tile_1x4, dot_operand, DOT_RIGHT, 1, 4)
DOT_TILE(tile_1x1, dot_operand, DOT_RIGHT, 1, 1)

static void store(const struct gemm_int8 *gemm, size_t row, size_t rows, size_t column, size_t columns, const int32_t *sum)
{
    for (size_t r = 0; r < rows; r++) {
        float *out = gemm->out + (row + r) * gemm->outputs + column;
        float a_scale = gemm->a_scale[row + r];
        for (size_t c = 0; c < columns; c++) {
            float value = ((float)sum[r * columns + c] * a_scale) * gemm->w_scale[column + c];
            out[c] = gemm->accumulate ? out[c] + value : value;
        }
    }
}

static void multiply_block(const struct gemm_int8 *gemm, size_t first, size_t rows, const dot_operand *a, const int32_t *offset)
{
    size_t depth = gemm->depth, column = 0;
    int32_t sum[DOT_ROWS * DOT_COLUMNS];
    for (; column + DOT_COLUMNS <= gemm->outputs; column += DOT_COLUMNS) {
        const int8_t *w = gemm->w + column * depth;
        size_t row = 0;
        for (; row + DOT_ROWS <= rows; row += DOT_ROWS) {
            tile_4x4(a + row * depth, depth, w, depth, depth, offset + row, sum, DOT_COLUMNS);
            store(gemm, first + row, DOT_ROWS, column, DOT_COLUMNS, sum);
        }
        for (; row < rows; row++) {
            tile_1x4(a + row * depth, depth, w, depth, depth, offset + row, sum, DOT_COLUMNS);
            store(gemm, first + row, 1, column, DOT_COLUMNS, sum);
        }
    }
    for (; column < gemm->outputs; column++)
        for (size_t row = 0; row < rows; row++) {
            tile_1x1(a + row * depth, depth, gemm->w + column * depth, depth, depth, offset + row, sum, 1);
            store(gemm, first + row, 1, column, 1, sum);
        }
}

void KERNEL(gemm_int8)(const struct gemm_int8 *gemm)
{
    int32_t *offset = gemm->scratch;
    dot_operand *copy = (dot_operand *)(offset + GEMM_ROWS_BLOCK);
    for (size_t first = 0; first < gemm->rows; first += GEMM_ROWS_BLOCK) {
        size_t rows = gemm->rows - first < GEMM_ROWS_BLOCK ? gemm->rows - first : GEMM_ROWS_BLOCK;
        const dot_operand *a = copy;
        for (size_t row = 0; row < rows; row++) {
            const dot_operand *ready = dot_prepare(gemm->a + (first + row) * gemm->depth, gemm->depth, copy + row * gemm->depth,
                                                   &offset[row]);
            if (row == 0)
                a = ready;
        }
        multiply_block(gemm, first, rows, a, offset);
    }
}
