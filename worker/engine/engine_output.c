/* engine_output.c - from logits to what a client sees, and the ends.
 *
 *   logits --sampler--> id --utf8_stream--> characters --stop_stream--> ENGINE_TOKENS
 *
 * A drawn token is in choice->ids at once and is sent when its text is: `released` follows behind. Log probabilities
 * wait in a list that begins at the first token not yet released.
 *
 * A resume pushes the ids that were released before through the same streams, and what comes out is kept back up to the
 * last of them. The streams see the same pushes as they did where the tokens were first drawn, so everything behind is
 * the same. */
#include "worker/engine/engine_internal.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>
#include "common/clock.h"
#include "worker/engine/model/model.h"
#include "worker/engine/text/tokenizer.h"

/* ---- ends ---- */

static uint32_t span_us(uint64_t from, uint64_t to)
{
    const uint64_t span = to > from ? to - from : 0;
    return span < UINT32_MAX ? (uint32_t)span : UINT32_MAX;
}

/* What it computed stays in the cache: with a resume point at the end of the prompt, and a name if the whole job is done. */
static void keep_sequence(struct engine *engine, struct choice *choice, bool done)
{
    const struct job *job = choice->job;
    const uint32_t prompt = job->prompt.count;
    const bool label = done && job->labelled && job->ended_count + 1 == job->choice_count;
    if (label)
        engine_idle_disown(engine, job->conversation);
    if (choice->sequence == NULL)
        return;
    kv_homes_keep(engine->homes, &choice->sequence, kv_sequence_tokens(choice->sequence) >= prompt ? prompt : 0,
                  label ? job->conversation : NULL);
}

/* From here on the number may be used again; the memory stays until the end of the step. */
static void close_job(struct engine *engine, struct job *job)
{
    HASH_DEL(engine->open, job);
    job->ended = true;
    DL_APPEND(engine->ended, job);
}

static void send_failed(struct engine *engine, const struct job *job, enum status st, const char *detail)
{
    char words[512];
    snprintf(words, sizeof words, "%s", detail); /* may be status_detail(), which a sink may change */
    const struct engine_event event = {.kind = ENGINE_FAILED, .job = job->id, .status = st, .detail = words};
    engine_send(engine, &event);
}

void engine_fail_waiting(struct engine *engine, struct job *job, enum status st, const char *detail)
{
    close_job(engine, job);
    send_failed(engine, job, st, detail);
}

void engine_fail_job(struct engine *engine, struct job *job, enum status st, const char *detail)
{
    for (uint32_t i = 0; i < job->choice_count; i++) {
        struct choice *choice = &job->choices[i];
        if (choice->state == CHOICE_ENDED)
            continue;
        if (st != STATUS_CORRUPT)
            keep_sequence(engine, choice, false);
        else if (choice->sequence != NULL) /* it cannot be trusted */
            kv_cache_drop(kv_sequence_cache(choice->sequence), &choice->sequence);
        engine_move_choice(engine, choice, CHOICE_ENDED);
    }
    DL_DELETE(engine->active, job);
    close_job(engine, job);
    send_failed(engine, job, st, detail);
}

static void finish_job(struct engine *engine, struct job *job)
{
    struct engine_event event = {
        .kind = ENGINE_DONE,
        .job = job->id,
        .choices = job->choice_count,
        .prompt_tokens = job->prompt.count,
        .cached_tokens = job->cached,
        .queue_us = span_us(job->submitted_us, job->started_us),
        .prefill_us = span_us(job->started_us, job->decode_us),
        .decode_us = span_us(job->decode_us, clock_now_us()),
        .dropped_messages = job->prompt.dropped,
    };
    for (uint32_t i = 0; i < job->choice_count; i++) {
        const struct choice *choice = &job->choices[i];
        event.reply_tokens += choice->released > choice->resumed ? choice->released : choice->resumed;
        event.finish[i] = choice->finish;
    }
    DL_DELETE(engine->active, job);
    close_job(engine, job);
    engine_send(engine, &event);
    if (job->labelled && !kv_homes_labelled(engine->homes, job->conversation)) /* a resume that computed nothing; no room for it */
        engine_tell_fate(engine, job->conversation, ENGINE_EVICTED);
}

/* ---- text ---- */

/* For the canonical encoding; without memory for it the reply is left as it was drawn. */
static void remember_text(struct choice *choice, const char *text, size_t size)
{
    if (!choice->job->chat)
        return;
    if (choice->text_size + size > choice->text_capacity) {
        const size_t capacity = 2 * (choice->text_size + size) + 64;
        char *grown = realloc(choice->text, capacity);
        if (grown == NULL) {
            choice->job->chat = false;
            return;
        }
        choice->text = grown;
        choice->text_capacity = capacity;
    }
    if (size > 0)
        memcpy(choice->text + choice->text_size, text, size);
    choice->text_size += size;
}

static void move_down(void *list, size_t size, uint32_t gone, uint32_t held)
{
    if (list != NULL && held > gone)
        memmove(list, (char *)list + gone * size, (held - gone) * size);
}

/* Bytes of text that belong to the first `known` of the tokens to be released: a resume that ends between tokens which
 * came out together. */
static size_t known_text(const struct engine *engine, const uint32_t *ids, uint32_t known, const char *text,
                         size_t size)
{
    size_t at = 0;
    for (uint32_t i = 0; i < known; i++) {
        size_t piece;
        (void)tokenizer_piece(engine->tokenizer, ids[i], &piece);
        at += piece;
    }
    if (at > size)
        return size;
    while (at > 0 && at < size && ((unsigned char)text[at] & 0xC0) == 0x80) /* not inside a character */
        at++;
    return at;
}

static void send_tokens(struct engine *engine, struct choice *choice, const char *text, size_t size, uint32_t count)
{
    struct job *job = choice->job;
    if (count == 0 && size == 0)
        return;
    const uint32_t first = choice->released, held = choice_reply_count(choice) - first, n = job->alternatives;
    const uint32_t known = choice->resumed > first ? choice->resumed - first : 0;
    const uint32_t *ids = choice->ids + job->prompt.count + first;
    assert(count <= held);
    choice->released += count;
    remember_text(choice, text, size);
    if (known < count || known == 0) { /* else the receiver has it all */
        const size_t text_known = known_text(engine, ids, known, text, size);
        const struct engine_event event = {
            .kind = ENGINE_TOKENS,
            .job = job->id,
            .choice = choice->index,
            .first = first + known,
            .ids = ids + known,
            .count = count - known,
            .text = text + text_known,
            .text_size = size - text_known,
            .logprobs = choice->logprobs != NULL ? choice->logprobs + known : NULL,
            .alternatives = choice->logprobs != NULL ? n : 0,
            .alternative_ids = choice->alternative_ids != NULL ? choice->alternative_ids + (size_t)known * n : NULL,
            .alternative_logprobs =
                choice->alternative_logprobs != NULL ? choice->alternative_logprobs + (size_t)known * n : NULL,
        };
        engine_send(engine, &event);
        job->spoke = true;
    }
    move_down(choice->logprobs, sizeof(float), count, held);
    move_down(choice->alternative_ids, n * sizeof(uint32_t), count, held);
    move_down(choice->alternative_logprobs, n * sizeof(float), count, held);
}

/* `count` tokens whose text is in engine->text. */
static enum status release(struct engine *engine, struct choice *choice, size_t size, uint32_t count, bool *stopped)
{
    struct stop_release out = {.text = engine->text, .text_size = size, .tokens = count};
    if (choice->stop != NULL && count > 0)
        TRY(stop_stream_push(choice->stop, engine->text, size, count, &out));
    *stopped = out.stopped;
    send_tokens(engine, choice, out.text, out.text_size, out.tokens);
    return STATUS_OK;
}

/* The reply ends without a stop string so far; the text held back may still complete one. */
static enum status release_rest(struct engine *engine, struct choice *choice, bool *stopped)
{
    struct stop_release out;
    size_t size;
    const uint32_t count = utf8_stream_finish(&choice->characters, engine->text, &size);
    TRY(release(engine, choice, size, count, stopped));
    if (choice->stop != NULL && !*stopped) {
        stop_stream_finish(choice->stop, &out);
        send_tokens(engine, choice, out.text, out.text_size, out.tokens);
    }
    return STATUS_OK;
}

static void end_choice(struct engine *engine, struct choice *choice, enum engine_finish finish)
{
    struct job *job = choice->job;
    choice->finish = finish;
    keep_sequence(engine, choice, true);
    engine_move_choice(engine, choice, CHOICE_ENDED);
    if (job->chat)
        engine_idle_remember(engine, choice);
    if (++job->ended_count == job->choice_count)
        finish_job(engine, job);
}

static void finish_choice(struct engine *engine, struct choice *choice, enum engine_finish finish)
{
    bool stopped;
    const enum status st = release_rest(engine, choice, &stopped);
    if (st != STATUS_OK)
        engine_fail_job(engine, choice->job, st, status_detail());
    else
        end_choice(engine, choice, stopped ? ENGINE_FINISH_STOP_STRING : finish);
}

/* ---- tokens ---- */

static void hold_logprobs(struct engine *engine, struct choice *choice, const float *logits, uint32_t id)
{
    struct sampler_logprobs out;
    const uint32_t held = choice_reply_count(choice) - choice->released, n = choice->job->alternatives;
    if (choice->logprobs == NULL)
        return;
    assert(held < CHOICE_HELD_MAX);
    sampler_logprobs(engine->sampler, logits, id, n, &out);
    choice->logprobs[held] = out.chosen;
    if (n > 0) {
        memcpy(choice->alternative_ids + (size_t)held * n, out.ids, n * sizeof out.ids[0]);
        memcpy(choice->alternative_logprobs + (size_t)held * n, out.values, n * sizeof out.values[0]);
    }
}

static enum status append(struct engine *engine, struct choice *choice, uint32_t id, bool *stopped)
{
    size_t size, text_size;
    const void *bytes = tokenizer_piece(engine->tokenizer, id, &size);
    choice->ids[choice->count++] = id;
    const uint32_t count = utf8_stream_push(&choice->characters, bytes, size, engine->text, &text_size);
    return release(engine, choice, text_size, count, stopped);
}

static void take_token(struct engine *engine, struct choice *choice, const float *logits, uint32_t id)
{
    bool stopped;
    if (job_ends_reply(choice->job, id)) {
        finish_choice(engine, choice, ENGINE_FINISH_STOP);
        return;
    }
    hold_logprobs(engine, choice, logits, id);
    const enum status st = append(engine, choice, id, &stopped);
    if (st != STATUS_OK)
        engine_fail_job(engine, choice->job, st, status_detail());
    else if (stopped)
        end_choice(engine, choice, ENGINE_FINISH_STOP_STRING);
    else if (choice_reply_count(choice) == choice->job->reply_max)
        finish_choice(engine, choice, ENGINE_FINISH_LENGTH);
}

/* The run's last row is the choice's. */
static void draw(struct engine *engine, struct choice *choice, const struct engine_run *run)
{
    struct job *job = choice->job;
    if (run->drawn) {
        take_token(engine, choice, NULL, run->sample.token);
        return;
    }
    const float *logits = run->logits + (size_t)(run->rows - 1) * engine->model->config.vocab_size;
    const struct sampler_history history = {
        .ids = choice->ids,
        .prompt_count = job->prompt.count,
        .count = choice->count,
        .choice = choice->index,
        .tally = choice->tally,
    };
    uint32_t id;
    if (engine->observer != NULL)
        engine->observer(engine->observer_user, job->id, choice->index, choice->count, logits,
                         engine->model->config.vocab_size);
    const enum status st = sampler_pick(engine->sampler, &job->sampling, &history, logits, &id);
    if (st != STATUS_OK)
        engine_fail_job(engine, job, st, status_detail());
    else
        take_token(engine, choice, logits, id);
}

/* ---- resumes ---- */

enum status engine_replay(struct engine *engine, struct job *job)
{
    const uint32_t *ids = job->resume_ids;
    for (uint32_t i = 0; i < job->choice_count && job->resume_counts != NULL; i++) {
        struct choice *choice = &job->choices[i];
        bool stopped = false;
        for (uint32_t k = 0; k < choice->resumed && !stopped; k++)
            TRY(append(engine, choice, ids[k], &stopped));
        if (stopped)
            choice->finish = ENGINE_FINISH_STOP_STRING;
        else if (choice->resumed == job->reply_max)
            choice->finish = ENGINE_FINISH_LENGTH;
        ids += choice->resumed;
    }
    return STATUS_OK;
}

void engine_end_replayed(struct engine *engine, struct choice *choice)
{
    if (choice->finish == ENGINE_FINISH_STOP_STRING)
        end_choice(engine, choice, choice->finish);
    else
        finish_choice(engine, choice, choice->finish); /* the streams may hold text that completes a stop string */
}

/* ---- the prompt ---- */

static void score_prompt(struct engine *engine, const struct engine_run *run)
{
    struct job *job = run->choice->job;
    struct prompt_scores *scores = &job->scores;
    const uint32_t n = job->alternatives, vocab_size = engine->model->config.vocab_size;
    struct sampler_logprobs out;
    for (uint32_t i = 0; i < run->count; i++) {
        const uint32_t entry = run->start + i;
        if (entry != scores->done ||
            entry + 1 >= job->prompt.count) /* known already (computed again), or the reply's first */
            continue;
        sampler_logprobs(engine->sampler, run->logits + (size_t)i * vocab_size, job->prompt.ids[entry + 1], n, &out);
        scores->logprobs[entry] = out.chosen;
        if (n > 0) {
            memcpy(scores->alternative_ids + (size_t)entry * n, out.ids, n * sizeof out.ids[0]);
            memcpy(scores->alternative_logprobs + (size_t)entry * n, out.values, n * sizeof out.values[0]);
        }
        scores->done++;
    }
}

static void send_prompt(struct engine *engine, const struct job *job)
{
    if (job->scores.logprobs == NULL)
        return;
    const struct engine_event event = {
        .kind = ENGINE_PROMPT,
        .job = job->id,
        .ids = job->prompt.ids + 1,
        .count = job->prompt.count - 1,
        .logprobs = job->scores.logprobs,
        .alternatives = job->alternatives,
        .alternative_ids = job->scores.alternative_ids,
        .alternative_logprobs = job->scores.alternative_logprobs,
    };
    engine_send(engine, &event);
}

/* The other choices share what choice 0 has computed; one that finds no place now comes back like a suspended one. */
static void branch(struct engine *engine, struct job *job)
{
    struct choice *lead = &job->choices[0];
    for (uint32_t i = 1; i < job->choice_count; i++) {
        struct choice *choice = &job->choices[i];
        if (choice->finish != 0)
            continue;
        const bool room = engine->running < engine->sequences_max &&
                          kv_cache_branch(kv_sequence_cache(lead->sequence), lead->sequence, &choice->sequence) == STATUS_OK;
        engine_move_choice(engine, choice, room ? CHOICE_RUNNING : CHOICE_SUSPENDED);
    }
}

/* Every choice draws its first token from the prompt's last logits; their noise differs. One that resumes computes the
 * tokens it has first, or ends. */
static void begin_replies(struct engine *engine, struct job *job, const struct engine_run *run)
{
    job->branched = true;
    branch(engine, job);
    send_prompt(engine, job);
    for (uint32_t i = 0; i < job->choice_count && !job->ended; i++) {
        struct choice *choice = &job->choices[i];
        if (choice->finish != 0)
            engine_end_replayed(engine, choice);
        else if (choice_reply_count(choice) == 0)
            draw(engine, choice, run);
    }
}

void engine_take_logits(struct engine *engine, const struct engine_run *run)
{
    struct choice *choice = run->choice;
    struct job *job = choice->job;
    const bool complete = run->start + run->count == choice_known(choice);
    if (job->idle) {
        if (complete)
            engine_idle_end(engine);
        return;
    }
    if (run->rows == 0)
        return;
    if (job->scores.logprobs != NULL && !job->branched)
        score_prompt(engine, run);
    if (!complete)
        return;
    if (job->decode_us == 0)
        job->decode_us = clock_now_us();
    if (job->branched)
        draw(engine, choice, run);
    else
        begin_replies(engine, job, run);
}
