/* vocabulary.h - what a conversion needs from tokenizer.model: how many pieces there are, and the ids of the template's control
 * pieces. Whether the engine can reproduce the tokenizer is tokenizer_model.h's to say. */
#ifndef ROOST_WORKER_CONVERT_VOCABULARY_H
#define ROOST_WORKER_CONVERT_VOCABULARY_H
#include <stddef.h>
#include "common/status.h"
#include "worker/convert/family.h"

/* Reads DIR/tokenizer.model into *bytes (the caller frees it), refuses what the engine could not serve, cuts vocab_size to the pieces (published
 * embeddings have rows that no text and no reply reaches) and sets turn_id, text_id and the end ids. STATUS_UNSUPPORTED: no
 * tokenizer.model, or not one that can be reproduced. */
enum status vocabulary_read(const char *dir, struct family_config *family, char **bytes, size_t *size);

/* Without a tokenizer, for tests: ids of Gemma's own vocabulary where they exist, else small ones that are free. */
enum status vocabulary_invent(struct family_config *family);

#endif
