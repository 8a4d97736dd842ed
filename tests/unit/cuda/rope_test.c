/* cuda_rope_table against kernels/ref, bit for bit: scattered positions, frequencies of 0, odd numbers of pairs. */
#include <string.h>
#include "on_device.h"
#include "kernels/kernels.h"
#include "tests/unit/kernels/reference.h"

#define ROWS 9u
#define PAIRS_MAX 256u

static void run(const struct rope *rope, const uint32_t *position)
{
    double frequency[PAIRS_MAX];
    float cosine[ROWS * PAIRS_MAX], sine[ROWS * PAIRS_MAX], want_cosine[ROWS * PAIRS_MAX], want_sine[ROWS * PAIRS_MAX];
    const uint32_t pairs = rope->dim / 2;
    const size_t bytes = ROWS * pairs * sizeof(float);
    rope_frequencies(rope, frequency);
    double *device_frequency = device_put(frequency, pairs * sizeof *frequency);
    uint32_t *device_position = device_put(position, ROWS * sizeof *position);
    float *device_cosine = device_new(bytes), *device_sine = device_new(bytes);
    launched(cuda_rope_table(device_frequency, pairs, device_position, ROWS, device_cosine, device_sine, NULL));
    device_get(cosine, device_cosine, bytes);
    device_get(sine, device_sine, bytes);
    for (uint32_t row = 0; row < ROWS; row++)
        kernels_at(0)->rope_table(frequency, pairs, position[row], 1, want_cosine + row * pairs, want_sine + row * pairs);
    assert_memory_equal(cosine, want_cosine, bytes);
    assert_memory_equal(sine, want_sine, bytes);
    device_drop(device_frequency);
    device_drop(device_position);
    device_drop(device_cosine);
    device_drop(device_sine);
}

static void tables_equal_the_reference(void **state)
{
    (void)state;
    static const struct rope ropes[] = {
        {.base = 10000.0, .scale = 1.0, .dim = 2, .pairs = 1},     {.base = 10000.0, .scale = 1.0, .dim = 6, .pairs = 3},
        {.base = 10000.0, .scale = 1.0, .dim = 128, .pairs = 64},  {.base = 1e6, .scale = 8.0, .dim = 256, .pairs = 128},
        {.base = 500000.0, .scale = 1.0, .dim = 260, .pairs = 130}, {.base = 1e6, .scale = 1.0, .dim = 512, .pairs = 64},
    };
    for (unsigned schedule = 0; schedule < SCHEDULES; schedule++) {
        struct random random = {test_seed(schedule)};
        emulation_set_seed(test_seed(schedule));
        for (size_t r = 0; r < sizeof ropes / sizeof *ropes; r++) {
            uint32_t position[ROWS] = {0, 1, 63, 64, 0xfffffu};
            for (uint32_t row = 5; row < ROWS; row++)
                position[row] = random_below(&random, 1u << 20);
            run(&ropes[r], position);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_equal_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
