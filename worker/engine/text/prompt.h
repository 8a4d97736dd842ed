/* prompt.h - messages to prompt ids, by the model's template. Pure functions; any thread.
 *
 * "speaker":  ids = <bos> message*  header        message = <turn> encode(NAME) <text> encode(text) <eos>
 *                                                 header  = <turn> encode(REPLY NAME) <text>
 *   An empty NAME is the word of the role: USER, ASSISTANT, SCENE (system); an empty reply name is ASSISTANT.
 *
 * "gemma":    ids = <bos> turn*  header           turn   = <start_of_turn> encode(ROLE "\n") body <end_of_turn> encode("\n")
 *                                                 header = <start_of_turn> encode("model\n") label
 *   ROLE is "user" or "model". body = label encode(text). label is nothing, or encode("NAME:") where a NAME is given that is not the role's
 *   word above; a text behind a label that is not empty gets one space in front, encode(" " text). The white space (ASCII) at both ends of
 *   each text is left out, as Gemma's own template does. A system message goes before the text of the user message behind it, in its
 *   turn, body encode("\n\n"); with no user message behind it, it is a turn of "user".
 * "gemma4":   the same with <|turn>, <turn|> and a turn of "system" for each system message. Thinking and tools are not built.
 *
 * Each encode(...) is encoded by itself, so a message has the same ids wherever it stands (a system message of "gemma" that a user message
 * joins excepted), and no text can become a control token.
 *
 * Truncation keeps the first message (the persona) and drops whole messages after it, oldest first, in large steps: the least
 * multiple of PROMPT_TRUNCATE_STEP(context) tokens is dropped (rounded up to whole messages) that makes the rest fit, so that the
 * cut rarely moves while a conversation grows (a step of T tokens keeps about 1 - a/T of the prompt cached, a the tokens of an exchange).
 * The context is the model's, not tokens_max: a request with another room for its reply cuts at the same places. The last message always
 * stays. Messages that share a turn stay or go together. */
#ifndef ROOST_WORKER_ENGINE_PROMPT_H
#define ROOST_WORKER_ENGINE_PROMPT_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

struct engine_message;               /* worker/engine/engine.h */
struct model_config;
struct tokenizer;

#define PROMPT_NAME_BYTES_MAX 256u
#define PROMPT_TRUNCATE_STEP(context) ((context) / 2)

struct prompt_source {               /* everything borrowed */
    const struct engine_message *messages;
    unsigned message_count;
    const char *reply_name;
    size_t reply_name_size;
    bool truncate;
};

struct prompt {                      /* owned by the caller; prompt_free */
    uint32_t *ids;
    uint32_t count;
    uint32_t *ends;                  /* (end_count): positions behind each kept message, ascending; ends[0] is the first message's */
    uint32_t end_count;
    uint32_t dropped;                /* messages left out by truncation */
};

/* tokens_max is the longest prompt allowed. On failure *out is untouched.
 * STATUS_INVALID: no messages, a name or text that is not UTF-8 without NUL, a name over PROMPT_NAME_BYTES_MAX.
 * STATUS_LIMIT: more than tokens_max and truncate is not asked for, or the first and the last message alone do not fit; the detail has
 * both counts. A text so large that it cannot fit (bytes over the longest piece) is refused before it is encoded, with "at least" in the
 * detail; so the work is bounded by tokens_max, not by the peer (with truncate: by the bytes of a body). */
enum status prompt_build(const struct tokenizer *tokenizer, const struct model_config *config, const struct prompt_source *source,
                         uint32_t tokens_max, struct prompt *out);
void prompt_free(struct prompt *prompt);             /* accepts a zeroed one; zeroes it */

/* What a finished reply becomes in the next prompt: the prompt's ids, the reply's text encoded anew, the message's end. These are the ids
 * of prompt_build for the conversation with the reply appended as a message of the assistant under the reply's name, without the next
 * header. ends has one entry, the position behind the reply. Ids that no template made get the same treatment, as a reply without a name.
 * At most tokens_max ids; STATUS_LIMIT beyond. STATUS_INVALID: the reply is not UTF-8 without NUL. */
enum status prompt_extend(const struct tokenizer *tokenizer, const struct model_config *config, const uint32_t *prompt_ids,
                          uint32_t prompt_count, const char *reply, size_t reply_size, uint32_t tokens_max, struct prompt *out);

#endif
