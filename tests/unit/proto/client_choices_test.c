/* client_choices_test - the client library with several choices, log probabilities, alternatives and those of the prompt: what
 * arrives in callbacks, and what a gap, a repeat or a missing piece of any of them does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include "fake_router.h"
#include "proto/client.h"

#define CHOICES 3u

/* Of choice c, token i (c = WIRE_CHOICE_PROMPT: of the prompt). */
static uint32_t id_of(unsigned choice, uint32_t token)
{
    return 1000 * choice + token;
}
static float logprob_of(uint32_t id, unsigned alternative)
{
    return -(float)id / 8 - (float)alternative;
}

struct sequence {
    uint32_t tokens;
    char text[64];
};

struct reply {
    struct sequence choices[CHOICES];
    uint32_t prompt;
    unsigned alternatives, calls;
    bool logprobs;
    struct client_end end;
    char detail[WIRE_DETAIL_MAX + 1];
    const char *wrong; /* what was wrong in a callback; cmocka cannot fail on another thread */
};

static void check_tokens(struct reply *reply, unsigned choice, const struct client_tokens *tokens)
{
    reply->calls++;
    if ((tokens->logprobs != NULL) != reply->logprobs || tokens->alternatives != reply->alternatives)
        reply->wrong = "logprobs that were not sent, or none";
    for (unsigned i = 0; i < tokens->count; i++) {
        uint32_t id = id_of(choice, tokens->first + i);
        if (tokens->ids[i] != id)
            reply->wrong = "ids";
        if (tokens->logprobs && tokens->logprobs[i] != logprob_of(id, 0))
            reply->wrong = "logprobs";
        for (unsigned j = 0; j < tokens->alternatives; j++)
            if (tokens->alternative_ids[i * tokens->alternatives + j] != id + j ||
                tokens->alternative_logprobs[i * tokens->alternatives + j] != logprob_of(id, j))
                reply->wrong = "alternatives";
    }
}

static void on_tokens(void *user, struct client_call *call, const struct client_tokens *tokens)
{
    struct reply *reply = user;
    (void)call;
    if (tokens->choice >= CHOICES) {
        reply->wrong = "a choice out of range";
        return;
    }
    struct sequence *sequence = &reply->choices[tokens->choice];
    if (tokens->first != sequence->tokens)
        reply->wrong = "a gap or a repeat";
    check_tokens(reply, tokens->choice, tokens);
    sequence->tokens += tokens->count;
    strncat(sequence->text, tokens->text, tokens->text_size);
}

static void on_prompt(void *user, struct client_call *call, const struct client_tokens *tokens)
{
    struct reply *reply = user;
    (void)call;
    if (tokens->first != reply->prompt || tokens->text_size != 0)
        reply->wrong = "the prompt";
    if (reply->choices[0].tokens > 0)
        reply->wrong = "the prompt after the reply";
    check_tokens(reply, WIRE_CHOICE_PROMPT, tokens);
    reply->prompt += tokens->count;
}

static void on_end(void *user, struct client_call *call, const struct client_end *end)
{
    struct reply *reply = user;
    (void)call;
    reply->end = *end;
    snprintf(reply->detail, sizeof reply->detail, "%s", end->detail);
}

/* ---- the router's side: the conversation names the script ---- */

static void send_row(struct fake_router *router, const struct fake_request *request, unsigned choice, uint32_t first,
                     unsigned count, const char *text, unsigned alternatives, bool logprobs)
{
    uint32_t ids[16], alternative_ids[64];
    float values[16], alternative_values[64];
    for (unsigned i = 0; i < count; i++) {
        ids[i] = id_of(choice, first + i);
        values[i] = logprob_of(ids[i], 0);
        for (unsigned j = 0; j < alternatives; j++) {
            alternative_ids[i * alternatives + j] = ids[i] + j;
            alternative_values[i * alternatives + j] = logprob_of(ids[i], j);
        }
    }
    size_t bytes = 4 * (size_t)count * alternatives;
    fake_send_row(router, request,
                  (struct wire_tokens_row){.choice = (uint16_t)choice,
                                           .first = first,
                                           .count = (uint16_t)count,
                                           .ids = wire_span_of(ids, 4 * (size_t)count),
                                           .text = wire_span_str(text),
                                           .logprobs = wire_span_of(values, logprobs ? 4 * (size_t)count : 0),
                                           .alternatives = (uint8_t)alternatives,
                                           .alternative_ids = wire_span_of(alternative_ids, bytes),
                                           .alternative_logprobs = wire_span_of(alternative_values, bytes)});
}

static void say(struct fake_router *router, const struct fake_request *request, unsigned choice, uint32_t first,
                unsigned count, const char *text)
{
    send_row(router, request, choice, first, count, text, 0, false);
}

static void done(struct fake_router *router, const struct fake_request *request, uint32_t released)
{
    static const uint8_t finish[CHOICES] = {WIRE_FINISH_LENGTH, WIRE_FINISH_STOP, WIRE_FINISH_STOP_STRING};
    fake_send_done_of(router, request, wire_span_of(finish, CHOICES), released);
}

static void script(void *user, struct fake_router *router, const struct fake_request *request)
{
    const char *name = request->conversation;
    (void)user;
    if (strcmp(name, "three") == 0) {
        say(router, request, 1, 0, 2, "be");
        say(router, request, 0, 0, 3, "To ");
        say(router, request, 2, 0, 1, "?");
        say(router, request, 1, 0, 2, "be"); /* repeats */
        say(router, request, 0, 1, 2, "o ");
        say(router, request, 2, 1, 0, "!"); /* text after the last token, before a stop string, and its repeat */
        say(router, request, 2, 1, 0, "!");
        say(router, request, 0, 3, 1, "be");
        done(router, request, 7);
    } else if (strcmp(name, "after-the-end") == 0) {
        say(router, request, 0, 0, 3, "To ");
        say(router, request, 0, 3, 0, "b");
        say(router, request, 0, 3, 1, "be");
    } else if (strcmp(name, "gap") == 0) {
        say(router, request, 0, 0, 3, "To ");
        say(router, request, 1, 3, 1, "be");
    } else if (strcmp(name, "stranger") == 0) {
        say(router, request, 0, 0, 3, "To ");
        say(router, request, CHOICES, 0, 1, "be");
    } else if (strcmp(name, "short") == 0) {
        say(router, request, 0, 0, 3, "To ");
        done(router, request, 4);
    } else if (strcmp(name, "few") == 0) {
        fake_send_done(router, request, 0);
    } else if (strcmp(name, "logprobs") == 0) {
        for (unsigned choice = 0; choice < CHOICES; choice++) {
            send_row(router, request, choice, 0, 3, "To ", 4, true);
            send_row(router, request, choice, 3, 1, "be", 4, true);
        }
        done(router, request, 12);
    } else if (strcmp(name, "prompt") == 0) {
        send_row(router, request, WIRE_CHOICE_PROMPT, 0, 6, "", 2, true);
        send_row(router, request, WIRE_CHOICE_PROMPT, 0, 6, "", 2, true); /* a repeat */
        send_row(router, request, WIRE_CHOICE_PROMPT, 6, 4, "", 2, true);
        send_row(router, request, 0, 0, 3, "To ", 2, true);
        done(router, request, 3);
    } else if (strcmp(name, "prompt-gap") == 0) {
        send_row(router, request, WIRE_CHOICE_PROMPT, 0, 6, "", 2, true);
        send_row(router, request, WIRE_CHOICE_PROMPT, 7, 3, "", 2, true);
    } else if (strcmp(name, "prompt-short") == 0) {
        send_row(router, request, WIRE_CHOICE_PROMPT, 0, 6, "", 2, true);
        done(router, request, 0);
    } else if (strcmp(name, "prompt-resend") == 0) { /* lost after the prompt: nothing of the reply is out, so it goes again */
        send_row(router, request, WIRE_CHOICE_PROMPT, 0, 6, "", 2, true);
        if (request->attempt.client == 1) {
            fake_send_ref(router, request, WIRE_RESEND);
            return;
        }
        send_row(router, request, WIRE_CHOICE_PROMPT, 6, 4, "", 2, true);
        done(router, request, 0);
    }
}

/* ---- tests ---- */

static struct fake_router *router;
static struct client *client;

static int start(void **state)
{
    (void)state;
    fake_router_start(&(struct fake_router_config){.on_request = script}, &router);
    const char *endpoints[] = {fake_router_endpoint(router)};
    return client_create(&(struct client_config){.routers = endpoints, .router_count = 1}, &client) != STATUS_OK;
}

static int stop(void **state)
{
    (void)state;
    client_destroy(&client);
    fake_router_stop(&router);
    return 0;
}

static void ask(const char *conversation, const struct wire_sampling *sampling, enum wire_error_code expected,
                const char *word, struct reply *reply)
{
    static const struct client_callbacks callbacks = {
        .on_tokens = on_tokens, .on_end = on_end, .on_prompt = on_prompt};
    const struct client_message message = {.text = "Who's there?", .text_size = 12};
    const struct client_request request = {.conversation = conversation,
                                           .messages = &message,
                                           .message_count = 1,
                                           .sampling = *sampling,
                                           .truncate = true,
                                           .deadline_ms = 10000};
    struct client_call *call;
    enum wire_error_code error;
    memset(reply, 0, sizeof *reply);
    reply->alternatives = sampling->logprobs;
    reply->logprobs = sampling->logprobs > 0 || sampling->token_logprobs;
    assert_int_equal(client_generate(client, &request, &callbacks, reply, &call), STATUS_OK);
    assert_int_equal(client_wait(call, &error), STATUS_OK);
    if (error != expected || !strstr(reply->detail, word))
        fail_msg("%s: %s (%s), not %s with '%s'", conversation, wire_error_name(error), reply->detail,
                 wire_error_name(expected), word);
    if (reply->wrong)
        fail_msg("%s: wrong were %s", conversation, reply->wrong);
    client_call_release(&call);
}

static void choices_are_counted_apart(void **state)
{
    (void)state;
    struct reply reply;
    ask("three", &(struct wire_sampling){.choices = CHOICES}, WIRE_ERROR_UNKNOWN, "", &reply);
    assert_string_equal(reply.choices[0].text, "To be");
    assert_string_equal(reply.choices[1].text, "be");
    assert_string_equal(reply.choices[2].text, "?!");
    assert_int_equal(reply.end.choices, CHOICES);
    assert_int_equal(reply.end.finish, WIRE_FINISH_LENGTH);
    assert_int_equal(reply.end.finishes[1], WIRE_FINISH_STOP);
    assert_int_equal(reply.end.finishes[2], WIRE_FINISH_STOP_STRING);
    assert_int_equal(reply.end.dropped_messages, 2);
}

static void what_is_missing_is_told(void **state)
{
    (void)state;
    struct reply reply;
    const struct wire_sampling three = {.choices = CHOICES};
    ask("gap", &three, WIRE_ERROR_INTERNAL, "choice 1: tokens from 3 came, from 0 were due", &reply);
    assert_int_equal(reply.end.choices, 0);
    ask("after-the-end", &three, WIRE_ERROR_INTERNAL, "tokens from 3 came", &reply);
    ask("stranger", &three, WIRE_ERROR_INTERNAL, "not asked for", &reply);
    ask("short", &three, WIRE_ERROR_INTERNAL, "4 tokens were released and 3 arrived", &reply);
    ask("few", &three, WIRE_ERROR_INTERNAL, "1 choices ended, 3 were asked for", &reply);
    ask("three", &(struct wire_sampling){.choices = 2}, WIRE_ERROR_INTERNAL, "not asked for", &reply);
}

static void log_probabilities_arrive_with_their_tokens(void **state)
{
    (void)state;
    struct reply reply;
    ask("logprobs", &(struct wire_sampling){.choices = CHOICES, .logprobs = 4}, WIRE_ERROR_UNKNOWN, "", &reply);
    for (unsigned choice = 0; choice < CHOICES; choice++)
        assert_int_equal(reply.choices[choice].tokens, 4);
    assert_int_equal(reply.calls, 6);
}

static void the_prompts_log_probabilities_come_first(void **state)
{
    (void)state;
    struct reply reply;
    const struct wire_sampling sampling = {.choices = CHOICES, .logprobs = 2, .prompt_logprobs = true};
    ask("prompt", &sampling, WIRE_ERROR_UNKNOWN, "", &reply);
    assert_int_equal(reply.prompt, 10); /* the prompt has 11 tokens */
    assert_int_equal(reply.choices[0].tokens, 3);
    ask("prompt-gap", &sampling, WIRE_ERROR_INTERNAL, "prompt 0: tokens from 7 came, from 6 were due", &reply);
    ask("prompt-short", &sampling, WIRE_ERROR_INTERNAL, "the prompt has 11 tokens and log probabilities of 6", &reply);
    ask("prompt-resend", &sampling, WIRE_ERROR_UNKNOWN, "", &reply);
    assert_int_equal(reply.prompt, 10);
    ask("prompt", &(struct wire_sampling){.choices = CHOICES, .logprobs = 2}, WIRE_ERROR_INTERNAL, "not asked for",
        &reply);
    assert_int_equal(reply.prompt, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(choices_are_counted_apart),
        cmocka_unit_test(what_is_missing_is_told),
        cmocka_unit_test(log_probabilities_arrive_with_their_tokens),
        cmocka_unit_test(the_prompts_log_probabilities_come_first),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
