/* family.h - what a Hugging Face config.json means: the families that can be converted, told as a model_config.
 *
 * Built: Gemma 3 text (Gemma3ForCausalLM, and the text part of Gemma3ForConditionalGeneration), Gemma 4 text E2B and E4B
 * (Gemma4ForCausalLM, the text part of Gemma4ForConditionalGeneration), and roost's own (RoostForCausalLM). Everything else is
 * refused by name, with the reason: STATUS_UNSUPPORTED. A key that is not known is refused too unless it is null, false or
 * named in ignored_keys, because it may change what the model computes.
 *
 * Keys and defaults are those of transformers' configuration_gemma3.py and configuration_gemma4.py: published configurations leave
 * out what is default. */
#ifndef ROOST_WORKER_CONVERT_FAMILY_H
#define ROOST_WORKER_CONVERT_FAMILY_H
#include <stdbool.h>
#include "common/status.h"
#include "worker/engine/model/model_config.h"

enum family { FAMILY_ROOST, FAMILY_GEMMA3, FAMILY_GEMMA4 };

struct family_config {
    enum family family;
    struct model_config config;       /* ids of the template (turn_id, text_id) only for roost; name from the folder */
    bool norm_plus_one;               /* stored norm weights w stand for 1 + w (Gemma 3) */
    bool tied;                        /* tie_word_embeddings: the output head is the embedding and need not be stored */
    const char *opening, *closing;    /* pieces that open and close a turn; NULL for roost, whose configuration has the ids */
};

/* Reads DIR/config.json and, for the end ids, DIR/generation_config.json if it is there. */
enum status family_read(const char *dir, const char *const *ignored_keys, unsigned ignored_key_count, struct family_config *out);

/* The same from one configuration file, without generation_config.json. */
enum status family_read_file(const char *path, const char *const *ignored_keys, unsigned ignored_key_count, struct family_config *out);

/* The family that it came from: a roost directory remembers it. */
enum family family_origin(const struct family_config *family);

/* Beginnings of tensor names that carry the text model's layers: "model.", ...; NULL behind the last. */
extern const char *const family_text_prefixes[];
/* Beginnings of the names of image and audio parts, which are skipped. */
extern const char *const family_other_prefixes[];

#endif
