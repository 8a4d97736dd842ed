/* checkpoint.h - the tensors of a Hugging Face directory: model.safetensors, or the shards that model.safetensors.index.json names.
 *
 * Every file is checked as hostile input before anything of its claimed size is touched, and mapped read-only: nothing is copied,
 * and pages that were read can be given back (checkpoint_release), so memory does not grow with the model. Symbolic links are
 * followed, as downloaded repositories consist of them. Immutable after opening; any thread may read. The files must not be
 * truncated meanwhile. The engine's own reader (safetensors.h) is stricter: it takes one file in roost's dtypes only. */
#ifndef ROOST_WORKER_CONVERT_CHECKPOINT_H
#define ROOST_WORKER_CONVERT_CHECKPOINT_H
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

#define CHECKPOINT_SHARDS_MAX 256u
#define CHECKPOINT_TENSORS_MAX 65536u
#define CHECKPOINT_HEADER_BYTES_MAX (64u << 20)
#define CHECKPOINT_RANK_MAX 8u
#define CHECKPOINT_NAME_BYTES_MAX 256u

struct checkpoint;                        /* opaque */

enum checkpoint_dtype { CHECKPOINT_F32, CHECKPOINT_BF16, CHECKPOINT_F16, CHECKPOINT_I8, CHECKPOINT_OTHER };

struct checkpoint_tensor {
    const char *name;
    const char *dtype_name;               /* as the file has it */
    enum checkpoint_dtype dtype;          /* OTHER: known to the format, of no use here */
    unsigned rank;                        /* 0 .. CHECKPOINT_RANK_MAX */
    uint64_t shape[CHECKPOINT_RANK_MAX];
    const uint8_t *data;                  /* in a mapping; not aligned */
    uint64_t bytes;
};

/* STATUS_NOT_FOUND: neither file is there. STATUS_INVALID, STATUS_LIMIT, STATUS_IO: what is wrong, with the file. */
enum status checkpoint_open(const char *dir, struct checkpoint **out);
void checkpoint_close(struct checkpoint **checkpoint);   /* accepts NULL; tensors and strings die with it */

unsigned checkpoint_count(const struct checkpoint *checkpoint);
const struct checkpoint_tensor *checkpoint_at(const struct checkpoint *checkpoint, unsigned index);    /* in order of name */
const struct checkpoint_tensor *checkpoint_find(const struct checkpoint *checkpoint, const char *name);   /* NULL if absent */
const char *checkpoint_metadata(const struct checkpoint *checkpoint, const char *key);   /* of a single file; NULL if absent */

/* Says that a tensor will not be read soon: its pages may go. */
void checkpoint_release(const struct checkpoint_tensor *tensor);

/* Elements [first, first + count) as float, exactly. The dtype must not be OTHER; int8 gives the integers. */
void checkpoint_read(const struct checkpoint_tensor *tensor, uint64_t first, size_t count, float *out);

#endif
