/* engine_client.h - runs requests against an engine in a test: collects what it says about each job, and checks its promises on the way:
 * sequence numbers without gaps, valid text, no stop string, log probabilities where they were asked for, exactly one end and
 * nothing after it.
 *
 *     client_setup(&client, engine);
 *     struct client_job *job = client_ask(&client, &request);       // alone, to its end, which must be ENGINE_DONE
 *     ...
 *     client_submit(&client, &a, &first), client_submit(&client, &b, &second);   // or many together
 *     client_run(&client);
 *     assert_same_reply(first, job);                                // ids, text, ends, log probabilities and the bits of all logits
 *     client_digest(first);                                         // all of that in 64 bits, the same on every machine
 *     client_free(&client);
 *
 * Also conversations that can be continued, retried, edited and branched (struct talk). */
#ifndef ROOST_TESTS_ENGINE_CLIENT_H
#define ROOST_TESTS_ENGINE_CLIENT_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "worker/engine/engine.h"

struct client_reply {                /* of one choice; everything owned. Of a resume: what came behind the tokens it names */
    uint32_t resumed;                /* of these; sequence numbers go on behind them */
    uint32_t *ids;
    uint32_t count, capacity;
    char *text;                      /* with a NUL behind it */
    size_t text_size, text_capacity;
    float *logprobs;                 /* (count), if asked for */
    uint32_t *alternative_ids;       /* (count, alternatives) */
    float *alternative_logprobs;
    uint64_t logits;                 /* digest of the bits of every row of logits that a token was drawn from, with its position */
    uint32_t draws;
    bool over;                       /* nothing more may come */
};

struct client_fate {                 /* what the engine says of a conversation's KV */
    bool kept, host;                 /* now: since its last ENGINE_DONE it was not said to be gone; it is in the host tier */
    unsigned demoted, promoted, evicted;
};

struct client_job {                  /* owned by the client; stays where it is until client_reset */
    uint64_t job;
    uint32_t choices, alternatives;
    bool logprobs, prompt_logprobs;
    struct client_reply replies[ENGINE_CHOICES_MAX];
    struct client_reply prompt;      /* ids from the second on and their log probabilities, of ENGINE_PROMPT */
    bool resumed;                    /* it may end without being computed */
    bool prompt_seen, started, ended;
    struct client_fate *fate;        /* ref: of its conversation; NULL: it does not ask */
    struct engine_event end;         /* detail points to `detail` */
    char detail[512];
    unsigned end_order;              /* 1: the first job that ended */
    char stops[16][256];             /* its stop strings, cut to 255 bytes */
    unsigned stop_count;
};

enum { CLIENT_CONVERSATIONS = 64 };

struct client {
    struct engine *engine;           /* ref */
    struct client_job **jobs;        /* owned, (count), in the order of their numbers */
    unsigned count, ended, capacity;
    uint64_t first_job, last_job;
    uint64_t steps;
    struct client_fate fates[CLIENT_CONVERSATIONS];
    bool check;                      /* engine_check after every step */
    bool digest_logits;              /* default true */
    void (*on_event)(struct client *client, const struct engine_event *event);   /* NULL allowed */
};

void client_setup(struct client *client, struct engine *engine);   /* observes the engine's logits */
void client_free(struct client *client);
void client_reset(struct client *client);          /* forgets the jobs; all must have ended */

/* Makes it a turn of conversation `number` (below CLIENT_CONVERSATIONS) and asks for its fate. */
void client_converse(struct engine_request *request, unsigned number);
/* Fills request->job. On STATUS_OK *job is where its events go. */
enum status client_submit(struct client *client, struct engine_request *request, struct client_job **job);
bool client_step(struct client *client);
void client_run(struct client *client);             /* until the engine has nothing to do; every job must have ended */
void client_run_jobs(struct client *client);        /* until every job has ended; background work may be left */

/* Runs request alone; fails the test unless it is done. */
struct client_job *client_ask(struct client *client, struct engine_request *request);

/* All choices the same: ids, text, finish, log probabilities, logits. */
void assert_same_tokens(const struct client_job *a, const struct client_job *b);   /* logits excepted */
void assert_same_reply(const struct client_job *a, const struct client_job *b);
uint64_t client_digest(const struct client_job *job);

/* ---- conversations ---- */

enum { TALK_MESSAGES = 64, TALK_TEXT = 4096 };

struct talk {
    struct {
        enum engine_role role;
        char text[TALK_TEXT];
        size_t size;
    } messages[TALK_MESSAGES];
    unsigned count;
    struct engine_message views[TALK_MESSAGES];
};

void talk_say(struct talk *talk, enum engine_role role, const char *text, size_t size);   /* cut at TALK_TEXT, between characters */
void talk_request(struct talk *talk, struct engine_request *request);   /* points request at the messages */

#endif
