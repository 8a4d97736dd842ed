#include "worker/convert/smoothing.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "worker/engine/backend/thread_pool.h"

#define EXPONENT_MAX 20               /* factors from 2^-20 to 2^20: far from the ends of bfloat16's and float's exponents */
#define BLOCK_ROWS 64u

struct job {                          /* column maxima of the matrices that one norm feeds */
    const struct source *source;
    const struct tensor_list *list;
    uint32_t norm, columns;
    float *maxima;                    /* (threads, columns) */
    float *rows;                      /* (threads, columns): scratch */
    uint32_t matrix;                  /* the one being read */
};

void smoothing_free(struct smoothing *smoothing)
{
    for (uint32_t i = 0; i < smoothing->count; i++)
        free(smoothing->factors[i]);
    free(smoothing->factors);
    *smoothing = (struct smoothing){ 0 };
}

static void take_maxima(void *context, uint32_t index, uint32_t thread)
{
    const struct job *job = context;
    const uint32_t rows = job->list->tensors[job->matrix].rows, begin = index * BLOCK_ROWS;
    float *row = job->rows + (size_t)thread * job->columns, *maxima = job->maxima + (size_t)thread * job->columns;
    for (uint32_t r = begin; r < begin + BLOCK_ROWS && r < rows; r++) {
        source_read_row(job->source, job->list, job->matrix, r, row);
        for (uint32_t j = 0; j < job->columns; j++)
            maxima[j] = fmaxf(maxima[j], fabsf(row[j]));
    }
}

static int compare_float(const void *a, const void *b)
{
    const float left = *(const float *)a, right = *(const float *)b;
    return left < right ? -1 : left > right;
}

/* From the logarithms: powers of two around the median. Channels without a logarithm (a dead weight or column) keep 1. */
static void set_factors(float *factors, uint32_t count, float *scratch)
{
    uint32_t known = 0;
    for (uint32_t j = 0; j < count; j++)
        if (isfinite(factors[j]))
            scratch[known++] = factors[j];
    qsort(scratch, known, sizeof *scratch, compare_float);
    const float median = known ? scratch[known / 2] : 0;
    for (uint32_t j = 0; j < count; j++) {
        const float exponent = isfinite(factors[j]) ? rintf(factors[j] - median) : 0;
        factors[j] = ldexpf(1, (int)fminf(fmaxf(exponent, -EXPONENT_MAX), EXPONENT_MAX));
    }
}

static enum status smooth_norm(struct job *job, const float *range, uint32_t threads, struct thread_pool *pool, float **out)
{
    float *factors = calloc(job->columns, sizeof *factors);
    if (!factors)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u factors", job->columns);
    memset(job->maxima, 0, (size_t)threads * job->columns * sizeof *job->maxima);
    for (job->matrix = job->norm + 1; job->matrix < job->list->count; job->matrix++)
        if (job->list->tensors[job->matrix].input_norm == job->norm)
            thread_pool_run(pool, (job->list->tensors[job->matrix].rows + BLOCK_ROWS - 1) / BLOCK_ROWS, take_maxima, job);
    if (range)
        memcpy(factors, range, job->columns * sizeof *factors);
    else
        source_read_row(job->source, job->list, job->norm, 0, factors);
    for (uint32_t j = 0; j < job->columns; j++) {
        float most = 0;
        for (uint32_t t = 0; t < threads; t++)
            most = fmaxf(most, job->maxima[(size_t)t * job->columns + j]);
        factors[j] = 0.5f * log2f(fabsf(factors[j])) - 0.5f * log2f(most);
    }
    set_factors(factors, job->columns, job->rows);
    *out = factors;
    return STATUS_OK;
}

enum status smoothing_create(const struct source *source, const struct tensor_list *list, const float *const *ranges,
                             struct thread_pool *pool, uint32_t threads, struct smoothing *out)
{
    struct smoothing smoothing = { .factors = calloc(list->count, sizeof *smoothing.factors), .count = list->count };
    struct job job = { .source = source, .list = list };
    enum status st = smoothing.factors ? STATUS_OK : STATUS_FAIL(STATUS_NO_MEMORY, "no memory for smoothing");
    if (!smoothing.factors)
        smoothing.count = 0;
    for (uint32_t i = 0; i < list->count && st == STATUS_OK; i++) {
        const uint32_t norm = list->tensors[i].input_norm;
        if (norm == TENSOR_NONE || smoothing.factors[norm])
            continue;
        job.norm = norm;
        job.columns = list->tensors[norm].rows;
        job.maxima = calloc((size_t)threads * job.columns, sizeof *job.maxima);
        job.rows = calloc((size_t)threads * job.columns, sizeof *job.rows);
        st = job.maxima && job.rows ? smooth_norm(&job, ranges ? ranges[norm] : NULL, threads, pool, &smoothing.factors[norm])
                                    : STATUS_FAIL(STATUS_NO_MEMORY, "no memory for column maxima");
        free(job.maxima);
        free(job.rows);
    }
    if (st != STATUS_OK) {
        smoothing_free(&smoothing);
        return st;
    }
    *out = smoothing;
    return STATUS_OK;
}

void smoothing_apply(const struct smoothing *smoothing, const struct tensor_list *list, uint32_t index, float *row)
{
    if (!smoothing->factors)
        return;
    const struct tensor *tensor = &list->tensors[index];
    if (tensor->input_norm != TENSOR_NONE) {
        const float *factors = smoothing->factors[tensor->input_norm];
        for (uint32_t j = 0; j < tensor->columns; j++)
            row[j] *= factors[j];
    } else if (smoothing->factors[index]) {
        const float *factors = smoothing->factors[index];
        for (uint32_t j = 0; j < tensor->rows; j++)
            row[j] /= factors[j];
    }
}
