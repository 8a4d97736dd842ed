#include "worker/engine/text/prompt.h"
#include <stdlib.h>
#include <string.h>
#include "common/utf8.h"
#include "worker/engine/engine.h"
#include "worker/engine/model/model_config.h"
#include "worker/engine/text/tokenizer.h"

struct text {
    const char *bytes;
    size_t size;
};

struct id_list {
    uint32_t *ids;
    size_t capacity, count;
    size_t count_max; /* ids are stored up to here and counted beyond */
};

struct builder {
    const struct tokenizer *tokenizer;
    const struct model_config *config;
    struct id_list list;
};

struct span { /* of one message */
    size_t end;  /* the position behind it, with nothing dropped */
    bool joined; /* it shares the turn of the message before it */
};

#define TEXT(literal) ((struct text){literal, sizeof literal - 1})

/* ---- ids ---- */

static enum status list_reserve(struct id_list *list, size_t more)
{
    size_t wanted = list->count + more;
    if (wanted > list->count_max)
        wanted = list->count_max;
    if (wanted <= list->capacity)
        return STATUS_OK;
    if (wanted < list->capacity + list->capacity / 2)
        wanted = list->capacity + list->capacity / 2;
    uint32_t *grown = realloc(list->ids, wanted * sizeof *grown);
    if (grown == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %zu prompt ids", wanted);
    list->ids = grown;
    list->capacity = wanted;
    return STATUS_OK;
}

static enum status add_id(struct builder *b, uint32_t id)
{
    TRY(list_reserve(&b->list, 1));
    if (b->list.count < b->list.capacity)
        b->list.ids[b->list.count] = id;
    b->list.count++;
    return STATUS_OK;
}

static enum status add_text(struct builder *b, struct text text)
{
    struct id_list *list = &b->list;
    size_t count = 0;
    TRY(list_reserve(list, text.size)); /* an id has at least one byte */
    const size_t used = list->count < list->capacity ? list->count : list->capacity;
    TRY(tokenizer_encode(b->tokenizer, text.bytes, text.size, list->ids == NULL ? NULL : list->ids + used,
                         list->capacity - used, &count));
    list->count += count;
    return STATUS_OK;
}

/* ---- templates ---- */

static struct text role_word(enum engine_role role)
{
    switch (role) {
    case ENGINE_ROLE_USER: return TEXT("USER");
    case ENGINE_ROLE_SYSTEM: return TEXT("SCENE");
    case ENGINE_ROLE_ASSISTANT: break;
    }
    return TEXT("ASSISTANT");
}

static bool text_equal(struct text a, struct text b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.bytes, b.bytes, a.size) == 0);
}

static enum status speaker_header(struct builder *b, struct text name, enum engine_role role)
{
    TRY(add_id(b, b->config->turn_id));
    TRY(add_text(b, name.size > 0 ? name : role_word(role)));
    return add_id(b, b->config->text_id);
}

static struct text trim(struct text text)
{
    static const char white[] = " \t\n\r\v\f";
    while (text.size > 0 && memchr(white, text.bytes[0], sizeof white - 1) != NULL) {
        text.bytes++;
        text.size--;
    }
    while (text.size > 0 && memchr(white, text.bytes[text.size - 1], sizeof white - 1) != NULL)
        text.size--;
    return text;
}

static enum status gemma_open(struct builder *b, enum engine_role role)
{
    TRY(add_id(b, b->config->turn_id));
    if (role == ENGINE_ROLE_SYSTEM && b->config->chat_template == MODEL_TEMPLATE_GEMMA4)
        return add_text(b, TEXT("system\n"));
    return add_text(b, role == ENGINE_ROLE_ASSISTANT ? TEXT("model\n") : TEXT("user\n"));
}

static enum status gemma_label(struct builder *b, struct text name, enum engine_role role, bool *labelled)
{
    char label[PROMPT_NAME_BYTES_MAX + 1];
    *labelled = name.size > 0 && !text_equal(name, role_word(role));
    if (!*labelled)
        return STATUS_OK;
    memcpy(label, name.bytes, name.size);
    label[name.size] = ':';
    return add_text(b, (struct text){label, name.size + 1});
}

static enum status gemma_text(struct builder *b, struct text text, bool labelled)
{
    text = trim(text);
    if (!labelled || text.size == 0)
        return add_text(b, text);
    char *spaced = malloc(text.size + 1);
    if (spaced == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a text of %zu bytes", text.size);
    spaced[0] = ' ';
    memcpy(spaced + 1, text.bytes, text.size);
    const enum status st = add_text(b, (struct text){spaced, text.size + 1});
    free(spaced);
    return st;
}

/* Closes the message whose text was just added. */
static enum status close_message(struct builder *b)
{
    if (b->config->chat_template == MODEL_TEMPLATE_SPEAKER)
        return add_id(b, b->config->end_ids[0]);
    TRY(add_id(b, b->config->text_id));
    return add_text(b, TEXT("\n"));
}

static enum status add_message(struct builder *b, const struct engine_message *message, bool joined, bool joins)
{
    const struct text name = {message->name, message->name_size}, text = {message->text, message->text_size};
    bool labelled = false;
    if (b->config->chat_template == MODEL_TEMPLATE_SPEAKER) {
        TRY(speaker_header(b, name, message->role));
        TRY(add_text(b, text));
        return close_message(b);
    }
    if (!joined)
        TRY(gemma_open(b, message->role));
    TRY(gemma_label(b, name, message->role, &labelled));
    TRY(gemma_text(b, text, labelled));
    return joins ? add_text(b, TEXT("\n\n")) : close_message(b);
}

static enum status add_header(struct builder *b, struct text name)
{
    bool labelled;
    if (b->config->chat_template == MODEL_TEMPLATE_SPEAKER)
        return speaker_header(b, name, ENGINE_ROLE_ASSISTANT);
    TRY(gemma_open(b, ENGINE_ROLE_ASSISTANT));
    return gemma_label(b, name, ENGINE_ROLE_ASSISTANT, &labelled);
}

/* ---- checks ---- */

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


static enum status check_source(const struct prompt_source *source)
{
    if (source->message_count == 0)
        return STATUS_FAIL(STATUS_INVALID, "there are no messages");
    for (unsigned i = 0; i < source->message_count; i++) {
        const struct engine_message *message = &source->messages[i];
        TRY(check_name(message->name, message->name_size, i));
        TRY(check_text(message->text, message->text_size, "text", i));
    }
    return check_name(source->reply_name, source->reply_name_size, source->message_count);
}

/* No less than what the prompt has, seen without encoding anything. */
static uint64_t tokens_at_least(const struct builder *b, const struct prompt_source *source)
{
    const uint32_t piece = tokenizer_piece_bytes_max(b->tokenizer);
    const bool speaker = b->config->chat_template == MODEL_TEMPLATE_SPEAKER;
    uint64_t count = 3; /* <bos>, <turn>, and <text> or the role of the reply */
    for (unsigned i = 0; i < source->message_count; i++) {
        const struct engine_message *message = &source->messages[i];
        const struct text text = {message->text, message->text_size};
        if (speaker)
            count += 3 + message->name_size / piece + text.size / piece; /* <turn>, <text>, <eos> */
        else
            count += 1 + trim(text).size / piece; /* a system message that joins adds "\n\n" alone */
    }
    return count;
}

/* ---- truncation ---- */

struct cut {
    unsigned first, behind; /* messages [first, behind) are left out */
    size_t tokens;          /* that are left out */
};

/* Where messages may be cut: the first turn's messages stay, so do the last one's. */
static bool find_cut(const struct span *spans, unsigned count, size_t total, uint32_t tokens_max, uint32_t step,
                     struct cut *cut)
{
    unsigned first = 1, last = count - 1;
    while (first < count && spans[first].joined)
        first++;
    while (spans[last].joined)
        last--;
    *cut = (struct cut){first, first, 0};
    const size_t start = spans[first - 1].end;
    for (size_t least = 0; total - cut->tokens > tokens_max; ) {
        if (cut->behind >= last)
            return false;
        least += step;
        while (cut->behind < last && (cut->tokens < least || spans[cut->behind].joined)) {
            cut->tokens = spans[cut->behind].end - start;
            cut->behind++;
        }
    }
    return true;
}

static void cut_out(struct id_list *list, struct span *spans, unsigned count, const struct cut *cut)
{
    if (cut->tokens == 0)
        return;
    uint32_t *start = list->ids + spans[cut->first - 1].end;
    memmove(start, start + cut->tokens, (list->count - spans[cut->behind - 1].end) * sizeof *start);
    list->count -= cut->tokens;
    for (unsigned i = cut->behind; i < count; i++)
        spans[i].end -= cut->tokens;
    memmove(spans + cut->first, spans + cut->behind, (count - cut->behind) * sizeof *spans);
}

/* ---- the whole ---- */

/* A system message of "gemma" opens the turn of the user message behind it. */
static void mark_joined(const struct builder *b, const struct prompt_source *source, struct span *spans)
{
    bool joins = false; /* message i would open the turn of the one behind it */
    for (unsigned i = source->message_count; i-- > 0;) {
        const enum engine_role role = source->messages[i].role;
        if (i + 1 < source->message_count)
            spans[i + 1].joined = role == ENGINE_ROLE_SYSTEM && joins;
        joins = role == ENGINE_ROLE_USER || (role == ENGINE_ROLE_SYSTEM && joins);
    }
    spans[0].joined = false;
    for (unsigned i = 0; i < source->message_count; i++)
        spans[i].joined = spans[i].joined && b->config->chat_template == MODEL_TEMPLATE_GEMMA;
}

static enum status add_all(struct builder *b, const struct prompt_source *source, struct span *spans)
{
    mark_joined(b, source, spans);
    TRY(add_id(b, b->config->bos_id));
    for (unsigned i = 0; i < source->message_count; i++) {
        const bool joins = i + 1 < source->message_count && spans[i + 1].joined;
        TRY(add_message(b, &source->messages[i], spans[i].joined, joins));
        spans[i].end = b->list.count;
    }
    return add_header(b, (struct text){source->reply_name, source->reply_name_size});
}

/* Hands the ids over, with end_count ends. */
static enum status finish(struct builder *b, uint32_t end_count, struct prompt *out)
{
    uint32_t *ends = malloc(end_count * sizeof *ends);
    if (ends == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u message ends", end_count);
    uint32_t *fitted = realloc(b->list.ids, b->list.count * sizeof *fitted);
    *out = (struct prompt){.ids = fitted != NULL ? fitted : b->list.ids,
                           .count = (uint32_t)b->list.count,
                           .ends = ends,
                           .end_count = end_count};
    return STATUS_OK;
}

enum status prompt_build(const struct tokenizer *tokenizer, const struct model_config *config,
                         const struct prompt_source *source, uint32_t tokens_max, struct prompt *out)
{
    struct builder b = {tokenizer, config, {.count_max = source->truncate ? SIZE_MAX : tokens_max}};
    struct span *spans = NULL;
    struct cut cut = {0};
    enum status st;
    TRY(check_source(source));
    const uint64_t least = tokens_at_least(&b, source);
    if (least > tokens_max && !source->truncate)
        return STATUS_FAIL(STATUS_LIMIT, "the prompt has at least %llu tokens, at most %u are possible",
                           (unsigned long long)least, tokens_max);
    spans = malloc(source->message_count * sizeof *spans);
    if (spans == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u messages", source->message_count);
    TRY_GOTO(add_all(&b, source, spans), st, fail);
    if (source->truncate) {
        const uint32_t step = PROMPT_TRUNCATE_STEP(config->context_tokens_max);
        if (!find_cut(spans, source->message_count, b.list.count, tokens_max, step > 0 ? step : 1, &cut)) {
            st = STATUS_FAIL(STATUS_LIMIT, "the first and the last message alone make a prompt of %zu tokens, at most %u are possible",
                             b.list.count - cut.tokens, tokens_max);
            goto fail;
        }
        cut_out(&b.list, spans, source->message_count, &cut);
    } else if (b.list.count > tokens_max) {
        st = STATUS_FAIL(STATUS_LIMIT, "the prompt has %zu tokens, at most %u are possible", b.list.count, tokens_max);
        goto fail;
    }
    const unsigned dropped = cut.behind - cut.first;
    TRY_GOTO(finish(&b, source->message_count - dropped, out), st, fail);
    out->dropped = dropped;
    for (uint32_t i = 0; i < out->end_count; i++)
        out->ends[i] = (uint32_t)spans[i].end;
    free(spans);
    return STATUS_OK;
fail:
    free(spans);
    free(b.list.ids);
    return st;
}

/* Whether the header at the end of the ids has a label: more than "model\n" behind its <turn>. */
static enum status header_is_labelled(const struct builder *b, const uint32_t *ids, uint32_t count, bool *labelled)
{
    uint32_t plain[16];
    size_t plain_count = 0;
    uint32_t at = count;
    const struct text role = TEXT("model\n");
    TRY(tokenizer_encode(b->tokenizer, role.bytes, role.size, plain, 16, &plain_count));
    while (at > 0 && ids[at - 1] != b->config->turn_id)
        at--;
    *labelled = at > 0 && count - at > plain_count && memcmp(ids + at, plain, plain_count * sizeof *plain) == 0;
    return STATUS_OK;
}

enum status prompt_extend(const struct tokenizer *tokenizer, const struct model_config *config,
                          const uint32_t *prompt_ids, uint32_t prompt_count, const char *reply, size_t reply_size,
                          uint32_t tokens_max, struct prompt *out)
{
    struct builder b = {tokenizer, config, {.count_max = tokens_max}};
    const struct text text = {reply, reply_size};
    bool labelled = false;
    enum status st;
    if (reply_size > 0 && (memchr(reply, 0, reply_size) != NULL || !utf8_valid(reply, reply_size)))
        return STATUS_FAIL(STATUS_INVALID, "the reply is not UTF-8 text without NUL");
    TRY_GOTO(list_reserve(&b.list, prompt_count + reply_size), st, fail);
    for (uint32_t i = 0; i < prompt_count; i++)
        TRY_GOTO(add_id(&b, prompt_ids[i]), st, fail);
    if (config->chat_template == MODEL_TEMPLATE_SPEAKER) {
        TRY_GOTO(add_text(&b, text), st, fail);
    } else {
        TRY_GOTO(header_is_labelled(&b, prompt_ids, prompt_count, &labelled), st, fail);
        TRY_GOTO(gemma_text(&b, text, labelled), st, fail);
    }
    TRY_GOTO(close_message(&b), st, fail);
    if (b.list.count > tokens_max) {
        st = STATUS_FAIL(STATUS_LIMIT, "prompt and reply have %zu tokens, at most %u are possible", b.list.count,
                         tokens_max);
        goto fail;
    }
    TRY_GOTO(finish(&b, 1, out), st, fail);
    out->ends[0] = out->count;
    return STATUS_OK;
fail:
    free(b.list.ids);
    return st;
}

void prompt_free(struct prompt *prompt)
{
    free(prompt->ids);
    free(prompt->ends);
    *prompt = (struct prompt){0};
}
