/* sampler_filter_test.c - which ids can be drawn, and how often: every step against a plain second writing of
 * sampler.h, sets and weights computed by hand. */
#include "tests/unit/worker/unit.h"
#include <math.h>
#include "sampler_picks.h"
#include "worker/engine/text/sampler_weights.h"

struct plain_item {
    uint32_t id;
    float value;
    uint64_t weight;
};

static int compare_plain(const void *a, const void *b)
{
    const struct plain_item *x = a, *y = b;
    if (x->value != y->value)
        return x->value < y->value ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

static uint32_t pick_by_definition(const struct sampler_options *o, const struct sampler_history *h,
                                   const float *logits, uint32_t vocab, uint32_t *kept_count)
{
    static struct plain_item items[1024];
    uint32_t count = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        if (listed(i, o->masked, o->masked_count) ||
            (h->count - h->prompt_count < o->tokens_min && listed(i, o->end_ids, o->end_count)))
            continue;
        float v = logits[i];
        uint32_t anywhere = 0, reply = 0;
        for (uint32_t k = 0; k < o->bias_count; k++)
            if (o->bias_ids[k] == i)
                v = v + o->bias_values[k];
        for (uint32_t k = 0; k < h->count; k++) {
            anywhere += h->ids[k] == i;
            reply += h->ids[k] == i && k >= h->prompt_count;
        }
        if (anywhere > 0 && o->repetition_penalty > 0)
            v = v > 0 ? v / o->repetition_penalty : v * o->repetition_penalty;
        if (reply > 0) {
            const float product = o->frequency_penalty * (float)reply;
            v = v - o->presence_penalty;
            v = v - product;
        }
        items[count++] = (struct plain_item){.id = i, .value = v};
    }
    qsort(items, count, sizeof items[0], compare_plain);
    const float max = items[0].value;
    if (o->temperature == 0)
        return items[0].id;
    for (uint32_t i = 0; i < count; i++)
        items[i].weight = sampler_weight(items[i].value, max, sampler_weight_scale(o->temperature));
    if (o->top_k > 0 && o->top_k < count)
        count = o->top_k;
    if (o->top_p > 0 && o->top_p < 1) {
        uint64_t total = 0, sum = 0;
        uint32_t n = 0;
        for (uint32_t i = 0; i < count; i++)
            total += items[i].weight;
        const long double target =
            ceill((long double)o->top_p * (long double)total); /* 24 and up to 40 bits: exact in 64 */
        while (n < count && (long double)sum < target)
            sum += items[n++].weight;
        count = n;
    }
    *kept_count = 0;
    uint32_t best = UINT32_MAX;
    float best_score = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (o->min_p > 0 && (double)items[i].weight < (double)o->min_p * 4294967296.0)
            continue;
        ++*kept_count;
        const float score =
            (items[i].value - max) / o->temperature + sampler_noise(o->seed, h->choice, h->count, items[i].id);
        if (best == UINT32_MAX || score > best_score || (score == best_score && items[i].id < best)) {
            best = items[i].id;
            best_score = score;
        }
    }
    return best;
}

static uint32_t random_ids(uint64_t *rng, uint32_t vocab, uint32_t *ids, uint32_t count_max)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < vocab && count < count_max; i++)
        if (rng_below(rng, vocab) < count_max / 2)
            ids[count++] = i;
    return count;
}

static void every_step_follows_the_definition(void **state)
{
    (void)state;
    uint64_t rng = test_seed(21), kept_sum = 0;
    static float logits[1000], bias[1000];
    static uint32_t ids[400], masked[1000], ends[72], biased[1000];
    struct sampler *sampler = NULL;
    uint32_t vocab = 0;
    for (int round = 0; round < 8000; round++) {
        if (round % 500 == 0) {
            vocab = 1 + rng_below(&rng, 1000);
            sampler_destroy(&sampler);
            assert_ok(sampler_create(vocab, &sampler));
        }
        const uint32_t grain = 1u << rng_below(&rng, 20); /* coarse ones make ties */
        const float spread = (float[]){0, 0.5f, 5, 20, 60}[rng_below(&rng, 5)];
        for (uint32_t i = 0; i < vocab; i++)
            logits[i] = ((float)rng_below(&rng, grain) / (float)grain - 0.5f) * spread;
        for (uint32_t i = 0; i < 400; i++)
            ids[i] = rng_below(&rng, vocab);
        struct sampler_options o = {.temperature = (float[]){0, 0.3f, 1, 1.7f, 100}[rng_below(&rng, 5)],
                                    .seed = rng_next(&rng)};
        if (rng_below(&rng, 2))
            o.top_k = 1 + rng_below(&rng, rng_below(&rng, 2) ? 20 : 1200);
        if (rng_below(&rng, 2))
            o.top_p = rng_below(&rng, 8) == 0 ? 0x1p-40f : (float)(1 + rng_below(&rng, 1000)) / 1000;
        if (rng_below(&rng, 3) == 0)
            o.min_p = rng_below(&rng, 8) == 0 ? 0x1p-36f : (float)rng_below(&rng, 1001) / 1000;
        if (rng_below(&rng, 3) == 0)
            o.repetition_penalty = (float)(1 + rng_below(&rng, 30)) / 10;
        if (rng_below(&rng, 3) == 0)
            o.presence_penalty = (float)rng_below(&rng, 41) / 10 - 2;
        if (rng_below(&rng, 3) == 0)
            o.frequency_penalty = (float)rng_below(&rng, 41) / 10 - 2;
        if (rng_below(&rng, 3) == 0) {
            o.bias_count = random_ids(&rng, vocab, biased, 20);
            for (uint32_t i = 0; i < o.bias_count; i++)
                bias[i] = (float)rng_below(&rng, 100) / 10 - 5;
            o.bias_ids = biased;
            o.bias_values = bias;
        }
        o.masked = masked;
        if (rng_below(&rng, 2))
            o.masked_count = random_ids(&rng, vocab, masked, rng_below(&rng, 2) ? 10 : vocab / 2);
        o.end_ids = ends;
        for (o.end_count = 0; o.end_count < 5; o.end_count++)
            ends[o.end_count] = rng_below(&rng, vocab);
        o.tokens_min = rng_below(&rng, 40);
        struct sampler_history history = {.ids = ids, .choice = rng_below(&rng, 4)};
        history.count = rng_below(&rng, 400);
        history.prompt_count = rng_below(&rng, history.count + 1);
        bool any = false;
        for (uint32_t i = 0; i < vocab && !any; i++)
            any = !listed(i, o.masked, o.masked_count) && !listed(i, ends, 5);
        if (!any)
            continue;
        assert_ok(sampler_check(&o, vocab));
        uint32_t id = UINT32_MAX, kept = 0;
        assert_ok(sampler_pick(sampler, &o, &history, logits, &id));
        const uint32_t wanted = pick_by_definition(&o, &history, logits, vocab, &kept);
        if (id != wanted)
            fail_msg("round %d: %u, wanted %u (vocab %u, T %g, k %u, p %g, min %g)", round, id, wanted, vocab,
                     (double)o.temperature, o.top_k, (double)o.top_p, (double)o.min_p);
        kept_sum += kept;
    }
    sampler_destroy(&sampler);
    sampler_destroy(&sampler); /* NULL is accepted */
    assert_true(kept_sum > 100000);
}

/* Which ids a draw can give, by drawing often. */
static uint32_t support(const struct sampler_options *options, const float *logits, uint32_t vocab)
{
    uint32_t seen = 0;
    for (uint32_t position = 0; position < 4000; position++)
        seen |= 1u << pick(options, logits, vocab, position);
    return seen;
}

static void hand_computed_sets(void **state)
{
    (void)state;
    /* probabilities 8/16, 4/16, 2/16, 1/16, 1/16 at temperature 1: ln 2 apart */
    const float ln2 = 0.6931472f, logits[] = {1, 1 + ln2, 1 + 3 * ln2, 1, 1 + 2 * ln2};
    struct sampler_options o = {.temperature = 1, .seed = 3};
    assert_int_equal(support(&o, logits, 5), 0x1F);
    o.top_k = 2;
    assert_int_equal(support(&o, logits, 5), 1 << 2 | 1 << 4);
    o.top_k = 4; /* the tie of ids 0 and 3 goes to 0 */
    assert_int_equal(support(&o, logits, 5), 1 << 2 | 1 << 4 | 1 << 1 | 1 << 0);
    o.top_k = 0;
    o.top_p = 0.49f;
    assert_int_equal(support(&o, logits, 5), 1 << 2);
    o.top_p = 0.51f;
    assert_int_equal(support(&o, logits, 5), 1 << 2 | 1 << 4);
    o.top_p = 0.9f;
    assert_int_equal(support(&o, logits, 5), 1 << 2 | 1 << 4 | 1 << 1 | 1 << 0);
    o.top_k = 2; /* of 8 : 4, the first has 0.67 */
    o.top_p = 0.66f;
    assert_int_equal(support(&o, logits, 5), 1 << 2);
    o.top_p = 0.67f;
    assert_int_equal(support(&o, logits, 5), 1 << 2 | 1 << 4);
    o.top_k = 0;
    o.top_p = 0;
    o.min_p = 0.24f; /* at least that share of the most likely one: 8, 4, 2 of 8 */
    assert_int_equal(support(&o, logits, 5), 1 << 2 | 1 << 4 | 1 << 1);
    o.min_p = 1;
    assert_int_equal(support(&o, logits, 5), 1 << 2);
    o.min_p = 0;
    o.temperature = 2; /* now sqrt: 2.83 2 1.41 1 1 of 8.24 */
    o.top_p = 0.5f;
    assert_int_equal(support(&o, logits, 5), 1 << 2 | 1 << 4);
    o.top_p = 0x1p-149f; /* the most likely always stays */
    assert_int_equal(support(&o, logits, 5), 1 << 2);
    const float far[] = {0, -1000, -1000, 1e-3f}; /* weights that round to 0 are no candidates of top-p */
    o = (struct sampler_options){.temperature = 1, .top_p = 0.99999994f, .seed = 1};
    assert_int_equal(support(&o, far, 4), 1 << 0 | 1 << 3);
    const float equal[8] = {2, 2, 2, 2, 2, 2, 2, 2};
    o.top_p = 0.5f;
    assert_int_equal(support(&o, equal, 8), 0x0F);
    o.top_p = 0.51f;
    assert_int_equal(support(&o, equal, 8), 0x1F);
    o.top_p = 1;
    o.top_k = 3;
    assert_int_equal(support(&o, equal, 8), 0x07);
    const float rest[] = {0, 0, -22.18f}; /* weights 2^32, 2^32, 1: half of the sum, rounded up, needs two */
    o = (struct sampler_options){.temperature = 1, .top_p = 0.5f, .seed = 1};
    assert_int_equal(support(&o, rest, 3), 0x03);
    const float half[] = {0, -1}; /* at this temperature the weights are 2^32 and 2^31: the bound itself stays */
    o = (struct sampler_options){.temperature = 0x1.715476p+0f, .min_p = 0.5f, .seed = 1};
    assert_int_equal(support(&o, half, 2), 0x03);
    o = (struct sampler_options){.temperature = 1, .top_k = 3, .seed = 3};
    const float one[] = {-7};
    assert_int_equal(support(&o, one, 1), 1);
}

static void weights_and_their_sums(void **state)
{
    (void)state;
    assert_true(sampler_weight(5, 5, sampler_weight_scale(1)) == 1ull << 32);
    assert_true(sampler_weight(5, 5, sampler_weight_scale(1e-45f)) == 1ull << 32);
    assert_true(sampler_weight(-3e38f, 3e38f, sampler_weight_scale(1)) == 0);
    assert_true(sampler_weight(-32, 0, 1) == 1);
    assert_true(sampler_weight(-33, 0, 1) == 0); /* one half, to even */
    assert_true(sampler_weight(-31.5f, 0, 1) == 1);
    assert_true(sampler_weight(-1, 0, 1) == 1ull << 31);
    static float values[5001];
    static uint64_t each[2][5001];
    uint64_t rng = test_seed(5);
    for (int round = 0; round < 60; round++) {
        const float scale = sampler_weight_scale((float)(1 + rng_below(&rng, 300)) / 100);
        const uint32_t count = rng_below(&rng, 5000);
        for (uint32_t i = 0; i < count; i++)
            values[i] = -(float)rng_below(&rng, 1 << 24) / (1 << 18);
        values[0] = round % 2 ? -3e38f : -0.0f;
        const uint64_t total = sampler_weights(values, count, 0, scale, true, each[0]);
        assert_true(total == sampler_weights(values, count, 0, scale, false, each[1]));
        assert_true(total == sampler_weights(values, count, 0, scale, true, NULL));
        assert_memory_equal(each[0], each[1], count * sizeof each[0][0]);
    }
}

/* Chi-square of 200,000 draws through top-k and top-p against the exact probabilities of what they keep; the 99.99%
 * quantile. */
static void filtered_draws_follow_the_probabilities(void **state)
{
    (void)state;
    enum { IDS = 300, DRAWS = 200000 };
    float logits[IDS];
    for (int i = 0; i < IDS; i++)
        logits[i] = -(float)((i * 7) % IDS) * 0.2f; /* i * 7 mod 300: every rank once */
    static const struct sampler_options filters[] = {
        {.top_k = 10}, {.top_p = 0.85f}, {.min_p = 0.15f}, {.top_k = 30, .top_p = 0.86f}};
    for (int f = 0; f < 4; f++) {
        struct sampler_options o = filters[f];
        double expected[IDS] = {0}, total = 0, chi = 0;
        uint32_t counts[IDS] = {0};
        o.temperature = 1;
        o.seed = 77;
        for (int i = 0; i < IDS;
             i++) /* each keeps exactly the first ten ranks: 1 - e^-2 = 0.8647, e^-1.8 = 0.165, e^-2 = 0.135 */
            if (logits[i] > -1.9f)
                total += expected[i] = exp((double)logits[i]);
        for (uint32_t n = 0; n < DRAWS; n++) {
            o.seed = n / 100000;
            counts[pick(&o, logits, IDS, n % 100000)]++;
        }
        for (int i = 0; i < IDS; i++) {
            const double e = expected[i] / total * DRAWS;
            if (e == 0)
                assert_int_equal(counts[i], 0);
            else
                chi += (counts[i] - e) * (counts[i] - e) / e;
        }
        if (!(chi < 33.72)) /* 9 degrees of freedom */
            fail_msg("filter %d: chi square %g", f, chi);
    }
}

/* Among 200,000 equal logits the highest noise is often drawn twice (it has 23 bits): the lowest id wins, whatever
 * order candidates are looked at. */
static void equal_scores_go_to_the_lowest_id(void **state)
{
    (void)state;
    enum { VOCAB = 210000, KEPT = 200000 };
    static float logits[VOCAB];
    const struct sampler_options o = {.temperature = 1, .top_k = KEPT, .seed = 8};
    unsigned ties = 0;
    for (uint32_t position = 0; position < 100; position++) {
        uint32_t best = 0;
        float high = -100;
        bool tie = false;
        for (uint32_t i = 0; i < KEPT; i++) {
            const float noise = sampler_noise(8, 0, position, i);
            tie = noise > high ? false : tie || noise == high;
            best = noise > high ? i : best;
            high = noise > high ? noise : high;
        }
        ties += tie;
        assert_int_equal(pick(&o, logits, VOCAB, position), best);
    }
    assert_true(ties > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_step_follows_the_definition),
        cmocka_unit_test(hand_computed_sets),
        cmocka_unit_test(weights_and_their_sums),
        cmocka_unit_test(filtered_draws_follow_the_probabilities),
        cmocka_unit_test(equal_scores_go_to_the_lowest_id),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
