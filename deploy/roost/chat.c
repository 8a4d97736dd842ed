/* chat.c - a person (or a script) talks to a cluster. The tool keeps the history and sends it whole each turn; the worker that
 * holds the conversation computes only what is new. */
#include <getopt.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/hash.h"
#include "deploy/roost/chat_history.h"
#include "deploy/roost/chat_input.h"
#include "deploy/roost/chat_print.h"
#include "deploy/roost/chat_turn.h"
#include "deploy/roost/command.h"
#include "deploy/roost/options.h"
#include "proto/client.h"

#define ROUTERS_MAX 16
#define ROUTER_DEFAULT "tcp://127.0.0.1:7400"
#define TEMPERATURE_DEFAULT 0.8f      /* lively, and still words: what the shipped model was looked at with */
#define TOKENS_MAX_DEFAULT 200        /* turns of the plays have 44 tokens on average, 3% over 200 */
#define SETTING_DEFAULT "SCENE I. A public place."   /* several plays have one like it, so it gives no play away */

struct chat_options {              /* the texts are the command line's */
    const char *routers[ROUTERS_MAX];
    unsigned router_count;
    const char *tenant, *conversation, *as, *with, *setting, *script;
    struct wire_sampling sampling;
    struct wire_span stops[WIRE_STOPS_MAX];
    uint64_t seed, deadline_s;
    bool seed_given, truncate, json;
    char conversation_made[WIRE_NAME_MAX + 1];
};

struct chat {
    struct chat_options options;
    struct client *client;
    struct chat_history history;
    struct chat_input *input;
    struct chat_print print;
    char prompt[300];
    char *last_text;              /* owned: what /retry says again */
    size_t last_size;
    unsigned last_count;          /* messages before it was said */
    unsigned turn, retries;
};

static const char usage[] =
    "usage: roost chat [OPTIONS]\n\n"
    "Talk to a roost cluster. Each line is a message; \\n in it is a line break. Without a terminal, lines come from\n"
    "standard input, and the first turn that fails ends the run.\n\n"
    "  --router ENDPOINT     a router's control endpoint; may be given again (default " ROUTER_DEFAULT ")\n"
    "  --conversation ID     continue under this id (default: a new one)\n"
    "  --tenant NAME         whose conversation it is (default \"default\")\n"
    "  --as NAME             the name you speak under; the shipped model knows Shakespeare's: ROMEO\n"
    "  --with NAME           the name that answers: JULIET\n"
    "  --setting TEXT        where it takes place: the first message (default with both names: \"" SETTING_DEFAULT "\";\n"
    "                        \"\": none)\n"
    "  --temperature T       0: always the likeliest token (default 0.8)\n"
    "  --top-p P             only the likeliest tokens that make up P together, 0 to 1 (default: all)\n"
    "  --top-k N             only the N likeliest tokens (default: all)\n"
    "  --min-p P             only tokens at least P times as likely as the likeliest, 0 to 1 (default: all)\n"
    "  --repetition-penalty R   above 1: what was said already is less likely, 0.01 to 10 (default 1)\n"
    "  --presence-penalty X  taken from what is in the reply already, -10 to 10 (default 0)\n"
    "  --frequency-penalty X the same, for each time (default 0)\n"
    "  --stop TEXT           ends the reply before this; may be given again\n"
    "  --seed N              the same words give the same reply (default: a new seed each turn)\n"
    "  --tokens-max N        most tokens of a reply, 0: what the context leaves (default 200)\n"
    "  --tokens-min N        fewest tokens of a reply (default 0)\n"
    "  --truncate            forget the oldest messages when the conversation is too long, instead of an error\n"
    "  --deadline SECONDS    a turn that takes longer fails (default 120)\n"
    "  --script FILE         read the messages from FILE\n"
    "  --json                print one JSON object per turn\n"
    "  --help, --version\n\n"
    "In a chat: /retry asks for another reply, /quit leaves, /help lists this. Ctrl-C cancels the running reply, a second one\n"
    "leaves. Exit code: 0 done, 1 a turn failed, 2 wrong use.\n";

static const char chat_help[] =
    "  /retry   another reply to what you said last\n"
    "  /quit    leave (also Ctrl-D)\n"
    "  /help    this\n"
    "  Ctrl-C   cancel the running reply; a second one leaves\n"
    "  \\n in a line is a line break; a message that starts with / is written with a second one: //\n";

enum { OPTION_ROUTER = 1, OPTION_CONVERSATION, OPTION_TENANT, OPTION_AS, OPTION_WITH, OPTION_SETTING, OPTION_TEMPERATURE,
       OPTION_TOP_P, OPTION_TOP_K, OPTION_MIN_P, OPTION_REPETITION_PENALTY, OPTION_PRESENCE_PENALTY, OPTION_FREQUENCY_PENALTY,
       OPTION_STOP, OPTION_SEED, OPTION_TOKENS_MAX, OPTION_TOKENS_MIN, OPTION_TRUNCATE, OPTION_DEADLINE, OPTION_SCRIPT, OPTION_JSON, OPTION_HELP, OPTION_VERSION };

static const struct option long_options[] = {
    { "router", required_argument, NULL, OPTION_ROUTER },
    { "conversation", required_argument, NULL, OPTION_CONVERSATION },
    { "tenant", required_argument, NULL, OPTION_TENANT },
    { "as", required_argument, NULL, OPTION_AS },
    { "with", required_argument, NULL, OPTION_WITH },
    { "setting", required_argument, NULL, OPTION_SETTING },
    { "temperature", required_argument, NULL, OPTION_TEMPERATURE },
    { "top-p", required_argument, NULL, OPTION_TOP_P },
    { "top-k", required_argument, NULL, OPTION_TOP_K },
    { "min-p", required_argument, NULL, OPTION_MIN_P },
    { "repetition-penalty", required_argument, NULL, OPTION_REPETITION_PENALTY },
    { "presence-penalty", required_argument, NULL, OPTION_PRESENCE_PENALTY },
    { "frequency-penalty", required_argument, NULL, OPTION_FREQUENCY_PENALTY },
    { "stop", required_argument, NULL, OPTION_STOP },
    { "seed", required_argument, NULL, OPTION_SEED },
    { "tokens-max", required_argument, NULL, OPTION_TOKENS_MAX },
    { "tokens-min", required_argument, NULL, OPTION_TOKENS_MIN },
    { "truncate", no_argument, NULL, OPTION_TRUNCATE },
    { "deadline", required_argument, NULL, OPTION_DEADLINE },
    { "script", required_argument, NULL, OPTION_SCRIPT },
    { "json", no_argument, NULL, OPTION_JSON },
    { "help", no_argument, NULL, OPTION_HELP },
    { "version", no_argument, NULL, OPTION_VERSION },
    { NULL, 0, NULL, 0 },
};

static enum status name_option(const char *option, const char *value, const char **out)
{
    if (!wire_name_valid(wire_span_str(value)))
        return STATUS_FAIL(STATUS_INVALID, "%s takes 1 to 64 of the characters A-Z a-z 0-9 . _ : -, not '%s'", option, value);
    *out = value;
    return STATUS_OK;
}

static enum status text_option(const char *option, const char *value, size_t bytes_max, const char **out)
{
    if (strlen(value) > bytes_max)
        return STATUS_FAIL(STATUS_INVALID, "%s takes at most %zu bytes", option, bytes_max);
    if (!wire_utf8_valid(wire_span_str(value)))
        return STATUS_FAIL(STATUS_INVALID, "%s takes UTF-8 text", option);
    *out = value;
    return STATUS_OK;
}

static enum status add_router(struct chat_options *options, const char *endpoint)
{
    if (options->router_count == ROUTERS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "--router may be given at most %d times", ROUTERS_MAX);
    options->routers[options->router_count++] = endpoint;
    return STATUS_OK;
}

static enum status add_stop(struct chat_options *options, const char *text)
{
    struct wire_sampling *sampling = &options->sampling;
    if (sampling->stop_count == WIRE_STOPS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "--stop may be given at most %d times", WIRE_STOPS_MAX);
    if (*text == '\0')
        return STATUS_FAIL(STATUS_INVALID, "--stop takes a text");
    TRY(text_option("--stop", text, WIRE_STOP_BYTES_MAX, &text));
    options->stops[sampling->stop_count++] = wire_span_str(text);
    return STATUS_OK;
}

static enum status tokens_option(const char *option, const char *text, uint32_t *out)
{
    uint64_t value = 0;
    TRY(options_uint(option, text, 1u << 24, &value));
    *out = (uint32_t)value;
    return STATUS_OK;
}

/* Those of the sampler. *taken: it was one. */
static enum status sampling_option(int option, const char *text, struct chat_options *options, bool *taken)
{
    struct wire_sampling *sampling = &options->sampling;
    *taken = true;
    switch (option) {
    case OPTION_TEMPERATURE: return options_float("--temperature", text, 0, 100, &sampling->temperature);
    case OPTION_TOP_P: return options_float("--top-p", text, 0, 1, &sampling->top_p);
    case OPTION_TOP_K: return tokens_option("--top-k", text, &sampling->top_k);
    case OPTION_MIN_P: return options_float("--min-p", text, 0, 1, &sampling->min_p);
    case OPTION_REPETITION_PENALTY: return options_float("--repetition-penalty", text, 0.01, 10, &sampling->repetition_penalty);
    case OPTION_PRESENCE_PENALTY: return options_float("--presence-penalty", text, -10, 10, &sampling->presence_penalty);
    case OPTION_FREQUENCY_PENALTY: return options_float("--frequency-penalty", text, -10, 10, &sampling->frequency_penalty);
    case OPTION_STOP: return add_stop(options, text);
    case OPTION_TOKENS_MAX: return tokens_option("--tokens-max", text, &sampling->tokens_max);
    case OPTION_TOKENS_MIN: return tokens_option("--tokens-min", text, &sampling->tokens_min);
    default: *taken = false; return STATUS_OK;
    }
}

/* *done: nothing is left to do (--help, --version). */
static enum status parse_options(int argc, char **argv, struct chat_options *options, bool *done)
{
    bool taken;
    *options = (struct chat_options){ .sampling = { .temperature = TEMPERATURE_DEFAULT, .tokens_max = TOKENS_MAX_DEFAULT } };
    options->sampling.stops = options->stops;
    opterr = 0;
    optind = 1;
    for (int option; (option = getopt_long(argc, argv, ":", long_options, NULL)) != -1;) {
        TRY(sampling_option(option, optarg, options, &taken));
        if (taken)
            continue;
        switch (option) {
        case OPTION_ROUTER: TRY(add_router(options, optarg)); break;
        case OPTION_CONVERSATION: TRY(name_option("--conversation", optarg, &options->conversation)); break;
        case OPTION_TENANT: TRY(name_option("--tenant", optarg, &options->tenant)); break;
        case OPTION_AS: TRY(text_option("--as", optarg, 256, &options->as)); break;
        case OPTION_WITH: TRY(text_option("--with", optarg, 256, &options->with)); break;
        case OPTION_SETTING: TRY(text_option("--setting", optarg, WIRE_BODY_BYTES_MAX, &options->setting)); break;
        case OPTION_SEED: TRY(options_uint("--seed", optarg, UINT64_MAX, &options->seed)); options->seed_given = true; break;
        case OPTION_TRUNCATE: options->truncate = true; break;
        case OPTION_DEADLINE: TRY(options_uint("--deadline", optarg, WIRE_DEADLINE_MS_MAX / 1000, &options->deadline_s)); break;
        case OPTION_SCRIPT: options->script = optarg; break;
        case OPTION_JSON: options->json = true; break;
        case OPTION_HELP: fputs(usage, stdout); *done = true; return STATUS_OK;
        case OPTION_VERSION: printf("roost %s\n", ROOST_VERSION); *done = true; return STATUS_OK;
        case ':': return STATUS_FAIL(STATUS_INVALID, "%s needs a value", argv[optind - 1]);
        default: return STATUS_FAIL(STATUS_INVALID, "there is no option '%s'; 'roost chat --help' lists them", argv[optind - 1]);
        }
    }
    if (optind < argc)
        return STATUS_FAIL(STATUS_INVALID, "'%s' is not expected; 'roost chat --help' lists the options", argv[optind]);
    if (options->router_count == 0)
        TRY(add_router(options, ROUTER_DEFAULT));
    if (!options->setting)
        options->setting = options->as && options->with ? SETTING_DEFAULT : "";
    if (!options->conversation) {
        uint8_t id[HASH_ID_BYTES];
        hash_random(id, sizeof id);
        memcpy(options->conversation_made, "chat-", 5);
        hash_hex(id, sizeof id, options->conversation_made + 5);
        options->conversation = options->conversation_made;
    }
    return STATUS_OK;
}

/* Sends the history as it stands and adds the reply to it. *ok: the turn ended well. */
static enum status ask(struct chat *chat, bool *ok)
{
    const struct chat_options *options = &chat->options;
    struct chat_turn_result result;
    const struct client_request request = {
        .conversation = options->conversation,
        .messages = chat->history.messages,
        .message_count = chat->history.count,
        .reply_name = options->with,
        .sampling = options->sampling,
        .truncate = options->truncate,
        .deadline_ms = (uint32_t)options->deadline_s * 1000,
        .seed = options->seed + chat->retries,       /* another reply needs another seed */
        .seed_given = options->seed_given,
    };
    static const struct chat_turn_callbacks callbacks = { .on_text = chat_print_text, .on_slow = chat_print_slow };
    chat->turn++;
    chat_print_begin(&chat->print);
    *ok = false;
    enum status st = chat_turn_run(chat->client, &request, &callbacks, &chat->print, &result);
    if (st == STATUS_INVALID || st == STATUS_LIMIT) {
        chat_print_failure(&chat->print, options->conversation, chat->turn, st == STATUS_LIMIT ? "too large" : "invalid", status_detail());
        chat_history_truncate(&chat->history, chat->last_count);
        return STATUS_OK;
    }
    TRY(st);
    chat_print_end(&chat->print, options->conversation, chat->turn, &result);
    *ok = result.error == WIRE_ERROR_UNKNOWN || result.error == WIRE_ERROR_CANCELLED;
    if (*ok && (result.error == WIRE_ERROR_UNKNOWN || result.text_size > 0))
        st = chat_history_add(&chat->history, WIRE_MESSAGE_ASSISTANT, options->with, result.text, result.text_size);
    else
        chat_history_truncate(&chat->history, chat->last_count);   /* as if it had not been said; /retry says it again */
    chat_turn_result_free(&result);
    return st;
}

/* Says text after the first `count` messages. */
static enum status say(struct chat *chat, unsigned count, const char *text, size_t size, bool *ok)
{
    chat_history_truncate(&chat->history, count);
    TRY(chat_history_add(&chat->history, WIRE_MESSAGE_USER, chat->options.as, text, size));
    chat->last_count = count;
    return ask(chat, ok);
}

static enum status say_new(struct chat *chat, const char *text, size_t size, bool *ok)
{
    char *copy = malloc(size + 1);
    if (!copy)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a message");
    memcpy(copy, text, size + 1);
    free(chat->last_text);
    chat->last_text = copy;
    chat->last_size = size;
    chat->retries = 0;
    return say(chat, chat->history.count, text, size, ok);
}

/* A line that starts with one slash. *quit: leave. */
static enum status run_line_command(struct chat *chat, const char *line, bool *quit, bool *ok)
{
    *ok = true;
    if (strcmp(line, "/quit") == 0) {
        *quit = true;
    } else if (strcmp(line, "/help") == 0) {
        fputs(chat_help, chat->print.json ? stderr : stdout);
    } else if (strcmp(line, "/retry") == 0 && chat->last_text) {
        chat->retries++;
        return say(chat, chat->last_count, chat->last_text, chat->last_size, ok);
    } else if (strcmp(line, "/retry") == 0) {
        fprintf(stderr, "roost chat: nothing was said yet\n");
    } else {
        fprintf(stderr, "roost chat: there is no command '%s'; /help lists them\n", line);
        *ok = chat_input_is_terminal(chat->input);
    }
    return STATUS_OK;
}

static enum status converse(struct chat *chat, bool *all_ok)
{
    for (bool quit = false; !quit;) {
        const char *line;
        size_t size;
        bool ok = true;
        enum status st = chat_input_next(chat->input, &line, &size);
        if (st == STATUS_CLOSED || st == STATUS_CANCELLED) {
            if (chat_input_is_terminal(chat->input))
                putchar('\n');
            return STATUS_OK;
        }
        TRY(st);
        if (size == 0)
            continue;
        if (line[0] == '/' && line[1] != '/') {
            TRY(run_line_command(chat, line, &quit, &ok));
        } else {
            bool escaped = line[0] == '/';
            TRY(say_new(chat, line + escaped, size - escaped, &ok));
        }
        *all_ok = *all_ok && ok;
        if (!ok && !chat_input_is_terminal(chat->input))
            return STATUS_OK;
    }
    return STATUS_OK;
}

static void chat_close(struct chat *chat)
{
    client_destroy(&chat->client);
    chat_input_destroy(&chat->input);
    chat_history_free(&chat->history);
    free(chat->last_text);
}

static enum status chat_open(struct chat *chat)
{
    struct chat_options *options = &chat->options;
    snprintf(chat->prompt, sizeof chat->prompt, "%s: ", options->as ? options->as : "you");
    chat->print = (struct chat_print){
        .stream = stdout, .json = options->json, .colour = isatty(STDOUT_FILENO), .reply_name = options->with ? options->with : "reply",
        .router = options->routers[0] };
    TRY(chat_input_create(options->script, chat->prompt, &chat->input));
    TRY(chat_turn_setup());
    const struct client_config config = {
        .routers = options->routers, .router_count = options->router_count, .tenant = options->tenant, .name = "roost-chat" };
    enum status st = client_create(&config, &chat->client);
    chat_turn_unblock();
    TRY(st);
    if (*options->setting)
        TRY(chat_history_add(&chat->history, WIRE_MESSAGE_SYSTEM, NULL, options->setting, strlen(options->setting)));
    return STATUS_OK;
}

/* What a person sees first: who speaks, and where. */
static void greet(struct chat *chat)
{
    const struct chat_options *options = &chat->options;
    printf("Conversation %s. ", options->conversation);
    if (options->as && options->with)
        printf("You speak as %s, %s answers. ", options->as, options->with);
    puts("/help lists the commands.");
    if (*options->setting)
        puts(options->setting);
}

int command_chat(int argc, char **argv)
{
    struct chat chat = { 0 };
    bool done = false, all_ok = true;
    (void)setlocale(LC_CTYPE, "");       /* for line editing; numbers stay as in C */
    if (parse_options(argc, argv, &chat.options, &done) != STATUS_OK) {
        fprintf(stderr, "roost chat: %s\n", status_detail());
        return COMMAND_EXIT_USAGE;
    }
    if (done)
        return COMMAND_EXIT_OK;
    enum status st = chat_open(&chat);
    if (st == STATUS_OK) {
        if (chat_input_is_terminal(chat.input) && !chat.options.json)
            greet(&chat);
        st = converse(&chat, &all_ok);
    }
    if (st != STATUS_OK)
        fprintf(stderr, "roost chat: %s\n", status_detail());
    chat_close(&chat);
    return st == STATUS_OK && all_ok ? COMMAND_EXIT_OK : COMMAND_EXIT_FAILED;
}
