/* cuda_join_rows: slices of all numbers of ranks put side by side, copied or added. */
#include <string.h>
#include "on_device.h"

enum { ROWS_MAX = 3, OUTPUTS_MAX = 200, RANKS_MAX = 5 };

static float value(uint32_t row, uint32_t output)
{
    return (float)(row * 1000 + output) * 0.37f;
}

static void slices_are_put_side_by_side(void **state)
{
    (void)state;
    static const uint32_t widths[] = {1, 15, 16, 33, 64, 200};
    static float parts[ROWS_MAX * OUTPUTS_MAX], out[ROWS_MAX * OUTPUTS_MAX], want[ROWS_MAX * OUTPUTS_MAX];
    for (uint32_t ranks = 1; ranks <= RANKS_MAX; ranks++)
        for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
            for (uint32_t rows = 0; rows <= ROWS_MAX; rows++)
                for (int accumulate = 0; accumulate < 2; accumulate++) {
                    const uint32_t outputs = widths[w];
                    float *at = parts;
                    for (uint32_t rank = 0; rank < ranks; rank++)
                        for (uint32_t row = 0; row < rows; row++)
                            for (uint32_t i = cuda_slice_first(rank, ranks, outputs); i < cuda_slice_first(rank + 1, ranks, outputs); i++)
                                *at++ = value(row, i);
                    assert_int_equal(at - parts, rows * outputs);          /* every output is in one slice */
                    for (uint32_t i = 0; i < ROWS_MAX * OUTPUTS_MAX; i++) {
                        out[i] = 0.1f * (float)i;
                        want[i] = i >= rows * outputs ? out[i] : (accumulate ? out[i] : -0.0f) + value(i / outputs, i % outputs);
                    }
                    const struct cuda_join job = {.parts = device_put(parts, sizeof parts), .rows = rows, .outputs = outputs, .ranks = ranks,
                                                  .accumulate = accumulate, .out = device_put(out, sizeof out)};
                    launched(cuda_join_rows(&job, NULL));
                    device_get(out, job.out, sizeof out);
                    assert_memory_equal(out, want, sizeof out);
                    device_drop(job.parts);
                    device_drop(job.out);
                }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(slices_are_put_side_by_side)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
