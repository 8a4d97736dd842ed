/* utf8_stream.h - token bytes in, released tokens and their text out, in whole characters.
 * A plain value with no allocation; one per reply; used by one thread.
 *
 * Always true:
 *   1. the released text is valid UTF-8 without NUL, and is a function of the bytes alone, not of how tokens cut them;
 *   2. a token is released when all of its bytes are out, and then the text released so far is exactly the text of the
 *      released tokens: no character lies half in a released token and half in a held one;
 *   3. at most UTF8_STREAM_TOKENS_MAX tokens are held. With the pieces of tokenizer.h (whole characters or single bytes)
 *      never more than three are.
 *
 * Bytes that are not UTF-8 become U+FFFD, one for each maximal subpart (Unicode 15, section 3.9, table 3-7 and "U+FFFD
 * Substitution of Maximal Subparts"), so E2 96 'a' is one U+FFFD and an 'a'. NUL becomes U+FFFD too: text on the wire has none.
 * If a chain of half characters would hold more than UTF8_STREAM_TOKENS_MAX tokens, the incomplete character is cut there
 * as if the text ended. */
#ifndef ROOST_WORKER_ENGINE_UTF8_STREAM_H
#define ROOST_WORKER_ENGINE_UTF8_STREAM_H
#include <stddef.h>
#include <stdint.h>

#define UTF8_STREAM_TOKEN_BYTES_MAX 512u
#define UTF8_STREAM_TOKENS_MAX 16u
#define UTF8_STREAM_HELD_MAX (UTF8_STREAM_TOKENS_MAX * UTF8_STREAM_TOKEN_BYTES_MAX)
#define UTF8_STREAM_TEXT_MAX (3u * UTF8_STREAM_HELD_MAX)   /* a byte becomes at most the three bytes of U+FFFD */

struct utf8_stream {                 /* zeroed: empty */
    uint32_t size;                   /* bytes held */
    uint32_t token_count;            /* tokens held */
    uint32_t ends[UTF8_STREAM_TOKENS_MAX];
    uint8_t bytes[UTF8_STREAM_HELD_MAX];
};

/* Adds a token of size (0 to UTF8_STREAM_TOKEN_BYTES_MAX) bytes. Returns how many tokens are released now, oldest first, with
 * their text in text (room for UTF8_STREAM_TEXT_MAX) and *text_size. */
unsigned utf8_stream_push(struct utf8_stream *stream, const void *bytes, size_t size, char *text, size_t *text_size);

/* The end: what is incomplete becomes U+FFFD and every held token is released. The stream is empty afterwards. */
unsigned utf8_stream_finish(struct utf8_stream *stream, char *text, size_t *text_size);

#endif
