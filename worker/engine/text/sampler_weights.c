#include "worker/engine/text/sampler_weights.h"
#include <float.h>
#include <stddef.h>
#include "kernels/pinned_math.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define LOG2E 0x1.715476p+0f
#define ROUND_INTEGER 0x1p+52 /* a double of at least this and below twice this is an integer: adding it rounds, half to even */

float sampler_weight_scale(float temperature)
{
    const float scale = LOG2E / temperature;
    return scale <= FLT_MAX ? scale : FLT_MAX;
}

uint64_t sampler_weight(float value, float max, float scale)
{
    const double weight = (double)pinned_exp2((value - max) * scale) * 0x1p+32; /* exact */
    return (uint64_t)((weight + ROUND_INTEGER) - ROUND_INTEGER);
}

static uint64_t weights_plain(const float *values, uint32_t count, float max, float scale, uint64_t *out)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t weight = sampler_weight(values[i], max, scale);
        total += weight;
        if (out != NULL)
            out[i] = weight;
    }
    return total;
}

#if defined(__x86_64__)
/* pinned_exp2 (docs/numerics.md, section 2) in eight lanes, for x <= 0. */
__attribute__((target("avx2,fma"))) static __m256 exp2_avx2(__m256 x)
{
    static const float coefficients[] = {1.535336188319500e-4f, 1.339887440266574e-3f, 9.618437357674640e-3f,
                                         5.550332471162809e-2f, 2.402264791363012e-1f, 6.931472028550421e-1f, 1.0f};
    x = _mm256_max_ps(x, _mm256_set1_ps(-152.0f));
    const __m256 n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 f = _mm256_sub_ps(x, n);
    __m256 p = _mm256_set1_ps(coefficients[0]);
    for (unsigned i = 1; i < 7; i++)
        p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(coefficients[i]));
    const __m256i power = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(power, 1), bias = _mm256_set1_epi32(127);
    const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(power, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}

__attribute__((target("avx2,fma"))) static uint64_t weights_avx2(const float *values, uint32_t count, float max, float scale,
                                                                uint64_t *out)
{
    const __m256 top = _mm256_set1_ps(max), factor = _mm256_set1_ps(scale);
    const __m256d to_integer = _mm256_set1_pd(0x1p+32), magic = _mm256_set1_pd(ROUND_INTEGER);
    const __m256i magic_bits = _mm256_castpd_si256(magic);
    __m256i sum = _mm256_setzero_si256();
    uint64_t lanes[4], total = 0;
    uint32_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m256 e = exp2_avx2(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(values + i), top), factor));
        for (unsigned h = 0; h < 2; h++) {
            const __m256d wide = _mm256_cvtps_pd(h == 0 ? _mm256_castps256_ps128(e) : _mm256_extractf128_ps(e, 1));
            const __m256d rounded = _mm256_add_pd(_mm256_mul_pd(wide, to_integer), magic);
            const __m256i weights = _mm256_sub_epi64(_mm256_castpd_si256(rounded), magic_bits);
            sum = _mm256_add_epi64(sum, weights);
            if (out != NULL)
                _mm256_storeu_si256((__m256i *)(void *)(out + i + 4 * h), weights);
        }
    }
    _mm256_storeu_si256((__m256i *)lanes, sum);
    for (unsigned k = 0; k < 4; k++)
        total += lanes[k];
    return total + weights_plain(values + i, count - i, max, scale, out == NULL ? NULL : out + i);
}
#endif

uint64_t sampler_weights(const float *values, uint32_t count, float max, float scale, bool vector, uint64_t *out)
{
#if defined(__x86_64__)
    if (vector && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return weights_avx2(values, count, max, scale, out);
#endif
    (void)vector;
    return weights_plain(values, count, max, scale, out);
}
