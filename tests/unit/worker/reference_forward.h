/* reference_forward.h - docs/numerics.md, section 8, a second time: one token, one head, one number after the other, from the operations of
 * tests/unit/kernels/reference.h. Shares no code with the backends. For tests. */
#ifndef ROOST_TESTS_REFERENCE_FORWARD_H
#define ROOST_TESTS_REFERENCE_FORWARD_H
#include <stdint.h>

struct model;

/* logits (count, vocab) of all positions of a sequence. */
void reference_forward(const struct model *model, const uint32_t *tokens, uint32_t count, float *logits);

#endif
