/* sampler_test.c - draws: the highest logit, the noise and its golden values, penalties, end ids, log probabilities,
 * bad options. */
#include "tests/unit/worker/unit.h"
#include <math.h>
#include "sampler_picks.h"
#include "worker/engine/text/sampler_tally.h"

static void greedy_takes_the_highest_and_the_lowest_id_of_ties(void **state)
{
    (void)state;
    const struct sampler_options greedy = {0};
    const float logits[] = {-1, 3, 2, 3, -0.0f};
    assert_int_equal(pick(&greedy, logits, 5, 0), 1);
    const float zeros[] = {-0.0f, 0.0f};
    assert_int_equal(pick(&greedy, zeros, 2, 9), 0);
    const float below[] = {-5, -4, -3.5f};
    assert_int_equal(pick(&greedy, below, 3, 9), 2);
    const uint32_t masked[] = {1, 3};
    const struct sampler_options with_mask = {.masked = masked, .masked_count = 2};
    assert_int_equal(pick(&with_mask, logits, 5, 0), 2);
    static float wide[1000]; /* across blocks */
    for (int i = 0; i < 1000; i++)
        wide[i] = (float)(i % 100);
    assert_int_equal(pick(&greedy, wide, 1000, 0), 99);
    uint32_t many[600];
    for (uint32_t i = 0; i < 600; i++)
        many[i] = i;
    const struct sampler_options half = {.masked = many, .masked_count = 600};
    assert_int_equal(pick(&half, wide, 1000, 0), 699);
}

static void nothing_left_is_an_error(void **state)
{
    (void)state;
    const uint32_t all[] = {0, 1, 2};
    const float logits[] = {1, 2, 3};
    uint32_t id = 7;
    const struct sampler_options o = {.masked = all, .masked_count = 3, .temperature = 1, .top_p = 0.5f};
    assert_int_equal(try_pick(&o, 0, logits, 3, 0, &id), STATUS_INVALID);
    const struct sampler_options ends = {
        .masked = all, .masked_count = 2, .end_ids = all + 2, .end_count = 1, .tokens_min = 1};
    assert_int_equal(try_pick(&ends, 0, logits, 3, 0, &id), STATUS_INVALID);
    const struct sampler_options one = {.masked = all, .masked_count = 2, .temperature = 1, .top_p = 0.5f};
    assert_int_equal(pick(&one, logits, 3, 0), 2);
}

static void not_a_number_is_an_error(void **state)
{
    (void)state;
    uint32_t id;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    static const struct sampler_options kinds[] = {{0},
                                                   {.temperature = 1},
                                                   {.temperature = 1, .top_k = 2, .top_p = 0.5f},
                                                   {.temperature = 1, .min_p = 0.1f},
                                                   {.presence_penalty = 1}};
    for (int k = 0; k < 5; k++) {
        float logits[] = {1, 2, 3, 1, 1, 2, 0};
        for (int b = 0; b < 3; b++)
            for (int i = 0; i < 7; i++) {
                struct sampler_options options = kinds[k];
                const float kept = logits[i], bias = 5;
                const uint32_t masked = (uint32_t)i;
                logits[i] = bad[b];
                assert_int_equal(try_pick(&options, 0, logits, 7, 0, &id), STATUS_CORRUPT);
                options.bias_ids = &masked;
                options.bias_values = &bias;
                options.bias_count = 1;
                assert_int_equal(try_pick(&options, 0, logits, 7, 0, &id), STATUS_CORRUPT);
                options.masked = &masked;
                options.masked_count = 1;
                assert_ok(try_pick(&options, 0, logits, 7, 0, &id));
                assert_int_not_equal(id, i);
                logits[i] = kept;
            }
    }
}

/* The formula of sampler.h, written out again without its shortcut. */
static uint32_t pick_plainly(const struct sampler_options *s, uint32_t choice, const float *logits, uint32_t vocab,
                             uint32_t position)
{
    uint32_t best = UINT32_MAX;
    float max = -INFINITY, best_score = 0;
    for (uint32_t i = 0; i < vocab; i++)
        max = fmaxf(max, logits[i]);
    for (uint32_t i = 0; i < vocab; i++) {
        const float score = (logits[i] - max) / s->temperature + sampler_noise(s->seed, choice, position, i);
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
    const struct sampler_options warm = {.temperature = 1.5f, .seed = 42};
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
        const struct sampler_options s = {.temperature = 0.01f + (float)rng_below(&rng, 300) / 100,
                                          .seed = rng_next(&rng)};
        const uint32_t position = rng_below(&rng, 100000), choice = rng_below(&rng, 3);
        assert_int_equal(pick_choice(&s, choice, logits, 300, position),
                         pick_plainly(&s, choice, logits, 300, position));
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
                const struct sampler_options s = {.temperature = temperatures[t], .seed = by_seed ? n : 99};
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
    struct sampler_options s[2] = {{.temperature = 1, .seed = 1}, {.temperature = 1.2f, .seed = 2}};
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
    const struct sampler_options cold = {.temperature = 1e-38f, .seed = 1},
                                 hot = {.temperature = SAMPLER_TEMPERATURE_MAX, .seed = 1};
    assert_int_equal(pick(&cold, logits, 3, 0), 0);
    assert_int_equal(pick(&hot, logits, 3, 0), 0);
    const float largest[] = {3.4e38f, -3.4e38f}; /* their difference overflows */
    assert_int_equal(pick(&hot, largest, 2, 0), 0);
}

/* ---- penalties, bias, end ids ---- */

static void hand_computed_penalties(void **state)
{
    (void)state;
    struct sampler *sampler;
    uint32_t id;
    const float logits[] = {4, 3.9f, -1, 0.5f, 3.8f};
    const uint32_t ids[] = {0, 4, 1, 1}; /* prompt 0, 4; reply 1, 1 */
    const struct sampler_history history = {.ids = ids, .prompt_count = 2, .count = 4};
    assert_ok(sampler_create(5, &sampler));
    struct sampler_options o = {.repetition_penalty = 1.03f}; /* 3.883, 3.786, 3.689 */
    assert_ok(sampler_pick(sampler, &o, &history, logits, &id));
    assert_int_equal(id, 0);
    o = (struct sampler_options){.repetition_penalty = 8}; /* 0.5, 0.4875, -1, 0.5, 0.475: a tie of 0 and 3 */
    assert_ok(sampler_pick(sampler, &o, &history, logits, &id));
    assert_int_equal(id, 0);
    o.repetition_penalty = 8.1f;
    assert_ok(sampler_pick(sampler, &o, &history, logits, &id));
    assert_int_equal(id, 3);
    o = (struct sampler_options){.presence_penalty = -0.2f}; /* raises id 1 alone */
    assert_ok(sampler_pick(sampler, &o, &history, logits, &id));
    assert_int_equal(id, 1);
    o = (struct sampler_options){.frequency_penalty = -0.06f}; /* twice */
    assert_ok(sampler_pick(sampler, &o, &history, logits, &id));
    assert_int_equal(id, 1);
    o.frequency_penalty = -0.04f;
    assert_ok(sampler_pick(sampler, &o, &history, logits, &id));
    assert_int_equal(id, 0);
    const float negative[] = {-4, -3, -9, -9, -9}; /* a negative logit is multiplied */
    o = (struct sampler_options){.repetition_penalty = 1.5f};
    assert_ok(sampler_pick(sampler, &o, &history, negative, &id));
    assert_int_equal(id, 1);
    const float rounding[] = {0x1p+24f, 0x1p+24f, 0, 0,
                              0}; /* 2^24 + 1 is none: one by one nothing is added to id 1, a tie */
    const uint32_t reply[] = {1};
    const struct sampler_history once = {.ids = reply, .count = 1};
    o = (struct sampler_options){.presence_penalty = -1, .frequency_penalty = -1};
    assert_ok(sampler_pick(sampler, &o, &once, rounding, &id));
    assert_int_equal(id, 0);
    const uint32_t biased[] = {2, 3};
    const float values[] = {5.5f, -100};
    o = (struct sampler_options){.bias_ids = biased, .bias_values = values, .bias_count = 2};
    assert_ok(sampler_pick(sampler, &o, &history, logits, &id));
    assert_int_equal(id, 2);
    /* Large values stay within floats. */
    const float large[] = {3e38f, 3.3e38f, 1, 1, 1};
    o = (struct sampler_options){.repetition_penalty = 1e-3f, .temperature = 1, .top_p = 0.9f};
    assert_ok(sampler_pick(sampler, &o, &history, large, &id));
    assert_true(id <= 1);
    sampler_destroy(&sampler);
}

static void end_ids_wait_for_tokens_min(void **state)
{
    (void)state;
    struct sampler *sampler;
    uint32_t id;
    const float logits[] = {1, 9, 5, 8, 7};
    const uint32_t ids[8] = {0}, ends[] = {3, 1, 3}, masked[] = {3, 4};
    const struct sampler_options o = {
        .end_ids = ends, .end_count = 3, .masked = masked, .masked_count = 2, .tokens_min = 2};
    assert_ok(sampler_create(5, &sampler));
    for (uint32_t drawn = 0; drawn < 4; drawn++) {
        const struct sampler_history history = {.ids = ids, .prompt_count = 3, .count = 3 + drawn};
        assert_ok(sampler_pick(sampler, &o, &history, logits, &id));
        assert_int_equal(id, drawn < 2 ? 2 : 1);
    }
    sampler_destroy(&sampler);
}

/* A tally that grows with its history gives what counting anew gives; also after going back and with another prompt. */
static void a_tally_changes_nothing(void **state)
{
    (void)state;
    enum { VOCAB = 3000, LENGTH = 4000 };
    static float logits[VOCAB];
    static uint32_t ids[LENGTH];
    struct sampler *sampler;
    struct sampler_tally *tally;
    uint64_t rng = test_seed(31);
    for (int i = 0; i < VOCAB; i++)
        logits[i] = (float)rng_below(&rng, 1000) / 100;
    for (int i = 0; i < LENGTH; i++)
        ids[i] = rng_below(&rng, i % 2 ? VOCAB : 20);
    assert_ok(sampler_create(VOCAB, &sampler));
    assert_ok(sampler_tally_create(&tally));
    const struct sampler_options o = {.temperature = 0.8f,
                                      .repetition_penalty = 1.3f,
                                      .presence_penalty = 0.4f,
                                      .frequency_penalty = 0.1f,
                                      .seed = 4};
    struct sampler_history history = {.ids = ids, .prompt_count = 100, .count = 100};
    for (int round = 0; round < 2000; round++) {
        uint32_t with, without;
        history.count += rng_below(&rng, 4);
        if (rng_below(&rng, 200) == 0 || history.count > LENGTH) {
            history.prompt_count = rng_below(&rng, 300);
            history.count = history.prompt_count + rng_below(&rng, 50);
        }
        if (rng_below(&rng, 50) == 0)
            history.count = history.prompt_count + (history.count - history.prompt_count) / 2;
        history.tally = tally;
        assert_ok(sampler_pick(sampler, &o, &history, logits, &with));
        history.tally = NULL;
        assert_ok(sampler_pick(sampler, &o, &history, logits, &without));
        assert_int_equal(with, without);
    }
    sampler_tally_destroy(&tally);
    sampler_tally_destroy(&tally);
    sampler_destroy(&sampler);
}

/* ---- log probabilities ---- */

static void log_probabilities(void **state)
{
    (void)state;
    enum { VOCAB = 1000 };
    static float logits[VOCAB];
    struct sampler *sampler;
    struct sampler_logprobs out;
    uint64_t rng = 7;
    assert_ok(sampler_create(VOCAB, &sampler));
    for (int round = 0; round < 50; round++) {
        const float spread = (float)rng_below(&rng, 30);
        double total = 0;
        for (int i = 0; i < VOCAB; i++)
            logits[i] = (float)rng_below(&rng, 200) / 200 * spread + 3;
        for (int i = 0; i < VOCAB; i++)
            total += exp((double)logits[i]);
        const uint32_t id = rng_below(&rng, VOCAB);
        sampler_logprobs(sampler, logits, id, 20, &out);
        assert_true(fabs((double)out.chosen - ((double)logits[id] - log(total))) < 1e-5);
        assert_int_equal(out.count, 20);
        for (uint32_t i = 0; i < 20; i++) {
            uint32_t before = 0; /* the ids in front of this one */
            for (uint32_t k = 0; k < VOCAB; k++)
                before += logits[k] > logits[out.ids[i]] || (logits[k] == logits[out.ids[i]] && k < out.ids[i]);
            assert_int_equal(before, i);
            assert_true(fabs((double)out.values[i] - ((double)logits[out.ids[i]] - log(total))) < 1e-5);
        }
        sampler_logprobs(sampler, logits, out.ids[3], 2, &out);
        assert_int_equal(out.count, 2);
    }
    const float kept = logits[5];
    logits[5] = NAN;
    logits[6] = INFINITY;
    sampler_logprobs(sampler, logits, 7, 20, &out);
    assert_true(isfinite(out.chosen) && !listed(5, out.ids, 20) && !listed(6, out.ids, 20));
    sampler_logprobs(sampler, logits, 5, 0, &out);
    assert_true(isinf(out.chosen) && out.chosen < 0 && out.count == 0);
    logits[5] = kept;
    sampler_destroy(&sampler);
    /* By hand: two equal ones of 2^32 each; log 2 with pinned_log. */
    const float two[] = {1, 1};
    assert_ok(sampler_create(2, &sampler));
    sampler_logprobs(sampler, two, 1, 20, &out);
    assert_true(fabs((double)out.chosen + 0.69314718) < 1e-7 && out.count == 2 && out.ids[0] == 0);
    sampler_destroy(&sampler);
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    const uint32_t twice[] = {1, 2, 1}, high[] = {10}, down[] = {2, 1};
    const float values[] = {1, 1, 1}, bad_value[] = {NAN}, large_value[] = {1001};
    static uint32_t many[SAMPLER_BIAS_MAX + 1];
    const struct {
        struct sampler_options options;
        const char *field;
    } cases[] = {
        {{.temperature = -1}, "temperature"},
        {{.temperature = NAN}, "temperature"},
        {{.temperature = 100.1f}, "temperature"},
        {{.top_p = 1.01f}, "top_p"},
        {{.top_p = NAN}, "top_p"},
        {{.min_p = -0.1f}, "min_p"},
        {{.repetition_penalty = 10.5f}, "repetition_penalty"},
        {{.repetition_penalty = -1}, "repetition_penalty"},
        {{.presence_penalty = INFINITY}, "presence_penalty"},
        {{.frequency_penalty = -11}, "frequency_penalty"},
        {{.bias_ids = twice, .bias_values = values, .bias_count = 3}, "twice"},
        {{.bias_ids = high, .bias_values = values, .bias_count = 1}, "bias"},
        {{.bias_ids = twice, .bias_values = bad_value, .bias_count = 1}, "bias"},
        {{.bias_ids = twice, .bias_values = large_value, .bias_count = 1}, "bias"},
        {{.bias_ids = many, .bias_values = values, .bias_count = SAMPLER_BIAS_MAX + 1}, "bias"},
        {{.masked = high, .masked_count = 1}, "masked"},
        {{.masked = down, .masked_count = 2}, "masked"},
        {{.end_ids = high, .end_count = 1}, "end_ids"},
        {{.end_ids = many, .end_count = SAMPLER_END_IDS_MAX + 1}, "end_ids"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(sampler_check(&cases[i].options, 10), STATUS_INVALID);
        if (strstr(status_detail(), cases[i].field) == NULL)
            fail_msg("case %zu: %s", i, status_detail());
    }
    const struct sampler_options good = {.temperature = 100,
                                         .top_p = 1,
                                         .min_p = 1,
                                         .repetition_penalty = 10,
                                         .presence_penalty = -10,
                                         .frequency_penalty = 10,
                                         .top_k = UINT32_MAX,
                                         .end_ids = twice,
                                         .end_count = 3};
    assert_ok(sampler_check(&good, 10));
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
        cmocka_unit_test(nothing_left_is_an_error),
        cmocka_unit_test(hand_computed_penalties),
        cmocka_unit_test(end_ids_wait_for_tokens_min),
        cmocka_unit_test(a_tally_changes_nothing),
        cmocka_unit_test(log_probabilities),
        cmocka_unit_test(bad_options_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
