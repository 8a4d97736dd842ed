#include "worker/convert/convert.h"
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "worker/convert/calibrate.h"
#include "worker/convert/family.h"
#include "worker/convert/layout.h"
#include "worker/convert/output.h"
#include "worker/convert/recipe.h"
#include "worker/convert/roost_config.h"
#include "worker/convert/rows.h"
#include "worker/convert/smoothing.h"
#include "worker/convert/source.h"
#include "worker/convert/tensor_list.h"
#include "worker/convert/vocabulary.h"
#include "worker/engine/backend/thread_pool.h"

struct conversion {
    const struct convert_options *options;
    struct family_config family;
    char *tokenizer;                      /* owned; NULL without one */
    size_t tokenizer_size;
    struct tensor_list list;
    struct source source;
    struct recipe recipe;
    struct recipe_choice *choices;        /* (tensors), owned */
    struct calibration calibration;
    struct smoothing smoothing;
    struct place *places;                 /* (tensors), owned */
    struct output *output;
    struct thread_pool *pool;
    uint8_t *scratch;                     /* (threads, scratch_bytes), owned */
    size_t scratch_bytes;
    uint32_t widest;                      /* row */
    /* While one tensor is converted: */
    uint32_t index, block_rows;
    pthread_mutex_t lock;                 /* of failure */
    enum status failure;
    char detail[512];
};

static void conversion_free(struct conversion *self)
{
    output_destroy(&self->output);
    thread_pool_destroy(&self->pool);
    smoothing_free(&self->smoothing);
    calibration_free(&self->calibration);
    source_close(&self->source);
    recipe_free(&self->recipe);
    tensor_list_free(&self->list);
    free(self->choices);
    free(self->places);
    free(self->scratch);
    free(self->tokenizer);
    pthread_mutex_destroy(&self->lock);
}

/* ---- blocks of rows ---- */

static void fail(struct conversion *self, enum status st)
{
    pthread_mutex_lock(&self->lock);
    if (self->failure == STATUS_OK) {
        self->failure = st;
        snprintf(self->detail, sizeof self->detail, "%s", status_detail());
    }
    pthread_mutex_unlock(&self->lock);
}

static bool stopped(const struct conversion *self)
{
    return self->options->stop && *self->options->stop;
}

static enum status refuse_row(const struct conversion *self, uint32_t row)
{
    return STATUS_FAIL(STATUS_INVALID, "%s: tensor %s: row %u has a NaN or infinity", self->options->source,
                       self->list.tensors[self->index].name, row);
}

/* Rows [begin, end) to int8 and scales. */
static enum status convert_int8(struct conversion *self, uint32_t begin, uint32_t end, float *row, uint8_t *block)
{
    const struct tensor *tensor = &self->list.tensors[self->index];
    const struct place *place = &self->places[self->index];
    const uint32_t pieces = tensor->scale_columns, piece = tensor->columns / pieces;
    float *scales = (float *)block;
    int8_t *q = (int8_t *)(scales + (size_t)(end - begin) * pieces);
    for (uint32_t r = begin; r < end; r++) {
        source_read_row(&self->source, &self->list, self->index, r, row);
        smoothing_apply(&self->smoothing, &self->list, self->index, row);
        if (self->choices[self->index].scheme == MODEL_SCHEME_ROTATED)
            rows_rotate(row, tensor->columns);
        for (uint32_t p = 0; p < pieces; p++) {
            const size_t at = (size_t)(r - begin) * pieces + p;
            if (!rows_quantize(row + (size_t)p * piece, piece, q + at * piece, &scales[at]))
                return refuse_row(self, r);
        }
    }
    TRY(output_write(self->output, place->scale, (uint64_t)begin * pieces * sizeof *scales, scales,
                     (size_t)(end - begin) * pieces * sizeof *scales));
    return output_write(self->output, place->data, (uint64_t)begin * tensor->columns, q, (size_t)(end - begin) * tensor->columns);
}

/* Rows [begin, end) as they are: float32, or bfloat16 where the source has it. Smoothing by powers of two keeps bfloat16 exact. */
static enum status convert_float(struct conversion *self, uint32_t begin, uint32_t end, float *row, uint8_t *block)
{
    const struct tensor *tensor = &self->list.tensors[self->index];
    const struct place *place = &self->places[self->index];
    const uint32_t width = tensor->columns ? tensor->columns : tensor->rows;
    const size_t element = place->dtype == OUTPUT_BF16 ? 2 : 4;
    for (uint32_t r = begin; r < end; r++) {
        uint8_t *out = block + (size_t)(r - begin) * width * element;
        source_read_row(&self->source, &self->list, self->index, r, row);
        smoothing_apply(&self->smoothing, &self->list, self->index, row);
        for (uint32_t i = 0; i < width; i++) {
            uint32_t bits;
            memcpy(&bits, &row[i], sizeof bits);
            if ((bits & 0x7f800000u) == 0x7f800000u)
                return refuse_row(self, r);
            if (element == 2) {
                const uint16_t half = (uint16_t)(bits >> 16);
                memcpy(out + 2 * (size_t)i, &half, sizeof half);
            } else {
                memcpy(out + 4 * (size_t)i, &bits, sizeof bits);
            }
        }
    }
    return output_write(self->output, place->data, (uint64_t)begin * width * element, block, (size_t)(end - begin) * width * element);
}

static void convert_block(void *context, uint32_t index, uint32_t thread)
{
    struct conversion *self = context;
    const struct tensor *tensor = &self->list.tensors[self->index];
    const uint32_t rows = tensor->columns ? tensor->rows : 1;
    const uint32_t begin = index * self->block_rows, end = begin + self->block_rows < rows ? begin + self->block_rows : rows;
    if (stopped(self))
        return;
    float *row = (float *)(self->scratch + thread * self->scratch_bytes);
    uint8_t *block = (uint8_t *)(row + self->widest);
    enum status st = self->places[self->index].dtype == OUTPUT_I8 ? convert_int8(self, begin, end, row, block)
                                                                   : convert_float(self, begin, end, row, block);
    if (st != STATUS_OK)
        fail(self, st);
}

static uint32_t tensor_width(const struct tensor *tensor)
{
    return tensor->columns ? tensor->columns : tensor->rows;
}

/* Bytes that one row needs in a block. */
static size_t row_bytes(const struct tensor *tensor, const struct place *place)
{
    if (place->dtype == OUTPUT_I8)
        return tensor->columns + (size_t)tensor->scale_columns * sizeof(float);
    return (size_t)tensor_width(tensor) * (place->dtype == OUTPUT_BF16 ? 2 : 4);
}

static enum status convert_tensor(struct conversion *self, uint32_t index)
{
    const struct tensor *tensor = &self->list.tensors[index];
    const uint32_t rows = tensor->columns ? tensor->rows : 1;
    self->index = index;
    self->block_rows = (uint32_t)(CONVERT_BLOCK_BYTES / row_bytes(tensor, &self->places[index]));
    if (self->block_rows == 0)
        self->block_rows = 1;
    thread_pool_run(self->pool, (rows - 1) / self->block_rows + 1, convert_block, self);
    if (stopped(self))
        return STATUS_FAIL(STATUS_CANCELLED, "stopped");
    if (self->failure != STATUS_OK)
        return STATUS_FAIL(self->failure, "%s", self->detail);
    const struct recipe_choice *choice = &self->choices[index];
    if (self->places[index].input_scale != TENSOR_NONE)
        TRY(output_write(self->output, self->places[index].input_scale, 0, &choice->input_scale, sizeof choice->input_scale));
    checkpoint_release(self->source.tensors[index].data);
    return STATUS_OK;
}

/* ---- what comes before the data ---- */

static enum status declare(struct conversion *self)
{
    enum output_dtype *dtypes = calloc(self->list.count, sizeof *dtypes);
    if (!dtypes)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u tensors", self->list.count);
    for (uint32_t i = 0; i < self->list.count; i++)
        dtypes[i] = self->source.tensors[i].data->dtype == CHECKPOINT_BF16 ? OUTPUT_BF16 : OUTPUT_F32;
    enum status st = layout_declare(self->output, self->options->format, &self->list, self->recipe.scheme, self->choices, dtypes,
                                    self->places);
    free(dtypes);
    return st;
}

/* ---- ranges of inputs ---- */

/* Runs the sample through the model in float, which is written beside the destination for as long as that takes. */
static enum status measure_ranges(struct conversion *self)
{
    char directory[PATH_MAX];
    struct convert_options options = *self->options;
    if (snprintf(directory, sizeof directory, "%s.float", options.destination) >= (int)sizeof directory)
        return STATUS_FAIL(STATUS_INVALID, "the destination's path is too long");
    options.destination = directory;
    options.format = MODEL_FORMAT_FLOAT;
    options.recipe_path = options.scheme = options.calibrate_path = NULL;
    options.progress = NULL;
    TRY(convert(&options));
    enum status st = calibrate(directory, self->options->calibrate_path, self->options->threads, &self->list, &self->calibration);
    output_remove(directory);
    return st;
}

/* Scales of static inputs that the recipe left open: the largest channel, after smoothing, at 127. */
static void set_static_scales(struct conversion *self)
{
    for (uint32_t i = 0; i < self->list.count; i++) {
        const struct tensor *tensor = &self->list.tensors[i];
        struct recipe_choice *choice = &self->choices[i];
        if (choice->scheme != MODEL_SCHEME_STATIC || choice->input_scale > 0 || !self->calibration.ranges || !self->calibration.ranges[i])
            continue;
        const float *factors = self->smoothing.factors && tensor->input_norm != TENSOR_NONE ? self->smoothing.factors[tensor->input_norm] : NULL;
        float most = 0;
        for (uint32_t j = 0; j < tensor->columns; j++)
            most = fmaxf(most, self->calibration.ranges[i][j] / (factors ? factors[j] : 1));
        choice->input_scale = most > 0x1p-90f ? most / 127 : 1;     /* an input that is always 0 */
    }
}

static enum status smooth(struct conversion *self)
{
    const float **ranges = NULL;
    if (!self->recipe.smooth)
        return STATUS_OK;
    if (self->calibration.ranges) {
        ranges = calloc(self->list.count, sizeof *ranges);
        if (!ranges)
            return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for smoothing");
        for (uint32_t i = 0; i < self->list.count; i++)
            if (self->list.tensors[i].input_norm != TENSOR_NONE)
                ranges[self->list.tensors[i].input_norm] = self->calibration.ranges[i];
    }
    enum status st = smoothing_create(&self->source, &self->list, ranges, self->pool, self->options->threads, &self->smoothing);
    free(ranges);
    return st;
}

static enum status check_static(const struct conversion *self)
{
    for (uint32_t i = 0; i < self->list.count && self->options->format == MODEL_FORMAT_INT8; i++)
        if (self->choices[i].scheme == MODEL_SCHEME_STATIC && self->choices[i].input_scale == 0)
            return STATUS_FAIL(STATUS_INVALID, "%s: scheme static needs the range of its input: give input_scale in the recipe, or "
                               "a sample with --calibrate",
                               self->list.tensors[i].name);
    return STATUS_OK;
}

static enum status make_scratch(struct conversion *self)
{
    size_t block = CONVERT_BLOCK_BYTES;
    for (uint32_t i = 0; i < self->list.count; i++) {
        const uint32_t width = tensor_width(&self->list.tensors[i]);
        self->widest = width > self->widest ? width : self->widest;
    }
    if (block < (size_t)self->widest * 5 + 4 * MODEL_LAYERS_MAX)         /* one row always fits: int8 and scales, or float32 */
        block = (size_t)self->widest * 5 + 4 * MODEL_LAYERS_MAX;
    self->widest = (self->widest + 15) / 16 * 16;                       /* blocks begin on 64 bytes */
    self->scratch_bytes = (self->widest * sizeof(float) + block + 63) / 64 * 64;
    self->scratch = calloc(self->options->threads, self->scratch_bytes);
    return self->scratch ? STATUS_OK : STATUS_FAIL(STATUS_NO_MEMORY, "no memory for blocks of rows");
}

static enum status write_small_files(struct conversion *self)
{
    char *text;
    size_t size;
    TRY(roost_config_write(&self->family.config, &text, &size));
    enum status st = output_write_file(self->output, "config.json", text, size);
    free(text);
    if (st == STATUS_OK && self->tokenizer)
        st = output_write_file(self->output, "tokenizer.model", self->tokenizer, self->tokenizer_size);
    return st;
}

static void say_start(const struct conversion *self, uint32_t vocab_size)
{
    FILE *out = self->options->progress;
    const struct model_config *config = &self->family.config;
    if (!out)
        return;
    fprintf(out, "%s: %s, %u layers, hidden %u, vocabulary %u\n", config->name, config->family, config->layer_count, config->hidden_size,
            config->vocab_size);
    if (config->vocab_size != vocab_size)
        fprintf(out, "vocabulary cut from %u to the tokenizer's %u pieces\n", vocab_size, config->vocab_size);
    if (self->source.skipped_count)
        fprintf(out, "skipped %llu tensors (%.1f MB) of image and audio parts: %s\n", (unsigned long long)self->source.skipped_count,
                (double)self->source.skipped_bytes / 1e6, self->source.skipped_names);
}

static void say_progress(const struct conversion *self, uint32_t done)
{
    FILE *out = self->options->progress;
    if (out && (done % 32 == 0 || done == self->list.count))
        fprintf(out, "%u of %u tensors\n", done, self->list.count);
}

/* ---- the order of things ---- */

static enum status prepare(struct conversion *self)
{
    const struct convert_options *options = self->options;
    TRY(family_read(options->source, options->ignored_keys, options->ignored_key_count, &self->family));
    const uint32_t vocab_size = self->family.config.vocab_size;
    if (options->no_tokenizer)
        TRY(vocabulary_invent(&self->family));
    else
        TRY(vocabulary_read(options->source, &self->family, &self->tokenizer, &self->tokenizer_size));
    TRY(tensor_list_create(&self->family.config, &self->list));
    TRY(source_open(options->source, &self->family, vocab_size, &self->list, &self->source));
    TRY(recipe_create(family_origin(&self->family), options->format == MODEL_FORMAT_INT8, options->recipe_path, options->scheme, &self->recipe));
    self->choices = calloc(self->list.count, sizeof *self->choices);
    self->places = calloc(self->list.count, sizeof *self->places);
    if (!self->choices || !self->places)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u tensors", self->list.count);
    TRY(recipe_apply(&self->recipe, &self->list, self->choices));
    say_start(self, vocab_size);
    return STATUS_OK;
}

static enum status run(struct conversion *self)
{
    const struct convert_options *options = self->options;
    TRY(prepare(self));
    if (!options->calibrate_path)
        TRY(check_static(self));                     /* before hours of work */
    TRY(output_create(options->destination, &self->output));
    if (options->calibrate_path)
        TRY(measure_ranges(self));
    TRY(thread_pool_create(options->threads, &self->pool));
    TRY(smooth(self));
    set_static_scales(self);
    TRY(check_static(self));
    TRY(make_scratch(self));
    TRY(declare(self));
    for (uint32_t i = 0; i < self->list.count; i++) {
        TRY(convert_tensor(self, i));
        say_progress(self, i + 1);
    }
    TRY(write_small_files(self));
    TRY(output_finish(self->output));
    if (options->progress)
        fprintf(options->progress, "%s: %llu bytes of weights\n", options->destination, (unsigned long long)output_bytes(self->output));
    return STATUS_OK;
}

static enum status with_conversion(const struct convert_options *options, enum status (*work)(struct conversion *self), FILE *recipe_out)
{
    struct conversion *self = calloc(1, sizeof *self);
    if (!self)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a conversion");
    self->options = options;
    pthread_mutex_init(&self->lock, NULL);
    enum status st = work(self);
    if (st == STATUS_OK && recipe_out)
        recipe_print(&self->recipe, recipe_out);
    conversion_free(self);
    free(self);
    return st;
}

enum status convert(const struct convert_options *options)
{
    return with_conversion(options, run, NULL);
}

enum status convert_print_recipe(const struct convert_options *options, FILE *out)
{
    return with_conversion(options, prepare, out);
}
