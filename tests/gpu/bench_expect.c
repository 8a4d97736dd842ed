/* bench_expect.c - what cases are expected to take, by the arithmetic of docs/performance/gpu.md ("Expected"). No device. */
#include <string.h>
#include "bench.h"
#include "kernels/cuda/gemm_tiles.h"

#define START_US 2.0               /* a kernel inside a graph: its start, its last block's tail */
#define READ_SHARE 0.85            /* of the copy's rate */
#define BLOCK_CYCLES 1000.0        /* a block of 64 positions for one task of attention: the chain from its keys to its outputs */
#define TASKS_A_MULTIPROCESSOR 2u  /* of attention, side by side */
#define SCORE_CYCLES 0.32          /* a multiprocessor and score, head size 128, when products are the most of the work */

bool bench_rates_of(const char *device, struct bench_rates *rates)
{
    static const struct {
        const char *name;
        struct bench_rates rates;
    } known[] = {
        {"H200", {.read_gbs = 4300, .clock_ghz = 1.755, .products = 2500, .multiprocessors = 132}},    /* 4,800 by 0.90 */
        {"H100 80GB HBM3", {.read_gbs = 3015, .clock_ghz = 1.755, .products = 2500, .multiprocessors = 132}},
        {"A100-SXM4-80GB", {.read_gbs = 1830, .clock_ghz = 1.41, .products = 2048, .multiprocessors = 108}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strstr(device, known[i].name)) {
            *rates = known[i].rates;
            return true;
        }
    return false;
}

double bench_expect_bytes(const struct bench_rates *rates, double bytes)
{
    return START_US + bytes / (READ_SHARE * rates->read_gbs * 1e3);
}

static double matrix_large(const struct bench_rates *rates, uint32_t rows, uint32_t outputs, uint32_t depth)
{
    static const struct {
        uint32_t rows, outputs;
        double cycles;             /* of one step of the depth, of all that a tile needs the most: L2's bytes */
    } cuts[GEMM_LARGE_CUTS] = {{64, 128, 512}, {128, 128, 683}, {128, 256, 1024}};
    const struct gemm_work work = {.job = {.rows = rows, .outputs = outputs, .depth = depth}};
    const unsigned cut = gemm_large_choose(&work, rates->multiprocessors);
    const double tiles = ceil((double)rows / cuts[cut].rows) * ceil((double)outputs / cuts[cut].outputs);
    const double rounds = ceil(tiles / rates->multiprocessors), steps = ceil((double)depth / GEMM_STEP);
    const double written = (double)cuts[cut].rows * cuts[cut].outputs * 4 * rates->multiprocessors / (rates->read_gbs * 1e3);
    const double clocks = rates->products / 2500.0;          /* the cuts' cycles are of that rate */
    return START_US + rounds * (steps * cuts[cut].cycles / clocks / (rates->clock_ghz * 1e3) + written);
}

double bench_expect_matrix(const struct bench_rates *rates, uint32_t rows, uint32_t outputs, uint32_t depth)
{
    const double bytes = (double)outputs * depth + (double)rows * depth + 4.0 * rows * outputs;
    return rows <= CUDA_GEMM_ROWS_SMALL ? bench_expect_bytes(rates, bytes) : matrix_large(rates, rows, outputs, depth);
}

static double visible(const struct cuda_attention_geometry *geometry, uint32_t position)
{
    const double all = position + 1.0;
    return geometry->window == 0 || all <= geometry->window ? all : geometry->window;
}

double bench_attention_bytes(const struct cuda_attention_geometry *geometry, const struct cuda_attention_span *spans, uint32_t span_count)
{
    double positions = 0;
    for (uint32_t s = 0; s < span_count; s++)                /* each position that some row sees, once */
        positions += visible(geometry, spans[s].start) + spans[s].count - 1;
    return positions * geometry->kv_heads * (2.0 * geometry->dim + 8);
}

double bench_attention_scores(const struct cuda_attention_geometry *geometry, const struct cuda_attention_span *spans, uint32_t span_count)
{
    double scores = 0;
    for (uint32_t s = 0; s < span_count; s++)
        for (uint32_t row = 0; row < spans[s].count; row++)
            scores += visible(geometry, spans[s].start + row);
    return scores * geometry->heads;
}

double bench_expect_attention(const struct bench_rates *rates, const struct cuda_attention_geometry *geometry, const struct cuda_attention_span *spans,
                              uint32_t span_count)
{
    struct cuda_attention_plan plan = {0};
    const uint32_t workers = TASKS_A_MULTIPROCESSOR * rates->multiprocessors;
    if (!cuda_attention_plan_make(spans, span_count, geometry, workers, &plan))
        return NAN;
    double blocks = 0, longest = 0;
    for (uint32_t i = 0; i < plan.task_count; i++) {         /* blocks of a task: those of its units that its last row sees */
        const struct cuda_attention_task *task = &plan.tasks[i];
        const double last = spans[task->span].start + task->row + task->rows, begin = task->unit * 1024.0;
        const double from = geometry->window && last > geometry->window ? last - task->rows - geometry->window : 0;
        double positions = fmin(begin + task->units * 1024.0, last) - fmax(begin, from);
        positions = ceil(fmax(positions, 0) / 64);
        blocks += positions;
        longest = fmax(longest, positions);
    }
    const double chain = fmax(longest, blocks / workers) * BLOCK_CYCLES / (rates->clock_ghz * 1e3);
    const double scores = bench_attention_scores(geometry, spans, span_count) / rates->multiprocessors;
    const double products = scores * SCORE_CYCLES * (0.5 + geometry->dim / 256.0) / (rates->clock_ghz * 1e3);
    const double read = bench_attention_bytes(geometry, spans, span_count) / (READ_SHARE * rates->read_gbs * 1e3);
    const double merge = plan.merge_count > 0 ? START_US : 0;
    cuda_attention_plan_free(&plan);
    return START_US + merge + fmax(fmax(chain, products), read);
}
