/* Tests of worker/eval/score.c against sums done by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "worker/eval/score.h"

static void assert_near(double value, double expected)
{
    if (!(fabs(value - expected) <= 1e-12 * (1 + fabs(expected))))
        fail_msg("%.17g is not %.17g", value, expected);
}

static void test_empty(void **state)
{
    (void)state;
    const struct score score = { 0 };
    assert_near(score_perplexity(&score), 1);
    assert_near(score_loss(&score), 0);
    assert_near(score_kl(&score), 0);
    assert_near(score_agreement(&score), 0);
}

static void test_uniform(void **state)
{
    (void)state;
    struct score score = { 0 };
    const float logits[5] = { 2, 2, 2, 2, 2 };
    score_add(&score, logits, NULL, 5, 3);
    score_add(&score, logits, NULL, 5, 0);
    assert_int_equal(score.tokens, 2);
    assert_near(score_perplexity(&score), 5);
    assert_near(score_loss(&score), log(5));
}

/* Probabilities 1/8, 7/8 and 1/2, 1/2, written as logits with any offset. */
static void test_two_tokens(void **state)
{
    (void)state;
    struct score score = { 0 };
    const double ln7 = (double)(float)1.9459101f;
    const float reference[2] = { 10, 10 + 1.9459101f }, logits[2] = { -3, -3 };
    const double p1 = exp((double)reference[1] - 10) / (1 + exp((double)reference[1] - 10)), p0 = 1 - p1;
    assert_true(fabs(ln7 - log(7)) < 1e-6);
    score_add(&score, logits, reference, 2, 1);
    assert_near(score.nats, log(2));
    assert_near(score.kl, p0 * log(2 * p0) + p1 * log(2 * p1));
    assert_near(score.kl_max, score.kl);
    assert_int_equal(score.agree, 0);   /* equal logits: the first one */
    assert_near(score.distance_max, (double)reference[1] + 3);
    assert_near(score_distance(&score), (13 + (double)reference[1] + 3) / 2);
}

static void test_itself(void **state)
{
    (void)state;
    struct score score = { 0 };
    const float logits[4] = { 0.5f, -1.25f, 3.75f, 3.75f };
    for (uint32_t token = 0; token < 4; token++)
        score_add(&score, logits, logits, 4, token);
    assert_near(score_kl(&score), 0);
    assert_near(score_agreement(&score), 1);
    assert_near(score.distance_max, 0);
}

/* Logits that a naive exp would overflow or lose. */
static void test_large(void **state)
{
    (void)state;
    struct score score = { 0 };
    const float logits[3] = { 3e4f, 3e4f, -3e4f };
    score_add(&score, logits, NULL, 3, 0);
    assert_near(score.nats, log(2));
    score_add(&score, logits, NULL, 3, 2);
    assert_near(score.nats, log(2) + 6e4 + log(2));
}

static void test_means(void **state)
{
    (void)state;
    struct score score = { 0 };
    const float same[2] = { 1, 0 }, other[2] = { 0, 1 };
    score_add(&score, same, same, 2, 0);
    score_add(&score, same, other, 2, 0);
    assert_near(score_agreement(&score), 0.5);
    assert_near(score_kl(&score), score.kl_max / 2);
    assert_near(score_distance(&score), 0.5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_empty), cmocka_unit_test(test_uniform), cmocka_unit_test(test_two_tokens),
        cmocka_unit_test(test_itself), cmocka_unit_test(test_large), cmocka_unit_test(test_means),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
