/* chat_history.h - the messages of one conversation, kept by the tool and sent whole each turn.
 * Owns the texts. Used by the main thread only. */
#ifndef ROOST_DEPLOY_ROOST_CHAT_HISTORY_H
#define ROOST_DEPLOY_ROOST_CHAT_HISTORY_H
#include <stddef.h>
#include "common/status.h"
#include "proto/client.h"

struct chat_history {
    struct client_message *messages;   /* owned, with their texts; names are borrowed */
    unsigned count, capacity;
};

/* Copies the text; name is borrowed and outlives the history. */
enum status chat_history_add(struct chat_history *history, enum wire_message_role role, const char *name, const char *text,
                             size_t text_size);
void chat_history_truncate(struct chat_history *history, unsigned count);
void chat_history_free(struct chat_history *history);

#endif
