/* engine_internal.h - what the files of the engine share. Nothing outside worker/engine/engine*.c includes it.
 *
 *   engine.c          create and destroy, submit and cancel, the step, progress
 *   engine_plan.c     the scheduler's table, carrying a plan out, the forward of a batch
 *   engine_output.c   logits to tokens, text and log probabilities; the ends of choices and jobs
 *   engine_idle.c     finished replies encoded anew, computed when there is nothing else to do
 *   job.h             a request and its choices; job_queue.h those that wait; step_pace.h how much fits into a step
 *
 * Where a job is: `open` has every job that has not ended (background work excepted). A waiting one is in `queue`; an active one in
 * `active`, with its running and suspended choices in `slots`; one whose last event is sent in `ended` until the end of the step, so that
 * nothing that a step still looks at is freed under it. `held` counts the choices of active jobs that have not ended; each
 * has a slot for sure. */
#ifndef ROOST_WORKER_ENGINE_ENGINE_INTERNAL_H
#define ROOST_WORKER_ENGINE_ENGINE_INTERNAL_H
#include <stdatomic.h>
#include "worker/engine/backend/backend.h"
#include "worker/engine/engine.h"
#include "worker/engine/job.h"
#include "worker/engine/job_queue.h"
#include "worker/engine/kv/kv_homes.h"
#include "worker/engine/scheduler.h"
#include "worker/engine/step_pace.h"

#define ENGINE_STEP_TIMES 64u
#define ENGINE_SCORE_ROWS 64u        /* logits rows for prompt log probabilities in a step */
#define ENGINE_IDLE_MAX 64u          /* finished replies that wait to be encoded anew: ids and text, at most some 300 kB each at 32k */

struct model;
struct sampler;
struct tokenizer;

struct shared_progress {             /* written by the engine thread, read by any; each value is its own */
    _Atomic uint64_t steps, step_started_ms, queued_tokens, running_tokens, kv_tokens_used;
    _Atomic uint32_t step_median_us, queued_requests, running_requests;
};

struct engine_run {                  /* of the batch of this step */
    struct choice *choice;           /* ref; NULL: taken out */
    uint32_t start, count;
    uint32_t rows;                   /* of logits: the last `rows` tokens */
    float *logits;                   /* NULL with drawn */
    bool drawn;                      /* the backend draws the token */
    struct backend_sample sample;    /* with drawn */
};

struct idle_reply {                  /* everything owned */
    uint8_t root[KV_CACHE_ROOT_BYTES];
    bool labelled;                   /* the path that the drawn reply left bears the conversation's name: the canonical one shall */
    uint8_t conversation[ENGINE_CONVERSATION_BYTES];
    struct prompt prompt;            /* ids: prompt and drawn reply; count: the prompt's alone */
    char *text;
    size_t text_size;
};

struct engine {
    struct model *model;             /* owned, as the next six */
    struct tokenizer *tokenizer;
    struct backend *backend;
    struct kv_homes *homes;
    struct sampler *sampler;
    struct job_queue queue;
    const struct backend_ops *ops;   /* ref */

    struct job *open;                /* table by id */
    struct job *active, *ended;      /* lists */
    struct job *idle;                /* background work that runs or is about to; NULL: none */
    struct idle_reply replies[ENGINE_IDLE_MAX];   /* ring, oldest first */
    uint32_t reply_first, reply_count;
    uint64_t arrivals, suspensions;  /* since create */

    struct choice **slots;           /* (slots_max); NULL: free */
    uint32_t *free_slots;            /* (slots_max), the first free_count */
    uint32_t slots_max, slot_end, free_count, held, running;   /* slots from slot_end on are free; running: RUNNING choices */

    uint32_t chunk_tokens, rows_max, sequences_max;
    struct kv_cache_config cache_config;
    uint64_t page_bytes;             /* of one page of every group */
    struct step_pace pace;
    struct scheduler_entry *entries; /* (slots_max + SCHEDULER_WAITING_MAX) */
    struct job *shown[SCHEDULER_WAITING_MAX];     /* waiting jobs in the table */
    uint32_t shown_slots[SCHEDULER_WAITING_MAX];  /* the slots they would take */
    uint32_t shown_count;
    struct scheduler_plan plan;
    struct engine_run *runs;         /* (sequences_max) */
    struct backend_run *batch;       /* (sequences_max) */
    uint32_t run_count;
    uint32_t rows_used, score_rows_used;
    float *logits;                   /* (sequences_max, vocab) */
    float *score_logits;             /* (ENGINE_SCORE_ROWS, vocab); NULL until somebody asks */

    uint32_t *masked;                /* ids never drawn, ascending */
    uint32_t masked_count;
    engine_event_fn *sink;           /* during a step */
    void *sink_user;
    engine_logits_fn *observer;      /* NULL: none */
    void *observer_user;
    FILE *trace;                     /* ref; NULL: none */
    bool lost;                       /* the backend is; lost_detail says why */
    char lost_detail[512];
    struct engine_info info;
    struct shared_progress progress;
    uint32_t step_times[ENGINE_STEP_TIMES];
    char text[UTF8_STREAM_TEXT_MAX]; /* of one event */
};

/* engine.c */
void engine_send(struct engine *engine, const struct engine_event *event);
void engine_tell_fate(struct engine *engine, const uint8_t *conversation, enum engine_event_kind kind);

/* engine_plan.c: one plan and its batch. False: there was nothing to plan for. */
bool engine_plan_step(struct engine *engine);
/* The one function that changes a choice's state; keeps slots, held and running in step. */
void engine_move_choice(struct engine *engine, struct choice *choice, enum choice_state state);

/* engine_output.c */
/* Brings the choices of a started job to where a resume says that they are; sends nothing. */
enum status engine_replay(struct engine *engine, struct job *job);
void engine_end_replayed(struct engine *engine, struct choice *choice);         /* one that its replay has ended */
void engine_take_logits(struct engine *engine, const struct engine_run *run);   /* its KV has been appended; takes the token too, where it is drawn */
void engine_fail_job(struct engine *engine, struct job *job, enum status st, const char *detail);   /* an active one */
void engine_fail_waiting(struct engine *engine, struct job *job, enum status st, const char *detail);   /* taken from the queue */

/* engine_idle.c */
void engine_idle_remember(struct engine *engine, struct choice *choice);   /* an ended one; takes its ids and text */
struct job *engine_idle_next(struct engine *engine);      /* engine->idle, made of the oldest reply if there is none; NULL: nothing to do */
void engine_idle_end(struct engine *engine);              /* keeps what engine->idle computed */
/* A later turn of the conversation has been kept: what is still computed of earlier ones is not its end. */
void engine_idle_disown(struct engine *engine, const uint8_t *conversation);
void engine_idle_forget(struct engine *engine);           /* all of it, at destroy */

#endif
