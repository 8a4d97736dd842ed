/* output.h - a roost directory while it is written: DST.partial, renamed to DST when everything is in it and on the disk.
 *
 * model.safetensors is streamed: all shapes are declared first, so that the header and every tensor's place are known, then the
 * data is written in any order and from any thread. A run that fails or is stopped removes DST.partial; one that was killed leaves it to
 * the next run with the same DST, which replaces it (a lock keeps two runs apart).
 *
 * Order in the file: tensors of a multiple of 64 bytes first, so that each begins on one; then the other F32, BF16 and I8 ones, so that each
 * begins on a multiple of its element. There are no gaps. */
#ifndef ROOST_WORKER_CONVERT_OUTPUT_H
#define ROOST_WORKER_CONVERT_OUTPUT_H
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

struct output;                               /* opaque */

enum output_dtype { OUTPUT_F32, OUTPUT_BF16, OUTPUT_I8 };

/* STATUS_EXISTS: DST is there already, or another run is writing it. */
enum status output_create(const char *dst, struct output **out);
void output_destroy(struct output **output);   /* accepts NULL; removes what was not finished */

/* Declares a tensor; columns 0: one dimension. *index names it in output_write. */
enum status output_add(struct output *output, const char *name, enum output_dtype dtype, uint64_t rows, uint64_t columns, uint32_t *index);
/* Key and value of __metadata__: plain text without quotes or backslashes. */
enum status output_add_metadata(struct output *output, const char *key, const char *value);

/* After the last declaration: writes the header and gives the file its size (STATUS_IO when the disk has no room). */
enum status output_begin(struct output *output);
/* Bytes [at, at + size) of a tensor's data. Any thread. */
enum status output_write(struct output *output, uint32_t index, uint64_t at, const void *data, size_t size);

/* A whole small file. */
enum status output_write_file(struct output *output, const char *name, const void *data, size_t size);

/* Everything is written: to the disk, then DST. */
enum status output_finish(struct output *output);
void output_remove(const char *directory);             /* a finished one, again */
uint64_t output_bytes(const struct output *output);    /* of model.safetensors; after output_begin */

#endif
