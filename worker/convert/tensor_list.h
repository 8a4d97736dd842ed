/* tensor_list.h - the tensors of a roost directory, in order, as a configuration wants them (model.h has the names).
 * Plain data; the caller owns the list. */
#ifndef ROOST_WORKER_CONVERT_TENSOR_LIST_H
#define ROOST_WORKER_CONVERT_TENSOR_LIST_H
#include <stdint.h>
#include "common/status.h"
#include "worker/engine/model/model_config.h"

#define TENSOR_NAME_BYTES 96
#define TENSOR_NONE UINT32_MAX

enum tensor_kind {
    TENSOR_NORM,                  /* (rows): float32, multiplies; Gemma 3's stored weights lack 1 */
    TENSOR_SCALAR,                /* (1): float32 */
    TENSOR_MATRIX,                /* (rows, columns): a linear layer */
    TENSOR_EMBEDDING,             /* (rows, columns): looked up, and the output head */
    TENSOR_LOOKUP,                /* (rows, columns): looked up only; one scale for each of scale_columns pieces of a row */
};

struct tensor {
    char name[TENSOR_NAME_BYTES];
    enum tensor_kind kind;
    uint32_t rows, columns;       /* columns 0: one dimension */
    uint32_t scale_columns;       /* of a matrix: 1 */
    uint32_t input_norm;          /* index of the norm whose result alone is this matrix's input; TENSOR_NONE */
};

struct tensor_list {
    struct tensor *tensors;       /* (count), owned */
    uint32_t count;
};

enum status tensor_list_create(const struct model_config *config, struct tensor_list *out);
void tensor_list_free(struct tensor_list *list);    /* accepts a zeroed one */

static inline int tensor_is_matrix(const struct tensor *tensor)
{
    return tensor->kind == TENSOR_MATRIX || tensor->kind == TENSOR_EMBEDDING;
}

#endif
