/* sampler_picks.h - for tests of the sampler: one pick with a history of `position` ids that penalties do not look at.
 */
#ifndef ROOST_TESTS_SAMPLER_PICKS_H
#define ROOST_TESTS_SAMPLER_PICKS_H
#include <stdbool.h>
#include <stdint.h>
#include "common/status.h"
#include "worker/engine/text/sampler.h"

enum status try_pick(const struct sampler_options *options, uint32_t choice, const float *logits, uint32_t vocab,
                     uint32_t position, uint32_t *id);
/* These fail the test if there is none. */
uint32_t pick_choice(const struct sampler_options *options, uint32_t choice, const float *logits, uint32_t vocab,
                     uint32_t position);
uint32_t pick(const struct sampler_options *options, const float *logits, uint32_t vocab, uint32_t position);

bool listed(uint32_t id, const uint32_t *ids, uint32_t count);

#endif
