#include "worker/convert/calibrate.h"
#include <limits.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "worker/convert/input_file.h"
#include "worker/engine/backend/backend.h"
#include "worker/engine/backend/backend_float.h"
#include "worker/engine/model/model.h"
#include "worker/engine/text/tokenizer.h"

struct observer {
    const struct tensor_list *list;
    const struct model_matrix **matrices; /* (count of the list), owned; NULL where there is none */
    float **ranges;
};

static void observe(void *user, const struct model_matrix *matrix, const float *rows, uint32_t count)
{
    const struct observer *self = user;
    for (uint32_t i = 0; i < self->list->count; i++) {
        if (self->matrices[i] != matrix)
            continue;
        float *ranges = self->ranges[i];
        for (uint32_t r = 0; r < count; r++)
            for (uint32_t j = 0; j < matrix->columns; j++)
                ranges[j] = fmaxf(ranges[j], fabsf(rows[(size_t)r * matrix->columns + j]));
    }
}

void calibration_free(struct calibration *calibration)
{
    for (uint32_t i = 0; i < calibration->count; i++)
        free(calibration->ranges[i]);
    free(calibration->ranges);
    *calibration = (struct calibration){ 0 };
}

/* ---- the sample ---- */

static enum status parse_ids(const char *path, const char *text, uint32_t vocab_size, uint32_t *ids, size_t *count)
{
    *count = 0;
    for (const char *at = text; *count < CALIBRATE_TOKENS_MAX;) {
        at += strspn(at, " \t\r\n");
        if (!*at)
            break;
        char *end;
        const unsigned long id = strtoul(at, &end, 10);
        if (id >= vocab_size)
            return STATUS_FAIL(STATUS_INVALID, "%s: id %.16s is outside of the vocabulary of %u", path, at, vocab_size);
        ids[(*count)++] = (uint32_t)id;
        at = end;
    }
    return STATUS_OK;
}

static enum status encode(const char *dir, const struct model_config *config, const char *text, size_t size, uint32_t *ids, size_t *count)
{
    char path[PATH_MAX];
    struct tokenizer *tokenizer = NULL;
    const struct tokenizer_config wanted = { .vocab_size = config->vocab_size, .bos_id = config->bos_id, .turn_id = config->turn_id,
                                             .text_id = config->text_id, .end_ids = config->end_ids, .end_id_count = config->end_id_count };
    TRY(input_file_path(dir, "tokenizer.model", path));
    TRY(tokenizer_open(path, &wanted, &tokenizer));
    enum status st = tokenizer_encode(tokenizer, text, size, ids, CALIBRATE_TOKENS_MAX, count);
    tokenizer_close(&tokenizer);
    if (*count > CALIBRATE_TOKENS_MAX)
        *count = CALIBRATE_TOKENS_MAX;
    return st;
}

static enum status read_sample(const char *dir, const char *path, const struct model_config *config, uint32_t *ids, size_t *count,
                               bool *is_text)
{
    char *text;
    size_t size;
    *count = 0;
    TRY(input_file_read(path, CALIBRATE_BYTES_MAX, &text, &size));
    *is_text = strspn(text, "0123456789 \t\r\n") != size;
    enum status st = *is_text ? encode(dir, config, text, size, ids, count) : parse_ids(path, text, config->vocab_size, ids, count);
    free(text);
    if (st == STATUS_OK && *count == 0)
        st = STATUS_FAIL(STATUS_INVALID, "%s: no tokens in it", path);
    return st;
}

/* ---- the passes ---- */

/* One window of tokens from position 0 in the pages. */
static enum status run_window(struct backend *backend, const uint32_t *tokens, uint32_t count, void *const *const *pages, float *logits)
{
    struct backend_run run = { .tokens = tokens, .count = count, .logits = logits, .logit_rows = 1 };
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
        run.pages[group] = pages[group];
    const struct backend_batch batch = { .runs = &run, .run_count = 1 };
    return backend_float_ops.forward(backend, &batch, NULL);
}

static enum status run_windows(struct backend *backend, const struct model_config *config, const uint32_t *ids, size_t count, bool with_bos,
                               void *const *const *pages, uint32_t window)
{
    enum status st = STATUS_OK;
    float *logits = malloc(config->vocab_size * sizeof *logits);
    uint32_t *tokens = malloc(window * sizeof *tokens);
    if (!logits || !tokens)
        st = STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a window of %u tokens", window);
    for (size_t at = 0; at < count && st == STATUS_OK;) {
        uint32_t filled = 0;
        if (with_bos)
            tokens[filled++] = config->bos_id;
        while (filled < window && at < count)
            tokens[filled++] = ids[at++];
        st = run_window(backend, tokens, filled, pages, logits);
    }
    free(logits);
    free(tokens);
    return st;
}

static enum status with_pages(struct backend *backend, const struct model_config *config, const uint32_t *ids, size_t count, bool with_bos,
                              uint32_t window)
{
    enum { PAGES_MAX = CALIBRATE_WINDOW / BACKEND_PAGE_TOKENS + 1 };
    void *base[BACKEND_GROUPS_MAX] = { NULL };
    void *table[BACKEND_GROUPS_MAX][PAGES_MAX];
    void *const *pages[BACKEND_GROUPS_MAX] = { NULL };
    enum status st = STATUS_OK;
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX && st == STATUS_OK; group++) {
        const size_t bytes = backend_float_ops.page_bytes(backend, group);
        if (bytes == 0)
            continue;
        st = backend_float_ops.arena_create(backend, BACKEND_TIER_DEVICE, bytes * PAGES_MAX, &base[group]);
        for (unsigned i = 0; i < PAGES_MAX && st == STATUS_OK; i++)
            table[group][i] = (char *)base[group] + bytes * i;
        pages[group] = table[group];
    }
    if (st == STATUS_OK)
        st = run_windows(backend, config, ids, count, with_bos, pages, window);
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
        backend_float_ops.arena_destroy(backend, BACKEND_TIER_DEVICE, &base[group]);
    return st;
}

static enum status make_ranges(const struct model *model, struct observer *observer)
{
    for (uint32_t i = 0; i < observer->list->count; i++) {
        const struct tensor *tensor = &observer->list->tensors[i];
        if (!tensor_is_matrix(tensor))
            continue;
        observer->matrices[i] = model_find_matrix(model, tensor->name);
        observer->ranges[i] = calloc(tensor->columns, sizeof(float));
        if (!observer->ranges[i])
            return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the ranges of %s", tensor->name);
    }
    return STATUS_OK;
}

static enum status observe_sample(const char *dir, const char *path, uint32_t threads, const struct model *model, struct observer *observer)
{
    struct backend *backend = NULL;
    const struct model_config *config = &model->config;
    const uint32_t window = config->context_tokens_max < CALIBRATE_WINDOW ? config->context_tokens_max : CALIBRATE_WINDOW;
    const struct backend_config backend_config = { .rows_max = window, .threads = threads, .full_depth = true };
    uint32_t *ids = malloc(CALIBRATE_TOKENS_MAX * sizeof *ids);
    size_t count;
    bool is_text;
    enum status st = ids ? STATUS_OK : STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a sample");
    if (st == STATUS_OK)
        st = read_sample(dir, path, config, ids, &count, &is_text);
    if (st == STATUS_OK)
        st = backend_float_ops.create(model, &backend_config, &backend);
    if (st == STATUS_OK) {
        backend_float_observe(backend, observe, observer);
        st = with_pages(backend, config, ids, count, is_text, window);
        backend_float_ops.destroy(&backend);
    }
    free(ids);
    return st;
}

enum status calibrate(const char *dir, const char *path, uint32_t threads, const struct tensor_list *list, struct calibration *out)
{
    struct model *model = NULL;
    struct calibration calibration = { .ranges = calloc(list->count, sizeof *calibration.ranges), .count = list->count };
    struct observer observer = { .list = list, .matrices = calloc(list->count, sizeof *observer.matrices), .ranges = calibration.ranges };
    enum status st = model_load(dir, &model);
    if (!calibration.ranges)
        calibration.count = 0;
    if (st == STATUS_OK && (!calibration.ranges || !observer.matrices))
        st = STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u ranges", list->count);
    if (st == STATUS_OK)
        st = make_ranges(model, &observer);
    if (st == STATUS_OK)
        st = observe_sample(dir, path, threads, model, &observer);
    free(observer.matrices);
    model_destroy(&model);
    if (st != STATUS_OK) {
        calibration_free(&calibration);
        return st;
    }
    *out = calibration;
    return STATUS_OK;
}
