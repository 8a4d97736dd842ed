/* stop_stream.h - finds stop strings in a reply while it is made, also across tokens, and holds back what could be the start of one.
 * One per choice, used by one thread; sits behind utf8_stream.h (its input is whole characters). Buffers are bounded by the
 * largest piece of text pushed plus one stop string; the work is constant per byte and stop string (Knuth, Morris and Pratt, 1977).
 *
 * Which stop: the one completed earliest, counting bytes; of those completed at the same byte, the one that starts earliest. Text
 * inside a stop string may itself be the start of another; every place where a stop string begins is seen.
 *
 * What is released, and when (all of it a function of the texts and the token ends, so feeding a reply again gives it again):
 *   1. before a stop, the text released so far is exactly the text of the tokens released so far: a token comes out, whole, as soon
 *      as no stop string can begin in its text or before it any more. Tokens without text come out with the text before them;
 *   2. the call that completes a stop string releases the text before its first byte and the tokens that end there or earlier. A token
 *      that lies partly before the stop is not released, its text before the stop is: only this last release may hold text beyond
 *      its tokens (a stream resumed from the released tokens makes that token again and comes to the same end);
 *   3. without a stop the end of the reply releases everything. */
#ifndef ROOST_WORKER_ENGINE_STOP_STREAM_H
#define ROOST_WORKER_ENGINE_STOP_STREAM_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

#define STOP_STRINGS_MAX 16u
#define STOP_STRING_BYTES_MAX 256u

struct stop_strings {                /* shared by the choices of a request; owned by the caller */
    unsigned count;
    uint16_t size[STOP_STRINGS_MAX];
    char text[STOP_STRINGS_MAX][STOP_STRING_BYTES_MAX];
};

struct stop_stream;                  /* opaque */

/* Copies the strings. STATUS_INVALID with the number of the string: empty, too long, too many, not UTF-8 without NUL. */
enum status stop_strings_check(const char *const *texts, const size_t *sizes, unsigned count, struct stop_strings *out);

enum status stop_stream_create(const struct stop_strings *strings, struct stop_stream **out);   /* strings: ref, outlives it */
void stop_stream_destroy(struct stop_stream **stream);           /* accepts NULL; sets *stream to NULL */

struct stop_release {                /* borrowed until the next call, and as long as what was pushed */
    const char *text;  size_t text_size;
    uint32_t tokens;                 /* how many more tokens, in order, are released with it */
    bool stopped;                    /* a stop string was completed; nothing comes after */
};

/* `tokens` tokens whose whole text is `text` (as utf8_stream released them; they come out together). STATUS_NO_MEMORY leaves the
 * stream as it was. After a stop nothing is taken in and nothing comes out. */
enum status stop_stream_push(struct stop_stream *stream, const char *text, size_t size, uint32_t tokens, struct stop_release *out);
/* The reply ended otherwise: everything held back comes out. */
void stop_stream_finish(struct stop_stream *stream, struct stop_release *out);

#endif
