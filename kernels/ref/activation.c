/* activation.c - soft cap, and gated activations: silu(x) = x / (1 + exp(-x)); gelu_tanh(x) = x/2 (1 + tanh(x (c0 + c1 x^2))). */
#include "kernels/activation.h"
#include "kernels/ref/inline.h"
#include "kernels/ref/levels.h"

#define GELU_C0 0x1.988454p-1f     /* sqrt(2 / pi) rounded to float32 */
#define GELU_C1 0x1.24434p-5f      /* 0.044715 * sqrt(2 / pi) */

void KERNEL(silu_gate)(float *restrict gate, const float *restrict up, size_t count)
{
    for (size_t i = 0; i < count; i++)
        gate[i] = inline_logistic(gate[i], gate[i]) * up[i];
}

void KERNEL(gelu_tanh_gate)(float *restrict gate, const float *restrict up, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        float x = gate[i];
        float t = inline_tanh(x * float_fma(x * x, GELU_C1, GELU_C0));
        gate[i] = ((0.5f * x) * (1.0f + t)) * up[i];
    }
}

void KERNEL(softcap)(float *x, size_t count, float cap)
{
    for (size_t i = 0; i < count; i++)
        x[i] = cap * inline_tanh(x[i] / cap);
}
