#include "worker/engine/job.h"
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/hash.h"
#include "worker/engine/model/model_config.h"
#include "worker/engine/text/sampler_tally.h"

/* ---- from a request ---- */

static enum status check_counts(const struct engine_request *request)
{
    if (request->message_count > 0 && request->prompt_id_count > 0)
        return STATUS_FAIL(STATUS_INVALID, "a request has messages or prompt ids, not both");
    if (request->choices > ENGINE_CHOICES_MAX)
        return STATUS_FAIL(STATUS_INVALID, "%u choices are asked for, at most %u are made", request->choices,
                           ENGINE_CHOICES_MAX);
    if (request->stop_id_count > SAMPLER_STOP_IDS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "%u stop ids are given, at most %u are taken", request->stop_id_count,
                           SAMPLER_STOP_IDS_MAX);
    if (request->alternatives > SAMPLER_LOGPROBS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "%u alternatives are asked for, at most %u are given", request->alternatives,
                           SAMPLER_LOGPROBS_MAX);
    return STATUS_OK;
}

static enum status check_ids(const char *what, const uint32_t *ids, unsigned count, uint32_t vocab_size)
{
    for (unsigned i = 0; i < count; i++)
        if (ids[i] >= vocab_size)
            return STATUS_FAIL(STATUS_INVALID, "%s %u is %u, not below %u", what, i, ids[i], vocab_size);
    return STATUS_OK;
}

static enum status copy_list(const void *list, size_t count, size_t size, void *out)
{
    void *copy = malloc(count * size + 1);
    if (copy == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a list of %zu", count);
    if (count > 0)
        memcpy(copy, list, count * size);
    memcpy(out, &copy, sizeof copy);
    return STATUS_OK;
}

static enum status take_prompt(const struct job_limits *limits, const struct engine_request *request, struct job *job)
{
    const struct model_config *config = limits->config;
    const uint32_t most = config->context_tokens_max - 1;
    const unsigned count = request->prompt_id_count;
    if (count == 0) {
        const struct prompt_source source = {
            .messages = request->messages,
            .message_count = request->message_count,
            .reply_name = request->reply_name,
            .reply_name_size = request->reply_name_size,
            .truncate = request->truncate,
        };
        job->chat = true;
        return prompt_build(limits->tokenizer, config, &source, most, &job->prompt);
    }
    if (count > most)
        return STATUS_FAIL(STATUS_LIMIT, "the prompt has %u tokens, at most %u are possible", count, most);
    TRY(check_ids("prompt id", request->prompt_ids, count, config->vocab_size));
    TRY(copy_list(request->prompt_ids, count, sizeof *request->prompt_ids, &job->prompt.ids));
    job->prompt.count = count;
    return STATUS_OK;
}

/* The model's end ids and the request's stop ids, in one list. */
static enum status take_end_ids(const struct job_limits *limits, const struct engine_request *request, struct job *job)
{
    uint32_t ids[MODEL_END_IDS_MAX + SAMPLER_STOP_IDS_MAX];
    const struct model_config *config = limits->config;
    uint32_t count = config->end_id_count;
    memcpy(ids, config->end_ids, count * sizeof ids[0]);
    for (unsigned i = 0; i < request->stop_id_count; i++)
        ids[count++] = request->stop_ids[i];
    TRY(copy_list(ids, count, sizeof ids[0], &job->sampling.end_ids));
    job->sampling.end_count = count;
    return STATUS_OK;
}

static enum status take_sampling(const struct job_limits *limits, const struct engine_request *request, struct job *job)
{
    struct sampler_options *sampling = &job->sampling;
    const uint32_t vocab_size = limits->config->vocab_size;
    struct sampler_options checked = request->sampling;
    checked.masked = checked.end_ids = NULL;
    checked.masked_count = checked.end_count = 0;
    TRY(check_ids("stop_ids", request->stop_ids, request->stop_id_count, vocab_size));
    TRY(sampler_check(&checked, vocab_size));
    *sampling = checked;
    sampling->bias_ids = NULL;
    sampling->bias_values = NULL;
    TRY(copy_list(checked.bias_ids, checked.bias_count, sizeof *checked.bias_ids, &sampling->bias_ids));
    TRY(copy_list(checked.bias_values, checked.bias_count, sizeof *checked.bias_values, &sampling->bias_values));
    TRY(take_end_ids(limits, request, job));
    sampling->masked = limits->masked;
    sampling->masked_count = limits->masked_count;
    sampling->seed = request->seed_given
                         ? request->seed
                         : sampler_default_seed(request->tenant, request->tenant_size, request->request_id, 0);
    return STATUS_OK;
}

static enum status take_stops(const struct engine_request *request, struct job *job)
{
    if (request->stop_count == 0)
        return STATUS_OK;
    job->stops = calloc(1, sizeof *job->stops);
    if (job->stops == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u stop strings", request->stop_count);
    return stop_strings_check(request->stops, request->stop_sizes, request->stop_count, job->stops);
}

static bool is_masked(const struct job_limits *limits, uint32_t id)
{
    uint32_t low = 0, high = limits->masked_count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (limits->masked[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < limits->masked_count && limits->masked[low] == id;
}

static enum status check_resume(const struct job_limits *limits, const struct job *job, uint32_t choice,
                                const uint32_t *ids)
{
    const uint32_t count = job->resume_counts[choice], vocab_size = limits->config->vocab_size;
    for (uint32_t i = 0; i < count; i++) {
        if (ids[i] >= vocab_size)
            return STATUS_FAIL(STATUS_INVALID, "resume id %u of choice %u is %u, not below %u", i, choice, ids[i],
                               vocab_size);
        if (job_ends_reply(job, ids[i]))
            return STATUS_FAIL(STATUS_INVALID,
                               "resume id %u of choice %u is %u, which ends a reply and is never released", i, choice,
                               ids[i]);
        if (is_masked(limits, ids[i]))
            return STATUS_FAIL(STATUS_INVALID, "resume id %u of choice %u is %u, which has no text and is never drawn",
                               i, choice, ids[i]);
    }
    return STATUS_OK;
}

/* After the prompt and the lengths. */
static enum status take_resume(const struct job_limits *limits, const struct engine_request *request, struct job *job)
{
    uint64_t total = 0;
    if (request->resume_counts == NULL)
        return STATUS_OK;
    TRY(copy_list(request->resume_counts, job->choice_count, sizeof *job->resume_counts, &job->resume_counts));
    for (uint32_t i = 0; i < job->choice_count; i++) {
        const uint32_t count = job->resume_counts[i];
        if (count > job->reply_max)
            return STATUS_FAIL(STATUS_INVALID, "the resume of choice %u has %u tokens, at most %u are possible (%s)", i,
                               count, job->reply_max,
                               job->reply_max == request->tokens_max ? "tokens_max" : "the rest of the context");
        if (count > 0 && request->resume_ids == NULL)
            return STATUS_FAIL(STATUS_INVALID, "the resume of choice %u has %u tokens and no ids", i, count);
        if (count > 0)
            TRY(check_resume(limits, job, i, request->resume_ids + total));
        total += count;
    }
    return copy_list(request->resume_ids, total, sizeof *job->resume_ids, &job->resume_ids);
}

enum status job_create(const struct job_limits *limits, const struct engine_request *request, struct job **out)
{
    enum status st;
    TRY(check_counts(request));
    struct job *job = calloc(1, sizeof *job);
    if (job == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a job");
    job->id = request->job;
    job->labelled = request->tell_fate;
    memcpy(job->conversation, request->conversation, sizeof job->conversation);
    job->priority = request->priority;
    job->apart = request->apart;
    job->deadline_ms = request->deadline_ms != 0 ? request->deadline_ms : UINT64_MAX;
    job->choice_count = request->choices > 1 ? request->choices : 1;
    job->logprobs = request->logprobs;
    job->alternatives = request->logprobs || request->prompt_logprobs ? request->alternatives : 0;
    job->match_hint = UINT32_MAX;
    job->rank_place = job->deadline_place = JOB_NOT_QUEUED;
    TRY_GOTO(take_sampling(limits, request, job), st, fail);
    TRY_GOTO(take_stops(request, job), st, fail);
    TRY_GOTO(take_prompt(limits, request, job), st, fail);
    if (request->prompt_logprobs) {
        job->scores.logprobs = calloc(job->prompt.count, sizeof(float));
        if (job->scores.logprobs == NULL) {
            st = STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u log probabilities", job->prompt.count);
            goto fail;
        }
    }
    const uint32_t room = limits->config->context_tokens_max - job->prompt.count;
    job->reply_max = request->tokens_max != 0 && request->tokens_max < room ? request->tokens_max : room;
    TRY_GOTO(take_resume(limits, request, job), st, fail);
    job->submitted_us = clock_now_us();
    *out = job;
    return STATUS_OK;
fail:
    job_destroy(&job);
    return st;
}

/* ---- choices ---- */

/* Tables of the alternatives beside `rows` log probabilities; both stay NULL without alternatives. */
static bool make_alternatives(size_t rows, uint32_t alternatives, uint32_t **ids, float **logprobs)
{
    if (alternatives == 0)
        return true;
    *ids = calloc(rows * alternatives, sizeof **ids);
    *logprobs = calloc(rows * alternatives, sizeof **logprobs);
    return *ids != NULL && *logprobs != NULL;
}

static bool has_penalties(const struct sampler_options *sampling)
{
    return (sampling->repetition_penalty != 0 && sampling->repetition_penalty != 1) ||
           sampling->presence_penalty != 0 || sampling->frequency_penalty != 0;
}

static enum status start_choice(struct job *job, uint32_t index)
{
    struct choice *choice = &job->choices[index];
    choice->job = job;
    choice->index = index;
    choice->slot = CHOICE_NO_SLOT;
    choice->ids = malloc(((size_t)job->prompt.count + job->reply_max) * sizeof *choice->ids);
    if (choice->ids == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a reply of %u tokens", job->reply_max);
    memcpy(choice->ids, job->prompt.ids, job->prompt.count * sizeof *choice->ids);
    choice->count = job->prompt.count;
    choice->resumed = job->resume_counts != NULL ? job->resume_counts[index] : 0;
    if (job->stops != NULL)
        TRY(stop_stream_create(job->stops, &choice->stop));
    if (has_penalties(&job->sampling))
        TRY(sampler_tally_create(&choice->tally));
    if (!job->logprobs)
        return STATUS_OK;
    choice->logprobs = calloc(CHOICE_HELD_MAX, sizeof *choice->logprobs); /* those of a resume are not known */
    if (choice->logprobs == NULL ||
        !make_alternatives(CHOICE_HELD_MAX, job->alternatives, &choice->alternative_ids, &choice->alternative_logprobs))
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for log probabilities");
    return STATUS_OK;
}

enum status job_start(struct job *job)
{
    job->choices = calloc(job->choice_count, sizeof *job->choices);
    if (job->choices == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u choices", job->choice_count);
    for (uint32_t i = 0; i < job->choice_count; i++)
        TRY(start_choice(job, i));
    if (job->scores.logprobs != NULL &&
        !make_alternatives(job->prompt.count, job->alternatives, &job->scores.alternative_ids,
                           &job->scores.alternative_logprobs))
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for log probabilities of %u tokens", job->prompt.count);
    return STATUS_OK;
}

static void free_choice(struct choice *choice)
{
    free(choice->ids);
    sampler_tally_destroy(&choice->tally);
    stop_stream_destroy(&choice->stop);
    free(choice->logprobs);
    free(choice->alternative_ids);
    free(choice->alternative_logprobs);
    free(choice->text);
}

void job_destroy(struct job **pointer)
{
    struct job *job = *pointer;
    if (job == NULL)
        return;
    for (uint32_t i = 0; job->choices != NULL && i < job->choice_count; i++)
        free_choice(&job->choices[i]);
    free(job->choices);
    prompt_free(&job->prompt);
    free((void *)job->sampling.bias_ids);
    free((void *)job->sampling.bias_values);
    free((void *)job->sampling.end_ids);
    free(job->stops);
    free(job->resume_counts);
    free(job->resume_ids);
    free(job->scores.logprobs);
    free(job->scores.alternative_ids);
    free(job->scores.alternative_logprobs);
    free(job);
    *pointer = NULL;
}

bool job_resumes_alone(const struct job *job)
{
    return job->resume_counts != NULL && job->choice_count == 1 && job->resume_counts[0] > 0 &&
           job->scores.logprobs == NULL;
}

bool job_over(const struct job *job)
{
    for (uint32_t i = 0; i < job->choice_count; i++)
        if (job->choices[i].finish == 0)
            return false;
    return true;
}

bool job_ends_reply(const struct job *job, uint32_t id)
{
    for (uint32_t i = 0; i < job->sampling.end_count; i++)
        if (job->sampling.end_ids[i] == id)
            return true;
    return false;
}

uint32_t choice_reply_count(const struct choice *choice)
{
    return choice->count - choice->job->prompt.count;
}

uint32_t choice_known(const struct choice *choice)
{
    return choice->job->branched ? choice->count : choice->job->prompt.count;
}

bool choice_ranks_before(const struct choice *a, const struct choice *b)
{
    if (a->job->priority != b->job->priority)
        return a->job->priority > b->job->priority;
    if (a->job->arrival != b->job->arrival)
        return a->job->arrival < b->job->arrival;
    return a->index < b->index;
}
