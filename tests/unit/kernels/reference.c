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

void random_row(struct random *random, unsigned kind, float *x, size_t count)
{
    for (size_t i = 0; i < count; i++)
        switch (kind) {
        case 0: x[i] = random_float(random, 3.0f); break;
        case 1: x[i] = ldexpf(random_float(random, 1.0f), (int)random_below(random, 60) - 30); break;
        case 2: x[i] = (float)((int)random_below(random, 509) - 254) * 0.5f; break;
        case 3: x[i] = random_float(random, 0x1p-127f); break;
        case 4: x[i] = i == count / 2 ? 1e6f : random_float(random, 1.0f); break;
        case 5: x[i] = i % 2 ? -0.0f : 0.0f; break;
        case 6: x[i] = random_float(random, 0x1p-98f); break;
        default: x[i] = random_float(random, 1e17f); break;
        }
    if (kind == 2 && count > 1)
        x[count - 1] = 127.0f;     /* the scale becomes 1: halves are ties */
}

/* Negative if one of them is not finite. */
static float absmax(const float *x, size_t columns)
{
    float largest = 0;
    for (size_t i = 0; i < columns; i++) {
        if (!isfinite(x[i]))
            return -1.0f;
        largest = fmaxf(largest, fabsf(x[i]));
    }
    return largest;
}

bool reference_quantize_row(const float *x, size_t columns, int8_t *q, float *scale)
{
    float largest = absmax(x, columns);
    if (largest < 0)
        return false;
    if (largest < 0x1p-100f) {
        memset(q, 0, columns);
        *scale = 1.0f;
        return true;
    }
    *scale = largest / 127.0f;
    float inverse = 127.0f / largest;
    for (size_t i = 0; i < columns; i++)
        q[i] = (int8_t)nearbyintf(x[i] * inverse);
    return true;
}

bool reference_quantize_static_row(const float *x, size_t columns, float inverse_scale, int8_t *q)
{
    for (size_t i = 0; i < columns; i++) {
        if (!isfinite(x[i]))
            return false;
        float rounded = nearbyintf(x[i] * inverse_scale);
        q[i] = rounded > 127.0f ? 127 : rounded < -127.0f ? -127 : (int8_t)rounded;
    }
    return true;
}

bool reference_quantize_wide_row(const float *x, size_t columns, int8_t *high, int8_t *low, float *scale)
{
    float largest = absmax(x, columns);
    if (largest < 0)
        return false;
    float inverse = 32512.0f / largest;
    *scale = largest < 0x1p-100f ? 1.0f : largest / 32512.0f;
    for (size_t i = 0; i < columns; i++) {
        long n = largest < 0x1p-100f ? 0 : (long)nearbyintf(x[i] * inverse), h = 0;
        while (n - 256 * h > 127)
            h++;
        while (n - 256 * h < -128)
            h--;
        high[i] = (int8_t)h;
        low[i] = (int8_t)(n - 256 * h);
    }
    return true;
}

void reference_rotate_row(float *x, size_t columns)
{
    for (float *block = x; block < x + columns; block += 128) {
        for (unsigned i = 0; i < 128; i++)
            block[i] *= quantize_rotate_sign(i);
        for (unsigned distance = 1; distance < 128; distance *= 2)
            for (unsigned i = 0; i < 128; i++)
                if (!(i & distance)) {
                    float a = block[i], b = block[i + distance];
                    block[i] = a + b;
                    block[i + distance] = a - b;
                }
    }
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
        out[i] = weight ? scaled * weight[i] : scaled;
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

float reference_softcap(float x, float cap)
{
    return cap * pinned_tanh(x / cap);
}

void reference_gemm(const struct gemm_int8 *gemm)
{
    for (size_t r = 0; r < gemm->rows; r++)
        for (size_t o = 0; o < gemm->outputs; o++) {
            int64_t sum = 0;
            for (size_t k = 0; k < gemm->depth; k++) {
                int64_t a = gemm->a[r * gemm->depth + k];
                if (gemm->a_low)
                    a = 256 * a + gemm->a_low[r * gemm->depth + k];
                sum += a * gemm->w[o * gemm->depth + k];
            }
            float value = (float)sum * gemm->a_scale[r];
            value = value * gemm->w_scale[o];
            float *out = &gemm->out[r * (gemm->out_stride ? gemm->out_stride : gemm->outputs) + o];
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

static bool sees(const struct attention *job, uint32_t position, uint32_t key)
{
    return key <= position && (!job->window || position - key < job->window || key < job->sinks);
}

static bool sees_block(const struct attention *job, uint32_t position, uint32_t block)
{
    for (uint32_t j = 0; j < 64; j++)
        if (sees(job, position, block * 64 + j))
            return true;
    return false;
}

/* One row and head against the keys of a block that the row sees. */
static void attend_block(struct state *unit, const struct attention *job, const int8_t *q, float q_scale, struct keys keys,
                         uint32_t position, uint32_t block)
{
    float s[64], e[64], a[64], top = -INFINITY, peak = 0;
    for (uint32_t j = 0; j < 64; j++) {
        if (!sees(job, position, block * 64 + j))
            continue;
        s[j] = (float)dot(q, keys.k + j * job->dim, job->dim) * q_scale;
        s[j] = s[j] * keys.k_scale[j];
        if (s[j] > top)
            top = s[j];
    }
    int32_t sum = 0, o[512] = {0};
    for (uint32_t j = 0; j < 64; j++) {
        if (!sees(job, position, block * 64 + j))
            continue;
        e[j] = pinned_exp2(s[j] - top);
        sum += (int32_t)nearbyintf(65536.0f * e[j]);
        a[j] = e[j] * keys.v_scale[j];
        if (a[j] > peak)
            peak = a[j];
    }
    float inverse = 255.0f / peak;
    for (uint32_t j = 0; j < 64; j++) {
        if (!sees(job, position, block * 64 + j))
            continue;
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
    uint32_t position = job->start + (uint32_t)row;
    struct state unit = {0}, total = {0};
    for (uint32_t block = 0; block * 64 <= position; block++) {
        if (block % 16 == 0 && unit.used) {
            fold(&total, unit.top, unit.sum, unit.o, NULL, 1.0f, dim);
            unit.used = false;
        }
        if (sees_block(job, position, block))
            attend_block(&unit, job, q, q_scale, keys_of(job, kv_head, block), position, block);
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
            const int8_t *q = job->q + (row * job->heads + head) * dim;
            double scale = (double)job->q_scale[row * job->heads + head] * job->score_scale, top = -INFINITY, sum = 0;
            double *o = out + (row * job->heads + head) * dim;
            memset(o, 0, dim * sizeof *o);
            for (int pass = 0; pass < 2; pass++)
                for (uint32_t j = 0; j <= last; j++) {
                    if (!sees(job, last, j))
                        continue;
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
