/* cuda_sample_rows against worker/engine/text/sampler.c, id by id: all options, ties, signed zeros, flat and steep rows, rows that are not
 * finite. */
#include <float.h>
#include <math.h>
#include <string.h>
#include "on_device.h"
#include "tests/unit/kernels/reference.h"
#include "worker/engine/text/sampler.h"

#define ROWS 4u
#define VOCAB_MAX 6000u
#define SHAPES 9u

static void make_logits(struct random *random, unsigned shape, float *x, uint32_t vocab)
{
    for (uint32_t i = 0; i < vocab; i++) {
        const float a = random_float(random, 1.0f), b = random_float(random, 1.0f);
        switch (shape) {
        case 0: x[i] = 8.0f * (a + b) * a; break;                          /* some far above the rest */
        case 1: x[i] = (float)random_below(random, 5) - 2.0f; break;       /* ties at every bound */
        case 2: x[i] = i % 2 ? -0.0f : 0.0f; break;
        case 3: x[i] = 0.001f * a; break;                                  /* flat */
        case 4: x[i] = i == vocab / 2 ? 60.0f : a; break;                  /* one alone */
        case 5: x[i] = random_below(random, 3) ? -FLT_MAX : a; break;
        case 6: x[i] = random_below(random, 40) ? 30.0f * a - 60.0f : 2.0f * a + 8.0f; break;
        case 7: x[i] = ldexpf(a, (int)random_below(random, 250) - 125); break;
        default: x[i] = i == 0 ? FLT_MAX : a > 0 ? FLT_MAX * 0.9999999f : -FLT_MAX; break;
        }
    }
}

static struct cuda_sample_options make_options(struct random *random)
{
    static const float temperatures[] = {0.0f, 1.0f, 0.7f, 1.3f, 2.5f, 100.0f, 0.05f, 1e-30f, 0x1p-140f};
    static const float top_ps[] = {0.0f, 1.0f, 0.95f, 0.5f, 0.9999f, 0.1f, 0x1p-40f, 0x1p-140f, 0x1.fffffep-1f};
    static const float min_ps[] = {0.0f, 0.0f, 0.05f, 0.5f, 1.0f, 0x1p-32f, 0x1p-33f, 0x1p-149f};
    static const uint32_t top_ks[] = {0, 0, 1, 2, 5, 40, 333, 5000, 0xffffffffu};
    return (struct cuda_sample_options){.temperature = temperatures[random_below(random, 9)],
                                        .top_p = random_below(random, 3) ? top_ps[random_below(random, 9)] : 0.0f,
                                        .min_p = random_below(random, 3) ? 0.0f : min_ps[random_below(random, 8)],
                                        .top_k = top_ks[random_below(random, 9)],
                                        .seed = (uint64_t)random_next(random) << 32 | random_next(random),
                                        .choice = random_below(random, 3),
                                        .position = random_next(random)};
}

struct mask {                      /* ids that are never drawn, as both sides want them */
    uint32_t ids[VOCAB_MAX], count, bits[VOCAB_MAX / 32 + 1];
};

static void mask_add(struct mask *mask, uint32_t id)
{
    mask->ids[mask->count++] = id;
    mask->bits[id / 32] |= 1u << id % 32;
}

static void run_masked(const float *logits, const struct cuda_sample_options *options, uint32_t vocab, unsigned shape, const struct mask *mask)
{
    uint32_t token[ROWS], want_bad = CUDA_NO_BAD_ROW, *bad_row = bad_row_new();
    struct cuda_sample job = {.logits = device_put(logits, (size_t)ROWS * vocab * sizeof *logits),
                              .options = device_put(options, ROWS * sizeof *options), .rows = ROWS, .vocab = vocab,
                              .masked = mask != NULL ? device_put(mask->bits, sizeof mask->bits) : NULL,
                              .token = device_new(sizeof token), .bad_row = bad_row};
    launched(cuda_sample_rows(&job, NULL));
    device_get(token, job.token, sizeof token);
    struct sampler *sampler;
    assert_int_equal(sampler_create(vocab, &sampler), STATUS_OK);
    for (uint32_t row = 0; row < ROWS; row++) {
        const struct cuda_sample_options *o = &options[row];
        const struct sampler_options same = {.temperature = o->temperature, .top_p = o->top_p, .top_k = o->top_k, .min_p = o->min_p,
                                             .seed = o->seed, .masked = mask != NULL ? mask->ids : NULL,
                                             .masked_count = mask != NULL ? mask->count : 0};
        const struct sampler_history history = {.count = o->position, .choice = o->choice};
        uint32_t want;
        const enum status st = sampler_pick(sampler, &same, &history, logits + (size_t)row * vocab, &want);
        if (st == STATUS_CORRUPT) {
            want_bad = row < want_bad ? row : want_bad;
            continue;
        }
        assert_int_equal(st, STATUS_OK);
        if (token[row] != want)
            fail_msg("shape %u, %u ids, row %u: %u (%a), not %u (%a); temperature %a, top_k %u, top_p %a, min_p %a", shape, vocab, row, token[row],
                     (double)logits[(size_t)row * vocab + token[row]], want, (double)logits[(size_t)row * vocab + want], (double)o->temperature,
                     o->top_k, (double)o->top_p, (double)o->min_p);
    }
    sampler_destroy(&sampler);
    assert_int_equal(bad_row_take(bad_row), want_bad);
    device_drop(job.logits);
    device_drop(job.options);
    device_drop(job.token);
    device_drop(job.masked);
}

static void run(const float *logits, const struct cuda_sample_options *options, uint32_t vocab, unsigned shape)
{
    run_masked(logits, options, vocab, shape, NULL);
}

static float logits[ROWS * VOCAB_MAX];

static void run_random(struct random *random, uint32_t vocab, unsigned shape)
{
    struct cuda_sample_options options[ROWS];
    for (uint32_t row = 0; row < ROWS; row++) {
        make_logits(random, shape, logits + (size_t)row * vocab, vocab);
        options[row] = make_options(random);
    }
    run(logits, options, vocab, shape);
}

static void ids_equal_the_samplers(void **state)
{
    (void)state;
    static const uint32_t vocabs[] = {1, 2, 37, 1000, 4097};
    for (unsigned schedule = 0; schedule < SCHEDULES; schedule++) {
        struct random random = {test_seed(schedule)};
        emulation_set_seed(test_seed(schedule));
        for (size_t v = 0; v < sizeof vocabs / sizeof *vocabs; v++)
            for (unsigned shape = 0; shape < SHAPES; shape++)
                run_random(&random, vocabs[v], shape);
    }
}

/* The likeliest are among the masked ones, and so are some that are not finite; with top-k of more ids than are left. */
static void masked_ids_are_never_drawn(void **state)
{
    (void)state;
    static const uint32_t vocabs[] = {2, 37, 1000, 4097};
    struct random random = {test_seed(79)};
    for (size_t v = 0; v < sizeof vocabs / sizeof *vocabs; v++)
        for (unsigned shape = 0; shape < SHAPES; shape++) {
            const uint32_t vocab = vocabs[v], one_in = 1 + random_below(&random, 5), kept = random_below(&random, vocab);
            struct cuda_sample_options options[ROWS];
            static struct mask mask;
            memset(&mask, 0, sizeof mask);
            for (uint32_t id = 0; id < vocab; id++)
                if (id != kept && random_below(&random, one_in) == 0)
                    mask_add(&mask, id);
            for (uint32_t row = 0; row < ROWS; row++) {
                make_logits(&random, shape, logits + (size_t)row * vocab, vocab);
                options[row] = make_options(&random);
                for (uint32_t i = 0; i < mask.count; i += 3)
                    logits[(size_t)row * vocab + mask.ids[i]] = i % 2 ? 1e30f : NAN;
            }
            run_masked(logits, options, vocab, shape, &mask);
        }
}

/* More ids than are gathered: trials walk the whole row. */
static void flat_rows_equal_the_samplers(void **state)
{
    (void)state;
    struct random random = {test_seed(77)};
    struct cuda_sample_options options[ROWS] = {
        {.temperature = 1.0f, .top_p = 0.95f, .seed = 1, .position = 100},
        {.temperature = 2.0f, .top_k = 4500, .seed = 2, .position = 101},
        {.temperature = 1.5f, .top_k = 5000, .top_p = 0.97f, .min_p = 0.3f, .seed = 3, .position = 102},
        {.temperature = 0.9f, .top_p = 0.999f, .min_p = 0.01f, .seed = 4, .position = 103},
    };
    for (unsigned shape = 1; shape <= 3; shape++)
        for (uint64_t again = 0; again < 2; again++) {
            for (uint32_t row = 0; row < ROWS; row++) {
                make_logits(&random, shape, logits + row * VOCAB_MAX, VOCAB_MAX);
                options[row].seed += again;
            }
            run(logits, options, VOCAB_MAX, shape);
        }
}

/* Few ids, many draws: each bound and each tie decides often. */
static void draws_equal_the_samplers(void **state)
{
    (void)state;
    struct random random = {test_seed(78)};
    for (unsigned draw = 0; draw < 100; draw++)
        run_random(&random, 1 + random_below(&random, 24), draw % SHAPES);
}

static void what_is_not_finite_is_reported(void **state)
{
    (void)state;
    static const float values[] = {NAN, INFINITY, -INFINITY};
    struct random random = {5};
    for (uint32_t at = 0; at < ROWS * 128; at += 37) {
        struct cuda_sample_options options[ROWS];
        for (uint32_t row = 0; row < ROWS; row++) {
            make_logits(&random, 0, logits + row * 128, 128);
            options[row] = make_options(&random);
        }
        logits[at] = values[at % 3];
        run(logits, options, 128, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_equal_the_samplers),
        cmocka_unit_test(masked_ids_are_never_drawn),
        cmocka_unit_test(flat_rows_equal_the_samplers),
        cmocka_unit_test(draws_equal_the_samplers),
        cmocka_unit_test(what_is_not_finite_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
