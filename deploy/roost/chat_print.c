#include "deploy/roost/chat_print.h"
#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "common/utf8.h"

static const char *dim(const struct chat_print *print) { return print->colour ? "\033[2m" : ""; }
static const char *bold(const struct chat_print *print) { return print->colour ? "\033[1m" : ""; }
static const char *plain(const struct chat_print *print) { return print->colour ? "\033[0m" : ""; }

void chat_print_begin(struct chat_print *print)
{
    if (print->json)
        return;
    fprintf(print->stream, "%s%s:%s ", bold(print), print->reply_name, plain(print));
    fflush(print->stream);
    print->at_line_start = false;
}

/* A model can emit any character; those that would steer the terminal are shown as U+FFFD. */
void chat_print_text(void *user, const char *text, size_t size)
{
    struct chat_print *print = user;
    if (print->json || size == 0)
        return;
    for (size_t at = 0; at < size;) {
        uint32_t code_point;
        unsigned bytes = utf8_decode(text + at, size - at, &code_point);
        bool show = bytes > 0 && (utf8_is_plain(code_point) || code_point == '\n' || code_point == '\t');
        if (show)
            fwrite(text + at, 1, bytes, print->stream);
        else
            fputs("\xEF\xBF\xBD", print->stream);
        at += bytes > 0 ? bytes : 1;
    }
    print->at_line_start = text[size - 1] == '\n';
    fflush(print->stream);
}

void chat_print_slow(void *user)
{
    struct chat_print *print = user;
    if (print->json || !print->colour)
        return;
    fprintf(print->stream, "%s[nothing yet: is a router at %s? Ctrl-C cancels]%s ", dim(print), print->router, plain(print));
    fflush(print->stream);
}

static double tokens_per_second(const struct chat_turn_result *result)
{
    return result->decode_us > 0 ? result->reply_tokens * 1e6 / result->decode_us : 0.0;
}

static void print_summary(const struct chat_print *print, const struct chat_turn_result *result)
{
    fprintf(print->stream, "%s[%s · %u of %u prompt tokens from cache", dim(print), result->worker[0] ? result->worker : "?",
            result->cached_tokens, result->prompt_tokens);
    if (result->first_token_us > 0)
        fprintf(print->stream, " · first token %.0f ms", (double)result->first_token_us / 1000);
    if (result->decode_us > 0)
        fprintf(print->stream, " · %.0f tok/s", tokens_per_second(result));
    if (result->route[0])
        fprintf(print->stream, " · route %s", result->route);
    if (result->finish == WIRE_FINISH_LENGTH)
        fprintf(print->stream, " · cut at %u tokens", result->reply_tokens);
    if (result->dropped_messages > 0)
        fprintf(print->stream, " · %u messages forgotten", result->dropped_messages);
    if (result->inexact)
        fprintf(print->stream, " · inexact");
    fprintf(print->stream, "]%s\n", plain(print));
}

static void print_error(const struct chat_print *print, const char *code, const char *detail, uint32_t retry_after_ms)
{
    fflush(print->stream);
    fprintf(stderr, "roost chat: %s%s%s", code, detail[0] ? ": " : "", detail);
    if (retry_after_ms > 0)
        fprintf(stderr, " (try again in %u ms)", retry_after_ms);
    fputc('\n', stderr);
}

static void print_json(struct chat_print *print, json_t *object)
{
    char *text = object ? json_dumps(object, JSON_COMPACT | JSON_PRESERVE_ORDER) : NULL;
    if (text)
        fprintf(print->stream, "%s\n", text);
    else
        fprintf(print->stream, "{\"error\":{\"code\":\"internal\",\"detail\":\"no memory for the result\"}}\n");
    fflush(print->stream);
    free(text);
    json_decref(object);
}

static json_t *json_error(const char *code, const char *detail, uint32_t retry_after_ms)
{
    return json_pack("{s:s, s:s, s:I}", "code", code, "detail", detail, "retry_after_ms", (json_int_t)retry_after_ms);
}

static json_t *json_turn(const char *conversation, unsigned turn, const struct chat_turn_result *result)
{
    json_t *error = result->error ? json_error(wire_error_name(result->error), result->detail, result->retry_after_ms) : json_null();
    json_t *timings = json_pack("{s:f, s:f, s:I, s:I, s:I, s:I, s:f}",
        "first_token_ms", (double)result->first_token_us / 1000, "total_ms", (double)result->total_us / 1000,
        "queue_us", (json_int_t)result->queue_us, "prefill_us", (json_int_t)result->prefill_us,
        "decode_us", (json_int_t)result->decode_us, "route_us", (json_int_t)result->route_us,
        "tokens_per_second", tokens_per_second(result));
    return json_pack("{s:s, s:I, s:s%, s:I, s:I, s:I, s:I, s:I, s:s, s:s, s:s, s:b, s:o, s:o}",
        "conversation", conversation, "turn", (json_int_t)turn,
        "text", result->text, result->text_size, "ids", (json_int_t)result->id_count,
        "prompt_tokens", (json_int_t)result->prompt_tokens, "cached_tokens", (json_int_t)result->cached_tokens,
        "reply_tokens", (json_int_t)result->reply_tokens, "dropped_messages", (json_int_t)result->dropped_messages, "finish", result->error ? "" : wire_finish_name(result->finish),
        "worker", result->worker, "route", result->route, "inexact", result->inexact,
        "timings", timings, "error", error);
}

void chat_print_end(struct chat_print *print, const char *conversation, unsigned turn, const struct chat_turn_result *result)
{
    if (print->json) {
        print_json(print, json_turn(conversation, turn, result));
        return;
    }
    if (!print->at_line_start)
        fputc('\n', print->stream);
    if (result->error == WIRE_ERROR_UNKNOWN)
        print_summary(print, result);
    else if (result->error == WIRE_ERROR_CANCELLED)
        fprintf(print->stream, "%s[cancelled]%s\n", dim(print), plain(print));
    else
        print_error(print, wire_error_name(result->error), result->detail, result->retry_after_ms);
    fflush(print->stream);
}

void chat_print_failure(struct chat_print *print, const char *conversation, unsigned turn, const char *code, const char *detail)
{
    if (print->json) {
        print_json(print, json_pack("{s:s, s:I, s:s, s:I, s:o}", "conversation", conversation, "turn", (json_int_t)turn, "text", "",
                                    "ids", (json_int_t)0, "error", json_error(code, detail, 0)));
        return;
    }
    if (!print->at_line_start)
        fputc('\n', print->stream);
    print_error(print, code, detail, 0);
}
