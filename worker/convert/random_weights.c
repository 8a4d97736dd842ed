#include "worker/convert/random_weights.h"
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/quantize.h"
#include "worker/convert/layout.h"
#include "worker/convert/random_tokenizer.h"
#include "worker/convert/roost_config.h"
#include "worker/convert/shapes.h"
#include "worker/engine/backend/thread_pool.h"

#define BLOCK_BYTES (1u << 20)
#define UNIFORM_SPREAD 73.3f          /* standard deviation of the integers from -127 to 127 */
#define SPREAD 3.0f                   /* of attention scores and of logits */
#define STATIC_RANGE (6.0f / 127)     /* input scale where static is asked for: six times the spread of a normed row */

struct generator {
    const struct random_options *options;
    struct family_config family;
    struct tensor_list list;
    struct recipe recipe;
    struct recipe_choice *choices;    /* (tensors), owned */
    struct place *places;             /* (tensors), owned */
    struct output *output;
    struct thread_pool *pool;
    uint8_t *blocks;                  /* (threads, BLOCK_BYTES), owned */
    uint32_t index;                   /* tensor being written */
    uint64_t bytes;                   /* of its data */
    pthread_mutex_t lock;             /* of failure */
    enum status failure;
    char detail[512];
};

/* splitmix64 (Steele, Lea and Flood, OOPSLA 2014): its state is a counter, so any block can start anywhere. */
static uint64_t draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t start_state(const struct generator *self, uint32_t stream, uint64_t block)
{
    uint64_t state = self->options->seed ^ (uint64_t)stream << 40 ^ block;
    return draw(&state);
}

/* In [1 - width, 1 + width]. */
static float draw_around_one(uint64_t *state, float width)
{
    return 1 + width * ((float)(draw(state) >> 40) * 0x1p-23f - 1);
}

/* ---- int8 ---- */

static void fill_int8(uint64_t state, int8_t *out, size_t size)
{
    for (size_t i = 0; i < size; i += 8) {
        const uint64_t bits = draw(&state);
        memcpy(out + i, &bits, size - i < 8 ? size - i : 8);
    }
    for (size_t i = 0; i < size; i++)
        out[i] = out[i] == INT8_MIN ? 0 : out[i];
}

static void write_block(void *context, uint32_t index, uint32_t thread)
{
    struct generator *self = context;
    const uint64_t at = (uint64_t)index * BLOCK_BYTES;
    const size_t size = self->bytes - at < BLOCK_BYTES ? (size_t)(self->bytes - at) : BLOCK_BYTES;
    int8_t *block = (int8_t *)self->blocks + (size_t)thread * BLOCK_BYTES;
    if (self->options->stop && *self->options->stop)
        return;
    fill_int8(start_state(self, 2 * self->index, index), block, size);
    enum status st = output_write(self->output, self->places[self->index].data, at, block, size);
    if (st == STATUS_OK)
        return;
    pthread_mutex_lock(&self->lock);
    self->failure = st;
    snprintf(self->detail, sizeof self->detail, "%s", status_detail());
    pthread_mutex_unlock(&self->lock);
}

/* ---- scales and norms ---- */

/* Standard deviation of a matrix's weights as its product with a float row needs it. */
static float weight_spread(const struct generator *self, const struct tensor *tensor)
{
    const struct model_config *config = &self->family.config;
    if (tensor->kind == TENSOR_EMBEDDING)
        return SPREAD / sqrtf((float)config->hidden_size);
    if (tensor->kind == TENSOR_LOOKUP)
        return 1 / sqrtf((float)config->per_layer_input);
    float spread = 1 / sqrtf((float)tensor->columns);
    const bool residual = strstr(tensor->name, "o_proj") || strstr(tensor->name, "down_proj");
    if (residual && !config->sandwich_norm)
        spread /= sqrtf(2 * (float)config->layer_count);            /* the residual grows by all layers together */
    return spread;
}

static enum status write_scales(struct generator *self, const struct tensor *tensor)
{
    const struct recipe_choice *choice = &self->choices[self->index];
    const struct place *place = &self->places[self->index];
    float mean = weight_spread(self, tensor) / UNIFORM_SPREAD;
    if (choice->scheme == MODEL_SCHEME_ROTATED)
        mean /= sqrtf(QUANTIZE_ROTATE_BLOCK);                       /* the rotation of the input is not normalised */
    const uint64_t count = (uint64_t)tensor->rows * tensor->scale_columns;
    float *scales = (float *)self->blocks;
    uint64_t state = start_state(self, 2 * self->index + 1, 0);
    for (uint64_t at = 0; at < count;) {
        const size_t part = count - at < BLOCK_BYTES / sizeof *scales ? (size_t)(count - at) : BLOCK_BYTES / sizeof *scales;
        for (size_t i = 0; i < part; i++)
            scales[i] = mean * draw_around_one(&state, 0.25f);
        TRY(output_write(self->output, place->scale, at * sizeof *scales, scales, part * sizeof *scales));
        at += part;
    }
    const float range = choice->input_scale > 0 ? choice->input_scale : STATIC_RANGE;
    if (place->input_scale != TENSOR_NONE)
        return output_write(self->output, place->input_scale, 0, &range, sizeof range);
    return STATUS_OK;
}

static float norm_mean(const struct generator *self, const struct tensor *tensor)
{
    const struct model_config *config = &self->family.config;
    if (tensor->kind == TENSOR_SCALAR)
        return 1;
    if (strstr(tensor->name, "q_norm") || strstr(tensor->name, "k_norm"))   /* scores: attention_scale * w_q * w_k * sqrt(head_dim) */
        return sqrtf(SPREAD / (config->attention_scale * sqrtf((float)tensor->rows)));
    return 1;
}

static enum status write_norm(struct generator *self, const struct tensor *tensor)
{
    float *values = (float *)self->blocks;                          /* at most MODEL_WIDTH_MAX: a quarter of a block */
    uint64_t state = start_state(self, 2 * self->index, 0);
    const float mean = norm_mean(self, tensor), width = tensor->kind == TENSOR_SCALAR ? 0 : 0.2f;
    for (uint32_t i = 0; i < tensor->rows; i++)
        values[i] = mean * draw_around_one(&state, width);
    return output_write(self->output, self->places[self->index].data, 0, values, tensor->rows * sizeof *values);
}

/* ---- the directory ---- */

static enum status write_tensor(struct generator *self)
{
    const struct tensor *tensor = &self->list.tensors[self->index];
    if (!tensor->columns)
        return write_norm(self, tensor);
    self->bytes = (uint64_t)tensor->rows * tensor->columns;
    thread_pool_run(self->pool, (uint32_t)((self->bytes - 1) / BLOCK_BYTES + 1), write_block, self);
    if (self->options->stop && *self->options->stop)
        return STATUS_FAIL(STATUS_CANCELLED, "stopped");
    if (self->failure != STATUS_OK)
        return STATUS_FAIL(self->failure, "%s", self->detail);
    return write_scales(self, tensor);
}

static enum status write_small_files(struct generator *self)
{
    char *bytes;
    size_t size;
    const struct model_config *config = &self->family.config;
    TRY(roost_config_write(config, &bytes, &size));
    enum status st = output_write_file(self->output, "config.json", bytes, size);
    free(bytes);
    TRY(st);
    TRY(random_tokenizer_write(config->chat_template, config->vocab_size, &bytes, &size));
    st = output_write_file(self->output, "tokenizer.model", bytes, size);
    free(bytes);
    return st;
}

static enum status run(struct generator *self)
{
    const struct random_options *options = self->options;
    TRY(shapes_read(options->shape, options->layers, options->vocab_size, &self->family));
    TRY(tensor_list_create(&self->family.config, &self->list));
    TRY(recipe_create(family_origin(&self->family), false, options->recipe_path, options->scheme, &self->recipe));
    self->choices = calloc(self->list.count, sizeof *self->choices);
    self->places = calloc(self->list.count, sizeof *self->places);
    self->blocks = malloc((size_t)options->threads * BLOCK_BYTES);
    if (!self->choices || !self->places || !self->blocks)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u tensors", self->list.count);
    TRY(recipe_apply(&self->recipe, &self->list, self->choices));
    TRY(output_create(options->destination, &self->output));
    TRY(thread_pool_create(options->threads, &self->pool));
    TRY(layout_declare(self->output, MODEL_FORMAT_INT8, &self->list, self->recipe.scheme, self->choices, NULL, self->places));
    for (self->index = 0; self->index < self->list.count; self->index++)
        TRY(write_tensor(self));
    TRY(write_small_files(self));
    TRY(output_finish(self->output));
    if (options->progress)
        fprintf(options->progress, "%s: %s, %u layers, %llu bytes of weights\n", options->destination, self->family.config.name,
                self->family.config.layer_count, (unsigned long long)output_bytes(self->output));
    return STATUS_OK;
}

enum status random_weights(const struct random_options *options)
{
    struct generator *self = calloc(1, sizeof *self);
    if (!self)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for random weights");
    self->options = options;
    pthread_mutex_init(&self->lock, NULL);
    enum status st = run(self);
    output_destroy(&self->output);
    thread_pool_destroy(&self->pool);
    recipe_free(&self->recipe);
    tensor_list_free(&self->list);
    free(self->choices);
    free(self->places);
    free(self->blocks);
    pthread_mutex_destroy(&self->lock);
    free(self);
    return st;
}
