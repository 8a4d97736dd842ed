/* activation.h - the gate of the feed-forward part, and soft-capped logits (docs/numerics.md, section 6). */
#ifndef ROOST_KERNELS_ACTIVATION_H
#define ROOST_KERNELS_ACTIVATION_H
#include <stddef.h>

/* gate[i] = activation(gate[i]) * up[i] */
typedef void activation_gate_fn(float *gate, const float *up, size_t count);

/* x[i] = cap * tanh(x[i] / cap): soft-capped logits; cap > 0 */
typedef void softcap_fn(float *x, size_t count, float cap);

#endif
