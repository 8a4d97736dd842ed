/* engine.h - one model, its KV cache and its requests. No sockets, no protobuf: testable and benchmarkable alone.
 *
 * Owns model, tokenizer, backend, KV cache and jobs. Called by one thread, the engine thread (engine_progress excepted).
 * Requests run together: a step is one batch of prompt chunks and decoded tokens that scheduler.h planned, so that cancel, deadlines
 * and progress act within a step. A job has one sequence per choice (n > 1); they share the prompt's KV.
 *
 * A finished, cancelled or failed job leaves its KV in the cache, as far as it was computed, for the next prompt that begins
 * alike; only STATUS_CORRUPT throws it away. A finished reply is encoded anew as the next prompt will have it; where the ids differ
 * from those drawn, the rest is computed again when the engine is idle. Control pieces other than the end ids, and ids without text, are
 * never drawn.
 *
 * Always true: each accepted job ends in exactly one ENGINE_DONE or ENGINE_FAILED; the tokens of a job depend on its prompt
 * ids, seed and sampling alone, not on the cache, the chunk size, preemption, threads or other jobs; released text is whole
 * characters and holds no stop string. */
#ifndef ROOST_WORKER_ENGINE_ENGINE_H
#define ROOST_WORKER_ENGINE_ENGINE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include "common/status.h"
#include "worker/engine/text/sampler.h"

struct backend_health;               /* worker/engine/backend/backend.h */
struct backend_ops;
struct parallel_group;               /* worker/engine/backend/parallel_group.h */
struct simulate_profile;             /* worker/engine/backend/backend_simulate.h */
struct engine;

struct engine_config {
    const char *model_dir;           /* config.json, model.safetensors, tokenizer.model, known_answer.json (optional) */
    uint64_t kv_bytes;               /* of the device tier; at least one conversation at full context */
    uint64_t kv_host_bytes;          /* of the host tier; 0: none */
    uint32_t chunk_tokens;           /* prefill tokens of one sequence in a step, 1 .. 4096 */
    uint32_t batch_tokens;           /* tokens of a step over all sequences, at least chunk_tokens, .. 16384; 0: chunk_tokens + sequences_max.
                                        At least sequences_max + 1 are taken, so that all can decode and prefill goes on */
    uint32_t sequences_max;          /* that run at a time, 1 .. 1024; 0: 64 */
    uint32_t step_ms_max;            /* prefill is cut so that a step stays under it; 0: 250 */
    uint32_t queue_requests_max;     /* waiting requests; more are refused with STATUS_AGAIN */
    uint32_t rewind_tokens;          /* R of kv_cache.h; UINT32_MAX: 1,024 */
    uint32_t snapshots_max;          /* of kv_cache.h; UINT32_MAX: 8 */
    uint32_t threads;                /* that compute; 0: 1 */
    bool full_depth;                 /* early exit off (tests) */
    bool skip_known_answer;          /* tests of broken models only */
    const struct backend_ops *backend;   /* NULL: the simulated backend if there is a profile, the group's ranks if there is a group, else the
                                            CPU backend */
    struct parallel_group *group;    /* ref, outlives the engine; NULL: one process computes */
    const struct simulate_profile *simulate;   /* ref for engine_create; not NULL: no weights and no known answer are read, context and
                                                  device tier are as the profile says */
};

struct engine_info {                 /* fixed after create; borrowed from the engine */
    const char *model_name;
    uint8_t weights_digest[32];
    uint8_t numerics_id[32];         /* weights digest, numerics revision, backend family: equal ids promise equal bits */
    uint32_t context_tokens_max;
    uint64_t kv_tokens_max;          /* what both tiers hold of conversations at full context (kv_cache_formula) */
    uint32_t kv_bytes_per_token;     /* page bytes of all groups / 64: what a token costs inside the window */
};

enum engine_role { ENGINE_ROLE_USER, ENGINE_ROLE_ASSISTANT, ENGINE_ROLE_SYSTEM };

struct engine_message {
    enum engine_role role;
    const char *name;  size_t name_size;   /* the speaker; empty: the role's word (USER, ASSISTANT, SCENE) */
    const char *text;  size_t text_size;   /* UTF-8 */
};

#define ENGINE_CONVERSATION_BYTES 16

struct engine_request {              /* everything is borrowed during engine_submit */
    uint64_t job;                    /* chosen by the caller, unique among open jobs; names it in events */
    uint8_t request_id[16];          /* for logs, and for the default seed */
    const char *tenant;  size_t tenant_size;        /* salts the cache: nothing is shared between tenants */
    const struct engine_message *messages;  unsigned message_count;
    const uint32_t *prompt_ids;  unsigned prompt_id_count;   /* instead of messages */
    const char *reply_name;  size_t reply_name_size;         /* empty: ASSISTANT */
    bool truncate;                   /* drop old messages instead of STATUS_LIMIT (prompt.h) */
    struct sampler_options sampling; /* masked and end_ids are the engine's, seed as below; stop ids go into stop_ids */
    uint64_t seed;  bool seed_given; /* else hash(tenant, request id, choice 0) */
    uint32_t tokens_max;             /* 0, or more than the context leaves: what the context leaves */
    uint32_t choices;                /* replies to make; 0 or 1: one; to ENGINE_CHOICES_MAX */
    /* A resume: the ids of each choice that were released before, by whoever ran it until now. They are replayed (penalties, characters,
     * stop strings, lengths) and no event repeats them: `first` goes on behind them, limits and reply_tokens count them. What follows is to
     * the bit what the one who released them would have gone on with. A choice that they end (a stop string, its length) ends without
     * being computed; ENGINE_PROMPT comes again. Counts are of whole releases: as far as some ENGINE_TOKENS event went. */
    const uint32_t *resume_counts;   /* (choices); NULL: from the start */
    const uint32_t *resume_ids;      /* all choices one after the other */
    const uint32_t *stop_ids;  unsigned stop_id_count;       /* end the reply like an end id, to SAMPLER_STOP_IDS_MAX */
    const char *const *stops;  const size_t *stop_sizes;  unsigned stop_count;   /* stop strings (stop_stream.h) */
    bool logprobs;  uint32_t alternatives;   /* log probabilities of the tokens drawn, and of the most likely ones, to SAMPLER_LOGPROBS_MAX */
    bool prompt_logprobs;            /* of the prompt's tokens from the second on; the whole prompt is then computed at full depth, nothing
                                        is taken from the cache */
    int32_t priority;                /* higher first */
    bool apart;                      /* a worker was lost with it: until it releases something no other prompt is computed with its own */
    uint64_t deadline_ms;            /* on clock_now_ms; 0: none */
    bool tell_fate;                  /* of `conversation` the last three events are wanted */
    uint8_t conversation[ENGINE_CONVERSATION_BYTES];         /* random, or a hash; says nothing about what is shared */
};

#define ENGINE_CHOICES_MAX 16u

enum engine_event_kind {
    ENGINE_STARTED,                  /* its first tokens are about to be computed, of a resume too: sent before the forward that they are in.
                                        Once, before all others; not of a job that ends without being computed */
    ENGINE_PROMPT,                   /* with prompt_logprobs, once, before the first ENGINE_TOKENS: ids and logprobs of the prompt from its
                                        second token on (none of a prompt of one token) */
    ENGINE_TOKENS,                   /* released tokens and their text; the last of a choice that met a stop string may have text alone */
    ENGINE_DONE,
    ENGINE_FAILED,                   /* status and detail: STATUS_TIMEOUT, STATUS_CANCELLED, STATUS_LIMIT (KV), STATUS_CORRUPT... */
    /* Of a conversation, not of a job: what became of what its last job with tell_fate and ENGINE_DONE left in the cache, on the device
     * then. Its next turn finds all of that until EVICTED is said; jobs that do not end well, and other conversations, change nothing. Of
     * several choices the one that ended last speaks for all. */
    ENGINE_DEMOTED,                  /* its end is in the host tier now */
    ENGINE_PROMOTED,                 /* and on the device again */
    ENGINE_EVICTED,                  /* it was evicted, or nothing was left. Of up to KV_CACHE_LABELS_MAX conversations; over it of the oldest */
};
enum engine_finish { ENGINE_FINISH_STOP = 1, ENGINE_FINISH_LENGTH = 2, ENGINE_FINISH_STOP_STRING = 3 };   /* values of the wire */

struct engine_event {                /* pointers are borrowed for the call */
    enum engine_event_kind kind;
    uint64_t job;
    uint32_t choice;                 /* TOKENS */
    uint32_t first;                  /* TOKENS: sequence number of ids[0] within its choice, counting released tokens from 0 */
    const uint32_t *ids;  unsigned count;
    const char *text;  size_t text_size;
    const float *logprobs;           /* (count) or NULL */
    uint32_t alternatives;           /* of each of ids; 0: none */
    const uint32_t *alternative_ids; /* (count, alternatives) or NULL */
    const float *alternative_logprobs;
    enum engine_finish finish[ENGINE_CHOICES_MAX];   /* DONE: (choices) */
    uint32_t choices;                /* DONE */
    uint32_t prompt_tokens, cached_tokens, reply_tokens;   /* DONE; reply_tokens: the released ones of all choices,
                                                              end ids are not */
    uint32_t queue_us, prefill_us, decode_us;              /* DONE */
    uint32_t dropped_messages;       /* DONE: by truncation */
    enum status status;  const char *detail;               /* FAILED */
    uint8_t conversation[ENGINE_CONVERSATION_BYTES];       /* DEMOTED, PROMOTED, EVICTED; job is 0 */
};
typedef void engine_event_fn(void *user, const struct engine_event *event);

struct engine_progress {             /* a snapshot, readable from any thread */
    uint64_t steps;                  /* completed */
    uint64_t step_started_ms;        /* clock_now_ms at the start of the running step; 0: idle */
    uint32_t step_median_us;         /* over the last 64 */
    uint32_t queued_requests, running_requests;
    uint64_t queued_tokens, running_tokens;     /* prompt tokens still to compute plus replies so far */
    uint64_t kv_tokens_used, kv_tokens_max;     /* kept conversations count as used */
};

struct engine_pressure {             /* since create: what lack of memory or places cost; all 0: there was enough */
    uint64_t suspended;              /* sequences that were preempted, each time */
    uint64_t demoted, promoted;      /* pages that went to the host tier, and came back */
    uint64_t evicted;                /* kept conversations that lost resume points, R or everything */
};

/* Also runs DIR/known_answer.json (engine_seal): STATUS_CORRUPT if this machine computes anything else. Without that file a
 * warning is logged. */
enum status engine_create(const struct engine_config *config, struct engine **out);
void engine_destroy(struct engine **engine);          /* accepts NULL; open jobs are forgotten without events */
const struct engine_info *engine_info(const struct engine *engine);

/* Checks and tokenises; on STATUS_OK the job is queued. STATUS_INVALID: bad text or ids, or a resume that no reply of this request can have
 * released: an end id, one without text, more tokens than the reply may have. STATUS_LIMIT: the prompt leaves no room
 * for a reply within the context (the detail has both counts). STATUS_AGAIN: the queue is full; *retry_after_ms (may be NULL) says when
 * room is likely, from the measured rate. STATUS_EXISTS: an open job has this
 * number. No event is sent on failure. */
enum status engine_submit(struct engine *engine, const struct engine_request *request, uint32_t *retry_after_ms);
/* The job ends with ENGINE_FAILED, STATUS_CANCELLED, in the next step. Unknown jobs are ignored. */
void engine_cancel(struct engine *engine, uint64_t job);

/* One step. Returns false when there was nothing to do. Events come through sink during the call; the sink may submit and
 * cancel, and must not step or destroy. */
bool engine_step(struct engine *engine, engine_event_fn *sink, void *user);

/* STATUS_CLOSED once the backend is lost for good (backend.h), with the reason as detail: no step may follow, the open jobs have been told
 * nothing and another process has to compute them. */
enum status engine_lost(const struct engine *engine);

/* Prints the plan of each step to `out` from now on (scheduler_plan_print), NULL: no more. For tests and debugging. */
void engine_trace_plans(struct engine *engine, FILE *out);

/* Shows each row of logits before a token is drawn from it (tests of bits, debugging); position is the token's absolute one. */
typedef void engine_logits_fn(void *user, uint64_t job, uint32_t choice, uint32_t position, const float *logits, uint32_t vocab_size);
void engine_observe_logits(struct engine *engine, engine_logits_fn *fn, void *user);

void engine_progress(const struct engine *engine, struct engine_progress *out);
void engine_pressure(const struct engine *engine, struct engine_pressure *out);
/* How the device is; one thread at a time, any. May take milliseconds. False: it has none that says. */
bool engine_health(const struct engine *engine, struct backend_health *out);
void engine_forget_cache(struct engine *engine);      /* drops all kept KV (tests, operators) */
enum status engine_check(const struct engine *engine);   /* verifies the KV cache's invariants, slowly (tests, debugging) */

/* Writes DIR/known_answer.json with what the CPU backend computes here, replacing an older one (`roost model seal DIR`). */
enum status engine_seal(const char *model_dir);

#endif
