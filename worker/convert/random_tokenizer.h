/* random_tokenizer.h - a tokenizer for random weights: a sentencepiece BPE model of any size whose pieces are strings of lower-case letters, so
 * that text of any kind can be sent to such a model and becomes about as many tokens as usual (up to four letters each). */
#ifndef ROOST_WORKER_CONVERT_RANDOM_TOKENIZER_H
#define ROOST_WORKER_CONVERT_RANDOM_TOKENIZER_H
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"
#include "worker/engine/model/model_config.h"

enum { RANDOM_TOKENIZER_UNKNOWN, RANDOM_TOKENIZER_BOS, RANDOM_TOKENIZER_EOS, RANDOM_TOKENIZER_TURN, RANDOM_TOKENIZER_TEXT,
       RANDOM_TOKENIZER_BYTES };              /* ids; 256 byte pieces from the last on */
#define RANDOM_TOKENIZER_PIECES_MIN (RANDOM_TOKENIZER_BYTES + 256u + 26u)

/* The file's bytes; the caller frees them. */
enum status random_tokenizer_write(enum model_template chat_template, uint32_t pieces, char **bytes, size_t *size);

#endif
