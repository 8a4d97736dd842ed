/* layout.h - declares the tensors of a list in an output: names, dtypes, scales and the metadata that says how inputs are quantised. */
#ifndef ROOST_WORKER_CONVERT_LAYOUT_H
#define ROOST_WORKER_CONVERT_LAYOUT_H
#include <stdint.h>
#include "common/status.h"
#include "worker/convert/output.h"
#include "worker/convert/recipe.h"
#include "worker/convert/tensor_list.h"
#include "worker/engine/model/model.h"

struct place {                            /* of one tensor in the output */
    uint32_t data, scale, input_scale;    /* indices of output_write; TENSOR_NONE where there is none */
    enum output_dtype dtype;              /* of data */
};

/* dtypes[i]: of the matrix i in format float; NULL for int8. Declares everything and begins the output. places is (count of the list). */
enum status layout_declare(struct output *output, enum model_format format, const struct tensor_list *list, enum model_scheme default_scheme,
                           const struct recipe_choice *choices, const enum output_dtype *dtypes, struct place *places);

#endif
