/* cuda_attention_plan_make: every visible (row, head, block) in exactly one task, whole units, nothing outside of the windows, heaviest first,
 * and partials that the merges find in unit order. Against plain loops over rows and keys. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "kernels/cuda/kernels_cuda.h"
#include "tests/unit/seed.h"

#define UNIT_BLOCKS 16u

static uint64_t random_state;

static uint32_t below(uint32_t bound)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(((random_state >> 32) * bound) >> 32);
}

static bool row_sees(const struct cuda_attention_geometry *g, uint32_t position, uint32_t block)
{
    for (uint32_t key = block * 64; key < block * 64 + 64; key++)
        if (key <= position && (g->window == 0 || position - key < g->window || key < g->sinks))
            return true;
    return false;
}

static bool task_sees(const struct cuda_attention_geometry *g, const struct cuda_attention_span *span, const struct cuda_attention_task *task,
                      uint32_t block)
{
    for (uint32_t row = task->row; row < task->row + task->rows; row++)
        if (row_sees(g, span->start + row, block))
            return true;
    return false;
}

static uint32_t task_blocks(const struct cuda_attention_geometry *g, const struct cuda_attention_span *span, const struct cuda_attention_task *task)
{
    uint32_t count = 0;
    for (uint32_t block = task->unit * UNIT_BLOCKS; block < (task->unit + task->units) * UNIT_BLOCKS; block++)
        count += task_sees(g, span, task, block);
    return count;
}

static const struct cuda_attention_merge *merge_of(const struct cuda_attention_plan *plan, const struct cuda_attention_task *task)
{
    const struct cuda_attention_merge *found = NULL;
    for (uint32_t i = 0; i < plan->merge_count; i++) {
        const struct cuda_attention_merge *m = &plan->merges[i];
        if (m->span == task->span && m->row == task->row && m->head == task->head) {
            assert_null(found);
            assert_int_equal(m->rows, task->rows);
            assert_int_equal(m->heads, task->heads);
            found = m;
        }
    }
    return found;
}

/* The partials of a merge are those units of which something is seen, in order, each written by one task. */
static void check_partials(const struct cuda_attention_geometry *g, const struct cuda_attention_span *spans, const struct cuda_attention_plan *plan)
{
    uint32_t *unit_of = malloc((plan->partial_count + 1) * sizeof *unit_of);
    assert_non_null(unit_of);
    memset(unit_of, 0xff, (plan->partial_count + 1) * sizeof *unit_of);
    for (uint32_t t = 0; t < plan->task_count; t++) {
        const struct cuda_attention_task *task = &plan->tasks[t];
        const struct cuda_attention_merge *merge = merge_of(plan, task);
        assert_int_equal(task->partial == UINT32_MAX, merge == NULL);
        for (uint32_t u = 0; merge && u < task->units; u++) {
            const uint32_t at = task->partial + u;
            assert_true(at >= merge->partial && at < merge->partial + merge->units && at < plan->partial_count);
            assert_int_equal(unit_of[at], UINT32_MAX);
            unit_of[at] = task->unit + u;
            bool seen = false;
            for (uint32_t block = unit_of[at] * UNIT_BLOCKS; block < (unit_of[at] + 1) * UNIT_BLOCKS; block++)
                seen = seen || task_sees(g, &spans[task->span], task, block);
            assert_true(seen);
        }
    }
    for (uint32_t i = 0; i < plan->merge_count; i++)
        for (uint32_t u = 0; u < plan->merges[i].units; u++) {
            const uint32_t at = plan->merges[i].partial + u;
            assert_int_not_equal(unit_of[at], UINT32_MAX);
            assert_true(u == 0 || unit_of[at] > unit_of[at - 1]);
        }
    free(unit_of);
}

static void check(const struct cuda_attention_geometry *g, const struct cuda_attention_span *spans, uint32_t span_count, uint32_t workers,
                  struct cuda_attention_plan *plan)
{
    assert_true(cuda_attention_plan_make(spans, span_count, g, workers, plan));
    const uint32_t group = g->heads / g->kv_heads, most = g->dim > 256 ? 32 : CUDA_ATTENTION_PAIRS;
    uint32_t before = UINT32_MAX, pairs_max = 0;
    for (uint32_t t = 0; t < plan->task_count; t++) {
        const struct cuda_attention_task *task = &plan->tasks[t];
        const uint32_t pairs = task->rows * task->heads, blocks = task_blocks(g, &spans[task->span], task);
        assert_true(task->span < span_count && pairs > 0 && pairs <= most && task->units > 0 && blocks > 0);
        assert_true(task->row + task->rows <= spans[task->span].count && task->head + task->heads <= g->heads);
        assert_int_equal(task->head / group, (task->head + task->heads - 1) / group);
        assert_int_equal(pairs > 16, t < plan->large_count);
        before = t == plan->large_count ? UINT32_MAX : before;
        assert_true(blocks <= before);
        before = blocks;
        pairs_max = pairs > pairs_max ? pairs : pairs_max;
    }
    assert_int_equal(plan->pairs_max, pairs_max);
    assert_int_equal(cuda_attention_partial_bytes(plan, g), (size_t)plan->partial_count * pairs_max * (g->dim + 2) * sizeof(float));

    for (uint32_t s = 0; s < span_count; s++)
        for (uint32_t row = 0; row < spans[s].count; row++) {
            const uint32_t blocks = (spans[s].start + row) / 64 + 1;
            for (uint32_t head = 0; head < g->heads; head++)
                for (uint32_t block = 0; block < blocks; block++) {
                    uint32_t covered = 0;
                    for (uint32_t t = 0; t < plan->task_count; t++) {
                        const struct cuda_attention_task *task = &plan->tasks[t];
                        covered += task->span == s && row - task->row < task->rows && head - task->head < task->heads &&
                                   block / UNIT_BLOCKS - task->unit < task->units;
                    }
                    if (row_sees(g, spans[s].start + row, block))
                        assert_int_equal(covered, 1);
                }
        }
    check_partials(g, spans, plan);
}

static void tasks_are_32_bytes(void **state)
{
    (void)state;
    assert_int_equal(sizeof(struct cuda_attention_task), 32);
}

static void everything_seen_is_covered_once(void **state)
{
    (void)state;
    static const uint32_t heads[][2] = {{1, 1}, {4, 1}, {8, 2}, {6, 6}, {80, 1}, {40, 2}}, dims[] = {64, 512}, windows[] = {0, 0, 1, 64, 500, 1500};
    static const uint32_t sinks[] = {0, 1, 64, 1000, 1100, 9000}, counts[] = {1, 1, 2, 16, 40};
    random_state = test_seed(1);
    struct cuda_attention_plan plan = {0};             /* reused, as a backend does */
    for (uint32_t i = 0; i < 150; i++) {
        const uint32_t *h = heads[below(6)];
        const struct cuda_attention_geometry g = {.heads = h[0], .kv_heads = h[1], .dim = dims[below(2)], .window = windows[below(6)],
                                                  .sinks = sinks[below(6)]};
        struct cuda_attention_span spans[3] = {0};
        const uint32_t span_count = 1 + below(3);
        for (uint32_t s = 0; s < span_count; s++)
            spans[s] = (struct cuda_attention_span){.start = below(3) ? below(2200) : 1024 * below(4), .count = counts[below(5)]};
        check(&g, spans, span_count, 1 + (below(2) ? below(300) : below(4)), &plan);
    }
    cuda_attention_plan_free(&plan);
    cuda_attention_plan_free(&plan);
}

/* A lone long conversation is split so that every worker has something; a full batch is not split at all. */
static void splits_by_workers(void **state)
{
    (void)state;
    const struct cuda_attention_geometry g = {.heads = 8, .kv_heads = 1, .dim = 128};
    const struct cuda_attention_span alone = {.start = 262143, .count = 1};
    struct cuda_attention_span batch[64];
    struct cuda_attention_plan plan = {0};
    assert_true(cuda_attention_plan_make(&alone, 1, &g, 64, &plan));
    assert_int_equal(plan.task_count, 128);
    assert_int_equal(plan.partial_count, 256);
    assert_true(cuda_attention_plan_make(&alone, 1, &g, 1000, &plan));
    assert_int_equal(plan.task_count, 256);            /* a unit each */
    for (uint32_t s = 0; s < 64; s++)
        batch[s] = (struct cuda_attention_span){.row = s, .start = 4096, .count = 1};
    assert_true(cuda_attention_plan_make(batch, 64, &g, 32, &plan));
    assert_int_equal(plan.task_count, 64);
    assert_int_equal(plan.merge_count, 0);
    assert_int_equal(plan.partial_count, 0);
    const uint32_t lengths[] = {4641, 45118, 1730, 1696};      /* skewed: only the long one, 705 of 833 blocks, is split: 53 blocks a task */
    for (uint32_t s = 0; s < 4; s++)
        batch[s] = (struct cuda_attention_span){.row = s, .start = lengths[s] - 1, .count = 1};
    assert_true(cuda_attention_plan_make(batch, 4, &g, 8, &plan));
    assert_int_equal(plan.task_count, 13 + 3);
    assert_int_equal(plan.merge_count, 1);
    assert_int_equal(plan.tasks[0].span, 0);           /* 73 blocks, whole */
    assert_true(cuda_attention_plan_make(NULL, 0, &g, 8, &plan));
    assert_int_equal(plan.task_count, 0);
    cuda_attention_plan_free(&plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tasks_are_32_bytes), cmocka_unit_test(everything_seen_is_covered_once), cmocka_unit_test(splits_by_workers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
