/* prompt.h - messages to prompt ids, by the template "speaker". Pure functions; any thread.
 *
 *   ids   = <bos> message*  header
 *   message = <turn> encode(NAME) <text> encode(text) <eos>
 *   header  = <turn> encode(REPLY NAME) <text>
 *
 * Names and texts are encoded one by one, so a message has the same ids wherever it stands and no text can become a control
 * token. An empty NAME is the word of the role: USER, ASSISTANT, SCENE (system); an empty reply name is ASSISTANT. */
#ifndef ROOST_WORKER_ENGINE_PROMPT_H
#define ROOST_WORKER_ENGINE_PROMPT_H
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

struct engine_message;               /* worker/engine/engine.h */
struct model_config;
struct tokenizer;

#define PROMPT_NAME_BYTES_MAX 256u

struct prompt_source {               /* everything borrowed */
    const struct engine_message *messages;
    unsigned message_count;
    const char *reply_name;
    size_t reply_name_size;
};

/* Builds the ids in memory that the caller frees. tokens_max is the longest prompt allowed.
 * STATUS_INVALID: no messages, a name or text that is not UTF-8 without NUL, a name over PROMPT_NAME_BYTES_MAX.
 * STATUS_LIMIT: more than tokens_max; the detail has both counts. A text so large that it cannot fit (bytes over the longest
 * piece) is refused before it is encoded, with "at least" in the detail; so the work is bounded by tokens_max, not by the peer. */
enum status prompt_build(const struct tokenizer *tokenizer, const struct model_config *config, const struct prompt_source *source,
                         uint32_t tokens_max, uint32_t **ids, uint32_t *count);

#endif
