/* tokenizer.h - a sentencepiece model behind a C interface: text to ids, ids to bytes.
 * Immutable after opening; any thread may use it. No exception crosses.
 *
 * Opening accepts only models that lose nothing: BPE, identity normalisation, byte fallback, no added space, the ids that the
 * configuration names CONTROL or USER_DEFINED (Gemma's <start_of_turn>). The file is read and checked by our own bounded reader (tokenizer_model.h) before
 * sentencepiece sees it, and probed by encoding and decoding afterwards.
 *
 * Special pieces: those CONTROL, UNKNOWN or UNUSED by their type; of the USER_DEFINED ones, those that the configuration names and those
 * that look like a mark for the model, written <...> or [...], or with <| or |>. Not special are runs of white space and the HTML tags
 * without attributes, which Gemma's models have for text: <b>, </td> and the like (html_elements in tokenizer.cc). So <unused7>, <mask>
 * and <start_of_image> are special.
 *
 * Always true:
 *   1. text never yields a special id, and special ids have no bytes (so the engine never draws one but the end ids);
 *   2. the bytes of the ids of a text, put together, are the text, for every valid UTF-8 text (NUL and U+2581 included);
 *   3. the ids are a function of the text and the model file alone.
 *
 * How text is cut before sentencepiece sees it (part of the tokenizer's definition: changing it changes prompts):
 *   a. at U+2581: sentencepiece writes a space as U+2581 and would read a typed one as a space, so each typed U+2581 becomes
 *      the byte pieces E2 96 81;
 *   b. behind the first character wherever a special USER_DEFINED piece is written, so that it is encoded as ordinary characters;
 *   c. a part longer than TOKENIZER_SEGMENT_MIN bytes is cut before the first space at or after that offset whose previous
 *      character is not a space, when no piece of the model has a space after another character (then no merge crosses the cut,
 *      and the ids are what sentencepiece gives for the whole);
 *   d. a part still longer than TOKENIZER_SEGMENT_MAX is cut at the last character boundary at or below that offset.
 * c and d keep the time linear: sentencepiece's merge queue is n log n and falls out of cache (1.2 us a byte at 1 MiB of words,
 * 0.2 in segments). Only d can differ from sentencepiece's own answer, and only in texts with 64 KiB without a space. */
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
    uint32_t bos_id, turn_id, text_id;
    const uint32_t *end_ids;                 /* ref, for the call */
    uint32_t end_id_count;
};

/* STATUS_NOT_FOUND, STATUS_IO: the file. STATUS_LIMIT: too large. STATUS_INVALID: not a model, or not this configuration.
 * STATUS_UNSUPPORTED: a model that would not be lossless. */
enum status tokenizer_open(const char *path, const struct tokenizer_config *config, struct tokenizer **out);
void tokenizer_close(struct tokenizer **tokenizer);   /* accepts NULL; sets *tokenizer to NULL */

/* text is valid UTF-8 (checked: STATUS_INVALID). Stores the first capacity ids and counts all of them in *count, which may be
 * more than capacity. */
enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t size, uint32_t *ids, size_t capacity,
                             size_t *count);

/* The bytes of one id: whole characters or a single byte; empty for special ids. Borrowed. */
const void *tokenizer_piece(const struct tokenizer *tokenizer, uint32_t id, size_t *size);

/* The longest piece: n bytes of text are at least n / this many ids. */
uint32_t tokenizer_piece_bytes_max(const struct tokenizer *tokenizer);

#ifdef __cplusplus
}
#endif
#endif
