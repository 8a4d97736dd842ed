#include "worker/engine/text/stop_stream.h"
#include <stdlib.h>
#include <string.h>
#include "common/utf8.h"

struct mark { /* tokens whose text ends at this offset of the held text */
    size_t end;
    uint32_t tokens;
};

struct stop_stream {
    const struct stop_strings *strings; /* ref */
    bool stopped;
    size_t matched[STOP_STRINGS_MAX]; /* the longest start of string k that the text ends with */
    uint8_t fallback[STOP_STRINGS_MAX][STOP_STRING_BYTES_MAX]; /* (k, n): the same for its first n + 1 bytes, less than n + 1 */
    char *held; /* text of the tokens that are not released, behind `out` bytes that the last call gave away */
    size_t out, size, capacity;
    struct mark *marks; /* ascending ends; ends differ, so never more than the bytes held, plus one */
    size_t mark_count, mark_capacity;
};

enum status stop_strings_check(const char *const *texts, const size_t *sizes, unsigned count, struct stop_strings *out)
{
    if (count > STOP_STRINGS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "%u stop strings, at most %u are possible", count, STOP_STRINGS_MAX);
    for (unsigned i = 0; i < count; i++) {
        if (sizes[i] == 0)
            return STATUS_FAIL(STATUS_INVALID, "stop string %u is empty", i);
        if (sizes[i] > STOP_STRING_BYTES_MAX)
            return STATUS_FAIL(STATUS_INVALID, "stop string %u has %zu bytes, more than %u", i, sizes[i],
                               STOP_STRING_BYTES_MAX);
        if (!utf8_valid(texts[i], sizes[i]) || memchr(texts[i], 0, sizes[i]) != NULL)
            return STATUS_FAIL(STATUS_INVALID, "stop string %u is not UTF-8 text without NUL", i);
    }
    out->count = count;
    for (unsigned i = 0; i < count; i++) {
        out->size[i] = (uint16_t)sizes[i];
        memcpy(out->text[i], texts[i], sizes[i]);
    }
    return STATUS_OK;
}

/* The step of Knuth, Morris and Pratt: how much of the string the text ends with after one more byte. */
static size_t advance(const char *string, size_t string_size, const uint8_t *fallback, size_t matched, char byte)
{
    if (matched == string_size)
        matched = fallback[matched - 1];
    while (matched > 0 && string[matched] != byte)
        matched = fallback[matched - 1];
    return matched + (string[matched] == byte);
}

enum status stop_stream_create(const struct stop_strings *strings, struct stop_stream **out)
{
    struct stop_stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a stop stream");
    stream->strings = strings;
    for (unsigned k = 0; k < strings->count; k++)
        for (size_t n = 1; n < strings->size[k]; n++)
            stream->fallback[k][n] = (uint8_t)advance(strings->text[k], n, stream->fallback[k],
                                                      stream->fallback[k][n - 1], strings->text[k][n]);
    *out = stream;
    return STATUS_OK;
}

void stop_stream_destroy(struct stop_stream **stream)
{
    if (*stream == NULL)
        return;
    free((*stream)->held);
    free((*stream)->marks);
    free(*stream);
    *stream = NULL;
}

static enum status grow(void **memory, size_t *capacity, size_t wanted, size_t width)
{
    if (wanted <= *capacity)
        return STATUS_OK;
    const size_t next = wanted < 2 * *capacity ? 2 * *capacity : wanted;
    void *grown = realloc(*memory, next * width);
    if (grown == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %zu bytes of held text", next * width);
    *memory = grown;
    *capacity = next;
    return STATUS_OK;
}

/* Forgets what the last call gave away. */
static void compact(struct stop_stream *stream)
{
    if (stream->out == 0)
        return;
    memmove(stream->held, stream->held + stream->out, stream->size - stream->out);
    stream->size -= stream->out;
    for (size_t i = 0; i < stream->mark_count; i++)
        stream->marks[i].end -= stream->out;
    stream->out = 0;
}

/* Takes the tokens that end at or before `end` off the marks; *text_end is where the last of them ends. */
static uint32_t take_tokens(struct stop_stream *stream, size_t end, size_t *text_end)
{
    uint32_t tokens = 0;
    size_t taken = 0;
    *text_end = 0;
    while (taken < stream->mark_count && stream->marks[taken].end <= end) {
        tokens += stream->marks[taken].tokens;
        *text_end = stream->marks[taken++].end;
    }
    stream->mark_count -= taken;
    if (taken > 0)
        memmove(stream->marks, stream->marks + taken, stream->mark_count * sizeof *stream->marks);
    return tokens;
}

static enum status append(struct stop_stream *stream, const char *text, size_t size, uint32_t tokens)
{
    TRY(grow((void **)&stream->held, &stream->capacity, stream->size + size, 1));
    TRY(grow((void **)&stream->marks, &stream->mark_capacity, stream->mark_count + 1, sizeof *stream->marks));
    if (size > 0)
        memcpy(stream->held + stream->size, text, size);
    stream->size += size;
    if (stream->mark_count > 0 && stream->marks[stream->mark_count - 1].end == stream->size)
        stream->marks[stream->mark_count - 1].tokens += tokens;
    else
        stream->marks[stream->mark_count++] = (struct mark){stream->size, tokens};
    return STATUS_OK;
}

/* Follows every string over one byte. Returns the size of the longest one completed, 0: none; *pending becomes the longest start of any. */
static size_t follow(struct stop_stream *stream, char byte, size_t *pending)
{
    const struct stop_strings *strings = stream->strings;
    size_t completed = 0;
    *pending = 0;
    for (unsigned k = 0; k < strings->count; k++) {
        const size_t matched =
            advance(strings->text[k], strings->size[k], stream->fallback[k], stream->matched[k], byte);
        stream->matched[k] = matched;
        if (matched == strings->size[k] && matched > completed)
            completed = matched;
        if (matched > *pending)
            *pending = matched;
    }
    return completed;
}

static void give(struct stop_stream *stream, size_t text_size, uint32_t tokens, struct stop_release *out)
{
    *out = (struct stop_release){text_size > 0 ? stream->held : "", text_size, tokens, stream->stopped};
    stream->out = text_size;
}

enum status stop_stream_push(struct stop_stream *stream, const char *text, size_t size, uint32_t tokens,
                             struct stop_release *out)
{
    size_t pending = 0, text_end;
    *out = (struct stop_release){"", 0, 0, stream->stopped};
    if (stream->stopped)
        return STATUS_OK;
    if (stream->strings->count == 0) {
        *out = (struct stop_release){text, size, tokens, false};
        return STATUS_OK;
    }
    compact(stream);
    const size_t before = stream->size;
    TRY(append(stream, text, size, tokens));
    for (unsigned k = 0; size == 0 && k < stream->strings->count; k++)
        if (stream->matched[k] > pending)
            pending = stream->matched[k];
    for (size_t at = before; at < stream->size; at++) {
        const size_t completed = follow(stream, stream->held[at], &pending);
        if (completed > 0) {
            const size_t start = at + 1 - completed;
            stream->stopped = true;
            tokens = take_tokens(stream, start, &text_end);
            stream->mark_count = 0;
            give(stream, start, tokens, out);
            return STATUS_OK;
        }
    }
    tokens = take_tokens(stream, stream->size - pending, &text_end);
    give(stream, text_end, tokens, out);
    return STATUS_OK;
}

void stop_stream_finish(struct stop_stream *stream, struct stop_release *out)
{
    size_t text_end;
    if (stream->stopped) {
        *out = (struct stop_release){"", 0, 0, true};
        return;
    }
    compact(stream);
    const uint32_t tokens = take_tokens(stream, stream->size, &text_end);
    give(stream, text_end, tokens, out);
}
