/* step_patience.h - how long a group of ranks waits for a step before it takes a rank to be stuck: several times what steps of about as many rows
 * have taken of late. A plain value without a clock; used by rank 0's engine thread. */
#ifndef ROOST_WORKER_ENGINE_STEP_PATIENCE_H
#define ROOST_WORKER_ENGINE_STEP_PATIENCE_H
#include <stdint.h>

#define PATIENCE_FACTOR     4u
#define PATIENCE_TIMES      64u       /* steps of a size that are remembered */
#define PATIENCE_SIZES      24u       /* powers of two of rows: the last is 8 million and more */
#define PATIENCE_FIRST      8u        /* the first steps of all read weights from disk, too ... */
#define PATIENCE_FIRST_MS   10000u    /* ... and may take this long, and so may the first of a size */
#define PATIENCE_MS_MAX     600000u

struct step_patience {
    uint32_t least_ms;
    uint64_t steps;                             /* recorded, of all sizes */
    uint64_t counts[PATIENCE_SIZES];            /* of a size */
    uint32_t ms[PATIENCE_SIZES][PATIENCE_TIMES];   /* rings */
};

void step_patience_init(struct step_patience *patience, uint32_t least_ms);
/* Milliseconds for a step of `rows` (1 and more). Where none of its size was seen, the next smaller size is taken, and as many times its
 * time as there are rows more: a row costs no more in a larger batch. */
uint32_t step_patience_ms(const struct step_patience *patience, uint32_t rows);
/* For what is done beside steps: as for the longest of all that are remembered. */
uint32_t step_patience_any_ms(const struct step_patience *patience);
void step_patience_record(struct step_patience *patience, uint32_t rows, uint32_t ms);

#endif
