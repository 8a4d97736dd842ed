/* tokenizer.h - a sentencepiece model behind a C interface: text to ids, ids to bytes.
 * Immutable after opening; any thread may use it. No exception crosses.
 *
 * Opening accepts only models that lose nothing: identity normalisation, byte fallback, no added space, the control pieces of
 * the template CONTROL at their ids. The file is read and checked by our own bounded reader (tokenizer_model.h) before
 * sentencepiece sees it, and probed by encoding and decoding afterwards.
 *
 * Always true:
 *   1. text never yields a control, unknown or unused id;
 *   2. the bytes of the ids of a text, put together, are the text, for every valid UTF-8 text (NUL and U+2581 included);
 *   3. the ids are a function of the text and the model file alone.
 *
 * How text is cut before sentencepiece sees it (part of the tokenizer's definition: changing it changes prompts):
 *   a. at U+2581: sentencepiece writes a space as U+2581 and would read a typed one as a space, so each typed U+2581 becomes
 *      the byte pieces E2 96 81;
 *   b. a part longer than TOKENIZER_SEGMENT_MIN bytes is cut before the first space at or after that offset whose previous
 *      character is not a space, when no piece of the model has a space after another character (then no merge crosses the cut,
 *      and the ids are what sentencepiece gives for the whole);
 *   c. a part still longer than TOKENIZER_SEGMENT_MAX is cut at the last character boundary at or below that offset.
 * b and c keep the time linear: sentencepiece's merge queue is n log n and falls out of cache (1.2 us a byte at 1 MiB of words,
 * 0.2 in segments). Only c can differ from sentencepiece's own answer, and only in texts with 64 KiB without a space. */
#ifndef ROOST_WORKER_ENGINE_TOKENIZER_H
#define ROOST_WORKER_ENGINE_TOKENIZER_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
#include "common/status.h"

#define TOKENIZER_FILE_BYTES_MAX (64u << 20)
#define TOKENIZER_PIECE_BYTES_MAX 512u       /* of one id; longer pieces are refused */
#define TOKENIZER_SEGMENT_MIN 4096u
#define TOKENIZER_SEGMENT_MAX 65536u

struct tokenizer;                            /* opaque */

struct tokenizer_config {                    /* what config.json says; the file must agree */
    uint32_t vocab_size;
    uint32_t bos_id, eos_id, turn_id, text_id;
};

/* STATUS_NOT_FOUND, STATUS_IO: the file. STATUS_LIMIT: too large. STATUS_INVALID: not a model, or not this configuration.
 * STATUS_UNSUPPORTED: a model that would not be lossless. */
enum status tokenizer_open(const char *path, const struct tokenizer_config *config, struct tokenizer **out);
void tokenizer_close(struct tokenizer **tokenizer);   /* accepts NULL; sets *tokenizer to NULL */

/* text is valid UTF-8 (checked: STATUS_INVALID). Stores the first capacity ids and counts all of them in *count, which may be
 * more than capacity. */
enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t size, uint32_t *ids, size_t capacity,
                             size_t *count);

/* The bytes of one id: whole characters or a single byte; empty for control, unknown and unused ids. Borrowed. */
const void *tokenizer_piece(const struct tokenizer *tokenizer, uint32_t id, size_t *size);

/* The longest piece: n bytes of text are at least n / this many ids. */
uint32_t tokenizer_piece_bytes_max(const struct tokenizer *tokenizer);

#ifdef __cplusplus
}
#endif
#endif
