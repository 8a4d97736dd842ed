#include "worker/engine/backend/backend_batch.h"
#include "worker/engine/backend/backend.h"
#include "worker/engine/model/model_config.h"

#define LOG2_E 0x1.715476p+0f     /* log2(e) rounded to float32 */

struct batch_constants batch_constants(const struct model_config *model)
{
    return (struct batch_constants){.score_scale = model->attention_scale * LOG2_E,
                                    .per_layer_in = (float)(1.0 / __builtin_sqrt((double)model->hidden_size)),
                                    .per_layer_embed = (float)__builtin_sqrt((double)model->per_layer_input)};
}

enum status batch_check_config(const struct backend_config *config)
{
    if (config->rows_max < 1 || config->rows_max > BACKEND_ROWS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "batches of %u tokens, want 1 to %u", config->rows_max, BACKEND_ROWS_MAX);
    if (config->threads < 1 || config->threads > BACKEND_THREADS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "%u threads, want 1 to %u", config->threads, BACKEND_THREADS_MAX);
    if (config->ranks > BACKEND_RANKS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "%u ranks, want %u at most", config->ranks, BACKEND_RANKS_MAX);
    return STATUS_OK;
}

static enum status check_pages(const struct model_config *model, const struct backend_run *run)
{
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++) {
        if (model->producer_count[group] == 0)
            continue;
        if (!run->pages[group])
            return STATUS_FAIL(STATUS_INVALID, "a run without pages of KV group %u", group);
        for (uint32_t page = run->start / BACKEND_PAGE_TOKENS; page <= (run->start + run->count - 1) / BACKEND_PAGE_TOKENS; page++)
            if (!run->pages[group][page])
                return STATUS_FAIL(STATUS_INVALID, "page %u of KV group %u, which the run writes, is missing", page, group);
    }
    return STATUS_OK;
}

static enum status check_run(const struct model_config *model, const struct backend_run *run)
{
    if (run->count == 0)
        return STATUS_FAIL(STATUS_INVALID, "a run of 0 tokens");
    if (run->start > model->context_tokens_max || run->count > model->context_tokens_max - run->start)
        return STATUS_FAIL(STATUS_LIMIT, "%u tokens from position %u are beyond the context of %u", run->count, run->start,
                           model->context_tokens_max);
    if (run->sample && (run->logit_rows != 1 || run->logits))
        return STATUS_FAIL(STATUS_INVALID, "a token is drawn behind one row, and that row has no logits");
    if (run->logit_rows > run->count || (run->logit_rows && !run->logits && !run->sample))
        return STATUS_FAIL(STATUS_INVALID, "%u rows of logits from %u tokens", run->logit_rows, run->count);
    for (uint32_t i = 0; i < run->count; i++)
        if (run->tokens[i] >= model->vocab_size)
            return STATUS_FAIL(STATUS_INVALID, "token %u is not below the vocabulary's %u", run->tokens[i], model->vocab_size);
    return check_pages(model, run);
}

enum status batch_check(const struct model_config *model, const struct backend_config *config, const struct backend_batch *batch)
{
    uint32_t rows = 0;
    if (batch->run_count == 0)
        return STATUS_FAIL(STATUS_INVALID, "a batch without runs");
    for (uint32_t i = 0; i < batch->run_count; i++) {
        if (batch->runs[i].count > config->rows_max - rows)
            return STATUS_FAIL(STATUS_INVALID, "a batch of more than %u tokens", config->rows_max);
        rows += batch->runs[i].count;
        TRY(check_run(model, &batch->runs[i]));
    }
    return STATUS_OK;
}

uint32_t batch_spans(const struct backend_batch *batch, struct batch_span *spans)
{
    uint32_t row = 0;
    for (uint32_t i = 0; i < batch->run_count; i++) {
        const struct backend_run *run = &batch->runs[i];
        spans[i] = (struct batch_span){.run = run, .run_index = i, .row = row, .count = run->count, .start = run->start};
        row += run->count;
    }
    return row;
}

uint32_t batch_run_of_row(const struct batch_span *spans, uint32_t span_count, uint32_t row)
{
    for (uint32_t i = 0; i < span_count; i++)
        if (row >= spans[i].row && row - spans[i].row < spans[i].count)
            return spans[i].run_index;
    return 0;
}
