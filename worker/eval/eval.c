#include "worker/eval/eval.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "worker/engine/backend/backend.h"
#include "worker/engine/backend/backend_float.h"
#include "worker/engine/text/tokenizer.h"
#include "worker/eval/corpus.h"
#include "worker/eval/sequence.h"

struct eval {
    const struct eval_options *options;
    struct model *model, *against;             /* against: NULL without one */
    struct sequence *sequence, *reference;
    struct corpus corpus;
    float *logits;                             /* (SEQUENCE_CHUNK_TOKENS, vocab): of what is measured */
    float *reference_logits;                   /* (window, vocab) */
    uint32_t window;
    uint64_t done, total;                      /* passes over windows */
};

static enum status file_equal(const char *dir_a, const char *dir_b, const char *name, bool *equal)
{
    char path_a[4096], path_b[4096], *text_a = NULL, *text_b = NULL;
    size_t size_a, size_b;
    if (snprintf(path_a, sizeof path_a, "%s/%s", dir_a, name) >= (int)sizeof path_a ||
        snprintf(path_b, sizeof path_b, "%s/%s", dir_b, name) >= (int)sizeof path_b)
        return STATUS_FAIL(STATUS_INVALID, "the path of a model directory is too long");
    TRY(model_file_read(path_a, TOKENIZER_FILE_BYTES_MAX, &text_a, &size_a));
    enum status st = model_file_read(path_b, TOKENIZER_FILE_BYTES_MAX, &text_b, &size_b);
    if (st == STATUS_OK)
        *equal = size_a == size_b && memcmp(text_a, text_b, size_a) == 0;
    free(text_a);
    free(text_b);
    return st;
}

static enum status load_models(struct eval *eval)
{
    const struct eval_options *options = eval->options;
    TRY(model_load(options->dir, &eval->model));
    if (options->per_tensor && (options->against == NULL || eval->model->format != MODEL_FORMAT_INT8))
        return STATUS_FAIL(STATUS_INVALID, "measuring matrix by matrix takes an int8 directory and the float one to put its matrices into");
    if (options->against == NULL)
        return STATUS_OK;
    TRY(model_load(options->against, &eval->against));
    if (eval->against->config.vocab_size != eval->model->config.vocab_size)
        return STATUS_FAIL(STATUS_INVALID, "%s has %u tokens and %s %u: they cannot be compared", options->dir,
                           eval->model->config.vocab_size, options->against, eval->against->config.vocab_size);
    bool equal;
    TRY(file_equal(options->dir, options->against, "tokenizer.model", &equal));
    if (!equal)
        return STATUS_FAIL(STATUS_INVALID, "%s and %s have different tokenizers: they cannot be compared", options->dir, options->against);
    if (options->per_tensor && eval->against->format != MODEL_FORMAT_FLOAT)
        return STATUS_FAIL(STATUS_INVALID, "%s is not a float model: convert with --format float to measure matrix by matrix",
                           options->against);
    return STATUS_OK;
}

static enum status choose_window(struct eval *eval)
{
    const struct model_config *config = &eval->model->config;
    uint32_t context = config->context_tokens_max;
    if (eval->against != NULL && eval->against->config.context_tokens_max < context)
        context = eval->against->config.context_tokens_max;
    eval->window = eval->options->window;
    if (eval->window == 0)
        eval->window = context < EVAL_WINDOW_DEFAULT ? context : EVAL_WINDOW_DEFAULT;
    if (eval->window < 2 || eval->window > context)
        return STATUS_FAIL(STATUS_INVALID, "a window of %u tokens: it has 2 to %u with this model", eval->window, context);
    const uint64_t bytes = (uint64_t)eval->window * config->vocab_size * sizeof(float);
    if (eval->against != NULL && bytes > EVAL_LOGIT_BYTES_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "the logits of a window of %u tokens take %llu MiB, over %llu: ask for a shorter one", eval->window,
                           (unsigned long long)(bytes >> 20), (unsigned long long)(EVAL_LOGIT_BYTES_MAX >> 20));
    return STATUS_OK;
}

static enum status load_corpus(struct eval *eval)
{
    const struct eval_options *options = eval->options;
    const struct model_config *config = &eval->model->config;
    const struct tokenizer_config wanted = {
        .vocab_size = config->vocab_size,
        .bos_id = config->bos_id,
        .turn_id = config->turn_id,
        .text_id = config->text_id,
        .end_ids = config->end_ids,
        .end_id_count = config->end_id_count,
    };
    const struct corpus_limits limits = { .window = eval->window, .tokens_max = options->tokens_max };
    struct tokenizer *tokenizer = NULL;
    char path[4096];
    if (snprintf(path, sizeof path, "%s/tokenizer.model", options->dir) >= (int)sizeof path)
        return STATUS_FAIL(STATUS_INVALID, "the path %s is too long", options->dir);
    TRY(tokenizer_open(path, &wanted, &tokenizer));
    enum status st = options->text != NULL ? corpus_load_text(options->text, tokenizer, config, &limits, &eval->corpus)
                                           : corpus_load_conversations(options->conversations, tokenizer, config, &limits, &eval->corpus);
    tokenizer_close(&tokenizer);
    return st;
}

static enum status make_sequences(struct eval *eval)
{
    const size_t row = (size_t)eval->model->config.vocab_size * sizeof(float);
    eval->logits = malloc(SEQUENCE_CHUNK_TOKENS * row);
    if (eval->against != NULL)
        eval->reference_logits = malloc(eval->window * row);
    if (eval->logits == NULL || (eval->against != NULL && eval->reference_logits == NULL))
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the logits of a window of %u tokens", eval->window);
    TRY(sequence_create(eval->model, eval->window, eval->options->threads, &eval->sequence));
    if (eval->against != NULL)
        TRY(sequence_create(eval->against, eval->window, eval->options->threads, &eval->reference));
    return STATUS_OK;
}

static void report_progress(struct eval *eval, const char *what)
{
    eval->done++;
    if (eval->options->progress != NULL)
        eval->options->progress(eval->options->user, what, eval->done, eval->total);
}

/* The last id of a window is predicted and not run. */
static enum status measure(struct eval *eval, struct sequence *sequence, const struct corpus_window *window, struct score *score)
{
    const uint32_t vocab = eval->model->config.vocab_size, rows = window->count - 1;
    sequence_restart(sequence);
    for (uint32_t first = 0; first < rows; first += SEQUENCE_CHUNK_TOKENS) {
        const uint32_t left = rows - first, count = left < SEQUENCE_CHUNK_TOKENS ? left : SEQUENCE_CHUNK_TOKENS;
        TRY(sequence_run(sequence, window->ids + first, count, eval->logits));
        for (uint32_t i = 0; i < count; i++) {
            const float *reference = eval->against != NULL ? eval->reference_logits + (size_t)(first + i) * vocab : NULL;
            score_add(score, eval->logits + (size_t)i * vocab, reference, vocab, window->ids[first + i + 1]);
        }
    }
    return STATUS_OK;
}

static enum status run_reference(struct eval *eval, const struct corpus_window *window, struct score *score)
{
    const uint32_t vocab = eval->model->config.vocab_size, rows = window->count - 1;
    sequence_restart(eval->reference);
    TRY(sequence_run(eval->reference, window->ids, rows, eval->reference_logits));
    for (uint32_t i = 0; i < rows; i++)
        score_add(score, eval->reference_logits + (size_t)i * vocab, NULL, vocab, window->ids[i + 1]);
    return STATUS_OK;
}

/* The float model with one matrix of the int8 model, or with int8 Q, K and V, or with all of the matrices. */
static enum status measure_tensor(struct eval *eval, const struct corpus_window *window, uint32_t index, struct eval_tensor *tensor)
{
    struct backend *backend = sequence_backend(eval->reference);
    const char *name = index < 2 ? NULL : tensor->name;
    TRY(backend_float_emulate(backend, index == 0 ? NULL : eval->model, name, index == 0));
    enum status st = measure(eval, eval->reference, window, &tensor->score);
    enum status back = backend_float_emulate(backend, NULL, NULL, false);
    return st != STATUS_OK ? st : back;
}

static const char *const layer_matrices[] = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    "per_layer_input_gate", "per_layer_projection",
};
#define LAYER_MATRIX_COUNT (sizeof layer_matrices / sizeof layer_matrices[0])
static const char *const model_matrices[] = {
    "model.embed_tokens.weight", "model.embed_tokens_per_layer.weight", "model.per_layer_model_projection.weight",
};
#define MODEL_MATRIX_COUNT (sizeof model_matrices / sizeof model_matrices[0])

static void add_tensor(const struct eval *eval, struct eval_report *report, const char *name)
{
    struct eval_tensor *tensor = &report->tensors[report->tensor_count];
    const struct model_matrix *matrix = model_find_matrix(eval->model, name);
    if (matrix == NULL || matrix->weight == NULL)
        return;
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    tensor->scheme = model_scheme_name(matrix->scheme);
    report->tensor_count++;
}

static enum status list_tensors(const struct eval *eval, struct eval_report *report)
{
    const uint32_t layers = eval->model->config.layer_count;
    report->tensors = calloc(2 + MODEL_MATRIX_COUNT + layers * LAYER_MATRIX_COUNT, sizeof *report->tensors);
    if (report->tensors == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a list of matrices");
    report->tensors[0] = (struct eval_tensor){ .name = "q, k and v", .scheme = "" };
    report->tensors[1] = (struct eval_tensor){ .name = "every matrix", .scheme = "" };
    report->tensor_count = 2;
    for (size_t i = 0; i < MODEL_MATRIX_COUNT; i++)
        add_tensor(eval, report, model_matrices[i]);
    for (uint32_t layer = 0; layer < layers; layer++) {
        for (size_t i = 0; i < LAYER_MATRIX_COUNT; i++) {
            char name[EVAL_NAME_BYTES];
            snprintf(name, sizeof name, "model.layers.%u.%s.weight", layer, layer_matrices[i]);
            add_tensor(eval, report, name);
        }
    }
    return STATUS_OK;
}

static int compare_tensors(const void *a, const void *b)
{
    const struct eval_tensor *left = a, *right = b;
    if (left->score.kl != right->score.kl)
        return left->score.kl > right->score.kl ? -1 : 1;
    return strcmp(left->name, right->name);
}

static enum status run_window(struct eval *eval, const struct corpus_window *window, struct eval_report *report)
{
    if (eval->against != NULL)
        TRY(run_reference(eval, window, &report->reference));
    TRY(measure(eval, eval->sequence, window, &report->score));
    report_progress(eval, "windows");
    for (uint32_t i = 0; i < report->tensor_count; i++) {
        TRY(measure_tensor(eval, window, i, &report->tensors[i]));
        report_progress(eval, report->tensors[i].name);
    }
    return STATUS_OK;
}

static void eval_free(struct eval *eval)
{
    sequence_destroy(&eval->sequence);
    sequence_destroy(&eval->reference);
    corpus_free(&eval->corpus);
    model_destroy(&eval->model);
    model_destroy(&eval->against);
    free(eval->logits);
    free(eval->reference_logits);
}

static enum status eval_prepare(struct eval *eval, struct eval_report *report)
{
    TRY(load_models(eval));
    TRY(choose_window(eval));
    TRY(load_corpus(eval));
    TRY(make_sequences(eval));
    if (eval->options->per_tensor)
        TRY(list_tensors(eval, report));
    eval->total = (uint64_t)eval->corpus.window_count * (1 + report->tensor_count);
    report->window = eval->window;
    report->windows = eval->corpus.window_count;
    report->format = eval->model->format;
    report->against_format = eval->against != NULL ? eval->against->format : eval->model->format;
    return STATUS_OK;
}

enum status eval_run(const struct eval_options *options, struct eval_report *out)
{
    enum status st;
    struct eval eval = { .options = options };
    struct eval_report report = { 0 };
    TRY_GOTO(eval_prepare(&eval, &report), st, fail);
    for (uint32_t i = 0; i < eval.corpus.window_count; i++)
        TRY_GOTO(run_window(&eval, &eval.corpus.windows[i], &report), st, fail);
    if (report.tensor_count > 0)
        qsort(report.tensors, report.tensor_count, sizeof *report.tensors, compare_tensors);
    eval_free(&eval);
    *out = report;
    return STATUS_OK;
fail:
    eval_report_free(&report);
    eval_free(&eval);
    return st;
}

void eval_report_free(struct eval_report *report)
{
    free(report->tensors);
    *report = (struct eval_report){ 0 };
}
