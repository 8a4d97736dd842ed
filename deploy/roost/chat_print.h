/* chat_print.h - what a turn looks like: for people as text while it comes, or as one JSON object per turn. */
#ifndef ROOST_DEPLOY_ROOST_CHAT_PRINT_H
#define ROOST_DEPLOY_ROOST_CHAT_PRINT_H
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include "deploy/roost/chat_turn.h"

struct chat_print {
    FILE *stream;                 /* borrowed */
    bool json;
    bool colour;                  /* the stream is a terminal */
    const char *reply_name;       /* shown before a reply; borrowed */
    const char *router;           /* the first one, for a hint; borrowed */
    bool at_line_start;
};

void chat_print_begin(struct chat_print *print);                                    /* a reply starts */
void chat_print_text(void *print, const char *text, size_t size);                   /* a piece of it; whole characters */
void chat_print_slow(void *print);                                                  /* nothing of it came for a while */
void chat_print_end(struct chat_print *print, const char *conversation, unsigned turn, const struct chat_turn_result *result);
/* A turn that could not even be sent. */
void chat_print_failure(struct chat_print *print, const char *conversation, unsigned turn, const char *code, const char *detail);

#endif
