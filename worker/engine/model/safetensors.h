/* safetensors.h - a model.safetensors file, checked as hostile input and mapped read-only.
 *
 * Format: u64 little-endian header length, a JSON object {name: {dtype, shape, data_offsets}}, the data. Accepted are I8,
 * BF16, F16 and F32 tensors that fill the data exactly, without gaps or overlaps, each on a boundary of its element's size. Everything
 * else is refused with the reason before anything of its claimed size is allocated. The caller must not truncate the file while it is mapped.
 * Immutable after opening; any thread may read. */
#ifndef ROOST_WORKER_ENGINE_SAFETENSORS_H
#define ROOST_WORKER_ENGINE_SAFETENSORS_H
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

#define SAFETENSORS_HEADER_BYTES_MAX (16u << 20)
#define SAFETENSORS_TENSORS_MAX 65536u
#define SAFETENSORS_RANK_MAX 4u

struct safetensors;                       /* opaque: the mapping and its table */

enum safetensors_dtype { SAFETENSORS_I8, SAFETENSORS_BF16, SAFETENSORS_F16, SAFETENSORS_F32 };
const char *safetensors_dtype_name(enum safetensors_dtype dtype);

struct safetensors_tensor {
    const char *name;
    enum safetensors_dtype dtype;
    unsigned rank;                        /* 1 .. SAFETENSORS_RANK_MAX */
    uint64_t shape[SAFETENSORS_RANK_MAX]; /* every extent at least 1 */
    const void *data;                     /* in the mapping */
    uint64_t bytes;
};

/* STATUS_NOT_FOUND: no file. STATUS_UNSUPPORTED: a dtype that is not built. STATUS_INVALID, STATUS_LIMIT: anything wrong. */
enum status safetensors_open(const char *path, struct safetensors **out);
void safetensors_close(struct safetensors **file);   /* accepts NULL; tensors and strings die with it */

unsigned safetensors_count(const struct safetensors *file);
const struct safetensors_tensor *safetensors_at(const struct safetensors *file, unsigned index);   /* in order of name */
const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name);   /* NULL if absent */

/* The strings of "__metadata__". */
const char *safetensors_metadata(const struct safetensors *file, const char *key);   /* NULL if absent */
unsigned safetensors_metadata_count(const struct safetensors *file);
void safetensors_metadata_at(const struct safetensors *file, unsigned index, const char **key, const char **value);

/* The whole file as mapped, for digests. */
const void *safetensors_bytes(const struct safetensors *file, size_t *size);

#endif
