#include "reference.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/pinned_math.h"

uint32_t random_next(struct random *random)
{
    random->state = random->state * 6364136223846793005u + 1442695040888963407u;
    uint32_t word = (uint32_t)(random->state >> 32);
    return word ^ word >> 15;
}

float random_float(struct random *random, float spread)
{
    return ((float)(random_next(random) >> 8) * 0x1p-23f - 1.0f) * spread;
}

int8_t random_int8(struct random *random)
{
    return (int8_t)((int)random_below(random, 255) - 127);
}

uint32_t random_below(struct random *random, uint32_t bound)
{
    return (uint32_t)(((uint64_t)random_next(random) * bound) >> 32);
}

bool reference_quantize_row(const float *x, size_t columns, int8_t *q, float *scale)
{
    float absmax = 0;
    for (size_t i = 0; i < columns; i++) {
        if (!isfinite(x[i]))
            return false;
        if (fabsf(x[i]) > absmax)
            absmax = fabsf(x[i]);
    }
    if (absmax < 0x1p-100f) {
        memset(q, 0, columns);
        *scale = 1.0f;
        return true;
    }
    *scale = absmax / 127.0f;
    float inverse = 127.0f / absmax;
    for (size_t i = 0; i < columns; i++)
        q[i] = (int8_t)nearbyintf(x[i] * inverse);
    return true;
}

void reference_rmsnorm_row(const float *x, const float *weight, float epsilon, size_t columns, float *out)
{
    float lane[128] = {0};
    for (size_t i = 0; i < columns; i++)
        lane[i % 128] = fmaf(x[i], x[i], lane[i % 128]);
    for (int distance = 64; distance >= 1; distance /= 2)
        for (int l = 0; l < distance; l++)
            lane[l] += lane[l + distance];
    float mean = lane[0] / (float)columns;
    float inverse = 1.0f / sqrtf(mean + epsilon);
    for (size_t i = 0; i < columns; i++) {
        float scaled = x[i] * inverse;
        out[i] = scaled * weight[i];
    }
}

#define LOG2_E 0x1.715476p+0f

float reference_silu(float x)
{
    return x / (1.0f + pinned_exp2(x * -LOG2_E));
}

float reference_gelu_tanh(float x)
{
    float square = x * x;
    float t = pinned_tanh(x * fmaf(square, 0x1.24434p-5f, 0x1.988454p-1f));
    return (0.5f * x) * (1.0f + t);
}

void reference_gemm(const struct gemm_int8 *gemm)
{
    for (size_t r = 0; r < gemm->rows; r++)
        for (size_t o = 0; o < gemm->outputs; o++) {
            int64_t sum = 0;
            for (size_t k = 0; k < gemm->depth; k++)
                sum += (int64_t)gemm->a[r * gemm->depth + k] * gemm->w[o * gemm->depth + k];
            float value = (float)sum * gemm->a_scale[r];
            value = value * gemm->w_scale[o];
            float *out = &gemm->out[r * gemm->outputs + o];
            *out = gemm->accumulate ? *out + value : value;
        }
}

struct state {
    bool used;
    float top, sum, o[512];
};

static void fold(struct state *into, float top, float sum, const float *o, const int32_t *integer, float gain, size_t dim)
{
    if (!into->used) {
        into->used = true;
        into->top = top;
        into->sum = sum;
        for (size_t d = 0; d < dim; d++)
            into->o[d] = integer ? (float)integer[d] * gain : o[d];
        return;
    }
    float higher = into->top > top ? into->top : top;
    float keep = pinned_exp2(into->top - higher), join = pinned_exp2(top - higher);
    float scale = gain * join;
    into->top = higher;
    into->sum = fmaf(sum, join, into->sum * keep);
    for (size_t d = 0; d < dim; d++)
        into->o[d] = integer ? fmaf((float)integer[d], scale, into->o[d] * keep) : fmaf(o[d], join, into->o[d] * keep);
}

struct keys {                 /* of one KV head and block */
    const int8_t *k, *v;
    const float *k_scale, *v_scale;
};

static struct keys keys_of(const struct attention *job, size_t kv_head, uint32_t block)
{
    const char *page = job->pages[block];
    return (struct keys){
        .k = (const int8_t *)(page + job->k_offset) + kv_head * 64 * job->dim,
        .v = (const int8_t *)(page + job->v_offset) + kv_head * 64 * job->dim,
        .k_scale = (const float *)(page + job->k_scale_offset) + kv_head * 64,
        .v_scale = (const float *)(page + job->v_scale_offset) + kv_head * 64,
    };
}

static int32_t dot(const int8_t *a, const int8_t *b, size_t count)
{
    int32_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += a[i] * b[i];
    return sum;
}

/* One row and head against the keys [low, high) of a block. */
static void attend_block(struct state *unit, const struct attention *job, const int8_t *q, float q_scale, struct keys keys,
                         uint32_t low, uint32_t high)
{
    float s[64], e[64], a[64], top = -INFINITY, peak = 0;
    for (uint32_t j = low; j < high; j++) {
        s[j] = (float)dot(q, keys.k + j * job->dim, job->dim) * q_scale;
        s[j] = s[j] * keys.k_scale[j];
        if (s[j] > top)
            top = s[j];
    }
    int32_t sum = 0, o[512] = {0};
    for (uint32_t j = low; j < high; j++) {
        e[j] = pinned_exp2(s[j] - top);
        sum += (int32_t)nearbyintf(65536.0f * e[j]);
        a[j] = e[j] * keys.v_scale[j];
        if (a[j] > peak)
            peak = a[j];
    }
    float inverse = 255.0f / peak;
    for (uint32_t j = low; j < high; j++) {
        int32_t p = (int32_t)nearbyintf(a[j] * inverse);
        for (size_t d = 0; d < job->dim; d++)
            o[d] += p * keys.v[d * 64 + j];
    }
    fold(unit, top, (float)sum * 0x1p-16f, NULL, o, peak / 255.0f, job->dim);
}

static void attend_row(const struct attention *job, size_t row, size_t head)
{
    size_t dim = job->dim, kv_head = head / (job->heads / job->kv_heads);
    const int8_t *q = job->q + (row * job->heads + head) * dim;
    float q_scale = job->q_scale[row * job->heads + head] * job->score_scale;
    uint32_t last = job->start + (uint32_t)row, first = 0;
    if (job->window && last + 1 > job->window)
        first = last + 1 - job->window;

    struct state unit = {0}, total = {0};
    for (uint32_t block = 0; block * 64 <= last; block++) {
        if (block % 16 == 0 && unit.used) {
            fold(&total, unit.top, unit.sum, unit.o, NULL, 1.0f, dim);
            unit.used = false;
        }
        uint32_t low = first > block * 64 ? first - block * 64 : 0;
        uint32_t high = last < block * 64 + 63 ? last - block * 64 + 1 : 64;
        if (low < 64)
            attend_block(&unit, job, q, q_scale, keys_of(job, kv_head, block), low, high);
    }
    fold(&total, unit.top, unit.sum, unit.o, NULL, 1.0f, dim);
    float inverse = 1.0f / total.sum;
    for (size_t d = 0; d < dim; d++)
        job->out[(row * job->heads + head) * dim + d] = total.o[d] * inverse;
}

void reference_attention(const struct attention *job)
{
    for (size_t row = 0; row < job->rows; row++)
        for (size_t head = 0; head < job->heads; head++)
            attend_row(job, row, head);
}

void reference_attention_exact(const struct attention *job, double *out)
{
    size_t dim = job->dim;
    for (size_t row = 0; row < job->rows; row++)
        for (size_t head = 0; head < job->heads; head++) {
            uint32_t last = job->start + (uint32_t)row;
            uint32_t first = job->window && last + 1 > job->window ? last + 1 - job->window : 0;
            const int8_t *q = job->q + (row * job->heads + head) * dim;
            double scale = (double)job->q_scale[row * job->heads + head] * job->score_scale, top = -INFINITY, sum = 0;
            double *o = out + (row * job->heads + head) * dim;
            memset(o, 0, dim * sizeof *o);
            for (int pass = 0; pass < 2; pass++)
                for (uint32_t j = first; j <= last; j++) {
                    struct keys keys = keys_of(job, head / (job->heads / job->kv_heads), j / 64);
                    double s = dot(q, keys.k + j % 64 * dim, dim) * scale * keys.k_scale[j % 64];
                    if (pass == 0) {
                        top = fmax(top, s);
                        continue;
                    }
                    double e = exp2(s - top);
                    sum += e;
                    for (size_t d = 0; d < dim; d++)
                        o[d] += e * keys.v[d * 64 + j % 64] * keys.v_scale[j % 64];
                }
            for (size_t d = 0; d < dim; d++)
                o[d] /= sum;
        }
}
