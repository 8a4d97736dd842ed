#include "worker/engine/text/utf8_stream.h"
#include <assert.h>
#include <stdbool.h>
#include <string.h>

/* One unit is a well-formed character or a maximal subpart of an ill-formed one. Returns its size, and whether it is a
 * character; 0 if the bytes end inside it and more could complete it. */
static unsigned unit_size(const uint8_t *bytes, size_t size, bool *valid)
{
    const uint8_t lead = bytes[0];
    uint8_t low = 0x80, high = 0xBF;
    unsigned length;
    *valid = false;
    if (lead < 0x80) {
        *valid = lead != 0;
        return 1;
    }
    if (lead >= 0xC2 && lead <= 0xDF) {
        length = 2;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
        length = 3;
        low = lead == 0xE0 ? 0xA0 : 0x80;  /* no overlong forms */
        high = lead == 0xED ? 0x9F : 0xBF; /* no surrogates */
    } else if (lead >= 0xF0 && lead <= 0xF4) {
        length = 4;
        low = lead == 0xF0 ? 0x90 : 0x80;
        high = lead == 0xF4 ? 0x8F : 0xBF; /* nothing above U+10FFFF */
    } else {
        return 1;
    }
    for (unsigned i = 1; i < length; i++) {
        if (i == size)
            return 0;
        if (bytes[i] < low || bytes[i] > high)
            return i;
        low = 0x80;
        high = 0xBF;
    }
    *valid = true;
    return length;
}

/* Releases the tokens up to the last token end that is a unit end too. final: an incomplete unit counts. */
static unsigned release(struct utf8_stream *stream, bool final, char *text, size_t *text_size)
{
    unsigned tokens_out = 0, token = 0;
    uint32_t at = 0, bytes_out = 0;
    size_t text_at = 0, text_out = 0;

    while (token < stream->token_count && stream->ends[token] == 0)
        tokens_out = ++token; /* empty tokens with nothing held before them */
    while (at < stream->size) {
        bool valid;
        unsigned unit = unit_size(stream->bytes + at, stream->size - at, &valid);
        if (unit == 0) {
            if (!final)
                break;
            unit = stream->size - at;
        }
        if (valid) {
            memcpy(text + text_at, stream->bytes + at, unit);
            text_at += unit;
        } else {
            memcpy(text + text_at, "\xEF\xBF\xBD", 3);
            text_at += 3;
        }
        at += unit;
        while (token < stream->token_count && stream->ends[token] < at)
            token++;
        while (token < stream->token_count && stream->ends[token] == at) {
            tokens_out = ++token;
            bytes_out = at;
            text_out = text_at;
        }
    }
    stream->size -= bytes_out;
    memmove(stream->bytes, stream->bytes + bytes_out, stream->size);
    stream->token_count -= tokens_out;
    for (unsigned i = 0; i < stream->token_count; i++)
        stream->ends[i] = stream->ends[i + tokens_out] - bytes_out;
    *text_size = text_out;
    return tokens_out;
}

unsigned utf8_stream_push(struct utf8_stream *stream, const void *bytes, size_t size, char *text, size_t *text_size)
{
    assert(size <= UTF8_STREAM_TOKEN_BYTES_MAX && stream->token_count < UTF8_STREAM_TOKENS_MAX);
    if (size > 0)
        memcpy(stream->bytes + stream->size, bytes, size);
    stream->size += (uint32_t)size;
    stream->ends[stream->token_count++] = stream->size;
    const unsigned released = release(stream, false, text, text_size);
    if (released > 0 || stream->token_count < UTF8_STREAM_TOKENS_MAX)
        return released;
    return release(stream, true, text, text_size);
}

unsigned utf8_stream_finish(struct utf8_stream *stream, char *text, size_t *text_size)
{
    const unsigned released = release(stream, true, text, text_size);
    assert(stream->token_count == 0 && stream->size == 0);
    return released;
}
