#include "reference_forward.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "tests/unit/kernels/reference.h"
#include "worker/engine/model/model.h"

#define WIDTH_MAX 1024

struct kv {                        /* of one producing layer: (pages), each K, V, scales as attention.h has them */
    void **pages;
    size_t v_offset, k_scale_offset, v_scale_offset, bytes;
};

struct pass {
    const struct model *model;
    uint32_t pages;
    struct kv kv[MODEL_LAYERS_MAX];
    float per_layer[MODEL_LAYERS_MAX][WIDTH_MAX];
    void *attention_scratch;
};

/* out = lin(matrix, x) */
static void linear(const struct model_matrix *matrix, const float *x, float *out)
{
    static int8_t a[WIDTH_MAX], low[WIDTH_MAX];
    static float t[WIDTH_MAX];
    float scale = matrix->input_scale;
    memcpy(t, x, matrix->columns * sizeof *t);
    switch (matrix->scheme) {
    case MODEL_SCHEME_STATIC:
        reference_quantize_static_row(t, matrix->columns, 1 / matrix->input_scale, a);
        break;
    case MODEL_SCHEME_WIDE:
        reference_quantize_wide_row(t, matrix->columns, a, low, &scale);
        break;
    case MODEL_SCHEME_ROTATED:
        reference_rotate_row(t, matrix->columns);
        reference_quantize_row(t, matrix->columns, a, &scale);
        break;
    default:
        reference_quantize_row(t, matrix->columns, a, &scale);
    }
    struct gemm_int8 gemm = {.a = a, .a_low = matrix->scheme == MODEL_SCHEME_WIDE ? low : NULL, .a_scale = &scale, .w = matrix->weight,
                             .w_scale = matrix->scale, .rows = 1, .outputs = matrix->rows, .depth = matrix->columns, .out = out};
    reference_gemm(&gemm);
}

static void heads_norm(const struct model_config *config, const float *weight, float *x, size_t heads, size_t dim)
{
    for (size_t h = 0; h < heads; h++)
        reference_rmsnorm_row(x + h * dim, weight, config->norm_epsilon, dim, x + h * dim);
}

static void heads_rotate(const struct model_attention *attention, float *x, size_t heads, uint32_t position)
{
    size_t half = attention->head_dim / 2;
    double frequency[MODEL_HEAD_DIM_MAX / 2];
    float cosine[MODEL_HEAD_DIM_MAX / 2], sine[MODEL_HEAD_DIM_MAX / 2];
    const struct rope rope = {.base = attention->rope_base, .scale = attention->rope_scale, .dim = attention->head_dim,
                              .pairs = attention->rope_pairs};
    rope_frequencies(&rope, frequency);
    kernels_at(0)->rope_table(frequency, half, position, 1, cosine, sine);
    for (size_t h = 0; h < heads; h++)
        for (size_t i = 0; i < attention->rope_pairs; i++) {
            float *a = x + h * 2 * half + i, *b = a + half, low = *a, high = *b;
            if (sine[i] == 0)
                continue;
            *a = low * cosine[i] - high * sine[i];
            *b = high * cosine[i] + low * sine[i];
        }
}

static void store(struct pass *pass, uint32_t layer, uint32_t position, const float *k, const float *v)
{
    const struct model_config *config = &pass->model->config;
    const struct model_attention *attention = &config->attention[config->layer_types[layer]];
    const struct kv *kv = &pass->kv[layer];
    char *page = kv->pages[position / 64];
    size_t dim = attention->head_dim, token = position % 64;
    for (size_t h = 0; h < attention->kv_head_count; h++) {
        int8_t q[MODEL_HEAD_DIM_MAX];
        float scale;
        reference_quantize_row(k + h * dim, dim, q, &scale);
        memcpy(page + (h * 64 + token) * dim, q, dim);
        ((float *)(page + kv->k_scale_offset))[h * 64 + token] = scale;
        reference_quantize_row(v + h * dim, dim, q, &scale);
        for (size_t d = 0; d < dim; d++)
            (page + kv->v_offset)[(h * dim + d) * 64 + token] = (char)q[d];
        ((float *)(page + kv->v_scale_offset))[h * 64 + token] = scale;
    }
}

static void attend(struct pass *pass, uint32_t layer, uint32_t position, const float *q, float *out)
{
    const struct model_config *config = &pass->model->config;
    const struct model_attention *geometry = &config->attention[config->layer_types[layer]];
    const struct kv *kv = &pass->kv[config->kv_producer[layer]];
    size_t dim = geometry->head_dim;
    static int8_t q_int8[WIDTH_MAX];
    float q_scale[MODEL_HEADS_MAX];
    for (size_t h = 0; h < config->head_count; h++)
        reference_quantize_row(q + h * dim, dim, q_int8 + h * dim, &q_scale[h]);
    bool local = config->layer_types[layer] == MODEL_LAYER_LOCAL;
    struct attention job = {
        .q = q_int8, .q_scale = q_scale, .rows = 1, .heads = config->head_count, .kv_heads = geometry->kv_head_count, .dim = dim,
        .start = position, .window = local ? geometry->window : 0, .sinks = local ? geometry->sinks : 0,
        .score_scale = config->attention_scale * 0x1.715476p+0f, .pages = kv->pages, .v_offset = kv->v_offset,
        .k_scale_offset = kv->k_scale_offset, .v_scale_offset = kv->v_scale_offset, .out = out, .scratch = pass->attention_scratch};
    reference_attention(&job);
}

static float activate(const struct model_config *config, float x)
{
    return config->activation == MODEL_ACTIVATION_SILU ? reference_silu(x) : reference_gelu_tanh(x);
}

/* x = x + h, or x + norm(h) */
static void add(const struct model_config *config, const float *norm, float *h, float *x)
{
    if (norm)
        reference_rmsnorm_row(h, norm, config->norm_epsilon, config->hidden_size, h);
    for (size_t i = 0; i < config->hidden_size; i++)
        x[i] = x[i] + h[i];
}

static void start(struct pass *pass, uint32_t token, float *x)
{
    const struct model *model = pass->model;
    const struct model_config *config = &model->config;
    size_t hidden = config->hidden_size, width = config->per_layer_input, layers = config->layer_count;
    const int8_t *row = (const int8_t *)model->embedding.weight + token * hidden;
    for (size_t i = 0; i < hidden; i++)
        x[i] = ((float)row[i] * model->embedding.scale[token]) * config->embedding_scale;
    if (!width)
        return;
    float *f = malloc(layers * width * sizeof *f), in = (float)(1.0 / sqrt((double)hidden)), lookup = (float)sqrt((double)width);
    linear(&model->per_layer_model_proj, x, f);
    for (size_t l = 0; l < layers; l++) {
        float *u = f + l * width;
        const int8_t *e = (const int8_t *)model->per_layer_embedding.weight + (token * layers + l) * width;
        for (size_t i = 0; i < width; i++)
            u[i] = u[i] * in;
        reference_rmsnorm_row(u, model->per_layer_proj_norm, config->norm_epsilon, width, u);
        for (size_t i = 0; i < width; i++) {
            float looked_up = ((float)e[i] * model->per_layer_embedding.scale[token * layers + l]) * lookup;
            pass->per_layer[l][i] = (u[i] + looked_up) * 0x1.6a09e6p-1f;
        }
    }
    free(f);
}

static void run_layer(struct pass *pass, uint32_t index, uint32_t position, float *x)
{
    const struct model_config *config = &pass->model->config;
    const struct model_layer *layer = &pass->model->layers[index];
    const struct model_attention *attention = &config->attention[config->layer_types[index]];
    size_t hidden = config->hidden_size, inner = config->intermediate_size[index], width = config->per_layer_input;
    float h[WIDTH_MAX], q[WIDTH_MAX], k[WIDTH_MAX], v[WIDTH_MAX], o[WIDTH_MAX], gate[WIDTH_MAX], up[WIDTH_MAX];
    reference_rmsnorm_row(x, layer->input_norm, config->norm_epsilon, hidden, h);
    if (config->kv_producer[index] == index) {
        linear(&layer->k_proj, h, k);
        if (config->qk_norm)
            heads_norm(config, layer->k_norm, k, attention->kv_head_count, attention->head_dim);
        heads_rotate(attention, k, attention->kv_head_count, position);
        linear(&layer->v_proj, h, v);
        if (config->v_norm)
            heads_norm(config, NULL, v, attention->kv_head_count, attention->head_dim);
        store(pass, index, position, k, v);
    }
    linear(&layer->q_proj, h, q);
    if (config->qk_norm)
        heads_norm(config, layer->q_norm, q, config->head_count, attention->head_dim);
    heads_rotate(attention, q, config->head_count, position);
    attend(pass, index, position, q, o);
    linear(&layer->o_proj, o, h);
    add(config, config->sandwich_norm ? layer->attention_norm : NULL, h, x);

    reference_rmsnorm_row(x, layer->mlp_norm, config->norm_epsilon, hidden, h);
    linear(&layer->gate_proj, h, gate);
    linear(&layer->up_proj, h, up);
    for (size_t i = 0; i < inner; i++)
        gate[i] = activate(config, gate[i]) * up[i];
    linear(&layer->down_proj, gate, h);
    add(config, config->sandwich_norm ? layer->mlp_result_norm : NULL, h, x);

    if (!width)
        return;
    linear(&layer->per_layer_gate, x, gate);
    for (size_t i = 0; i < width; i++)
        gate[i] = activate(config, gate[i]) * pass->per_layer[index][i];
    linear(&layer->per_layer_proj, gate, h);
    add(config, layer->per_layer_norm, h, x);
    for (size_t i = 0; i < hidden; i++)
        x[i] = x[i] * layer->layer_scalar;
}

static void open_pages(struct pass *pass, uint32_t layer)
{
    const struct model_config *config = &pass->model->config;
    const struct model_attention *attention = &config->attention[config->layer_types[layer]];
    size_t plane = (size_t)attention->kv_head_count * 64 * attention->head_dim, scales = (size_t)attention->kv_head_count * 64 * sizeof(float);
    pass->kv[layer] = (struct kv){.pages = calloc(pass->pages, sizeof(void *)), .v_offset = plane, .k_scale_offset = 2 * plane,
                                  .v_scale_offset = 2 * plane + scales, .bytes = 2 * plane + 2 * scales};
    for (uint32_t i = 0; i < pass->pages; i++)
        pass->kv[layer].pages[i] = calloc(1, pass->kv[layer].bytes);
}

void reference_forward(const struct model *model, const uint32_t *tokens, uint32_t count, float *logits)
{
    const struct model_config *config = &model->config;
    static struct pass pass;
    float x[WIDTH_MAX], h[WIDTH_MAX];
    pass = (struct pass){.model = model, .pages = (count + 63) / 64, .attention_scratch = aligned_alloc(64, 1 << 20)};
    for (uint32_t l = 0; l < config->layer_count; l++)
        if (config->kv_producer[l] == l)
            open_pages(&pass, l);
    for (uint32_t position = 0; position < count; position++) {
        float *out = logits + (size_t)position * config->vocab_size;
        start(&pass, tokens[position], x);
        for (uint32_t l = 0; l < config->layer_count; l++)
            run_layer(&pass, l, position, x);
        reference_rmsnorm_row(x, model->final_norm, config->norm_epsilon, config->hidden_size, h);
        linear(&model->embedding, h, out);
        for (uint32_t v = 0; v < config->vocab_size && config->logit_cap > 0; v++)
            out[v] = reference_softcap(out[v], config->logit_cap);
    }
    for (uint32_t l = 0; l < config->layer_count; l++)
        for (uint32_t i = 0; pass.kv[l].pages && i < pass.pages; i++)
            free(pass.kv[l].pages[i]);
    for (uint32_t l = 0; l < config->layer_count; l++)
        free(pass.kv[l].pages);
    free(pass.attention_scratch);
}
