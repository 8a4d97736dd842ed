#include "tests/unit/worker/unit.h"
#include <math.h>
#include "worker/engine/sampler.h"

static uint32_t pick(const struct sampler *sampler, const float *logits, uint32_t vocab, uint32_t position)
{
    uint32_t id = UINT32_MAX;
    assert_ok(sampler_pick(sampler, logits, vocab, position, &id));
    return id;
}

static void greedy_takes_the_highest_and_the_lowest_id_of_ties(void **state)
{
    (void)state;
    const struct sampler greedy = {0};
    const float logits[] = {-1, 3, 2, 3, -0.0f};
    assert_int_equal(pick(&greedy, logits, 5, 0), 1);
    const float zeros[] = {-0.0f, 0.0f};
    assert_int_equal(pick(&greedy, zeros, 2, 9), 0);
    const float below[] = {-5, -4, -3.5f};
    assert_int_equal(pick(&greedy, below, 3, 9), 2);
    const uint32_t masked[] = {1, 3};
    const struct sampler with_mask = {.masked = masked, .masked_count = 2};
    assert_int_equal(pick(&with_mask, logits, 5, 0), 2);
}

static void not_a_number_is_an_error(void **state)
{
    (void)state;
    uint32_t id;
    for (int warm = 0; warm < 2; warm++) {
        const struct sampler sampler = {.temperature = (float)warm};
        float logits[] = {1, 2, 3};
        static const float bad[] = {NAN, INFINITY, -INFINITY};
        for (int b = 0; b < 3; b++)
            for (int i = 0; i < 3; i++) {
                const float kept = logits[i];
                logits[i] = bad[b];
                assert_int_equal(sampler_pick(&sampler, logits, 3, 0, &id), STATUS_CORRUPT);
                const uint32_t masked = (uint32_t)i;
                const struct sampler with_mask = {.temperature = (float)warm, .masked = &masked, .masked_count = 1};
                assert_ok(sampler_pick(&with_mask, logits, 3, 0, &id));
                logits[i] = kept;
            }
    }
}

/* The formula of sampler.h, written out again without its shortcut. */
static uint32_t pick_plainly(const struct sampler *s, const float *logits, uint32_t vocab, uint32_t position)
{
    uint32_t best = UINT32_MAX;
    float max = -INFINITY, best_score = 0;
    for (uint32_t i = 0; i < vocab; i++)
        max = fmaxf(max, logits[i]);
    for (uint32_t i = 0; i < vocab; i++) {
        const float score = (logits[i] - max) / s->temperature + sampler_noise(s->seed, s->choice, position, i);
        if (best == UINT32_MAX || score > best_score) {
            best = i;
            best_score = score;
        }
    }
    return best;
}

static void golden_values(void **state)
{
    (void)state;
    /* Committed so that a change of the noise is seen. Regenerate by printing these calls; a change is a numerics
     * revision. */
    static const struct {
        uint64_t seed;
        uint32_t choice, position, id;
        uint32_t bits;
    } golden[] = {
#include "tests/unit/worker/sampler_golden.inc"
    };
    for (size_t i = 0; i < sizeof golden / sizeof golden[0]; i++) {
        const float noise = sampler_noise(golden[i].seed, golden[i].choice, golden[i].position, golden[i].id);
        uint32_t bits;
        memcpy(&bits, &noise, 4);
        if (bits != golden[i].bits)
            fail_msg("golden %zu: {%llu, %u, %u, %u, 0x%08X},", i, (unsigned long long)golden[i].seed, golden[i].choice,
                     golden[i].position, golden[i].id, bits);
    }
    float logits[512];
    uint64_t rng = 3, hash = 0;
    for (unsigned i = 0; i < 512; i++)
        logits[i] = (float)rng_below(&rng, 4096) / 256.0f;
    const struct sampler warm = {.temperature = 1.5f, .seed = 42};
    for (uint32_t position = 0; position < 64; position++)
        hash = hash * 1000003 + pick(&warm, logits, 512, position);
    if (hash != SAMPLER_GOLDEN_PICKS)
        fail_msg("picks: 0x%llX", (unsigned long long)hash);
    const uint8_t id[16] = {1, 2, 3};
    const uint64_t seed = sampler_default_seed("tenant", 6, id, 0);
    if (seed != SAMPLER_GOLDEN_SEED)
        fail_msg("seed: 0x%llX", (unsigned long long)seed);
    assert_true(sampler_default_seed("tenant", 6, id, 1) != seed);
    assert_true(sampler_default_seed("tenanT", 6, id, 0) != seed);
    assert_true(sampler_default_seed(NULL, 0, id, 0) != seed);
}

static void the_shortcut_changes_nothing(void **state)
{
    (void)state;
    uint64_t rng = 11;
    float logits[300];
    for (int round = 0; round < 6000; round++) {
        const float spread = (float)rng_below(&rng, 40);
        for (int i = 0; i < 300; i++)
            logits[i] = ((float)rng_below(&rng, 1 << 20) / (1 << 20) - 0.5f) * spread;
        const struct sampler s = {.temperature = 0.01f + (float)rng_below(&rng, 300) / 100,
                                  .seed = rng_next(&rng),
                                  .choice = rng_below(&rng, 3)};
        const uint32_t position = rng_below(&rng, 100000);
        assert_int_equal(pick(&s, logits, 300, position), pick_plainly(&s, logits, 300, position));
    }
}

static void noise_is_bounded_and_each_argument_matters(void **state)
{
    (void)state;
    float low = 100, high = -100;
    double sum = 0;
    for (uint32_t i = 0; i < 1000000; i++) {
        const float noise = sampler_noise(5, 0, i / 1000, i % 1000);
        assert_true(isfinite(noise));
        low = fminf(low, noise);
        high = fmaxf(high, noise);
        sum += (double)noise;
    }
    assert_true(low > -2.9f && low < -2.3f && high > 11 && high < 17);
    assert_true(fabs(sum / 1e6 - 0.5772156649) < 0.006); /* a Gumbel's mean; its deviation here is 0.0013 */
    const float base = sampler_noise(1, 0, 10, 20);
    assert_true(base != sampler_noise(2, 0, 10, 20));
    assert_true(base != sampler_noise(1, 1, 10, 20));
    assert_true(base != sampler_noise(1, 0, 11, 20));
    assert_true(base != sampler_noise(1, 0, 10, 21));
}

/* Chi-square of 200,000 draws against softmax(logits / T); bound: the 99.99% quantile; the draws are fixed. */
static void draws_follow_the_softmax(void **state)
{
    (void)state;
    enum { IDS = 10, DRAWS = 200000 };
    static const float temperatures[] = {0.5f, 1.0f, 1.5f};
    const float logits[IDS] = {0, 1, 2, -1, 0.5f, 1.5f, -2, 0.25f, 3, 2.5f};
    for (int by_seed = 0; by_seed < 2; by_seed++) /* over positions of a seed, over seeds of a position */
        for (int t = 0; t < 3; t++) {
            double expected[IDS], total = 0, chi = 0;
            uint32_t counts[IDS] = {0};
            for (int i = 0; i < IDS; i++)
                total += expected[i] = exp((double)(logits[i] / temperatures[t]));
            for (uint32_t n = 0; n < DRAWS; n++) {
                const struct sampler s = {.temperature = temperatures[t], .seed = by_seed ? n : 99};
                counts[pick(&s, logits, IDS, by_seed ? 7 : n)]++;
            }
            for (int i = 0; i < IDS; i++) {
                const double e = expected[i] / total * DRAWS;
                chi += (counts[i] - e) * (counts[i] - e) / e;
            }
            assert_true(chi < 33.72); /* 9 degrees of freedom */
        }
}

static void a_draw_depends_on_nothing_else(void **state)
{
    (void)state;
    float logits[2][64];
    uint64_t rng = 1;
    uint32_t alone[2][50];
    struct sampler s[2] = {{.temperature = 1, .seed = 1}, {.temperature = 1.2f, .seed = 2}};
    for (int r = 0; r < 2; r++)
        for (int i = 0; i < 64; i++)
            logits[r][i] = (float)rng_below(&rng, 1000) / 200;
    for (int r = 0; r < 2; r++)
        for (uint32_t p = 0; p < 50; p++)
            alone[r][p] = pick(&s[r], logits[r], 64, p);
    for (uint32_t p = 50; p-- > 0;) /* interleaved and backwards */
        for (int r = 0; r < 2; r++)
            assert_int_equal(pick(&s[r], logits[r], 64, p), alone[r][p]);
    /* Appending ids that cannot win changes nothing: the noise of an id does not depend on the vocabulary. */
    float wider[80];
    memcpy(wider, logits[0], sizeof logits[0]);
    for (int i = 64; i < 80; i++)
        wider[i] = -1000;
    for (uint32_t p = 0; p < 50; p++)
        assert_int_equal(pick(&s[0], wider, 80, p), alone[0][p]);
}

static void extreme_temperatures(void **state)
{
    (void)state;
    const float logits[] = {1e30f, -1e30f, 0.9e30f};
    const struct sampler cold = {.temperature = 1e-38f, .seed = 1},
                         hot = {.temperature = SAMPLER_TEMPERATURE_MAX, .seed = 1};
    assert_int_equal(pick(&cold, logits, 3, 0), 0);
    assert_int_equal(pick(&hot, logits, 3, 0), 0);
    const float largest[] = {3.4e38f, -3.4e38f}; /* their difference overflows */
    assert_int_equal(pick(&hot, largest, 2, 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_highest_and_the_lowest_id_of_ties),
        cmocka_unit_test(not_a_number_is_an_error),
        cmocka_unit_test(golden_values),
        cmocka_unit_test(the_shortcut_changes_nothing),
        cmocka_unit_test(noise_is_bounded_and_each_argument_matters),
        cmocka_unit_test(draws_follow_the_softmax),
        cmocka_unit_test(a_draw_depends_on_nothing_else),
        cmocka_unit_test(extreme_temperatures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
