/* metrics_test.c - the text that a scraper reads, to the byte. */
#include "tests/unit/unit.h"
#include <math.h>
#include <string.h>
#include "common/metrics.h"

static struct metrics *create(void)
{
    struct metrics *metrics = NULL;
    assert_ok(metrics_create(&metrics));
    return metrics;
}

static void test_counter_and_gauge(void **state)
{
    (void)state;
    struct metrics *metrics = create();
    metrics_counter(metrics, "roost_a_total", "All of them", UINT64_MAX);
    metrics_gauge(metrics, "roost_b", "Now", 0.25);
    assert_string_equal(metrics_text(metrics), "# HELP roost_a_total All of them\n"
                                               "# TYPE roost_a_total counter\n"
                                               "roost_a_total 18446744073709551615\n"
                                               "# HELP roost_b Now\n"
                                               "# TYPE roost_b gauge\n"
                                               "roost_b 0.25\n");
    metrics_destroy(&metrics);
    assert_null(metrics);
    metrics_destroy(&metrics);
}

/* A label that could close its quotes or its line would let a name forge samples. */
static void test_labels_are_escaped(void **state)
{
    (void)state;
    struct metrics *metrics = create();
    metrics_family(metrics, "roost_c", METRICS_GAUGE, "two\nlines and \\");
    metrics_value(metrics, "worker", "a\"} 1\nroost_forged 2\\", 3);
    metrics_value(metrics, "worker", "", -4);
    assert_string_equal(metrics_text(metrics), "# HELP roost_c two\\nlines and \\\\\n"
                                               "# TYPE roost_c gauge\n"
                                               "roost_c{worker=\"a\\\"} 1\\nroost_forged 2\\\\\"} 3\n"
                                               "roost_c{worker=\"\"} -4\n");
    metrics_destroy(&metrics);
}

static void test_numbers(void **state)
{
    (void)state;
    struct metrics *metrics = create();
    metrics_family(metrics, "n", METRICS_GAUGE, "");
    const double values[] = {0, 1e15, 9007199254740993.0, 1.0 / 3, NAN, INFINITY, -INFINITY};
    for (unsigned i = 0; i < sizeof values / sizeof values[0]; i++)
        metrics_value(metrics, NULL, NULL, values[i]);
    const char *samples = strstr(metrics_text(metrics), "gauge\n") + 6;
    assert_string_equal(samples, "n 0\nn 1000000000000000\nn 9.00719925474099e+15\nn 0.333333333333333\nn NaN\nn +Inf\nn -Inf\n");
    metrics_destroy(&metrics);
}

static void test_histogram_is_cumulative(void **state)
{
    (void)state;
    struct metrics *metrics = create();
    const double bounds[] = {0.001, 0.1};
    const uint64_t counts[] = {5, 0, 2};
    metrics_histogram(metrics, "h_seconds", "Time", bounds, counts, 2, 1.5);
    assert_string_equal(metrics_text(metrics), "# HELP h_seconds Time\n"
                                               "# TYPE h_seconds histogram\n"
                                               "h_seconds_bucket{le=\"0.001\"} 5\n"
                                               "h_seconds_bucket{le=\"0.1\"} 5\n"
                                               "h_seconds_bucket{le=\"+Inf\"} 7\n"
                                               "h_seconds_sum 1.5\n"
                                               "h_seconds_count 7\n");
    metrics_destroy(&metrics);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counter_and_gauge),
        cmocka_unit_test(test_labels_are_escaped),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_histogram_is_cumulative),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
