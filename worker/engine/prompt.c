#include "worker/engine/prompt.h"
#include <stdlib.h>
#include <string.h>
#include "common/utf8.h"
#include "worker/engine/engine.h"
#include "worker/engine/model_config.h"
#include "worker/engine/tokenizer.h"

struct text {
    const char *bytes;
    size_t size;
};

struct id_list { /* counts past its capacity, so that the whole prompt is counted */
    uint32_t *ids;
    size_t capacity, count;
};

static struct text speaker(const char *name, size_t size, enum engine_role role)
{
    if (size > 0)
        return (struct text){name, size};
    switch (role) {
    case ENGINE_ROLE_USER: return (struct text){"USER", 4};
    case ENGINE_ROLE_SYSTEM: return (struct text){"SCENE", 5};
    case ENGINE_ROLE_ASSISTANT: break;
    }
    return (struct text){"ASSISTANT", 9};
}

static enum status check_text(const char *bytes, size_t size, const char *what, unsigned index)
{
    if (size > 0 && (memchr(bytes, 0, size) != NULL || !utf8_valid(bytes, size)))
        return STATUS_FAIL(STATUS_INVALID, "the %s of message %u is not UTF-8 text without NUL", what, index);
    return STATUS_OK;
}

static enum status check_name(const char *bytes, size_t size, unsigned index)
{
    if (size > PROMPT_NAME_BYTES_MAX)
        return STATUS_FAIL(STATUS_INVALID, "the name of message %u has %zu bytes, more than %u", index, size,
                           PROMPT_NAME_BYTES_MAX);
    return check_text(bytes, size, "name", index);
}

static void add_id(struct id_list *list, uint32_t id)
{
    if (list->count < list->capacity)
        list->ids[list->count] = id;
    list->count++;
}

static enum status add_text(struct id_list *list, const struct tokenizer *tokenizer, struct text text)
{
    const size_t used = list->count < list->capacity ? list->count : list->capacity;
    size_t count = 0;
    TRY(tokenizer_encode(tokenizer, text.bytes, text.size, list->ids + used, list->capacity - used, &count));
    list->count += count;
    return STATUS_OK;
}

static enum status add_header(struct id_list *list, const struct tokenizer *tokenizer,
                              const struct model_config *config, struct text name)
{
    add_id(list, config->turn_id);
    TRY(add_text(list, tokenizer, name));
    add_id(list, config->text_id);
    return STATUS_OK;
}

static enum status check_source(const struct prompt_source *source, uint32_t piece_bytes_max, uint64_t *tokens_min)
{
    uint64_t count = 3; /* <bos>, <turn> and <text> of the reply */
    if (source->message_count == 0)
        return STATUS_FAIL(STATUS_INVALID, "there are no messages");
    for (unsigned i = 0; i < source->message_count; i++) {
        const struct engine_message *message = &source->messages[i];
        TRY(check_name(message->name, message->name_size, i));
        count += 3 + message->name_size / piece_bytes_max + message->text_size / piece_bytes_max;
    }
    TRY(check_name(source->reply_name, source->reply_name_size, source->message_count));
    *tokens_min = count;
    return STATUS_OK;
}

enum status prompt_build(const struct tokenizer *tokenizer, const struct model_config *config,
                         const struct prompt_source *source, uint32_t tokens_max, uint32_t **ids, uint32_t *count)
{
    uint64_t tokens_min = 0;
    enum status st;
    TRY(check_source(source, tokenizer_piece_bytes_max(tokenizer), &tokens_min));
    for (unsigned i = 0; i < source->message_count; i++)
        TRY(check_text(source->messages[i].text, source->messages[i].text_size, "text", i));
    if (tokens_min > tokens_max)
        return STATUS_FAIL(STATUS_LIMIT, "the prompt has at least %llu tokens, at most %u are possible",
                           (unsigned long long)tokens_min, tokens_max);

    struct id_list list = {.capacity = tokens_max};
    list.ids = malloc(list.capacity * sizeof *list.ids);
    if (list.ids == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u prompt ids", tokens_max);
    add_id(&list, config->bos_id);
    for (unsigned i = 0; i < source->message_count; i++) {
        const struct engine_message *message = &source->messages[i];
        TRY_GOTO(add_header(&list, tokenizer, config, speaker(message->name, message->name_size, message->role)), st,
                 fail);
        TRY_GOTO(add_text(&list, tokenizer, (struct text){message->text, message->text_size}), st, fail);
        add_id(&list, config->eos_id);
    }
    TRY_GOTO(add_header(&list, tokenizer, config,
                        speaker(source->reply_name, source->reply_name_size, ENGINE_ROLE_ASSISTANT)),
             st, fail);
    if (list.count > tokens_max) {
        st = STATUS_FAIL(STATUS_LIMIT, "the prompt has %zu tokens, at most %u are possible", list.count, tokens_max);
        goto fail;
    }
    uint32_t *fitted = realloc(list.ids, list.count * sizeof *fitted);
    *ids = fitted != NULL ? fitted : list.ids;
    *count = (uint32_t)list.count;
    return STATUS_OK;
fail:
    free(list.ids);
    return st;
}
