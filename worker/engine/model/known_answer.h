/* known_answer.h - what a model computes, written once and checked at every start.
 *
 * DIR/known_answer.json: {"prompt_ids": [...], "reply_ids": [...], "logits_digest": "<64 hex digits>"}
 * reply_ids are the greedy continuation of prompt_ids over all ids (ties to the lowest); logits_digest is BLAKE2b-256 over the float32 bits (little
 * endian) of every row of logits that chose one. A processor, a kernel or a model file that differs in one bit shows here. */
#ifndef ROOST_WORKER_ENGINE_KNOWN_ANSWER_H
#define ROOST_WORKER_ENGINE_KNOWN_ANSWER_H
#include <stdint.h>
#include "common/status.h"

struct backend;
struct backend_ops;
struct model;

#define KNOWN_ANSWER_FILE "known_answer.json"
#define KNOWN_ANSWER_FILE_BYTES_MAX (1u << 20)
#define KNOWN_ANSWER_PROMPT_IDS 64u          /* with the reply it crosses a page */
#define KNOWN_ANSWER_REPLY_IDS 8u
#define KNOWN_ANSWER_IDS_MAX 4096u           /* of either list in a file */

struct known_answer_run {
    const struct model *model;               /* ref */
    const struct backend_ops *ops;           /* ref */
    struct backend *backend;                 /* ref */
    uint32_t chunk_tokens;                   /* of the prompt at a time; at most the backend's rows_max */
};

/* Writes the file by renaming a complete temporary one over it. */
enum status known_answer_write(const char *dir, const struct known_answer_run *run);

/* STATUS_NOT_FOUND: no file. STATUS_INVALID: not a known answer for this model. STATUS_CORRUPT: the answer differs. */
enum status known_answer_check(const char *dir, const struct known_answer_run *run);

#endif
