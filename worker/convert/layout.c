#include "worker/convert/layout.h"
#include <stdbool.h>
#include <stdio.h>

/* Scale, input scale and scheme of an int8 tensor. */
static enum status declare_scales(struct output *output, const struct tensor *tensor, enum model_scheme default_scheme,
                                  const struct recipe_choice *choice, struct place *place)
{
    char name[TENSOR_NAME_BYTES + 32];
    snprintf(name, sizeof name, "%s_scale", tensor->name);
    TRY(output_add(output, name, OUTPUT_F32, tensor->rows, tensor->kind == TENSOR_LOOKUP ? tensor->scale_columns : 0, &place->scale));
    if (!tensor_is_matrix(tensor))
        return STATUS_OK;
    if (choice->scheme == MODEL_SCHEME_STATIC) {
        snprintf(name, sizeof name, "%s_input_scale", tensor->name);
        TRY(output_add(output, name, OUTPUT_F32, 1, 0, &place->input_scale));
    }
    if (choice->scheme == default_scheme)
        return STATUS_OK;
    snprintf(name, sizeof name, "activation_scheme.%s", tensor->name);
    return output_add_metadata(output, name, model_scheme_name(choice->scheme));
}

enum status layout_declare(struct output *output, enum model_format format, const struct tensor_list *list, enum model_scheme default_scheme,
                           const struct recipe_choice *choices, const enum output_dtype *dtypes, struct place *places)
{
    const bool int8 = format == MODEL_FORMAT_INT8;
    TRY(output_add_metadata(output, "format", int8 ? "roost-int8" : "roost-float"));
    if (int8)
        TRY(output_add_metadata(output, "activation_scheme", model_scheme_name(default_scheme)));
    for (uint32_t i = 0; i < list->count; i++) {
        const struct tensor *tensor = &list->tensors[i];
        const bool weights = tensor->columns != 0;
        places[i] = (struct place){ TENSOR_NONE, TENSOR_NONE, TENSOR_NONE, !weights ? OUTPUT_F32 : int8 ? OUTPUT_I8 : dtypes[i] };
        TRY(output_add(output, tensor->name, places[i].dtype, tensor->rows, tensor->columns, &places[i].data));
        if (int8 && weights)
            TRY(declare_scales(output, tensor, default_scheme, &choices[i], &places[i]));
    }
    return output_begin(output);
}
