#include "worker/engine/backend/step_patience.h"

void step_patience_init(struct step_patience *patience, uint32_t least_ms)
{
    *patience = (struct step_patience){.least_ms = least_ms};
}

static uint32_t size_of(uint32_t rows)
{
    uint32_t size = 0;
    while (size < PATIENCE_SIZES - 1 && rows >> (size + 1) != 0)
        size++;
    return size;
}

static uint64_t longest(const struct step_patience *patience, uint32_t size)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < PATIENCE_TIMES; i++)
        most = patience->ms[size][i] > most ? patience->ms[size][i] : most;
    return most;
}

static uint32_t bounded(const struct step_patience *patience, uint64_t ms)
{
    ms = ms > patience->least_ms ? ms : patience->least_ms;
    return ms < PATIENCE_MS_MAX ? (uint32_t)ms : PATIENCE_MS_MAX;
}

uint32_t step_patience_ms(const struct step_patience *patience, uint32_t rows)
{
    const uint32_t size = size_of(rows);
    uint32_t seen = size;
    while (seen > 0 && patience->counts[seen] == 0)
        seen--;
    uint64_t ms = PATIENCE_FACTOR * longest(patience, seen);
    if (seen < size)
        ms = ms * rows >> seen;
    if ((patience->steps < PATIENCE_FIRST || patience->counts[size] == 0) && ms < PATIENCE_FIRST_MS)
        ms = PATIENCE_FIRST_MS;
    return bounded(patience, ms);
}

uint32_t step_patience_any_ms(const struct step_patience *patience)
{
    uint64_t most = patience->steps < PATIENCE_FIRST ? PATIENCE_FIRST_MS : 0;
    for (uint32_t size = 0; size < PATIENCE_SIZES; size++) {
        const uint64_t ms = PATIENCE_FACTOR * longest(patience, size);
        most = ms > most ? ms : most;
    }
    return bounded(patience, most);
}

void step_patience_record(struct step_patience *patience, uint32_t rows, uint32_t ms)
{
    const uint32_t size = size_of(rows);
    patience->ms[size][patience->counts[size]++ % PATIENCE_TIMES] = ms;
    patience->steps++;
}
