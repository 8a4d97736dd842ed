#include "tests/equality/matrix.h"
#include <stdlib.h>
#include <string.h>

#define CANDIDATES 60u             /* random rows of which the one that covers most new pairs is taken */
#define VALUES_MAX 8u

const uint32_t matrix_axis_size[MATRIX_AXES] = {
    [MATRIX_BATCH] = 4, [MATRIX_CHUNK] = 5, [MATRIX_STATE] = MATRIX_STATES, [MATRIX_THREADS] = 2, [MATRIX_CHOICES] = 2,
    [MATRIX_DEPTH] = 2, [MATRIX_PROMPT] = 2, [MATRIX_SAMPLING] = 2, [MATRIX_RECIPE] = 5, [MATRIX_RESUME] = 2,
};
const char *const matrix_state_names[MATRIX_STATES] = {"cold", "cached", "inside", "host", "evicted", "preempted", "recomputed"};

uint32_t matrix_batch(const struct matrix_row *row)
{
    static const uint32_t values[] = {1, 2, 7, 32};
    return values[row->value[MATRIX_BATCH]];
}

uint32_t matrix_chunk(const struct matrix_row *row, uint32_t whole)
{
    const uint32_t values[] = {1, 17, 64, 256, whole};
    return values[row->value[MATRIX_CHUNK]];
}

uint32_t matrix_choices(const struct matrix_row *row)
{
    return row->value[MATRIX_CHOICES] ? 3 : 1;
}

static uint32_t draw(uint64_t *state, uint32_t bound)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;      /* Knuth's MMIX */
    return (uint32_t)((*state >> 33) % bound);
}

struct pairs { bool covered[MATRIX_AXES][MATRIX_AXES][VALUES_MAX][VALUES_MAX]; };

static uint32_t count_new(const struct pairs *pairs, const struct matrix_row *row)
{
    uint32_t count = 0;
    for (int a = 0; a < MATRIX_AXES; a++)
        for (int b = a + 1; b < MATRIX_AXES; b++)
            count += !pairs->covered[a][b][row->value[a]][row->value[b]];
    return count;
}

static void cover(struct pairs *pairs, const struct matrix_row *row)
{
    for (int a = 0; a < MATRIX_AXES; a++)
        for (int b = a + 1; b < MATRIX_AXES; b++)
            pairs->covered[a][b][row->value[a]][row->value[b]] = true;
}

/* Puts a pair that is not covered yet into the row; false if there is none. */
static bool take_missing_pair(const struct pairs *pairs, struct matrix_row *row)
{
    for (int a = 0; a < MATRIX_AXES; a++)
        for (int b = a + 1; b < MATRIX_AXES; b++)
            for (uint32_t x = 0; x < matrix_axis_size[a]; x++)
                for (uint32_t y = 0; y < matrix_axis_size[b]; y++)
                    if (!pairs->covered[a][b][x][y]) {
                        row->value[a] = (uint8_t)x;
                        row->value[b] = (uint8_t)y;
                        return true;
                    }
    return false;
}

uint32_t matrix_pairwise(uint64_t seed, struct matrix_row **rows)
{
    struct pairs *pairs = calloc(1, sizeof *pairs);
    struct matrix_row best, row;
    uint32_t count = 0, capacity = 256;
    *rows = calloc(capacity, sizeof **rows);
    if (pairs == NULL || *rows == NULL)
        abort();
    for (;;) {
        uint32_t most = 0;
        for (uint32_t candidate = 0; candidate < CANDIDATES; candidate++) {
            for (int axis = 0; axis < MATRIX_AXES; axis++)
                row.value[axis] = (uint8_t)draw(&seed, matrix_axis_size[axis]);
            if (!take_missing_pair(pairs, &row))
                break;
            const uint32_t found = count_new(pairs, &row);
            if (found > most) {
                most = found;
                best = row;
            }
        }
        if (most == 0 || count == capacity)
            break;
        cover(pairs, &best);
        (*rows)[count++] = best;
    }
    free(pairs);
    return count;
}

bool matrix_product(uint32_t number, struct matrix_row *row)
{
    memset(row, 0, sizeof *row);
    for (int axis = 0; axis < MATRIX_AXES; axis++) {
        if (axis == MATRIX_PROMPT || axis == MATRIX_RECIPE || axis == MATRIX_RESUME)
            continue;
        row->value[axis] = (uint8_t)(number % matrix_axis_size[axis]);
        number /= matrix_axis_size[axis];
    }
    return number == 0;
}
