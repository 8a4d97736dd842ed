#include "deploy/roost/chat_turn.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/clock.h"

#define WAKE_TOKENS 't'
#define WAKE_END 'e'
#define WAKE_INTERRUPT 'i'

static int wake_fds[2] = { -1, -1 };                 /* written by the library's thread and the signal handler */
static volatile sig_atomic_t interrupted;

struct turn {
    pthread_mutex_t lock;                            /* of what follows */
    struct chat_turn_result *result;
    size_t text_capacity;
    uint64_t started_us;
    bool wake_sent;                                  /* a WAKE_TOKENS is in the pipe: one at a time, so that it never fills */
    bool no_memory;
};

static void wake(char what)
{
    int error = errno;
    ssize_t written;
    do
        written = write(wake_fds[1], &what, 1);      /* never full: at most one of each kind but interrupts, and those may get lost */
    while (written < 0 && errno == EINTR);
    errno = error;
}

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
    wake(WAKE_INTERRUPT);
}

enum status chat_turn_setup(void)
{
    if (pipe2(wake_fds, O_CLOEXEC) != 0)
        return STATUS_FAIL(STATUS_IO, "cannot make a pipe: %s", strerror(errno));
    for (int i = 0; i < 2; i++)
        if (fcntl(wake_fds[i], F_SETFL, O_NONBLOCK * i) != 0)   /* the reading end waits, the writing end never does */
            return STATUS_FAIL(STATUS_IO, "cannot set up a pipe: %s", strerror(errno));
    struct sigaction action = { .sa_handler = on_signal };      /* no SA_RESTART: reading a line is interrupted too */
    sigemptyset(&action.sa_mask);
    sigset_t block;
    sigemptyset(&block);
    sigaddset(&block, SIGINT);
    if (sigaction(SIGINT, &action, NULL) != 0 || pthread_sigmask(SIG_BLOCK, &block, NULL) != 0)
        return STATUS_FAIL(STATUS_IO, "cannot set up signals: %s", strerror(errno));
    return STATUS_OK;
}

void chat_turn_unblock(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    (void)pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

bool chat_turn_interrupted(void)
{
    bool was = interrupted != 0;
    interrupted = 0;
    return was;
}

bool chat_turn_wait_readable(int fd)
{
    struct pollfd items[2] = { { .fd = fd, .events = POLLIN }, { .fd = wake_fds[0], .events = POLLIN } };
    for (char what; !interrupted;) {
        if (poll(items, 2, -1) < 0)
            continue;                                 /* EINTR: look at the flag */
        if (items[1].revents)
            (void)!read(wake_fds[0], &what, 1);       /* of a SIGINT (seen in the flag), or left over from a turn */
        else if (items[0].revents)
            return true;
    }
    return false;
}

static void on_tokens(void *user, struct client_call *call, const struct client_tokens *tokens)
{
    (void)call;
    struct turn *turn = user;
    pthread_mutex_lock(&turn->lock);
    struct chat_turn_result *result = turn->result;
    if (result->first_token_us == 0)
        result->first_token_us = clock_now_us() - turn->started_us;
    result->id_count += tokens->count;
    if (result->text_size + tokens->text_size + 1 > turn->text_capacity) {
        size_t capacity = 2 * (result->text_size + tokens->text_size + 1);
        char *text = realloc(result->text, capacity);
        if (text) {
            result->text = text;
            turn->text_capacity = capacity;
        } else {
            turn->no_memory = true;
        }
    }
    if (!turn->no_memory && tokens->text_size > 0) {
        memcpy(result->text + result->text_size, tokens->text, tokens->text_size);
        result->text_size += tokens->text_size;
        result->text[result->text_size] = '\0';
    }
    bool send = !turn->wake_sent;
    turn->wake_sent = true;
    pthread_mutex_unlock(&turn->lock);
    if (send)
        wake(WAKE_TOKENS);
}

static void on_end(void *user, struct client_call *call, const struct client_end *end)
{
    (void)call;
    struct turn *turn = user;
    pthread_mutex_lock(&turn->lock);
    struct chat_turn_result *result = turn->result;
    result->ended = true;
    result->total_us = clock_now_us() - turn->started_us;
    result->error = end->error;
    result->retry_after_ms = end->retry_after_ms;
    result->finish = end->finish;
    result->prompt_tokens = end->prompt_tokens;
    result->cached_tokens = end->cached_tokens;
    result->reply_tokens = end->reply_tokens;
    result->dropped_messages = end->dropped_messages;
    result->queue_us = end->queue_us;
    result->prefill_us = end->prefill_us;
    result->decode_us = end->decode_us;
    result->route_us = end->route_us;
    result->inexact = end->inexact;
    snprintf(result->detail, sizeof result->detail, "%s", end->detail ? end->detail : "");
    snprintf(result->worker, sizeof result->worker, "%s", end->worker ? end->worker : "");
    snprintf(result->route, sizeof result->route, "%s", end->route ? end->route : "");
    pthread_mutex_unlock(&turn->lock);
    wake(WAKE_END);
}

/* Hands over what came since the last call. Printing happens outside the lock. */
static void flush_text(struct turn *turn, size_t *printed, const struct chat_turn_callbacks *callbacks, void *user)
{
    char chunk[1024];
    for (;;) {
        pthread_mutex_lock(&turn->lock);
        turn->wake_sent = false;
        size_t size = turn->result->text_size - *printed;
        if (size > sizeof chunk) {
            size = sizeof chunk;
            while (size > 0 && ((unsigned char)turn->result->text[*printed + size] & 0xC0) == 0x80)
                size--;                               /* not inside a character */
        }
        if (size > 0)
            memcpy(chunk, turn->result->text + *printed, size);
        pthread_mutex_unlock(&turn->lock);
        if (size == 0)
            return;
        callbacks->on_text(user, chunk, size);
        *printed += size;
    }
}

/* The next thing that happened; 0: nothing for timeout_ms (-1: for ever). */
static char wait_wake(int timeout_ms)
{
    struct pollfd item = { .fd = wake_fds[0], .events = POLLIN };
    char what = 0;
    while (poll(&item, 1, timeout_ms) < 0 && errno == EINTR)
        ;
    return (item.revents & POLLIN) && read(wake_fds[0], &what, 1) == 1 ? what : 0;
}

enum status chat_turn_run(struct client *client, const struct client_request *request,
                          const struct chat_turn_callbacks *callbacks, void *user, struct chat_turn_result *out)
{
    enum status st;
    struct client_call *call = NULL;
    *out = (struct chat_turn_result){ .text = calloc(1, 256) };
    if (!out->text)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a reply");
    struct turn turn = { .lock = PTHREAD_MUTEX_INITIALIZER, .result = out, .text_capacity = 256, .started_us = clock_now_us() };
    const struct client_callbacks calls = { .on_tokens = on_tokens, .on_end = on_end };
    interrupted = 0;
    TRY_GOTO(client_generate(client, request, &calls, &turn, &call), st, fail);

    size_t printed = 0;
    bool ended = false;
    int timeout_ms = CHAT_TURN_SLOW_MS;
    for (unsigned interrupts = 0; !ended && interrupts < 2;) {
        char what = wait_wake(timeout_ms);
        if (what == 0 && timeout_ms >= 0)
            callbacks->on_slow(user);
        timeout_ms = -1;
        if (what == WAKE_INTERRUPT && interrupted) {
            interrupted = 0;
            if (interrupts++ == 0)
                client_cancel(call);
        }
        ended = what == WAKE_END;
        flush_text(&turn, &printed, callbacks, user);
    }
    if (!ended) {
        /* Leaving: the library still holds &turn until the call has ended. A cancelled call ends soon; it may not if the
         * router is gone, and then the process ends with it. */
        pthread_mutex_lock(&turn.lock);
        bool has_ended = out->ended;
        pthread_mutex_unlock(&turn.lock);
        if (!has_ended) {
            fputs("\n", stdout);
            fflush(stdout);
            _exit(130);
        }
    }
    (void)client_wait(call, NULL);
    client_call_release(&call);
    pthread_mutex_destroy(&turn.lock);
    if (turn.no_memory)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a reply of %zu bytes", out->text_size);
    return STATUS_OK;
fail:
    pthread_mutex_destroy(&turn.lock);
    chat_turn_result_free(out);
    return st;
}

void chat_turn_result_free(struct chat_turn_result *result)
{
    free(result->text);
    *result = (struct chat_turn_result){ 0 };
}
