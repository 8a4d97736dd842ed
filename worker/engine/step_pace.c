#include "worker/engine/step_pace.h"

#define WEIGHT      0.25 /* of a new interval between admissions */
#define STEP_SIZE   0.5  /* of a correction of the costs */
#define COST_US_MIN 1e-3 /* the budget divides by it */
#define BAND_RATIO  1.4142135623730951

void step_pace_init(struct step_pace *pace, uint32_t step_ms_max)
{
    double cost = PACE_FIRST_US;
    *pace = (struct step_pace){.limit_us = step_ms_max * 1000.0, .decode_us = PACE_FIRST_US};
    for (uint32_t band = 0; band < PACE_BANDS; band++, cost *= BAND_RATIO)
        pace->prefill_us[band] = cost;
}

static uint32_t band_of(double position)
{
    uint32_t band = 0;
    for (double end = PACE_BAND_FIRST; position >= end && band < PACE_BANDS - 1; end *= BAND_RATIO)
        band++;
    return band;
}

static double at_least(double value, double least)
{
    return value > least ? value : least;
}

uint32_t step_pace_budget(const struct step_pace *pace, uint32_t decoding, uint32_t position, uint32_t rows_max)
{
    const double aim_us = pace->limit_us * PACE_AIM - decoding * pace->decode_us;
    const double rest_us = at_least(aim_us, pace->limit_us * PACE_PREFILL_LEAST);
    const double prefill = rest_us / pace->prefill_us[band_of(position)];
    const uint32_t room = rows_max - decoding;
    if (!(prefill > 1))
        return decoding + 1;
    return prefill < room ? decoding + (uint32_t)prefill : rows_max;
}

static double between(double value, double least, double most)
{
    return value < least ? least : value > most ? most : value;
}

static double scaled(double cost, double factor)
{
    return at_least(cost * between(factor, 0.5, 2), COST_US_MIN);
}

static void set_band(struct step_pace *pace, uint32_t band, double cost)
{
    double *costs = pace->prefill_us, growth = 1;
    costs[band] = cost;
    for (uint32_t further = band + 1; further < PACE_BANDS; further++) {
        growth *= BAND_RATIO;
        costs[further] = between(costs[further], cost, cost * growth);
    }
    growth = 1;
    for (uint32_t nearer = band; nearer-- > 0;) {
        growth *= BAND_RATIO;
        costs[nearer] = between(costs[nearer], cost / growth, cost);
    }
}

/* Both costs move towards what the step took, by STEP_SIZE of the relative error together, split by the squares of
 * their shares: whoever makes up most of a step is most likely to be wrong. The first step sets both. */
void step_pace_record(struct step_pace *pace, const struct step_work *work, uint64_t us)
{
    const uint32_t tokens = work->decoded + work->prefilled;
    const uint32_t band = work->prefilled > 0 ? band_of((double)work->positions / work->prefilled) : 0;
    const double cost = pace->prefill_us[band];
    const double decode = work->decoded * pace->decode_us, prefill = work->prefilled * cost;
    if (tokens == 0)
        return;
    const double mean = at_least((double)us / tokens, COST_US_MIN);
    const double correction = STEP_SIZE * ((double)us / (decode + prefill) - 1) / (decode * decode + prefill * prefill);
    pace->decode_us = pace->measured ? scaled(pace->decode_us, 1 + correction * decode * decode) : mean;
    if (work->prefilled > 0)
        set_band(pace, band, pace->measured ? scaled(cost, 1 + correction * prefill * prefill) : mean);
    pace->measured = true;
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
    double apart = pace->admission_ms > 0 ? pace->admission_ms : PACE_RETRY_MS_FIRST;
    const double since = pace->admitted_ms != 0 ? (double)(now_ms - pace->admitted_ms) : 0;
    pace->refused += pace->refused < UINT32_MAX;
    if (since > apart) /* slower than it was */
        apart = since;
    const double wait = apart * pace->refused;
    return wait < PACE_RETRY_MS_MIN ? PACE_RETRY_MS_MIN : wait > PACE_RETRY_MS_MAX ? PACE_RETRY_MS_MAX : (uint32_t)wait;
}
