/* chat_input.h - where a person's lines come from: a terminal with line editing, a pipe, or a file.
 * Everywhere "\n" in a line is a line break and "\\" a backslash, so that one line is one message. */
#ifndef ROOST_DEPLOY_ROOST_CHAT_INPUT_H
#define ROOST_DEPLOY_ROOST_CHAT_INPUT_H
#include <stdbool.h>
#include <stddef.h>
#include "common/status.h"

struct chat_input;

/* path NULL: standard input, edited if it is a terminal. prompt is borrowed and outlives the input. */
enum status chat_input_create(const char *path, const char *prompt, struct chat_input **out);
void chat_input_destroy(struct chat_input **input);   /* accepts NULL */
bool chat_input_is_terminal(const struct chat_input *input);
/* The next line without its end and with escapes resolved, NUL-terminated and borrowed until the next call. STATUS_CLOSED: the
 * end. STATUS_CANCELLED: interrupted. STATUS_INVALID: a NUL byte. STATUS_LIMIT: longer than any message can be. */
enum status chat_input_next(struct chat_input *input, const char **line, size_t *size);

#endif
