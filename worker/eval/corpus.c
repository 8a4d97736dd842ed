#include "worker/eval/corpus.h"
#include <assert.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "common/utf8.h"
#include "worker/engine/engine.h"
#include "worker/engine/model/model_config.h"
#include "worker/engine/text/prompt.h"
#include "worker/engine/text/tokenizer.h"

/* Windows under construction; ids are addressed by offset until none can move any more. */
struct builder {
    const struct corpus_limits *limits;
    uint32_t bos_id;
    uint32_t *ids;
    size_t id_count, id_capacity;
    size_t *starts;            /* (window_count) offsets into ids */
    size_t window_count, window_capacity;
    uint64_t tokens;
};

static enum status grow(void **items, size_t item_bytes, size_t count, size_t *capacity)
{
    if (count <= *capacity)
        return STATUS_OK;
    const size_t wanted = count < 2 * *capacity ? 2 * *capacity : count + 64;
    void *grown = realloc(*items, wanted * item_bytes);
    if (grown == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %zu tokens", count);
    *items = grown;
    *capacity = wanted;
    return STATUS_OK;
}

static bool builder_full(const struct builder *builder)
{
    return builder->limits->tokens_max != 0 && builder->tokens >= builder->limits->tokens_max;
}

/* One text without its <bos>. */
static enum status builder_add(struct builder *builder, const uint32_t *ids, size_t count)
{
    while (count > 0 && !builder_full(builder)) {
        size_t take = builder->limits->window - 1;
        take = take < count ? take : count;
        if (builder->limits->tokens_max != 0 && take > builder->limits->tokens_max - builder->tokens)
            take = (size_t)(builder->limits->tokens_max - builder->tokens);
        TRY(grow((void **)&builder->starts, sizeof *builder->starts, builder->window_count + 1, &builder->window_capacity));
        TRY(grow((void **)&builder->ids, sizeof *builder->ids, builder->id_count + take + 1, &builder->id_capacity));
        builder->starts[builder->window_count++] = builder->id_count;
        builder->ids[builder->id_count++] = builder->bos_id;
        memcpy(builder->ids + builder->id_count, ids, take * sizeof *ids);
        builder->id_count += take;
        builder->tokens += take;
        ids += take;
        count -= take;
    }
    return STATUS_OK;
}

static enum status builder_finish(struct builder *builder, const char *path, struct corpus *out)
{
    if (builder->window_count == 0)
        return STATUS_FAIL(STATUS_INVALID, "%s has no text to predict", path);
    struct corpus_window *windows = calloc(builder->window_count, sizeof *windows);
    if (windows == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %zu windows", builder->window_count);
    for (size_t i = 0; i < builder->window_count; i++) {
        const size_t end = i + 1 < builder->window_count ? builder->starts[i + 1] : builder->id_count;
        windows[i] = (struct corpus_window){ .ids = builder->ids + builder->starts[i], .count = (uint32_t)(end - builder->starts[i]) };
    }
    *out = (struct corpus){ .windows = windows, .window_count = (uint32_t)builder->window_count, .tokens = builder->tokens, .ids = builder->ids };
    builder->ids = NULL;
    return STATUS_OK;
}

static void builder_free(struct builder *builder)
{
    free(builder->ids);
    free(builder->starts);
}

static enum status read_text(const char *path, char **text, size_t *size)
{
    TRY(model_file_read(path, CORPUS_FILE_BYTES_MAX, text, size));
    if (utf8_valid(*text, *size))
        return STATUS_OK;
    free(*text);
    *text = NULL;
    return STATUS_FAIL(STATUS_INVALID, "%s is not UTF-8 text", path);
}

static enum status encode_text(const struct tokenizer *tokenizer, const char *text, size_t size, struct builder *builder)
{
    size_t count;
    uint32_t *ids = malloc((size + 1) * sizeof *ids);    /* no more ids than bytes */
    if (ids == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the ids of %zu bytes", size);
    enum status st = tokenizer_encode(tokenizer, text, size, ids, size + 1, &count);
    if (st == STATUS_OK)
        st = builder_add(builder, ids, count);
    free(ids);
    return st;
}

enum status corpus_load_text(const char *path, const struct tokenizer *tokenizer, const struct model_config *config,
                             const struct corpus_limits *limits, struct corpus *out)
{
    enum status st;
    char *text;
    size_t size;
    struct builder builder = { .limits = limits, .bos_id = config->bos_id };
    assert(limits->window >= 2);
    TRY(read_text(path, &text, &size));
    TRY_GOTO(encode_text(tokenizer, text, size, &builder), st, done);
    st = builder_finish(&builder, path, out);
done:
    builder_free(&builder);
    free(text);
    return st;
}

static bool parse_role(const char *word, enum engine_role *out)
{
    static const char *const words[] = { [ENGINE_ROLE_USER] = "user", [ENGINE_ROLE_ASSISTANT] = "assistant", [ENGINE_ROLE_SYSTEM] = "system" };
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (strcmp(word, words[i]) == 0) {
            *out = (enum engine_role)i;
            return true;
        }
    }
    return false;
}

static enum status parse_message(json_t *item, struct engine_message *out)
{
    const char *role, *name = "", *text;
    json_error_t error;
    size_t name_size = 0, text_size;
    if (json_unpack_ex(item, &error, JSON_STRICT, "{s:s, s?s%, s:s%}", "role", &role, "name", &name, &name_size, "text", &text, &text_size) != 0)
        return STATUS_FAIL(STATUS_INVALID, "a message needs \"role\" and \"text\", may have \"name\", and nothing else (%s)", error.text);
    *out = (struct engine_message){ .name = name, .name_size = name_size, .text = text, .text_size = text_size };
    if (!parse_role(role, &out->role))
        return STATUS_FAIL(STATUS_INVALID, "the role is user, assistant or system");
    return STATUS_OK;
}

static enum status encode_messages(const struct engine_message *messages, unsigned count, const struct tokenizer *tokenizer,
                                   const struct model_config *config, struct builder *builder)
{
    struct prompt prompt = { 0 };
    const struct prompt_source source = { .messages = messages, .message_count = count, .reply_name = "" };
    TRY(prompt_build(tokenizer, config, &source, UINT32_MAX / sizeof(uint32_t), &prompt));
    /* ids[0] is the <bos>; what stands behind the last message asks for a reply that nobody wrote. */
    enum status st = builder_add(builder, prompt.ids + 1, prompt.ends[prompt.end_count - 1] - 1);
    prompt_free(&prompt);
    return st;
}

static enum status encode_conversation(json_t *line, const struct tokenizer *tokenizer, const struct model_config *config,
                                       struct builder *builder)
{
    enum status st = STATUS_OK;
    json_t *list = json_object_get(line, "messages");
    const size_t count = json_array_size(list);
    if (count == 0)
        return STATUS_FAIL(STATUS_INVALID, "there is no list \"messages\" with a message in it");
    struct engine_message *messages = calloc(count, sizeof *messages);
    if (messages == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %zu messages", count);
    for (size_t i = 0; i < count; i++)
        TRY_GOTO(parse_message(json_array_get(list, i), &messages[i]), st, done);
    st = encode_messages(messages, (unsigned)count, tokenizer, config, builder);
done:
    free(messages);
    return st;
}

static enum status encode_line(const char *path, unsigned number, const char *text, size_t size, const struct tokenizer *tokenizer,
                               const struct model_config *config, struct builder *builder)
{
    json_error_t error;
    json_t *line = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    if (line == NULL)
        return STATUS_FAIL(STATUS_INVALID, "%s, line %u: not JSON: %s", path, number, error.text);
    enum status st = encode_conversation(line, tokenizer, config, builder);
    json_decref(line);
    if (st == STATUS_OK)
        return STATUS_OK;
    char detail[512];
    strncpy(detail, status_detail(), sizeof detail - 1);
    detail[sizeof detail - 1] = '\0';
    return STATUS_FAIL(st, "%s, line %u: %s", path, number, detail);
}

enum status corpus_load_conversations(const char *path, const struct tokenizer *tokenizer, const struct model_config *config,
                                      const struct corpus_limits *limits, struct corpus *out)
{
    enum status st;
    char *text;
    size_t size;
    struct builder builder = { .limits = limits, .bos_id = config->bos_id };
    assert(limits->window >= 2);
    TRY(read_text(path, &text, &size));
    unsigned number = 1;
    for (const char *at = text, *end = text + size; at < end && !builder_full(&builder); number++) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        const size_t length = (size_t)((newline != NULL ? newline : end) - at);
        if (length > 0)
            TRY_GOTO(encode_line(path, number, at, length, tokenizer, config, &builder), st, done);
        at += length + 1;
    }
    st = builder_finish(&builder, path, out);
done:
    builder_free(&builder);
    free(text);
    return st;
}

void corpus_free(struct corpus *corpus)
{
    free(corpus->windows);
    free(corpus->ids);
    *corpus = (struct corpus){ 0 };
}
