/* step_pace.h - how fast steps have been, as moving means: how many tokens the next may have, and when a refused request is likely to find
 * room. A plain value without a clock; used by the engine thread.
 *
 * A step of d decoded and p prefilled tokens is taken to cost d * decode_us + p * prefill_us; each step corrects both. The plan aims at PACE_AIM of the limit: attention grows with the context, and a measurement can be wrong. */
#ifndef ROOST_WORKER_ENGINE_STEP_PACE_H
#define ROOST_WORKER_ENGINE_STEP_PACE_H
#include <stdint.h>

#define PACE_AIM 0.7
#define PACE_FIRST_US 3000.0         /* a token before anything is measured: a model of 1e9 weights on one core; corrected by the first steps */
#define PACE_RETRY_MS_MIN 10u
#define PACE_RETRY_MS_MAX 60000u
#define PACE_RETRY_MS_FIRST 1000u    /* before the first request has left the queue */

struct step_pace {
    double limit_us;                 /* of a step */
    double decode_us, prefill_us;    /* a token */
    double admission_ms;             /* between two requests that leave the full queue; 0: unknown */
    uint64_t admitted_ms;            /* the last one; 0: none */
    uint32_t refused;                /* since then */
};

void step_pace_init(struct step_pace *pace, uint32_t step_ms_max);
/* Tokens for a step in which `decoding` sequences decode: at least decoding + 1, at most rows_max (which is more than decoding). */
uint32_t step_pace_budget(const struct step_pace *pace, uint32_t decoding, uint32_t rows_max);
void step_pace_record(struct step_pace *pace, uint32_t decoded, uint32_t prefilled, uint64_t us);

void step_pace_admitted(struct step_pace *pace, uint64_t now_ms);
/* When to ask again: the k-th that is refused since the last admission waits for k more. */
uint32_t step_pace_refused(struct step_pace *pace, uint64_t now_ms);

#endif
