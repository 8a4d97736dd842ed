/* eval.h - how well a model directory predicts a text, alone, against another directory (usually the float one it was converted
 * from), and matrix by matrix. Everything is computed window by window, without a KV cache between them. One thread calls; the
 * backends use the threads they are given. */
#ifndef ROOST_WORKER_EVAL_EVAL_H
#define ROOST_WORKER_EVAL_EVAL_H
#include <stdbool.h>
#include <stdint.h>
#include "common/status.h"
#include "worker/engine/model/model.h"
#include "worker/eval/score.h"

#define EVAL_WINDOW_DEFAULT 1024u              /* or the context, if that is shorter */
#define EVAL_LOGIT_BYTES_MAX (2ull << 30)      /* logits of a window that are kept to compare with */
#define EVAL_NAME_BYTES 128u

typedef void eval_progress_fn(void *user, const char *what, uint64_t done, uint64_t total);

struct eval_options {
    const char *dir;
    const char *against;                       /* NULL: dir alone */
    const char *text, *conversations;          /* one of them; the other NULL (corpus.h) */
    uint32_t window;                           /* 0: EVAL_WINDOW_DEFAULT */
    uint64_t tokens_max;                       /* 0: the whole file */
    uint32_t threads;                          /* at least 1 */
    bool per_tensor;                           /* dir is int8 and against is float */
    eval_progress_fn *progress;                /* may be NULL; after every window and matrix */
    void *user;
};

struct eval_tensor {                           /* the float model with one thing of the int8 model in it */
    char name[EVAL_NAME_BYTES];                /* a matrix; "q, k and v"; "every matrix" */
    const char *scheme;                        /* of the matrix; "" for the others */
    struct score score;
};

struct eval_report {                           /* eval_report_free */
    uint32_t window, windows;
    enum model_format format, against_format;
    struct score score;                        /* of dir, beside `against` where there is one */
    struct score reference;                    /* of against alone; tokens 0 without it */
    struct eval_tensor *tensors;               /* (tensor_count), largest KL first */
    uint32_t tensor_count;
};

/* STATUS_INVALID: directories that cannot be compared (vocabulary, tokenizer, shape), a window longer than the context, wrong text.
 * STATUS_LIMIT: the window's logits exceed EVAL_LOGIT_BYTES_MAX. */
enum status eval_run(const struct eval_options *options, struct eval_report *out);
void eval_report_free(struct eval_report *report);   /* accepts a zeroed one */

#endif
