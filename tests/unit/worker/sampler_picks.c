#include "sampler_picks.h"
#include "tests/unit/worker/unit.h"

static const uint32_t no_ids[1 << 17];

enum status try_pick(const struct sampler_options *options, uint32_t choice, const float *logits, uint32_t vocab,
                     uint32_t position, uint32_t *id)
{
    static struct sampler *sampler;
    static uint32_t sampler_vocab;
    const struct sampler_history history = {
        .ids = no_ids, .prompt_count = position, .count = position, .choice = choice};
    assert_ok(sampler_check(options, vocab));
    if (sampler_vocab != vocab) {
        sampler_destroy(&sampler);
        assert_ok(sampler_create(vocab, &sampler));
        sampler_vocab = vocab;
    }
    return sampler_pick(sampler, options, &history, logits, id);
}

uint32_t pick_choice(const struct sampler_options *options, uint32_t choice, const float *logits, uint32_t vocab,
                     uint32_t position)
{
    uint32_t id = UINT32_MAX;
    assert_ok(try_pick(options, choice, logits, vocab, position, &id));
    return id;
}

uint32_t pick(const struct sampler_options *options, const float *logits, uint32_t vocab, uint32_t position)
{
    return pick_choice(options, 0, logits, vocab, position);
}

bool listed(uint32_t id, const uint32_t *ids, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] == id)
            return true;
    return false;
}
