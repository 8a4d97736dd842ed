#include "worker/engine/step_pace.h"

#define WEIGHT      0.25 /* of a new interval between admissions */
#define STEP_SIZE   0.5  /* of a correction of the costs */
#define COST_US_MIN 1e-3 /* the budget divides by it */

void step_pace_init(struct step_pace *pace, uint32_t step_ms_max)
{
    *pace =
        (struct step_pace){.limit_us = step_ms_max * 1000.0, .decode_us = PACE_FIRST_US, .prefill_us = PACE_FIRST_US};
}

uint32_t step_pace_budget(const struct step_pace *pace, uint32_t decoding, uint32_t rows_max)
{
    const double rest_us = pace->limit_us * PACE_AIM - decoding * pace->decode_us;
    const double prefill = rest_us / pace->prefill_us;
    const uint32_t room = rows_max - decoding;
    if (!(prefill > 1))
        return decoding + 1;
    return prefill < room ? decoding + (uint32_t)prefill : rows_max;
}

static double at_least(double value, double least)
{
    return value > least ? value : least;
}

/* The error of the estimate is split between the two costs by their shares in the step (normalised least mean squares),
 * so a step that is nearly all decode says little about prefill. */
void step_pace_record(struct step_pace *pace, uint32_t decoded, uint32_t prefilled, uint64_t us)
{
    const double d = decoded, p = prefilled, square = d * d + p * p;
    if (square == 0)
        return;
    const double correction = STEP_SIZE * ((double)us - d * pace->decode_us - p * pace->prefill_us) / square;
    pace->decode_us = at_least(pace->decode_us + correction * d, COST_US_MIN);
    pace->prefill_us = at_least(pace->prefill_us + correction * p, COST_US_MIN);
}

void step_pace_admitted(struct step_pace *pace, uint64_t now_ms)
{
    if (pace->admitted_ms != 0) {
        const double span = (double)(now_ms - pace->admitted_ms);
        if (pace->admission_ms > 0)
            pace->admission_ms += WEIGHT * (span - pace->admission_ms);
        else
            pace->admission_ms = span;
    }
    pace->admitted_ms = now_ms;
    pace->refused = 0;
}

uint32_t step_pace_refused(struct step_pace *pace, uint64_t now_ms)
{
    double between = pace->admission_ms > 0 ? pace->admission_ms : PACE_RETRY_MS_FIRST;
    const double since = pace->admitted_ms != 0 ? (double)(now_ms - pace->admitted_ms) : 0;
    pace->refused += pace->refused < UINT32_MAX;
    if (since > between) /* slower than it was */
        between = since;
    const double wait = between * pace->refused;
    return wait < PACE_RETRY_MS_MIN ? PACE_RETRY_MS_MIN : wait > PACE_RETRY_MS_MAX ? PACE_RETRY_MS_MAX : (uint32_t)wait;
}
