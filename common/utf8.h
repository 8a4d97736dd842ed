/* utf8.h - the one UTF-8 decoder. Strict: no overlong forms, no surrogates, nothing above U+10FFFF. Thread-safe. */
#ifndef ROOST_COMMON_UTF8_H
#define ROOST_COMMON_UTF8_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The number of bytes (1 to 4) of the code point that starts at text[0], which is stored in *code_point;
 * 0 if no valid one starts there (size 0 included). */
unsigned utf8_decode(const char *text, size_t size, uint32_t *code_point);

bool utf8_valid(const char *text, size_t size);

/* True for code points that can be shown inside one line as they are: no control characters (C0, DEL, C1), no line or
 * paragraph separators, no bidirectional controls or byte order mark (they can make a line read as another one). */
bool utf8_is_plain(uint32_t code_point);

/* Writes text for a message: at most size - 1 bytes and a NUL; what is not plain becomes \xNN; "..." ends a cut text. Returns out. */
char *utf8_quote(const char *text, size_t text_size, char *out, size_t size);

#endif
