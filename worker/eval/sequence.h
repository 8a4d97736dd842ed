/* sequence.h - one sequence on one backend, without a cache: the tokens of a window from its beginning, chunk after chunk.
 * Owns the backend and the pages of a whole window; the model is borrowed. One thread. */
#ifndef ROOST_WORKER_EVAL_SEQUENCE_H
#define ROOST_WORKER_EVAL_SEQUENCE_H
#include <stdint.h>
#include "common/status.h"

#define SEQUENCE_CHUNK_TOKENS 128u

struct backend;
struct model;
struct sequence;                /* opaque */

/* On the backend that the model's format asks for: roost-int8 on "cpu", roost-float on "float". */
enum status sequence_create(const struct model *model, uint32_t tokens_max, uint32_t threads, struct sequence **out);
void sequence_destroy(struct sequence **sequence);    /* accepts NULL */

struct backend *sequence_backend(struct sequence *sequence);
uint32_t sequence_count(const struct sequence *sequence);

/* Forgets all tokens. */
void sequence_restart(struct sequence *sequence);

/* Runs `count` further tokens, at most tokens_max in all; logits is (count, vocab), or NULL where nobody wants them. */
enum status sequence_run(struct sequence *sequence, const uint32_t *tokens, uint32_t count, float *logits);

#endif
