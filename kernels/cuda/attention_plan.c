/* attention_plan.c - cuts the rows of a step into tasks of attention. Host code, pure. */
#include <stdlib.h>
#include <string.h>
#include "kernels/attention.h"
#include "kernels/cuda/attention_run.h"

_Static_assert(sizeof(struct cuda_attention_task) == 32, "a task is two 16-byte loads");
_Static_assert(CUDA_ATTENTION_PAIRS >= ATTENTION_PAIRS_WIDE && ATTENTION_PAIRS_WIDE > ATTENTION_PAIRS_SMALL, "the tile sizes of attention_tile.h");

#define TASKS_A_WORKER 2u             /* enough that the longest task, which starts first, is not what the rest waits for */

struct tile {                         /* some rows of a span and heads of one KV head; what they see, in blocks and units */
    uint32_t span, row, rows, head, heads;
    uint32_t blocks;                  /* seen by at least one row */
    uint32_t sink_units;              /* units [0, sink_units) and [unit, unit_end) have such blocks; sink_units <= unit */
    uint32_t unit, unit_end;
};

struct draft {                        /* a task before it has its place */
    struct cuda_attention_task task;
    uint32_t blocks, number;
};

struct planner {
    const struct cuda_attention_span *spans;
    uint32_t span_count;
    const struct cuda_attention_geometry *geometry;
    struct cuda_attention_plan *plan;
    struct draft *drafts;
    size_t draft_capacity;
    uint64_t blocks_all;              /* of all tiles */
    uint32_t blocks_a_task;           /* wanted */
};

typedef bool tile_fn(struct planner *planner, const struct tile *tile);

static uint32_t lesser(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t greater(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* attention_tile.h walks the same blocks. */
struct range {
    uint32_t sinks_end, first, end;   /* blocks [0, sinks_end) and [first, end) are seen */
};

static struct range tile_range(const struct planner *planner, const struct tile *tile)
{
    const struct cuda_attention_geometry *geometry = planner->geometry;
    uint32_t first = planner->spans[tile->span].start + tile->row, last = first + tile->rows - 1;
    uint32_t window = geometry->window, sinks = window ? lesser(geometry->sinks, last + 1) : 0;
    return (struct range){.sinks_end = (sinks + ATTENTION_BLOCK - 1) / ATTENTION_BLOCK,
                          .first = (window && first >= window ? first - window + 1 : 0) / ATTENTION_BLOCK,
                          .end = last / ATTENTION_BLOCK + 1};
}

static void tile_look(const struct planner *planner, struct tile *tile)
{
    struct range range = tile_range(planner, tile);
    tile->blocks = range.sinks_end + range.end - greater(range.first, range.sinks_end);
    tile->sink_units = (range.sinks_end + ATTENTION_UNIT_BLOCKS - 1) / ATTENTION_UNIT_BLOCKS;
    tile->unit = greater(range.first / ATTENTION_UNIT_BLOCKS, tile->sink_units);
    tile->unit_end = (range.end + ATTENTION_UNIT_BLOCKS - 1) / ATTENTION_UNIT_BLOCKS;
}

static uint32_t blocks_of(const struct planner *planner, const struct tile *tile, uint32_t unit, uint32_t units)
{
    struct range range = tile_range(planner, tile);
    uint32_t begin = unit * ATTENTION_UNIT_BLOCKS, end = begin + units * ATTENTION_UNIT_BLOCKS;
    uint32_t sinks = greater(lesser(range.sinks_end, end), begin) - begin;
    uint32_t from = greater(greater(range.first, range.sinks_end), begin), to = lesser(range.end, end);
    return sinks + (to > from ? to - from : 0);
}

static bool each_tile(struct planner *planner, tile_fn *visit)
{
    const struct cuda_attention_geometry *geometry = planner->geometry;
    uint32_t group = geometry->heads / geometry->kv_heads, most = attention_pairs_most(geometry->dim);
    uint32_t parts = (group + most - 1) / most;
    for (uint32_t s = 0; s < planner->span_count; s++)
        for (uint32_t part = 0; part < geometry->kv_heads * parts; part++) {
            uint32_t first = part % parts * group / parts, end = (part % parts + 1) * group / parts, rows = most / (end - first);
            for (uint32_t row = 0; row < planner->spans[s].count; row += rows) {
                struct tile tile = {.span = s, .row = row, .rows = lesser(rows, planner->spans[s].count - row),
                                    .head = part / parts * group + first, .heads = end - first};
                tile_look(planner, &tile);
                if (!visit(planner, &tile))
                    return false;
            }
        }
    return true;
}

static bool weigh(struct planner *planner, const struct tile *tile)
{
    planner->blocks_all += tile->blocks;
    return true;
}

static bool grow(void **array, size_t count, size_t size)
{
    void *more = realloc(*array, count * size);
    if (more)
        *array = more;
    return more != NULL;
}

static bool add_task(struct planner *planner, const struct tile *tile, uint32_t unit, uint32_t units, uint32_t partial)
{
    uint32_t count = planner->plan->task_count;
    if (count == planner->draft_capacity) {
        size_t capacity = planner->draft_capacity ? 2 * planner->draft_capacity : 64;
        if (!grow((void **)&planner->drafts, capacity, sizeof *planner->drafts))
            return false;
        planner->draft_capacity = capacity;
    }
    planner->drafts[count] = (struct draft){
        .task = {.span = tile->span, .row = tile->row, .rows = tile->rows, .head = tile->head, .heads = tile->heads, .unit = unit,
                 .units = units, .partial = partial},
        .blocks = blocks_of(planner, tile, unit, units), .number = count};
    planner->plan->task_count++;
    return true;
}

static bool add_merge(struct cuda_attention_plan *plan, const struct tile *tile, uint32_t units)
{
    if (plan->merge_count == plan->merge_capacity) {
        uint32_t capacity = plan->merge_capacity ? 2 * plan->merge_capacity : 16;
        if (!grow((void **)&plan->merges, capacity, sizeof *plan->merges))
            return false;
        plan->merge_capacity = capacity;
    }
    plan->merges[plan->merge_count++] = (struct cuda_attention_merge){.span = tile->span, .row = tile->row, .rows = tile->rows, .head = tile->head,
                                                                      .heads = tile->heads, .partial = plan->partial_count, .units = units};
    return true;
}

/* One task, or several of about equally many seen units; none of several reaches over the gap between sinks and window. */
static bool cut(struct planner *planner, const struct tile *tile)
{
    struct cuda_attention_plan *plan = planner->plan;
    uint32_t seen = tile->sink_units + tile->unit_end - tile->unit;
    uint32_t parts = lesser((tile->blocks + planner->blocks_a_task / 2) / planner->blocks_a_task, seen);
    plan->pairs_max = greater(plan->pairs_max, tile->rows * tile->heads);
    if (parts <= 1) {
        uint32_t unit = tile->sink_units ? 0 : tile->unit;
        return add_task(planner, tile, unit, tile->unit_end - unit, UINT32_MAX);
    }
    if (!add_merge(plan, tile, seen))
        return false;
    for (uint32_t part = 0; part < parts; part++) {
        uint32_t from = (uint32_t)((uint64_t)seen * part / parts), to = (uint32_t)((uint64_t)seen * (part + 1) / parts);
        uint32_t gap = tile->unit - tile->sink_units, edge = tile->sink_units, partial = plan->partial_count;
        if (from < edge && !add_task(planner, tile, from, lesser(to, edge) - from, partial + from))
            return false;
        from = greater(from, edge);
        if (to > from && !add_task(planner, tile, from + gap, to - from, partial + from))
            return false;
    }
    plan->partial_count += seen;
    return true;
}

static bool is_large(const struct cuda_attention_task *task)
{
    return task->rows * task->heads > ATTENTION_PAIRS_SMALL;
}

static int compare_drafts(const void *a, const void *b)
{
    const struct draft *x = a, *y = b;
    if (is_large(&x->task) != is_large(&y->task))
        return is_large(&x->task) ? -1 : 1;
    if (x->blocks != y->blocks)
        return x->blocks > y->blocks ? -1 : 1;
    return x->number < y->number ? -1 : 1;
}

static bool keep_drafts(struct planner *planner)
{
    struct cuda_attention_plan *plan = planner->plan;
    if (plan->task_count > plan->task_capacity) {
        if (!grow((void **)&plan->tasks, plan->task_count, sizeof *plan->tasks))
            return false;
        plan->task_capacity = plan->task_count;
    }
    if (plan->task_count > 0)
        qsort(planner->drafts, plan->task_count, sizeof *planner->drafts, compare_drafts);
    for (uint32_t i = 0; i < plan->task_count; i++) {
        plan->tasks[i] = planner->drafts[i].task;
        plan->large_count += is_large(&plan->tasks[i]);
    }
    return true;
}

bool cuda_attention_plan_make(const struct cuda_attention_span *spans, uint32_t span_count, const struct cuda_attention_geometry *geometry,
                              uint32_t workers, struct cuda_attention_plan *plan)
{
    struct planner planner = {.spans = spans, .span_count = span_count, .geometry = geometry, .plan = plan};
    plan->task_count = plan->large_count = plan->partial_count = plan->merge_count = plan->pairs_max = 0;
    each_tile(&planner, weigh);
    uint64_t wanted = TASKS_A_WORKER * (uint64_t)greater(workers, 1), each = (planner.blocks_all + wanted - 1) / wanted;
    planner.blocks_a_task = each < ATTENTION_UNIT_BLOCKS ? ATTENTION_UNIT_BLOCKS : each < UINT32_MAX / 2 ? (uint32_t)each : UINT32_MAX / 2;
    bool done = each_tile(&planner, cut) && keep_drafts(&planner);
    free(planner.drafts);
    if (!done)
        plan->task_count = plan->large_count = plan->partial_count = plan->merge_count = 0;
    return done;
}

void cuda_attention_plan_free(struct cuda_attention_plan *plan)
{
    free(plan->tasks);
    free(plan->merges);
    memset(plan, 0, sizeof *plan);
}

size_t cuda_attention_partial_bytes(const struct cuda_attention_plan *plan, const struct cuda_attention_geometry *geometry)
{
    return (size_t)plan->partial_count * plan->pairs_max * (geometry->dim + 2) * sizeof(float);
}
