/* utf8.c - decoding by table 3-7 of the Unicode standard (well-formed byte sequences). Owns nothing. */
#include "common/utf8.h"
#include <assert.h>
#include <stdio.h>
#include <string.h>

unsigned utf8_decode(const char *text, size_t size, uint32_t *code_point)
{
    const uint8_t *bytes = (const uint8_t *)text;
    if (size == 0)
        return 0;
    if (bytes[0] < 0x80) {
        *code_point = bytes[0];
        return 1;
    }
    unsigned length;
    uint32_t value, least; /* least: the smallest value that needs this many bytes */
    if (bytes[0] >= 0xc2 && bytes[0] <= 0xdf) {
        length = 2, value = bytes[0] & 0x1fu, least = 0x80;
    } else if ((bytes[0] & 0xf0) == 0xe0) {
        length = 3, value = bytes[0] & 0x0fu, least = 0x800;
    } else if (bytes[0] >= 0xf0 && bytes[0] <= 0xf4) {
        length = 4, value = bytes[0] & 0x07u, least = 0x10000;
    } else {
        return 0;
    }
    if (size < length)
        return 0;
    for (unsigned i = 1; i < length; i++) {
        if ((bytes[i] & 0xc0) != 0x80)
            return 0;
        value = value << 6 | (bytes[i] & 0x3fu);
    }
    if (value < least || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff))
        return 0;
    *code_point = value;
    return length;
}

bool utf8_valid(const char *text, size_t size)
{
    for (size_t i = 0; i < size;) {
        uint32_t code_point;
        unsigned length = utf8_decode(text + i, size - i, &code_point);
        if (length == 0)
            return false;
        i += length;
    }
    return true;
}

bool utf8_is_plain(uint32_t c)
{
    if (c < 0x20 || (c >= 0x7f && c <= 0x9f))
        return false;
    if (c == 0x061c || c == 0x200e || c == 0x200f || (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069))
        return false;
    return c != 0xfeff && c != 0xfffe && c != 0xffff;
}

char *utf8_quote(const char *text, size_t text_size, char *out, size_t size)
{
    assert(size >= 4); /* room for "..." */
    size_t used = 0, cut = 0; /* cut: the last place where "..." still fits */
    for (size_t i = 0; i < text_size;) {
        uint32_t c;
        unsigned length = utf8_decode(text + i, text_size - i, &c);
        bool plain = length > 0 && utf8_is_plain(c);
        size_t step = length > 0 ? length : 1;
        size_t need = plain ? step : 4 * step;
        if (used + 3 < size)
            cut = used;
        if (used + need >= size) {
            memcpy(out + cut, "...", 4);
            return out;
        }
        for (size_t k = 0; k < step; k++) {
            if (plain)
                out[used++] = text[i + k];
            else
                used += (size_t)sprintf(out + used, "\\x%02X", (unsigned)(uint8_t)text[i + k]);
        }
        i += step;
    }
    out[used] = '\0';
    return out;
}
