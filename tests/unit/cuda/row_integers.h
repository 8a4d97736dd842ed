/* row_integers.h - rows made integers on the device beside the same rows by kernels/ref, for tests of the kernels that make them. */
#ifndef ROOST_TESTS_CUDA_ROW_INTEGERS_H
#define ROOST_TESTS_CUDA_ROW_INTEGERS_H
#include <string.h>
#include "kernels/kernels.h"
#include "on_device.h"
#include "tests/unit/kernels/reference.h"

static const uint32_t row_widths[] = {1, 2, 3, 4, 31, 64, 127, 128, 129, 200, 256, 640, 1000, 1152};
#define ROW_WIDTHS (sizeof row_widths / sizeof *row_widths)
#define ROW_WIDTH_MAX 41088u           /* of any test */
#define ROWS 3u

static const char *const scheme_names[] = {"dynamic", "static", "rotated", "wide"};
#define SCHEMES 4u

/* On the device, of ROWS rows. */
static inline struct cuda_rows_int8 rows_int8_new(enum cuda_scheme scheme, float input_scale, uint32_t columns)
{
    return (struct cuda_rows_int8){.scheme = scheme, .input_scale = input_scale, .q = device_new(ROWS * columns),
                                   .q_low = scheme == CUDA_SCHEME_WIDE ? device_new(ROWS * columns) : NULL,
                                   .scale = device_new(ROWS * sizeof(float))};
}

/* One row by kernels/ref; false: not finite. */
static inline bool row_by_ref(const struct cuda_rows_int8 *into, const float *x, uint32_t columns, int8_t *q, int8_t *low, float *scale)
{
    const struct kernels *kernels = kernels_at(0);
    static float rotated[ROW_WIDTH_MAX];
    switch (into->scheme) {
    case CUDA_SCHEME_STATIC:
        *scale = into->input_scale;
        return kernels->quantize_static_rows(x, 1, columns, 1.0f / into->input_scale, q);
    case CUDA_SCHEME_ROTATED:
        kernels->rotate_rows(x, 1, columns, rotated);
        return kernels->quantize_rows(rotated, 1, columns, q, scale);
    case CUDA_SCHEME_WIDE:
        return kernels->quantize_wide_rows(x, 1, columns, q, low, scale);
    default:
        return kernels->quantize_rows(x, 1, columns, q, scale);
    }
}

/* Compares and frees what the device made of rows x (ROWS, columns), but for rows that `bad` already names. Notes in `bad` those that are not
 * finite. */
static inline void check_rows_int8(const struct cuda_rows_int8 *into, const float *x, uint32_t columns, bool bad[ROWS], const char *what)
{
    static int8_t q[ROWS * ROW_WIDTH_MAX], low[ROWS * ROW_WIDTH_MAX];
    float scale[ROWS];
    device_get(q, into->q, ROWS * columns);
    if (into->q_low)
        device_get(low, into->q_low, ROWS * columns);
    device_get(scale, into->scale, sizeof scale);
    for (uint32_t row = 0; row < ROWS; row++) {
        static int8_t want[ROW_WIDTH_MAX], want_low[ROW_WIDTH_MAX];
        float want_scale;
        if (bad[row] || !row_by_ref(into, x + row * columns, columns, want, want_low, &want_scale)) {
            bad[row] = true;
            continue;
        }
        if (memcmp(&scale[row], &want_scale, sizeof want_scale) != 0)
            fail_msg("%s, %s, %u columns, row %u: scale %a, not %a", what, scheme_names[into->scheme], columns, row, (double)scale[row],
                     (double)want_scale);
        for (uint32_t i = 0; i < columns; i++)
            if (q[row * columns + i] != want[i] || (into->q_low && low[row * columns + i] != want_low[i]))
                fail_msg("%s, %s, %u columns, row %u, column %u: %d, not %d", what, scheme_names[into->scheme], columns, row, i, q[row * columns + i],
                         want[i]);
    }
    device_drop(into->q);
    device_drop(into->q_low);
    device_drop(into->scale);
}

static inline uint32_t first_bad(const bool bad[ROWS])
{
    for (uint32_t row = 0; row < ROWS; row++)
        if (bad[row])
            return row;
    return CUDA_NO_BAD_ROW;
}

static inline void check_floats(const float *got, const float *want, uint32_t columns, const bool bad[ROWS], const char *what)
{
    for (uint32_t row = 0; row < ROWS; row++)
        for (uint32_t i = 0; i < columns && !bad[row]; i++)
            if (memcmp(&got[row * columns + i], &want[row * columns + i], sizeof *got) != 0)
                fail_msg("%s, %u columns, row %u, column %u: %a, not %a", what, columns, row, i, (double)got[row * columns + i],
                         (double)want[row * columns + i]);
}

#endif
