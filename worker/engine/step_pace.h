/* step_pace.h - how fast steps have been, as moving means: how many tokens the next may have, and when a refused request is likely to find
 * room. A plain value without a clock; used by the engine thread.
 *
 * A step is taken to cost decoded * decode_us + prefilled * prefill_us; each step corrects both, each by its share in the estimate, so
 * that a step which is nearly all decode says little about prefill. A prefilled token costs the more the further back it looks, so
 * prefill_us is kept by bands of positions, each reaching half an octave further, and grows at most as the position does: what one step
 * says about its band bounds all others, to no more than sqrt(2) a band further on. The plan aims at PACE_AIM of the limit, which leaves
 * room for one end of a band against the other. One step moves a cost by a factor of two at most: the processor may have been away. */
#ifndef ROOST_WORKER_ENGINE_STEP_PACE_H
#define ROOST_WORKER_ENGINE_STEP_PACE_H
#include <stdbool.h>
#include <stdint.h>

#define PACE_AIM 0.65                /* of the limit */
#define PACE_PREFILL_LEAST 0.1       /* of the limit that prefill may have whatever decode costs: a prompt beside many that speak comes to its end */
#define PACE_FIRST_US 20000.0        /* a token before anything is measured: 8 tokens begin; the first step then sets all costs */
#define PACE_BANDS 24u               /* the first, doubled eleven times: 262,144 tokens, and beyond */
#define PACE_BAND_FIRST 128.0        /* tokens */
#define PACE_RETRY_MS_MIN 10u
#define PACE_RETRY_MS_MAX 60000u
#define PACE_RETRY_MS_FIRST 1000u    /* before the first request has left the queue */

struct step_work {                   /* of one step */
    uint32_t decoded, prefilled;     /* tokens */
    uint64_t positions;              /* sum over the prefilled ones */
};

struct step_pace {
    double limit_us;                 /* of a step */
    double decode_us;                /* a token */
    double prefill_us[PACE_BANDS];   /* a token, at positions of the band; ascending */
    bool measured;                   /* a step has been recorded */
    double admission_ms;             /* between two requests that leave the full queue; 0: unknown */
    uint64_t admitted_ms;            /* the last one; 0: none */
    uint32_t refused;                /* since then */
};

void step_pace_init(struct step_pace *pace, uint32_t step_ms_max);
/* Tokens for a step in which `decoding` sequences decode and none prefills behind `position`: at least decoding + 1, at most rows_max (which is
 * more than decoding). */
uint32_t step_pace_budget(const struct step_pace *pace, uint32_t decoding, uint32_t position, uint32_t rows_max);
void step_pace_record(struct step_pace *pace, const struct step_work *work, uint64_t us);

void step_pace_admitted(struct step_pace *pace, uint64_t now_ms);
/* When to ask again: the k-th that is refused since the last admission waits for k more. */
uint32_t step_pace_refused(struct step_pace *pace, uint64_t now_ms);

#endif
