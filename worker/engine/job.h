/* job.h - one accepted request and its choices.
 *
 *   job_create --> job_queue (waits) --job_start--> active: its choices run --> ended, freed at the end of the step
 *
 *   a choice:  NEW --choice 0: admitted; others: branched off when the prompt is computed--> RUNNING <--> SUSPENDED --> ENDED
 *
 * Only choice 0 computes the prompt. A choice knows its ids; what the KV cache counts is how many of them are computed. One that is
 * one token short of its ids decodes, one that is further back (a prompt; a suspended one that lost KV; the ids of a resume)
 * prefills: nothing else distinguishes the two, so computing again needs no code of its own.
 *
 * A job owns its choices and copies of everything the request named. KV sequences belong to the cache; whoever ends a choice has
 * ended its sequence before. Used by the engine thread only. */
#ifndef ROOST_WORKER_ENGINE_JOB_H
#define ROOST_WORKER_ENGINE_JOB_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#define HASH_NONFATAL_OOM 1
#include <uthash.h>
#include "common/status.h"
#include "worker/engine/engine.h"
#include "worker/engine/kv/kv_cache.h"
#include "worker/engine/text/prompt.h"
#include "worker/engine/text/sampler.h"
#include "worker/engine/text/stop_stream.h"
#include "worker/engine/text/utf8_stream.h"

struct model_config;
struct tokenizer;
struct job;

/* Reply tokens drawn and not yet released: those of an unfinished character, and those of text that could begin a stop string, which
 * is less than STOP_STRING_BYTES_MAX bytes long, and no token is without text. */
#define CHOICE_HELD_MAX (UTF8_STREAM_TOKENS_MAX + STOP_STRING_BYTES_MAX + 1u)

enum choice_state { CHOICE_NEW, CHOICE_RUNNING, CHOICE_SUSPENDED, CHOICE_ENDED };

struct choice {
    struct job *job;                 /* ref: its owner */
    uint32_t index;                  /* in job->choices */
    enum choice_state state;         /* RUNNING, SUSPENDED: it has a slot of the engine */
    uint32_t slot;
    struct kv_sequence *sequence;    /* open; NULL: NEW, ENDED, or SUSPENDED before it could branch */
    uint32_t *ids;                   /* (prompt + reply_max), owned: the prompt, then what was drawn, end ids excepted */
    uint32_t count;
    uint32_t resumed;                /* reply tokens that were released elsewhere: the first ones; never sent */
    uint32_t released;               /* reply tokens, those of a resume too as soon as their text came out of the streams */
    enum engine_finish finish;       /* ENDED, or 0; set earlier when a resume's ids end it: it ends when the prompt is done */
    struct sampler_tally *tally;     /* owned; NULL without penalties */
    struct utf8_stream characters;
    struct stop_stream *stop;        /* owned; NULL without stop strings */
    float *logprobs;                 /* (CHOICE_HELD_MAX), owned; of drawn tokens not yet released; NULL: not asked for */
    uint32_t *alternative_ids;       /* (CHOICE_HELD_MAX, alternatives) */
    float *alternative_logprobs;
    char *text;                      /* owned: what was released, for the canonical encoding (engine_idle.c) */
    size_t text_size, text_capacity;
};

struct prompt_scores {               /* prompt_logprobs; entry i is of prompt token i + 1 */
    uint32_t done;                   /* entries so far */
    float *logprobs;                 /* (prompt count - 1), owned; NULL: not asked for */
    uint32_t *alternative_ids;       /* (prompt count - 1, alternatives) */
    float *alternative_logprobs;
};

struct job {
    uint64_t id;                     /* engine_request.job */
    bool labelled;                   /* the path that it leaves in the cache bears the conversation's name */
    uint8_t conversation[ENGINE_CONVERSATION_BYTES];
    uint64_t arrival;                /* counts up: rank within a priority */
    int32_t priority;
    uint64_t deadline_ms;            /* UINT64_MAX: none */
    bool cancelled;
    bool apart;                      /* as in engine_request */
    bool spoke;                      /* something of it was released here */
    bool start_told;                 /* ENGINE_STARTED is sent */
    bool ended;                      /* its last event is sent; freed at the end of the step */
    bool idle;                       /* of engine_idle.c: computes KV, draws nothing, sends nothing */
    bool chat;                       /* from messages: its reply is encoded anew */
    uint8_t root[KV_CACHE_ROOT_BYTES];
    struct prompt prompt;            /* owned */
    uint32_t reply_max;              /* of each choice; at least 1, but 0 for idle */
    struct sampler_options sampling; /* its lists are owned, masked excepted */
    struct stop_strings *stops;      /* owned; NULL: none */
    uint32_t alternatives;
    bool logprobs;
    uint32_t *resume_counts, *resume_ids;   /* as in engine_request, owned; NULL: from the start */
    struct prompt_scores scores;
    uint32_t match_hint;             /* kv_cache_match when it was first shown to the scheduler; UINT32_MAX: not yet */

    struct choice *choices;          /* (choice_count), owned; NULL while it waits */
    uint32_t choice_count, ended_count;
    bool branched;                   /* the prompt is computed, every choice has drawn a token or computes those of a resume; a choice
                                        that resumes alone computes them with the prompt: true from the start */
    uint32_t cached;                 /* prompt tokens found in the cache */
    uint64_t submitted_us, started_us, decode_us;

    uint32_t rank_place, deadline_place;   /* in the heaps of job_queue; JOB_NOT_QUEUED once started */
    struct job *prev, *next;         /* list of active jobs, or of ended ones */
    UT_hash_handle hh;               /* the engine's table of open jobs, by id */
};

#define JOB_NOT_QUEUED UINT32_MAX
#define CHOICE_NO_SLOT UINT32_MAX

struct job_limits {                  /* what a request is checked against; borrowed */
    const struct model_config *config;
    const struct tokenizer *tokenizer;
    const uint32_t *masked;          /* outlives the job */
    uint32_t masked_count;
};

/* Checks everything about a request that does not depend on other jobs. Errors: engine_submit. */
enum status job_create(const struct job_limits *limits, const struct engine_request *request, struct job **out);
void job_destroy(struct job **job);                  /* accepts NULL; sequences must have ended */

/* Makes the choices, before the job leaves the queue. */
enum status job_start(struct job *job);

/* True: one choice resumes, and nobody asks for anything at the end of the prompt. */
bool job_resumes_alone(const struct job *job);
bool job_over(const struct job *job);                /* the ids of a resume have ended every choice */
bool job_ends_reply(const struct job *job, uint32_t id);     /* an end id of the model or a stop id of the request */
uint32_t choice_reply_count(const struct choice *choice);    /* tokens drawn, or resumed */
/* The ids to compute now: of choice 0 the prompt's alone until the others have branched off. */
uint32_t choice_known(const struct choice *choice);
/* Rank: higher priority, earlier arrival, lower choice. */
bool choice_ranks_before(const struct choice *a, const struct choice *b);

#endif
