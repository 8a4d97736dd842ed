/* tokenizer_model.h - reads a sentencepiece model file (a protobuf, ModelProto) without trusting it.
 * One pass over the bytes with every length checked; pieces are views into the file. sentencepiece itself is only given files
 * that passed this: in particular no compiled normaliser map, whose tables it would follow unchecked. */
#ifndef ROOST_WORKER_ENGINE_TOKENIZER_MODEL_H
#define ROOST_WORKER_ENGINE_TOKENIZER_MODEL_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
#include "common/status.h"

enum tokenizer_piece_type {          /* values of the file */
    TOKENIZER_PIECE_NORMAL = 1,
    TOKENIZER_PIECE_UNKNOWN = 2,
    TOKENIZER_PIECE_CONTROL = 3,
    TOKENIZER_PIECE_USER_DEFINED = 4,
    TOKENIZER_PIECE_UNUSED = 5,
    TOKENIZER_PIECE_BYTE = 6,
};

struct tokenizer_model_piece {
    const uint8_t *text;             /* ref, into the file's bytes */
    uint32_t size;
    enum tokenizer_piece_type type;
    uint8_t byte;                    /* TOKENIZER_PIECE_BYTE: which */
};

struct tokenizer_model {
    struct tokenizer_model_piece *pieces;   /* (piece_count), owned */
    uint32_t piece_count;
};

/* Checks everything that can be seen without running the model. On success tokenizer_model_free releases *out. */
enum status tokenizer_model_read(const void *bytes, size_t size, uint32_t vocab_size, struct tokenizer_model *out);
void tokenizer_model_free(struct tokenizer_model *model);

#ifdef __cplusplus
}
#endif
#endif
