/* input_file.h - small input files (configurations, recipes, tokenizers), read whole. Links are followed: downloaded model
 * repositories consist of them. */
#ifndef ROOST_WORKER_CONVERT_INPUT_FILE_H
#define ROOST_WORKER_CONVERT_INPUT_FILE_H
#include <jansson.h>
#include <stddef.h>
#include "common/status.h"

#define INPUT_JSON_BYTES_MAX (64u << 20)   /* the index of a model with many tensors is some MB */

/* The caller frees *bytes; a NUL is put behind the end. STATUS_NOT_FOUND, STATUS_IO, STATUS_LIMIT (over size_max), STATUS_INVALID
 * (no regular file). */
enum status input_file_read(const char *path, size_t size_max, char **bytes, size_t *size);

/* A JSON object without repeated keys; errors carry path and line. The caller releases it. */
enum status input_file_read_json(const char *path, json_t **out);

/* dir/name into path (PATH_MAX bytes). */
enum status input_file_path(const char *dir, const char *name, char *path);

#endif
