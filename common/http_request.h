/* http_request.h - reads the head of an HTTP/1.x request out of a buffer: what the operator port needs and no more. Pure; works in place. */
#ifndef ROOST_COMMON_HTTP_REQUEST_H
#define ROOST_COMMON_HTTP_REQUEST_H
#include <stdbool.h>
#include <stddef.h>

#define HTTP_PARAMETERS_MAX 16

struct http_parameter {
    const char *name, *value; /* decoded; value "" without a '=' */
};

struct http_request { /* pointers are into the buffer */
    const char *method, *path; /* the path decoded, without the query */
    struct http_parameter parameters[HTTP_PARAMETERS_MAX];
    unsigned parameter_count;
    size_t body_bytes; /* Content-Length */
    bool keep_alive;
    bool from_page; /* it has an Origin: a browser sent it for a page */
};

/* The length of a head at the start of text: the blank line behind it included. 0: it has not come whole yet. */
size_t http_head_bytes(const char *text, size_t size);

/* Reads a whole head of `size` bytes (http_head_bytes); text[size] must be writable. Returns 0, or the status code of the refusal
 * and what to say in *why; what was read until then is valid. */
int http_request_parse(char *text, size_t size, struct http_request *out, const char **why);

#endif
