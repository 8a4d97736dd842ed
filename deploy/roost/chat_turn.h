/* chat_turn.h - one turn: sends a request, hands its text to the main thread as it comes, and can be interrupted.
 *
 *     library's thread             main thread
 *     on_tokens --> text, ids -.
 *     on_end ----> result ------+--> pipe --> chat_turn_run: prints, returns at the end
 *     SIGINT -------------------'             first: client_cancel; second: returns at once
 *
 * The library's thread never writes to the terminal, which may be stopped: its leases would end. */
#ifndef ROOST_DEPLOY_ROOST_CHAT_TURN_H
#define ROOST_DEPLOY_ROOST_CHAT_TURN_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"
#include "proto/client.h"

struct chat_turn_result {
    char *text;                       /* owned; NUL-terminated, whole characters; "" if nothing came */
    size_t text_size;
    unsigned id_count;                /* tokens that came */
    bool ended;                       /* false: left before the end */
    uint64_t first_token_us, total_us;   /* after sending; first_token_us is 0 if none came */
    enum wire_error_code error;
    char detail[WIRE_DETAIL_MAX + 1];
    uint32_t retry_after_ms;
    enum wire_finish finish;
    uint32_t prompt_tokens, cached_tokens, reply_tokens, dropped_messages;
    uint32_t queue_us, prefill_us, decode_us, route_us;
    char worker[WIRE_NAME_MAX + 1], route[WIRE_NAME_MAX + 1];
    bool inexact;
};
void chat_turn_result_free(struct chat_turn_result *result);

/* Makes SIGINT interrupt turns. Before client_create, so that the library's threads do not take the signal. */
enum status chat_turn_setup(void);
void chat_turn_unblock(void);         /* after client_create: this thread takes it again */
bool chat_turn_interrupted(void);     /* there was a SIGINT since the last call or turn */
/* Waits until fd can be read, or for a SIGINT, which no race can lose. False: interrupted. */
bool chat_turn_wait_readable(int fd);

struct chat_turn_callbacks {          /* on the calling thread */
    void (*on_text)(void *user, const char *text, size_t size);
    void (*on_slow)(void *user);      /* once, when nothing came for CHAT_TURN_SLOW_MS */
};
#define CHAT_TURN_SLOW_MS 3000        /* people wonder by then */

/* Runs one request to its end. Fails as client_generate does, before anything was sent. */
enum status chat_turn_run(struct client *client, const struct client_request *request,
                          const struct chat_turn_callbacks *callbacks, void *user, struct chat_turn_result *out);

#endif
