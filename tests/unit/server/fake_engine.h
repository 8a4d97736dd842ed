/* fake_engine.h - engine.h with its timing in the test's hands. A prompt has as many tokens as its texts have bytes; token i of a reply
 * is fake_engine_token(prompt tokens, i) and its text a word. Each decoded token takes one permit. Choice c > 0 has the tokens of a prompt
 * that is c tokens longer, and ends c tokens earlier, with FAKE_FINISH(c), a stop string after one more text, "~"; the choices release
 * in turn, the last one first, for one permit.
 * A resume must have the tokens that the reply has; choices go on behind theirs.
 * Log probabilities are fake_engine_logprob(id, alternative), alternative j of id is id + j; token i of a prompt is i. */
#ifndef ROOST_TESTS_FAKE_ENGINE_H
#define ROOST_TESTS_FAKE_ENGINE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"
#include "worker/engine/engine.h"

#define FAKE_CONTEXT 4096u
#define FAKE_PERMITS_ALL (-1)
#define FAKE_ROW_TOKENS_MAX 300u
#define FAKE_FINISH(choice) ((enum engine_finish)((choice) % 3 == 0 ? ENGINE_FINISH_LENGTH : (choice) % 3))

void fake_engine_reset(void);                          /* permits for everything, loads at once, small texts */
void fake_engine_permit(int tokens);                   /* adds; FAKE_PERMITS_ALL: no limit; resets with fake_engine_hold */
void fake_engine_hold(void);                           /* no permits from now on */
void fake_engine_load(bool may_finish, enum status st);   /* what engine_create does */
void fake_engine_text_bytes(size_t bytes);             /* of each token from now on; 0: a word */
void fake_engine_row_tokens(uint32_t tokens);          /* released together from now on, for one permit; 1 to FAKE_ROW_TOKENS_MAX */
void fake_engine_fail_next(enum status st);            /* the next decoded token fails its job */
void fake_engine_refuse_next(enum status st, uint32_t retry_after_ms);   /* the next submit */
void fake_engine_stuck(bool stuck);                    /* the next step does not end */
void fake_engine_tell_starts(void);                    /* from now on: ENGINE_STARTED when a job is the first to run */
void fake_engine_stuck_at_start(bool stuck);           /* a step that told one does not go on */
unsigned fake_engine_cancels(void);                    /* jobs that were open when they were cancelled */
void fake_engine_last(struct engine_request *out);     /* numbers of the last submit; pointers are NULL */
struct fake_lists {                                    /* the first of its lists; counts are in fake_engine_last's */
    uint32_t stop_ids[4], bias_ids[4];
    float bias_values[4];
    char stops[4][32];
};
void fake_engine_last_lists(struct fake_lists *out);
uint32_t fake_engine_token(uint32_t prompt_tokens, uint32_t index);
float fake_engine_logprob(uint32_t id, uint32_t alternative);

#endif
