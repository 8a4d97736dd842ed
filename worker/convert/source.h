/* source.h - where a conversion's numbers come from: the tensors of a checkpoint, bound to those of the roost directory.
 * Binding refuses missing, unknown and misshapen tensors and dtypes that are not built. Immutable afterwards; any thread may read. */
#ifndef ROOST_WORKER_CONVERT_SOURCE_H
#define ROOST_WORKER_CONVERT_SOURCE_H
#include <stdbool.h>
#include <stdint.h>
#include "common/status.h"
#include "worker/convert/checkpoint.h"
#include "worker/convert/family.h"
#include "worker/convert/tensor_list.h"

struct source_tensor {
    const struct checkpoint_tensor *data;
    const struct checkpoint_tensor *scale;   /* of an int8 one: (rows) or (rows, scale_columns) float32; NULL */
};

struct source {
    struct checkpoint *checkpoint;           /* owned */
    struct source_tensor *tensors;           /* (count of the list), owned */
    bool norm_plus_one;
    uint64_t skipped_count, skipped_bytes;   /* of image and audio parts */
    char skipped_names[160];                 /* their beginnings, for people */
};

/* vocab_size: rows that the embeddings have in the checkpoint, at least those of the list. */
enum status source_open(const char *dir, const struct family_config *family, uint32_t vocab_size, const struct tensor_list *list,
                        struct source *out);
void source_close(struct source *source);    /* accepts a zeroed one */

/* One row as float32: columns values (of a norm or scalar: all of it, row 0). Gemma 3's norms get their 1. */
void source_read_row(const struct source *source, const struct tensor_list *list, uint32_t index, uint32_t row, float *out);

#endif
