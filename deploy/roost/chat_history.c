#include "deploy/roost/chat_history.h"
#include <stdlib.h>
#include <string.h>

enum status chat_history_add(struct chat_history *history, enum wire_message_role role, const char *name, const char *text,
                             size_t text_size)
{
    if (history->count == history->capacity) {
        unsigned capacity = history->capacity ? 2 * history->capacity : 32;
        struct client_message *messages = realloc(history->messages, capacity * sizeof *messages);
        if (!messages)
            return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u messages", capacity);
        history->messages = messages;
        history->capacity = capacity;
    }
    char *copy = malloc(text_size + 1);
    if (!copy)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a message of %zu bytes", text_size);
    memcpy(copy, text, text_size);
    copy[text_size] = '\0';
    history->messages[history->count++] = (struct client_message){ .role = role, .name = name, .text = copy, .text_size = text_size };
    return STATUS_OK;
}

void chat_history_truncate(struct chat_history *history, unsigned count)
{
    while (history->count > count)
        free((char *)history->messages[--history->count].text);
}

void chat_history_free(struct chat_history *history)
{
    chat_history_truncate(history, 0);
    free(history->messages);
    *history = (struct chat_history){ 0 };
}
