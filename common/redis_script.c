/* redis_script.c - calls until their last callback; the link loads the texts and knows their digests. */
#include "common/redis_script.h"
#include <hiredis/hiredis.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"

struct redis_script {
    struct redis_link *link; /* ref */
    const char *text;        /* ref */
    size_t text_size;
    unsigned number; /* at the link */
};

struct call {
    struct redis_script *script; /* ref */
    redis_link_reply_fn *fn;
    void *user;
    uint64_t deadline_us;
    bool whole; /* sent as EVAL */
    unsigned key_count, word_count;
    char texts[]; /* the words, one after the other, each with its NUL */
};

enum status redis_script_create(struct redis_link *link, const char *text, struct redis_script **out)
{
    struct redis_script *script = calloc(1, sizeof *script);
    if (!script)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a script for redis");
    script->link = link;
    script->text = text;
    script->text_size = strlen(text);
    enum status st = redis_link_add_script(link, text, &script->number);
    if (st != STATUS_OK)
        free(script);
    else
        *out = script;
    return st;
}

void redis_script_destroy(struct redis_script **script)
{
    free(*script);
    *script = NULL;
}

static enum status call_send(struct call *call, bool whole);

static void on_reply(void *user, enum status st, const struct redisReply *reply, bool late)
{
    struct call *call = user;
    if (st == STATUS_IO && !call->whole && strncmp(reply->str, "NOSCRIPT", 8) == 0) {
        if (!late && call_send(call, true) == STATUS_OK)
            return;
        st = STATUS_CLOSED; /* nothing was done there, and there is no time left to do it */
        reply = NULL;
    }
    redis_link_reply_fn *fn = call->fn;
    void *fn_user = call->user;
    if (late || st != STATUS_TIMEOUT)
        free(call);
    if (fn)
        fn(fn_user, st, reply, late);
}

static enum status call_send(struct call *call, bool whole)
{
    struct redis_script *script = call->script;
    const char *words[3 + REDIS_SCRIPT_WORDS_MAX];
    size_t sizes[3 + REDIS_SCRIPT_WORDS_MAX];
    char key_count[12];
    const char *digest = redis_link_script_digest(script->link, script->number);
    call->whole = whole || !digest[0];
    words[0] = call->whole ? "EVAL" : "EVALSHA";
    words[1] = call->whole ? script->text : digest;
    sizes[0] = strlen(words[0]);
    sizes[1] = call->whole ? script->text_size : strlen(digest);
    words[2] = key_count;
    sizes[2] = (size_t)snprintf(key_count, sizeof key_count, "%u", call->key_count);
    const char *text = call->texts;
    for (unsigned i = 3; i < 3 + call->word_count; i++) {
        words[i] = text;
        sizes[i] = strlen(text);
        text += sizes[i] + 1;
    }
    uint64_t now = clock_now_us();
    uint64_t left_ms = call->deadline_us > now ? (call->deadline_us - now + 999) / 1000 : 0;
    if (left_ms == 0)
        return STATUS_FAIL(STATUS_TIMEOUT, "no time left for redis");
    return redis_link_command(script->link, (uint32_t)left_ms, on_reply, call, 3 + call->word_count, words, sizes);
}

enum status redis_script_call(struct redis_script *script, uint32_t deadline_ms, redis_link_reply_fn *fn, void *user,
                              unsigned key_count, unsigned word_count, const char *const *words)
{
    if (word_count > REDIS_SCRIPT_WORDS_MAX || key_count > word_count)
        return STATUS_FAIL(STATUS_INVALID, "a script call of %u words", word_count);
    size_t size = 0;
    for (unsigned i = 0; i < word_count; i++)
        size += strlen(words[i]) + 1;
    struct call *call = calloc(1, sizeof *call + size);
    if (!call)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a script call");
    call->script = script;
    call->fn = fn;
    call->user = user;
    call->deadline_us = clock_now_us() + (uint64_t)deadline_ms * 1000;
    call->key_count = key_count;
    call->word_count = word_count;
    char *text = call->texts;
    for (unsigned i = 0; i < word_count; i++) {
        size_t bytes = strlen(words[i]) + 1;
        memcpy(text, words[i], bytes);
        text += bytes;
    }
    enum status st = call_send(call, false);
    if (st != STATUS_OK)
        free(call);
    return st;
}
