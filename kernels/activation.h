/* activation.h - the gate of the feed-forward part (docs/numerics.md, section 6). */
#ifndef ROOST_KERNELS_ACTIVATION_H
#define ROOST_KERNELS_ACTIVATION_H
#include <stddef.h>

/* gate[i] = activation(gate[i]) * up[i] */
typedef void activation_gate_fn(float *gate, const float *up, size_t count);

#endif
