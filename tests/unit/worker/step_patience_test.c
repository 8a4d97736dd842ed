/* How long a group of ranks waits for a step. */
#include "unit.h"
#include "worker/engine/backend/step_patience.h"

enum { LEAST = 2000 };

static void record(struct step_patience *patience, unsigned times, uint32_t rows, uint32_t ms)
{
    for (unsigned i = 0; i < times; i++)
        step_patience_record(patience, rows, ms);
}

/* The first steps of all have longer; then it is the least, or four times the longest of late. */
static void test_of_late(void **state)
{
    (void)state;
    struct step_patience patience;
    step_patience_init(&patience, LEAST);
    assert_int_equal(step_patience_any_ms(&patience), PATIENCE_FIRST_MS);
    for (unsigned i = 0; i < PATIENCE_FIRST; i++) {
        assert_int_equal(step_patience_ms(&patience, 1), PATIENCE_FIRST_MS);
        record(&patience, 1, 1, 20);
    }
    assert_int_equal(step_patience_ms(&patience, 1), LEAST);
    record(&patience, 1, 1, 700);
    assert_int_equal(step_patience_ms(&patience, 1), 2800);
    record(&patience, PATIENCE_TIMES - 1, 1, 20);
    assert_int_equal(step_patience_ms(&patience, 1), 2800);
    record(&patience, 1, 1, 20);                      /* the 64th since: forgotten */
    assert_int_equal(step_patience_ms(&patience, 1), LEAST);
}

/* A chunk of a prompt behind many short steps has what its rows would take one by one; once it was seen, what it takes. */
static void test_a_chunk_behind_short_steps(void **state)
{
    (void)state;
    struct step_patience patience;
    step_patience_init(&patience, LEAST);
    record(&patience, 1000, 1, 20);
    assert_int_equal(step_patience_ms(&patience, 256), 256 * 4 * 20);
    assert_int_equal(step_patience_ms(&patience, 4), PATIENCE_FIRST_MS);
    record(&patience, 1, 256, 900);
    assert_int_equal(step_patience_ms(&patience, 256), 3600);
    assert_int_equal(step_patience_ms(&patience, 511), 3600);      /* of its size */
    assert_int_equal(step_patience_ms(&patience, 512), 2 * 3600 > PATIENCE_FIRST_MS ? 2 * 3600 : PATIENCE_FIRST_MS);
    assert_int_equal(step_patience_ms(&patience, 1024), 4 * 3600);
    assert_int_equal(step_patience_ms(&patience, 1), LEAST);       /* short steps need not wait as long as chunks */
    assert_int_equal(step_patience_any_ms(&patience), 3600);
}

static void test_bounds(void **state)
{
    (void)state;
    struct step_patience patience;
    step_patience_init(&patience, LEAST);
    record(&patience, PATIENCE_FIRST, 1, UINT32_MAX);
    assert_int_equal(step_patience_ms(&patience, 1), PATIENCE_MS_MAX);
    assert_int_equal(step_patience_ms(&patience, UINT32_MAX), PATIENCE_MS_MAX);
    record(&patience, 1, UINT32_MAX, 5);
    assert_int_equal(step_patience_ms(&patience, UINT32_MAX), LEAST);
    assert_int_equal(step_patience_ms(&patience, 1u << (PATIENCE_SIZES - 1)), LEAST);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_of_late),
        cmocka_unit_test(test_a_chunk_behind_short_steps),
        cmocka_unit_test(test_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
