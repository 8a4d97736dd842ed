/* engine_plan.c - the table that the scheduler sees, what its plan does to choices, and the one forward of the step.
 *
 * The plan reckons with estimates (what is shared frees nothing); the KV cache has the last word. Where it says
 * STATUS_AGAIN the plan is bent, and only so: a sequence that should come stays away, a chunk becomes one token,
 * whoever ranks lowest is suspended. */
#include "worker/engine/engine_internal.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>
#include "common/clock.h"
#include "worker/engine/model/model.h"

/* ---- slots ---- */

static bool has_slot(enum choice_state state)
{
    return state == CHOICE_RUNNING || state == CHOICE_SUSPENDED;
}

static void take_slot(struct engine *engine, struct choice *choice)
{
    uint32_t at = engine->free_count - 1;
    if (choice->slot != CHOICE_NO_SLOT) /* the plan has named it already */
        while (engine->free_slots[at] != choice->slot)
            at--;
    choice->slot = engine->free_slots[at];
    engine->free_slots[at] = engine->free_slots[--engine->free_count];
    engine->slots[choice->slot] = choice;
    if (choice->slot >= engine->slot_end)
        engine->slot_end = choice->slot + 1;
}

static void leave_slot(struct engine *engine, struct choice *choice)
{
    engine->slots[choice->slot] = NULL;
    engine->free_slots[engine->free_count++] = choice->slot;
    choice->slot = CHOICE_NO_SLOT;
    while (engine->slot_end > 0 && engine->slots[engine->slot_end - 1] == NULL)
        engine->slot_end--;
}

void engine_move_choice(struct engine *engine, struct choice *choice, enum choice_state state)
{
    const enum choice_state was = choice->state;
    assert(was != CHOICE_ENDED);
    engine->running += (state == CHOICE_RUNNING) - (was == CHOICE_RUNNING);
    if (!has_slot(was) && has_slot(state))
        take_slot(engine, choice);
    if (has_slot(was) && !has_slot(state))
        leave_slot(engine, choice);
    engine->held -= state == CHOICE_ENDED;
    choice->state = state;
}

/* ---- the table ---- */

static uint32_t counted(const struct choice *choice)
{
    return choice->sequence != NULL ? kv_sequence_tokens(choice->sequence) : 0;
}

static bool scores_prompt(const struct choice *choice)
{
    const struct job *job = choice->job;
    return job->scores.logprobs != NULL && choice->index == 0 && !job->branched;
}

static void describe_choice(const struct engine *engine, const struct choice *choice, struct scheduler_entry *entry)
{
    const struct job *job = choice->job;
    const uint32_t tokens = counted(choice);
    *entry = (struct scheduler_entry){
        .id = choice->slot,
        .state = SCHEDULER_PREFILL,
        .priority = job->priority,
        .arrival = job->arrival * ENGINE_CHOICES_MAX + choice->index,
        .idle_only = job->idle,
        .fresh = !job->spoke && !job->idle,
        .apart = job->apart && !job->spoke,
        .tokens_left = choice_known(choice) - tokens,
        .tokens = tokens,
        .bytes_per_page = engine->page_bytes,
    };
    if (choice->state == CHOICE_SUSPENDED) {
        entry->state = SCHEDULER_SUSPENDED;
        entry->bytes_total = kv_homes_need(engine->homes, NULL, choice_known(choice));
        return;
    }
    entry->bytes_held = tokens > 0 ? kv_homes_need(engine->homes, NULL, tokens) : 0;
    entry->bytes_next_token = kv_homes_need(engine->homes, choice->sequence, tokens + 1);
    if (!kv_sequence_ready(choice->sequence)) {
        entry->state = SCHEDULER_LOADING;
        entry->follows = kv_sequence_after(choice->sequence) != 0;
        return;
    }
    if (entry->tokens_left == 1 && !job->idle && !scores_prompt(choice))
        entry->state = SCHEDULER_DECODE;
}

static void describe_waiting(const struct engine *engine, struct job *job, uint32_t slot, struct scheduler_entry *entry)
{
    const struct kv_prompt prompt = {job->root, job->prompt.ids, job->prompt.count, job->prompt.ends,
                                     job->prompt.end_count};
    const uint32_t known = job->prompt.count + (job_resumes_alone(job) ? job->resume_counts[0] : 0);
    /* Once: it reads the whole prompt, and is only an estimate by the time it is used. */
    if (job->match_hint == UINT32_MAX)
        job->match_hint = job->scores.logprobs != NULL ? 0 : kv_homes_match(engine->homes, &prompt);
    *entry = (struct scheduler_entry){
        .id = slot,
        .state = SCHEDULER_WAITING,
        .priority = job->priority,
        .arrival = job->arrival * ENGINE_CHOICES_MAX,
        .idle_only = job->idle,
        .fresh = !job->idle,
        .apart = job->apart,
        .tokens_left = known - job->match_hint,
        .tokens = job->match_hint,
        .bytes_total = kv_homes_need(engine->homes, NULL, known),
        .bytes_per_page = engine->page_bytes,
    };
}

/* Waiting jobs that could start as far as slots go: a job takes one for each of its choices, and one stays for
 * background work, which is shown when there is no other. */
static uint32_t describe_shown(struct engine *engine, uint32_t count)
{
    struct job *first[SCHEDULER_WAITING_MAX];
    const uint32_t waiting = job_queue_first(&engine->queue, first, SCHEDULER_WAITING_MAX);
    uint32_t held = engine->held;
    engine->shown_count = 0;
    for (uint32_t i = 0; i < waiting && held + first[i]->choice_count < engine->slots_max; i++) {
        held += first[i]->choice_count;
        engine->shown[engine->shown_count++] = first[i];
    }
    if (count == 0 && engine->queue.count == 0 && engine_idle_next(engine) != NULL)
        engine->shown[engine->shown_count++] = engine->idle;
    for (uint32_t i = 0; i < engine->shown_count; i++) {
        engine->shown_slots[i] = engine->free_slots[engine->free_count - 1 - i];
        describe_waiting(engine, engine->shown[i], engine->shown_slots[i], &engine->entries[count++]);
    }
    return count;
}

static uint64_t page_count(uint32_t tokens)
{
    return (tokens + BACKEND_PAGE_TOKENS - 1) / BACKEND_PAGE_TOKENS;
}

/* Kept free for what runs: the rest of its prompts, and a page for each that decodes or is yet to branch, with the
 * tokens it resumes. */
static uint64_t reserve_pages(const struct choice *choice)
{
    const struct job *job = choice->job;
    uint64_t pages = page_count(choice_known(choice) - counted(choice));
    for (uint32_t i = 0; !job->branched && i < job->choice_count; i++)
        pages += (i > 0) + page_count(job->choices[i].resumed);
    return pages;
}

/* The middle of the chunk that lies furthest into its context. */
static uint32_t prefill_position(const struct engine *engine, uint32_t count)
{
    uint32_t furthest = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct scheduler_entry *entry = &engine->entries[i];
        const uint32_t chunk = entry->tokens_left < engine->chunk_tokens ? entry->tokens_left : engine->chunk_tokens;
        if (entry->state != SCHEDULER_DECODE && entry->tokens + chunk / 2 > furthest)
            furthest = entry->tokens + chunk / 2;
    }
    return furthest;
}

static uint32_t build_table(struct engine *engine, struct scheduler_limits *limits)
{
    uint32_t count = 0, decoding = 0;
    uint64_t pages = 0;
    for (uint32_t slot = 0; slot < engine->slot_end; slot++) {
        const struct choice *choice = engine->slots[slot];
        if (choice == NULL)
            continue;
        describe_choice(engine, choice, &engine->entries[count]);
        decoding += engine->entries[count].state == SCHEDULER_DECODE;
        if (choice->state == CHOICE_RUNNING && !choice->job->idle)
            pages += reserve_pages(choice);
        count++;
    }
    *limits = (struct scheduler_limits){
        .chunk_tokens_max = engine->chunk_tokens,
        .sequences_max = engine->sequences_max,
        .bytes_room = kv_homes_room(engine->homes),
        .bytes_reserve = pages * engine->page_bytes,
    };
    count = describe_shown(engine, count);
    limits->tokens_budget =
        step_pace_budget(&engine->pace, decoding, prefill_position(engine, count), engine->rows_max);
    return count;
}

/* ---- carrying out: who comes and goes ---- */

static void suspend(struct engine *engine, struct choice *choice)
{
    engine->suspensions++;
    kv_cache_suspend(kv_sequence_cache(choice->sequence), choice->sequence);
    engine_move_choice(engine, choice, CHOICE_SUSPENDED); /* and its run, if it has one, is taken out */
}

/* Where nobody else computes, what comes may be computed behind. */
static void choose_load(struct engine *engine)
{
    kv_homes_load_by_layers(engine->homes, engine->running == 0);
}

static enum status open_sequence(struct engine *engine, struct choice *choice)
{
    const struct job *job = choice->job;
    struct kv_prompt prompt = {job->root, choice->ids, choice_known(choice), job->prompt.ends, job->prompt.end_count};
    if (scores_prompt(choice)) { /* of one token nothing can match */
        prompt.count = 1;
        prompt.ends = NULL;
        prompt.end_count = 0;
    }
    choose_load(engine);
    return kv_homes_open(engine->homes, &prompt, &choice->sequence);
}

/* Nobody holds device memory and nothing is being copied, and still there is no room: only kept conversations can be in
 * the way. */
static bool clear_cache(struct engine *engine, const struct job *job)
{
    if (job->idle || engine->running > 0 || kv_homes_poll(engine->homes))
        return false;
    kv_homes_forget(engine->homes);
    return true;
}

static enum status bring_back(struct engine *engine, struct choice *choice)
{
    if (choice->sequence == NULL)
        return open_sequence(engine, choice);
    choose_load(engine);
    return kv_cache_resume(kv_sequence_cache(choice->sequence), choice->sequence);
}

/* STATUS_AGAIN is a reason to wait only while there is somebody, or some copy, to wait for. */
static bool may_wait(struct engine *engine, enum status st)
{
    return st == STATUS_AGAIN && (engine->running > 0 || kv_homes_poll(engine->homes));
}

static enum status refusal(enum status st)
{
    return st == STATUS_AGAIN ? STATUS_LIMIT : st;
}

static void resume(struct engine *engine, struct choice *choice)
{
    enum status st = bring_back(engine, choice);
    if (st == STATUS_AGAIN && clear_cache(engine, choice->job))
        st = bring_back(engine, choice);
    if (st == STATUS_OK)
        engine_move_choice(engine, choice, CHOICE_RUNNING);
    else if (!may_wait(engine, st))
        engine_fail_job(engine, choice->job, refusal(st), status_detail());
}

/* Without a sequence if a resume has ended every choice and nobody wants to see the prompt. */
static enum status start_job(struct engine *engine, struct job *job, uint32_t slot)
{
    if (job->choices == NULL) {
        TRY(job_start(job));
        TRY(engine_replay(engine, job));
        job->branched = job_resumes_alone(job);
    }
    if (job_over(job) && job->scores.logprobs == NULL) {
        job->started_us = job->decode_us = clock_now_us();
        engine->held += job->choice_count;
        return STATUS_OK;
    }
    struct choice *lead = &job->choices[0];
    enum status st = open_sequence(engine, lead);
    if (st == STATUS_AGAIN && clear_cache(engine, job))
        st = open_sequence(engine, lead);
    TRY(st);
    job->started_us = clock_now_us();
    job->cached = kv_sequence_matched(lead->sequence);
    if (job->cached > job->prompt.count) /* a resume's tokens are there too */
        job->cached = job->prompt.count;
    engine->held += job->choice_count;
    lead->slot = slot;
    engine_move_choice(engine, lead, CHOICE_RUNNING);
    return STATUS_OK;
}

static void admit(struct engine *engine, uint32_t index)
{
    struct job *job = engine->shown[index];
    const enum status st = start_job(engine, job, engine->shown_slots[index]);
    if (may_wait(engine, st))
        return;
    if (job->idle) {
        if (st != STATUS_OK)
            engine_idle_end(engine);
        return;
    }
    (void)job_queue_take(&engine->queue, job);
    if (st != STATUS_OK) {
        engine_fail_waiting(engine, job, refusal(st), status_detail());
        return;
    }
    step_pace_admitted(&engine->pace, clock_now_ms());
    DL_APPEND(engine->active, job);
    for (uint32_t i = 0; i < job->choice_count && job->choices[0].sequence == NULL && !job->ended; i++)
        engine_end_replayed(engine, &job->choices[i]);
}

static void admit_slot(struct engine *engine, uint32_t slot)
{
    for (uint32_t i = 0; i < engine->shown_count; i++)
        if (engine->shown_slots[i] == slot)
            admit(engine, i);
}

/* ---- carrying out: the batch ---- */

/* may_follow: behind its copies. */
static void add_run(struct engine *engine, uint32_t slot, uint32_t tokens, bool may_follow)
{
    struct choice *choice = engine->slots[slot];
    if (choice == NULL || choice->state != CHOICE_RUNNING)
        return; /* it could not come */
    if (!kv_sequence_ready(choice->sequence) && !(may_follow && kv_sequence_after(choice->sequence) != 0))
        return; /* its copies are under way */
    const uint32_t start = counted(choice), left = choice_known(choice) - start;
    engine->runs[engine->run_count++] =
        (struct engine_run){.choice = choice, .start = start, .count = tokens < left ? tokens : left};
}

/* Of those whose memory could be of use to it. */
static struct choice *lowest_running(const struct engine *engine, const struct choice *other)
{
    struct choice *lowest = NULL;
    for (uint32_t i = 0; i < engine->slot_end; i++) {
        struct choice *choice = engine->slots[i];
        if (choice != NULL && choice != other && choice->state == CHOICE_RUNNING &&
            kv_sequence_cache(choice->sequence) == kv_sequence_cache(other->sequence) &&
            (lowest == NULL || choice_ranks_before(lowest, choice)))
            lowest = choice;
    }
    return lowest;
}

static enum status reserve_tokens(struct engine_run *run)
{
    const uint32_t border = BACKEND_PAGE_TOKENS - run->start % BACKEND_PAGE_TOKENS;
    struct kv_sequence *sequence = run->choice->sequence;
    enum status st = kv_cache_reserve(kv_sequence_cache(sequence), sequence, run->start + run->count);
    if (st == STATUS_AGAIN && run->count > border) {
        run->count = border;
        st = kv_cache_reserve(kv_sequence_cache(sequence), sequence, run->start + run->count);
    }
    return st;
}

/* Suspends lower-ranked ones until there is room. If there are none: whoever could free memory by ending goes first, so
 * the run waits; alone it takes everything. */
static void reserve_run(struct engine *engine, struct engine_run *run)
{
    struct choice *choice = run->choice;
    bool forgot = false;
    enum status st;
    while ((st = reserve_tokens(run)) == STATUS_AGAIN) {
        struct choice *lowest = lowest_running(engine, choice);
        if (lowest != NULL && choice_ranks_before(choice, lowest)) {
            suspend(engine, lowest);
        } else if (lowest != NULL) {
            suspend(engine, choice);
            return;
        } else if (kv_homes_poll(engine->homes)) {
            run->choice = NULL; /* copies hold memory: the next step */
            return;
        } else if (forgot || choice->job->idle) {
            break;
        } else {
            kv_homes_forget(engine->homes);
            forgot = true;
        }
    }
    if (st == STATUS_OK)
        return;
    run->choice = NULL;
    if (choice->job->idle)
        engine_idle_end(engine);
    else
        engine_fail_job(engine, choice->job, refusal(st), status_detail());
}

/* Without steps 2 and 3 of sampler.h. */
static bool is_plain(const struct sampler_options *sampling)
{
    return sampling->bias_count == 0 && (sampling->repetition_penalty == 0 || sampling->repetition_penalty == 1) &&
           sampling->presence_penalty == 0 && sampling->frequency_penalty == 0;
}

/* Whether the backend can draw the token behind the run: one token, of nothing but the logits, and nobody looks at those. */
static bool draws(const struct engine *engine, const struct choice *choice)
{
    const struct job *job = choice->job;
    const bool alone = job->branched || (job->choice_count == 1 && choice_reply_count(choice) == 0);
    return engine->ops->samples != NULL && engine->ops->samples(engine->backend) && engine->observer == NULL && alone &&
           choice->logprobs == NULL && job->scores.logprobs == NULL && is_plain(&job->sampling) &&
           choice_reply_count(choice) >= job->sampling.tokens_min;
}

static struct backend_sample sample_of(const struct choice *choice)
{
    const struct sampler_options *sampling = &choice->job->sampling;
    return (struct backend_sample){.temperature = sampling->temperature, .top_p = sampling->top_p, .min_p = sampling->min_p,
                                   .top_k = sampling->top_k, .seed = sampling->seed, .choice = choice->index, .position = choice->count};
}

/* Rows of logits: one for a run that ends in the last known token; all of a prompt that is scored, as far as there are
 * rows. */
static bool place_logits(struct engine *engine, struct engine_run *run)
{
    const struct choice *choice = run->choice;
    const size_t vocab_size = engine->model->config.vocab_size;
    run->rows = 0;
    if (choice->job->idle)
        return true;
    if (scores_prompt(choice) && run->start + run->count > choice->job->scores.done) {
        const uint32_t room = ENGINE_SCORE_ROWS - engine->score_rows_used;
        if (engine->score_logits == NULL)
            engine->score_logits = malloc(ENGINE_SCORE_ROWS * vocab_size * sizeof(float));
        if (engine->score_logits == NULL)
            return false;
        run->count = run->count < room ? run->count : room;
        run->rows = run->count;
        run->logits = engine->score_logits + engine->score_rows_used * vocab_size;
        engine->score_rows_used += run->rows;
        return run->count > 0;
    }
    if (run->start + run->count < choice_known(choice))
        return true;
    run->rows = 1;
    run->drawn = draws(engine, choice);
    if (run->drawn)
        run->sample = sample_of(choice);
    else
        run->logits = engine->logits + engine->rows_used++ * vocab_size;
    return true;
}

/* Only of choices that still run. */
static void close_gaps(struct engine *engine)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < engine->run_count; i++)
        if (engine->runs[i].choice != NULL && engine->runs[i].choice->state == CHOICE_RUNNING)
            engine->runs[kept++] = engine->runs[i];
    engine->run_count = kept;
}

static void carry_out(struct engine *engine)
{
    const struct scheduler_plan *plan = &engine->plan;
    engine->rows_used = engine->score_rows_used = 0;
    for (uint32_t i = 0; i < plan->count; i++) {
        const struct scheduler_action *action = &plan->actions[i];
        switch (action->kind) {
        case SCHEDULER_SUSPEND: suspend(engine, engine->slots[action->id]); break;
        case SCHEDULER_DROP: engine_idle_end(engine); break;
        case SCHEDULER_RESUME:
            if (engine->slots[action->id] != NULL) /* its job may have failed with another choice */
                resume(engine, engine->slots[action->id]);
            break;
        case SCHEDULER_ADMIT: admit_slot(engine, action->id); break;
        case SCHEDULER_RUN: add_run(engine, action->id, action->tokens, false); break;
        }
    }
    for (uint32_t i = 0; i < plan->count && engine->run_count == 0; i++) /* nobody else would wait for the copies */
        if (plan->actions[i].kind == SCHEDULER_RUN)
            add_run(engine, plan->actions[i].id, plan->actions[i].tokens, true);
    for (uint32_t i = 0; i < engine->run_count; i++)
        if (engine->runs[i].choice != NULL && engine->runs[i].choice->state == CHOICE_RUNNING)
            reserve_run(engine, &engine->runs[i]);
    close_gaps(engine);
    for (uint32_t i = 0; i < engine->run_count; i++)
        if (!place_logits(engine, &engine->runs[i]))
            engine->runs[i].choice = NULL;
    close_gaps(engine);
}

/* ---- the forward ---- */

/* Whoever is blamed when the forward kills the process must be known before it begins. */
static void tell_starts(struct engine *engine)
{
    for (uint32_t i = 0; i < engine->run_count; i++) {
        struct job *job = engine->runs[i].choice->job;
        if (job->start_told || job->idle)
            continue;
        job->start_told = true;
        engine_send(engine, &(struct engine_event){.kind = ENGINE_STARTED, .job = job->id});
    }
}

static enum status forward(struct engine *engine, uint32_t *failed)
{
    for (uint32_t i = 0; i < engine->run_count; i++) {
        struct engine_run *run = &engine->runs[i];
        struct backend_run *batch = &engine->batch[i];
        *batch = (struct backend_run){
            .tokens = run->choice->ids + run->start,
            .count = run->count,
            .start = run->start,
            .after = kv_sequence_after(run->choice->sequence),
            .logits = run->rows > 0 && !run->drawn ? run->logits : NULL,
            .sample = run->drawn ? &run->sample : NULL,
            .logit_rows = run->rows,
        };
        for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++)
            if (engine->cache_config.groups[group].page_bytes > 0)
                batch->pages[group] = kv_sequence_pages(run->choice->sequence, group);
    }
    const struct backend_batch batch = {.runs = engine->batch, .run_count = engine->run_count};
    *failed = UINT32_MAX;
    return engine->ops->forward(engine->backend, &batch, failed);
}

static void fail_run(struct engine *engine, const struct engine_run *run, enum status st, const char *detail)
{
    if (run->choice->state != CHOICE_RUNNING)
        return;
    if (run->choice->job->idle)
        engine_idle_end(engine);
    else
        engine_fail_job(engine, run->choice->job, st, detail);
}

/* A run that the backend names ends its job, and the others are computed again; without a name none can be trusted. */
static void compute(struct engine *engine)
{
    char detail[512];
    while (engine->run_count > 0) {
        uint32_t failed;
        const enum status st = forward(engine, &failed);
        if (st == STATUS_OK)
            return;
        snprintf(detail, sizeof detail, "%s", status_detail());
        if (st == STATUS_CLOSED) { /* others will compute them: the process ends, and no job is told anything */
            engine->lost = true;
            memcpy(engine->lost_detail, detail, sizeof detail);
            engine->run_count = 0;
            return;
        }
        for (uint32_t i = 0; i < engine->run_count; i++)
            if (st != STATUS_CORRUPT || failed >= engine->run_count || i == failed)
                fail_run(engine, &engine->runs[i], st, detail);
        close_gaps(engine);
    }
}

static void record_pace(struct engine *engine, uint64_t started_us)
{
    struct step_work work = {0};
    for (uint32_t i = 0; i < engine->run_count; i++) {
        const struct engine_run *run = &engine->runs[i];
        if (run->count == 1 && run->rows == 1) {
            work.decoded++;
        } else {
            work.prefilled += run->count;
            work.positions += (uint64_t)run->count * (run->start + run->count / 2);
        }
    }
    step_pace_record(&engine->pace, &work, clock_now_us() - started_us);
}

static void trace_plan(const struct engine *engine, const struct scheduler_limits *limits)
{
    if (engine->trace == NULL)
        return;
    fprintf(engine->trace, "step budget %u room %llu\n", limits->tokens_budget, (unsigned long long)limits->bytes_room);
    scheduler_plan_print(&engine->plan, engine->trace);
}

bool engine_plan_step(struct engine *engine)
{
    const uint64_t started_us = clock_now_us();
    struct scheduler_limits limits;
    const uint32_t count = build_table(engine, &limits);
    engine->run_count = 0;
    if (count == 0)
        return false;
    scheduler_plan(engine->entries, count, &limits, &engine->plan);
    trace_plan(engine, &limits);
    carry_out(engine);
    tell_starts(engine);
    const bool behind_copies = engine->run_count > 0 && kv_sequence_after(engine->runs[0].choice->sequence) != 0; /* it runs alone */
    compute(engine);
    for (uint32_t i = 0; i < engine->run_count; i++) {
        const struct engine_run *run = &engine->runs[i];
        kv_cache_append(kv_sequence_cache(run->choice->sequence), run->choice->sequence, run->choice->ids + run->start, run->count);
    }
    for (uint32_t i = 0; i < engine->run_count; i++)
        if (engine->runs[i].choice->state == CHOICE_RUNNING) /* not ended with another choice of its job */
            engine_take_logits(engine, &engine->runs[i]);
    if (!behind_copies) /* that says nothing about tokens */
        record_pace(engine, started_us);
    return true;
}
