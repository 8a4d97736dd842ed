/* http_request.c - RFC 9112 as far as a port for operators needs it: no folded lines, no transfer codings, no
 * absolute-form targets. Owns nothing: strings are cut and decoded in the caller's buffer. */
#include "common/http_request.h"
#include <stdint.h>
#include <string.h>
#include <strings.h>

size_t http_head_bytes(const char *text, size_t size)
{
    for (const char *at = text, *end = text + size; (at = memchr(at, '\n', (size_t)(end - at))); at++) {
        if (end - at >= 2 && at[1] == '\n')
            return (size_t)(at - text) + 2;
        if (end - at >= 3 && at[1] == '\r' && at[2] == '\n')
            return (size_t)(at - text) + 3;
    }
    return 0;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Percent escapes and, in a query, '+' for a space. False: an escape that is none, or of a NUL. */
static bool decode(char *text, bool query)
{
    char *out = text;
    for (const char *in = text; *in; in++) {
        char c = *in;
        if (c == '%') {
            int high = hex_digit(in[1]), low = high < 0 ? -1 : hex_digit(in[2]);
            if (low < 0 || (high | low) == 0)
                return false;
            c = (char)(high << 4 | low);
            in += 2;
        } else if (c == '+' && query) {
            c = ' ';
        }
        *out++ = c;
    }
    *out = 0;
    return true;
}

static int parse_target(char *target, struct http_request *out, const char **why)
{
    char *query = strchr(target, '?');
    if (query)
        *query++ = 0;
    *why = "the target of the request is no path";
    if (target[0] != '/' || !decode(target, false))
        return 400;
    out->path = target;
    for (char *part; (part = strsep(&query, "&"));) {
        if (!*part)
            continue;
        if (out->parameter_count == HTTP_PARAMETERS_MAX) {
            *why = "too many parameters";
            return 400;
        }
        char *value = strchr(part, '=');
        if (value)
            *value++ = 0;
        *why = "a parameter has a broken escape";
        if (!decode(part, true) || (value && !decode(value, true)))
            return 400;
        out->parameters[out->parameter_count++] = (struct http_parameter){part, value ? value : part + strlen(part)};
    }
    return 0;
}

/* "GET /path?query HTTP/1.1" */
static int parse_first_line(char *line, struct http_request *out, const char **why)
{
    char *target = strchr(line, ' '), *version = target ? strchr(target + 1, ' ') : NULL;
    *why = "the first line is not METHOD PATH HTTP/1.1";
    if (!version || target == line)
        return 400;
    *target++ = 0;
    *version++ = 0;
    for (const char *at = line; *at; at++)
        if (*at < 'A' || *at > 'Z')
            return 400;
    out->method = line;
    if (strcmp(version, "HTTP/1.1") != 0 && strcmp(version, "HTTP/1.0") != 0)
        return strncmp(version, "HTTP/", 5) == 0 ? 505 : 400;
    out->keep_alive = version[7] == '1';
    return parse_target(target, out, why);
}

static bool parse_length(const char *text, size_t *out)
{
    size_t value = 0;
    for (const char *at = text; *at; at++) {
        if (*at < '0' || *at > '9' || value > (SIZE_MAX - 9) / 10)
            return false;
        value = 10 * value + (size_t)(*at - '0');
    }
    *out = value;
    return *text != 0;
}

/* "Name: value" */
static int parse_field(char *line, struct http_request *out, const char **why)
{
    char *value = strchr(line, ':');
    *why = "a header line is not NAME: VALUE";
    if (!value || value == line || strcspn(line, " \t") < (size_t)(value - line))
        return 400;
    *value++ = 0;
    value += strspn(value, " \t");
    for (char *end = value + strlen(value); end > value && (end[-1] == ' ' || end[-1] == '\t');)
        *--end = 0;
    if (strcasecmp(line, "Content-Length") == 0) {
        *why = "Content-Length is not one number";
        size_t earlier = out->body_bytes;
        if (!parse_length(value, &out->body_bytes) || (earlier && earlier != out->body_bytes))
            return 400;
    } else if (strcasecmp(line, "Transfer-Encoding") == 0) {
        *why = "no transfer codings here: parameters go into the query";
        return 501;
    } else if (strcasecmp(line, "Connection") == 0) {
        if (strcasecmp(value, "close") == 0)
            out->keep_alive = false;
    } else if (strcasecmp(line, "Origin") == 0) {
        out->from_page = true;
    }
    return 0;
}

int http_request_parse(char *text, size_t size, struct http_request *out, const char **why)
{
    *out = (struct http_request){.method = "", .path = ""};
    *why = "a control character in the head";
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if ((c < 0x20 && c != '\r' && c != '\n' && c != '\t') || c == 0x7f)
            return 400;
    }
    text[size] = 0;
    bool first = true;
    for (char *line; (line = strsep(&text, "\n"));) {
        size_t length = strlen(line);
        if (length && line[length - 1] == '\r')
            line[--length] = 0;
        *why = "a control character in the head";
        if (memchr(line, '\r', length))
            return 400;
        if (!length && !first)
            return 0; /* the blank line */
        int code = first ? parse_first_line(line, out, why) : parse_field(line, out, why);
        if (code)
            return code;
        first = false;
    }
    return 400; /* not reached with a whole head */
}
