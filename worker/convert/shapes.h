/* shapes.h - shapes of known models, for random weights: what benchmarks and memory tests need of them. */
#ifndef ROOST_WORKER_CONVERT_SHAPES_H
#define ROOST_WORKER_CONVERT_SHAPES_H
#include <stdint.h>
#include <stdio.h>
#include "common/status.h"
#include "worker/convert/family.h"

void shapes_list(FILE *out);

/* A name of the list, or a path to a config.json (of any family that can be converted; names end in ".json"). layers: only the first so
 * many, vocab_size: another vocabulary; 0: as it is. Control ids are those of vocabulary_random. STATUS_NOT_FOUND: no such shape. */
enum status shapes_read(const char *name, uint32_t layers, uint32_t vocab_size, struct family_config *out);

#endif
