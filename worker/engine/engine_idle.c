/* engine_idle.c - finished replies, encoded as the next prompt will have them.
 *
 * Sampled ids are often not the tokenizer's own split of their text, and the end of a message was drawn but never
 * computed. So a finished reply is remembered; when there is nothing else to do its canonical ids are made, and a job
 * without a client computes from where the cache's match ends. It is dropped as soon as a request comes; what it
 * computed stays. The oldest reply is forgotten when too many wait: under load there is no idle time, and its next turn
 * computes the difference itself. */
#include "worker/engine/engine_internal.h"
#include <stdlib.h>
#include <string.h>
#include <utlist.h>
#include "worker/engine/model/model.h"
#include "worker/engine/text/prompt.h"

static void free_reply(struct idle_reply *reply)
{
    prompt_free(&reply->prompt);
    free(reply->text);
    *reply = (struct idle_reply){0};
}

static struct idle_reply take_oldest(struct engine *engine)
{
    const struct idle_reply reply = engine->replies[engine->reply_first];
    engine->replies[engine->reply_first] = (struct idle_reply){0};
    engine->reply_first = (engine->reply_first + 1) % ENGINE_IDLE_MAX;
    engine->reply_count--;
    return reply;
}

static uint32_t *copy_ends(const struct prompt *prompt)
{
    uint32_t *ends = malloc((prompt->end_count + 1) * sizeof *ends); /* room for the reply's */
    if (ends != NULL && prompt->end_count > 0)
        memcpy(ends, prompt->ends, prompt->end_count * sizeof *ends);
    return ends;
}

void engine_idle_remember(struct engine *engine, struct choice *choice)
{
    const struct prompt *prompt = &choice->job->prompt;
    struct idle_reply reply = {
        .labelled = choice->job->labelled, .text = choice->text, .text_size = choice->text_size};
    memcpy(reply.conversation, choice->job->conversation, sizeof reply.conversation);
    memcpy(reply.root, choice->job->root, sizeof reply.root);
    reply.prompt = (struct prompt){
        .ids = choice->ids, .count = prompt->count, .ends = copy_ends(prompt), .end_count = prompt->end_count};
    choice->ids = NULL;
    choice->text = NULL;
    if (reply.prompt.ends == NULL) {
        free_reply(&reply);
        return;
    }
    if (engine->reply_count == ENGINE_IDLE_MAX) {
        struct idle_reply oldest = take_oldest(engine);
        free_reply(&oldest);
    }
    engine->replies[(engine->reply_first + engine->reply_count++) % ENGINE_IDLE_MAX] = reply;
}

/* The canonical prompt, with the reply's end behind the others. */
static enum status extend(const struct engine *engine, struct idle_reply *reply, struct prompt *out)
{
    const struct model_config *config = &engine->model->config;
    struct prompt *prompt = &reply->prompt;
    TRY(prompt_extend(engine->tokenizer, config, prompt->ids, prompt->count, reply->text, reply->text_size,
                      config->context_tokens_max - 1, out));
    free(out->ends);
    out->ends = prompt->ends;
    out->end_count = prompt->end_count;
    out->ends[out->end_count++] = out->count;
    prompt->ends = NULL;
    return STATUS_OK;
}

static struct job *make_job(struct engine *engine, struct idle_reply *reply)
{
    struct job *job = calloc(1, sizeof *job);
    if (job == NULL)
        return NULL;
    memcpy(job->root, reply->root, sizeof job->root);
    job->labelled = reply->labelled;
    memcpy(job->conversation, reply->conversation, sizeof job->conversation);
    job->idle = true;
    job->priority = INT32_MIN;
    job->arrival = engine->arrivals++;
    job->deadline_ms = UINT64_MAX;
    job->choice_count = 1;
    job->match_hint = UINT32_MAX;
    job->rank_place = job->deadline_place = JOB_NOT_QUEUED;
    if (extend(engine, reply, &job->prompt) !=
        STATUS_OK) /* no longer fits the context: the next turn cannot have it either */
        job_destroy(&job);
    return job;
}

struct job *engine_idle_next(struct engine *engine)
{
    while (engine->idle == NULL && engine->reply_count > 0) {
        struct idle_reply reply = take_oldest(engine);
        if (!reply.labelled || kv_homes_labelled(engine->homes, reply.conversation)) /* else it was said to be gone */
            engine->idle = make_job(engine, &reply);
        free_reply(&reply);
    }
    return engine->idle;
}

void engine_idle_end(struct engine *engine)
{
    struct job *job = engine->idle;
    struct choice *choice = job->choices;
    engine->idle = NULL;
    if (choice != NULL && choice->state == CHOICE_RUNNING) {
        const bool label = job->labelled && kv_homes_labelled(engine->homes, job->conversation); /* else it is told GONE */
        /* The next turn begins like this one, not as it was drawn. */
        kv_homes_keep(engine->homes, &choice->sequence, 0, label ? job->conversation : NULL);
        engine_move_choice(engine, choice, CHOICE_ENDED);
    }
    DL_APPEND(engine->ended, job);
}

void engine_idle_disown(struct engine *engine, const uint8_t *conversation)
{
    for (uint32_t i = 0; i < engine->reply_count; i++) {
        struct idle_reply *reply = &engine->replies[(engine->reply_first + i) % ENGINE_IDLE_MAX];
        if (memcmp(reply->conversation, conversation, sizeof reply->conversation) == 0)
            reply->labelled = false;
    }
    if (engine->idle != NULL && memcmp(engine->idle->conversation, conversation, sizeof engine->idle->conversation) == 0)
        engine->idle->labelled = false;
}

void engine_idle_forget(struct engine *engine)
{
    while (engine->reply_count > 0) {
        struct idle_reply reply = take_oldest(engine);
        free_reply(&reply);
    }
    job_destroy(&engine->idle);
}
