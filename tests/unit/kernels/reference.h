/* reference.h - docs/numerics.md written down a second time, one number after the other: slow, and shares no code with the
 * kernels but the pinned elementary functions. Also random inputs. For tests. */
#ifndef ROOST_TESTS_KERNELS_REFERENCE_H
#define ROOST_TESTS_KERNELS_REFERENCE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "kernels/kernels.h"

bool reference_quantize_row(const float *x, size_t columns, int8_t *q, float *scale);
bool reference_quantize_static_row(const float *x, size_t columns, float inverse_scale, int8_t *q);
bool reference_quantize_wide_row(const float *x, size_t columns, int8_t *high, int8_t *low, float *scale);
void reference_rotate_row(float *x, size_t columns);         /* in place */
/* weight may be NULL */
void reference_rmsnorm_row(const float *x, const float *weight, float epsilon, size_t columns, float *out);
float reference_silu(float x);
float reference_gelu_tanh(float x);
float reference_softcap(float x, float cap);
void reference_gemm(const struct gemm_int8 *gemm);           /* sums in int64 */
void reference_attention(const struct attention *attention);
void reference_attention_exact(const struct attention *attention, double *out);   /* softmax in double on the same int8 values */

struct random {
    uint64_t state;
};
uint32_t random_next(struct random *random);
float random_float(struct random *random, float spread);     /* (-spread, spread) */
int8_t random_int8(struct random *random);                   /* [-127, 127] */
uint32_t random_below(struct random *random, uint32_t bound);
/* Floats of a kind: plain, wide exponents, ties after scaling, denormals, one outlier, zeros, tiny, huge. */
#define RANDOM_KINDS 8u
void random_row(struct random *random, unsigned kind, float *x, size_t count);

#endif
