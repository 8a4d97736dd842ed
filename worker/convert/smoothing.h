/* smoothing.h - moves the spread of a norm's channels into the weights that read it (SmoothQuant, arXiv 2211.10438, section 4):
 * channel j of the norm's result is divided by s_j, column j of its consumers multiplied by s_j, with
 *     s_j = max|X_j|^a / max|W_j|^(1 - a),  a = 0.5,
 * rounded to a power of two, so that the model's function stays the same to the last bit: only exponents change. The factors are taken
 * relative to their median. max|X_j| comes from calibration, or is stood for by |norm weight j| (rows under the weight have a mean square of 1).
 * Input of q, k, v and of gate and up; other matrices have no norm of their own in front. */
#ifndef ROOST_WORKER_CONVERT_SMOOTHING_H
#define ROOST_WORKER_CONVERT_SMOOTHING_H
#include <stdint.h>
#include "common/status.h"
#include "worker/convert/source.h"
#include "worker/convert/tensor_list.h"

struct thread_pool;

struct smoothing {
    float **factors;                  /* (count of the list): for a norm that feeds matrices its (rows) factors s, owned; else NULL */
    uint32_t count;
};

/* ranges[i], where not NULL: max|X_j| of the norm i's result. ranges may be NULL. threads: of the pool. */
enum status smoothing_create(const struct source *source, const struct tensor_list *list, const float *const *ranges,
                             struct thread_pool *pool, uint32_t threads, struct smoothing *out);
void smoothing_free(struct smoothing *smoothing);   /* accepts a zeroed one */

/* Multiplies or divides one row as read from the source: a matrix that the norm feeds, or the norm itself; others stay. */
void smoothing_apply(const struct smoothing *smoothing, const struct tensor_list *list, uint32_t index, float *row);

#endif
