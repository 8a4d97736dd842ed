/* fleet.c - sub-commands that ask a router: workers, whereis, drain. */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "common/clock.h"
#include "deploy/roost/command.h"
#include "deploy/roost/operator_client.h"
#include "deploy/roost/options.h"
#include "proto/wire.h"

#define DEADLINE_S_MAX 3600u
#define POLL_MS 250
#define MARGIN_MS 10000   /* behind its deadline a worker says what became of the drain with its next lease */
#define DEADLINE_S_DEFAULT 30u

struct arguments {
    const char *router;
    const char *subject;      /* the word that is no option; NULL: none */
    const char *tenant;
    uint64_t deadline_s;
    bool deadline_given, json, cancel, no_wait, help;
};

enum { TAKES_JSON = 1, TAKES_TENANT = 2, TAKES_DRAIN = 4, TAKES_SUBJECT = 8 };

/* *takes_value: the next word belongs to it. STATUS_NOT_FOUND: the command has no such option. */
static enum status parse_option(unsigned takes, const char *option, const char *value, struct arguments *out, bool *takes_value)
{
    *takes_value = false;
    if (strcmp(option, "--help") == 0 || strcmp(option, "-h") == 0) {
        out->help = true;
    } else if ((takes & TAKES_JSON) && strcmp(option, "--json") == 0) {
        out->json = true;
    } else if ((takes & TAKES_DRAIN) && strcmp(option, "--cancel") == 0) {
        out->cancel = true;
    } else if ((takes & TAKES_DRAIN) && strcmp(option, "--no-wait") == 0) {
        out->no_wait = true;
    } else {
        const bool router = strcmp(option, "--router") == 0, tenant = (takes & TAKES_TENANT) && strcmp(option, "--tenant") == 0;
        const bool deadline = (takes & TAKES_DRAIN) && strcmp(option, "--deadline") == 0;
        if (!router && !tenant && !deadline)
            return STATUS_FAIL(STATUS_NOT_FOUND, "there is no option '%s'", option);
        if (!value)
            return STATUS_FAIL(STATUS_INVALID, "%s needs a value", option);
        *takes_value = true;
        if (router)
            out->router = value;
        if (tenant)
            out->tenant = value;
        if (deadline) {
            TRY(options_uint(option, value, DEADLINE_S_MAX, &out->deadline_s));
            if (out->deadline_s == 0)
                return STATUS_FAIL(STATUS_INVALID, "--deadline takes at least 1");
            out->deadline_given = true;
        }
    }
    return STATUS_OK;
}

static enum status check_name(const char *what, const char *name)
{
    if (!wire_name_valid(wire_span_str(name)))
        return STATUS_FAIL(STATUS_INVALID, "%s: 1 to %d of the characters A-Z a-z 0-9 . _ : -, not '%s'", what, WIRE_NAME_MAX, name);
    return STATUS_OK;
}

static enum status parse_arguments(int argc, char **argv, unsigned takes, const char *subject, struct arguments *out)
{
    *out = (struct arguments){ .router = OPERATOR_ROUTER_DEFAULT };
    for (int i = 1; i < argc; i++) {
        bool takes_value;
        if (argv[i][0] != '-') {
            if (!(takes & TAKES_SUBJECT) || out->subject)
                return STATUS_FAIL(STATUS_INVALID, "what is '%s'?", argv[i]);
            out->subject = argv[i];
            continue;
        }
        TRY(parse_option(takes, argv[i], argv[i + 1], out, &takes_value));
        i += takes_value;
    }
    if (out->help)
        return STATUS_OK;
    if ((takes & TAKES_SUBJECT) && !out->subject)
        return STATUS_FAIL(STATUS_INVALID, "which %s?", subject);
    if (out->subject)
        TRY(check_name(subject, out->subject));
    if (out->tenant)
        TRY(check_name("--tenant", out->tenant));
    if (out->cancel && (out->deadline_given || out->no_wait))
        return STATUS_FAIL(STATUS_INVALID, "--cancel stands alone");
    return STATUS_OK;
}

/* True: go on; otherwise *code is the exit code. */
static bool begin(int argc, char **argv, unsigned takes, const char *subject, const char *usage, struct arguments *out, int *code)
{
    if (parse_arguments(argc, argv, takes, subject, out) != STATUS_OK) {
        fprintf(stderr, "roost %s: %s; 'roost %s --help' says more\n", argv[0], status_detail(), argv[0]);
        *code = COMMAND_EXIT_USAGE;
        return false;
    }
    if (out->help)
        fputs(usage, stdout);
    *code = COMMAND_EXIT_OK;
    return !out->help;
}

static int failed(const char *command)
{
    fprintf(stderr, "roost %s: %s\n", command, status_detail());
    return COMMAND_EXIT_FAILED;
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static json_int_t number_of(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

static void print_json(const json_t *json)
{
    json_dumpf(json, stdout, JSON_INDENT(2));
    putchar('\n');
}

/* ---- workers ---- */

static const char workers_usage[] =
    "usage: roost workers [--json] [--router URL]\n\n"
    "The workers that a router knows, and how each one stands there.\n\n"
    "  --json        everything that the router says, as JSON\n"
    "  --router URL  its operator port (default " OPERATOR_ROUTER_DEFAULT ")\n\n"
    "States: ready; busy: up, takes nothing new at the moment; suspect: a connection or its echoes are missing; broken: it failed again\n"
    "and again and is left alone for a while; starting; draining; safe to delete; down.\n";

static void print_workers(const json_t *answer)
{
    const json_t *workers = json_object_get(answer, "workers"), *worker;
    size_t i;
    int name_size = 6, state_size = 5;
    json_array_foreach(workers, i, worker) {
        int name = (int)strlen(text_of(worker, "name")), state = (int)strlen(text_of(worker, "state"));
        name_size = name > name_size ? name : name_size;
        state_size = state > state_size ? state : state_size;
    }
    printf("%-*s  %-*s  %7s  %6s  %8s  %-24s  %s\n", name_size, "WORKER", state_size, "STATE", "RUNNING", "QUEUED", "STEP MS", "KV TOKENS",
           "ENDPOINT");
    json_array_foreach(workers, i, worker) {
        const json_t *load = json_object_get(worker, "load");
        const char *name = text_of(worker, "name");
        json_int_t used = number_of(load, "kv_tokens_used"), most = number_of(load, "kv_tokens_max");
        char kv[64] = "-";
        if (most > 0)
            snprintf(kv, sizeof kv, "%" JSON_INTEGER_FORMAT " of %" JSON_INTEGER_FORMAT " (%d%%)", used, most,
                     (int)(100.0 * (double)used / (double)most));
        printf("%-*s  %-*s  %7" JSON_INTEGER_FORMAT "  %6" JSON_INTEGER_FORMAT "  %8.1f  %-24s  %s\n", name_size, *name ? name : "?", state_size,
               text_of(worker, "state"), number_of(load, "running_requests"), number_of(load, "queued_requests"),
               1e-3 * (double)number_of(load, "step_median_us"), kv, text_of(worker, "endpoint"));
    }
    printf("\nrouter %s: %" JSON_INTEGER_FORMAT " requests in flight, placement in %s (%s)%s\n", text_of(answer, "router"),
           number_of(answer, "in_flight"), text_of(answer, "store"),
           json_is_true(json_object_get(answer, "store_up")) ? "it answers" : "it does not answer: serving without it",
           json_is_true(json_object_get(answer, "draining")) ? ", draining" : "");
}

int command_workers(int argc, char **argv)
{
    struct arguments arguments;
    json_t *answer = NULL;
    int code;
    if (!begin(argc, argv, TAKES_JSON, "", workers_usage, &arguments, &code))
        return code;
    if (operator_call(arguments.router, "GET", "/workers", NULL, 0, &answer) != STATUS_OK)
        return failed("workers");
    (arguments.json ? print_json : print_workers)(answer);
    json_decref(answer);
    return COMMAND_EXIT_OK;
}

/* ---- whereis ---- */

static const char whereis_usage[] =
    "usage: roost whereis CONVERSATION [--tenant T] [--json] [--router URL]\n\n"
    "The worker that holds a conversation, and where its next turn would go and why.\n\n"
    "  --tenant T    whose conversation it is (default \"default\")\n"
    "  --json        everything that the router says, as JSON\n"
    "  --router URL  its operator port (default " OPERATOR_ROUTER_DEFAULT ")\n\n"
    "Exit code: 0 found, 1 no worker holds it, or nobody answers, 2 wrong use.\n";

static void print_place(const json_t *answer, const json_t *record, bool remembered)
{
    const char *tier = text_of(record, "tier");
    json_int_t tokens = number_of(record, "tokens"), age_s = number_of(record, "age_ms") / 1000;
    printf("%s", text_of(record, "owner"));
    if (tokens > 0)
        printf(", %" JSON_INTEGER_FORMAT " tokens%s%s%s", tokens, *tier ? " in its " : "", tier, *tier ? " tier" : "");
    if (remembered)
        printf(" (remembered by the router: the store did not answer)");
    else if (json_object_get(record, "age_ms"))
        printf(", its owner for %" JSON_INTEGER_FORMAT " s", age_s);
    const json_t *next = json_object_get(answer, "next_turn");
    const char *worker = text_of(next, "worker");
    printf("\nnext turn: %s (%s: %s)\n", *worker ? worker : "nowhere", text_of(next, "reason"), text_of(next, "why"));
}

int command_whereis(int argc, char **argv)
{
    struct arguments arguments;
    json_t *answer = NULL;
    int code;
    if (!begin(argc, argv, TAKES_JSON | TAKES_TENANT | TAKES_SUBJECT, "conversation", whereis_usage, &arguments, &code))
        return code;
    const struct operator_parameter parameters[] = { { "name", arguments.subject }, { "tenant", arguments.tenant } };
    if (operator_call(arguments.router, "GET", "/conversation", parameters, 2, &answer) != STATUS_OK)
        return failed("whereis");
    const json_t *record = json_object_get(answer, "record"), *remembered = json_object_get(answer, "remembered");
    const bool stored = json_is_object(record);
    const bool known = stored || (json_is_object(remembered) && !json_is_true(json_object_get(answer, "store_answered")));
    if (arguments.json) {
        print_json(answer);
    } else if (known) {
        print_place(answer, stored ? record : remembered, !stored);
    } else {
        const char *first = text_of(json_object_get(answer, "next_turn"), "worker");
        fprintf(stderr, "roost whereis: no worker holds conversation '%s' of tenant '%s'%s; its next turn would go to %s\n", arguments.subject,
                text_of(answer, "tenant"), json_is_true(json_object_get(answer, "store_answered")) ? "" : ", as far as this router remembers",
                *first ? first : "nobody: no worker is ready");
    }
    json_decref(answer);
    return known ? COMMAND_EXIT_OK : COMMAND_EXIT_FAILED;
}

/* ---- drain ---- */

static const char drain_usage[] =
    "usage: roost drain WORKER [--deadline S] [--no-wait] [--router URL]\n"
    "       roost drain WORKER --cancel [--router URL]\n\n"
    "Asks a worker to take nothing new and to finish what it runs, and waits until it may be deleted. It stays until it gets SIGTERM.\n\n"
    "  --deadline S  then what still runs counts as abandoned: it goes on at another worker once this one ends (default 30)\n"
    "  --no-wait     only ask; 'roost workers' shows how it goes\n"
    "  --cancel      serve again\n"
    "  --router URL  the operator port of a router (default " OPERATOR_ROUTER_DEFAULT ")\n\n"
    "Exit code: 0 safe to delete, 1 not, 2 wrong use.\n";

struct progress {
    char state[64];
    json_int_t running, abandoned;
};

/* STATUS_NOT_FOUND: the router has forgotten the worker. */
static enum status read_progress(const struct arguments *arguments, struct progress *out)
{
    json_t *answer = NULL;
    const json_t *worker;
    size_t i;
    TRY(operator_call(arguments->router, "GET", "/workers", NULL, 0, &answer));
    enum status st = STATUS_FAIL(STATUS_NOT_FOUND, "the router has forgotten it");
    json_array_foreach(json_object_get(answer, "workers"), i, worker) {
        if (strcmp(text_of(worker, "name"), arguments->subject) != 0)
            continue;
        const json_t *drain = json_object_get(worker, "drain");
        snprintf(out->state, sizeof out->state, "%s", text_of(worker, "state"));
        out->running = number_of(drain, "streams");
        out->abandoned = number_of(drain, "abandoned");
        st = STATUS_OK;
    }
    json_decref(answer);
    return st;
}

static enum status wait_drained(const struct arguments *arguments, struct progress *progress)
{
    const uint64_t until_ms = clock_now_ms() + 1000 * arguments->deadline_s + MARGIN_MS;
    const struct timespec pause = { .tv_nsec = POLL_MS * 1000000l };
    const char *state = progress->state;
    json_int_t told = -1;
    for (;;) {
        TRY(read_progress(arguments, progress));
        if (strcmp(state, "safe to delete") == 0)
            return STATUS_OK;
        if (strcmp(state, "down") == 0)
            return STATUS_FAIL(STATUS_CLOSED, "%s went down while it drained", arguments->subject);
        if (clock_now_ms() > until_ms)
            return STATUS_FAIL(STATUS_TIMEOUT, "%s is still %s, %" JSON_INTEGER_FORMAT " requests run", arguments->subject, state, progress->running);
        if (progress->running != told && strcmp(state, "draining") == 0)
            fprintf(stderr, "%s: draining, %" JSON_INTEGER_FORMAT " requests run\n", arguments->subject, told = progress->running);
        nanosleep(&pause, NULL);
    }
}

int command_drain(int argc, char **argv)
{
    struct arguments arguments;
    json_t *answer = NULL;
    char deadline_ms[32];
    int code;
    if (!begin(argc, argv, TAKES_DRAIN | TAKES_SUBJECT, "worker", drain_usage, &arguments, &code))
        return code;
    if (!arguments.deadline_given)
        arguments.deadline_s = DEADLINE_S_DEFAULT;
    snprintf(deadline_ms, sizeof deadline_ms, "%" PRIu64, 1000 * arguments.deadline_s);
    const struct operator_parameter parameters[] = { { "worker", arguments.subject }, { "deadline_ms", arguments.cancel ? NULL : deadline_ms },
                                                     { "cancel", arguments.cancel ? "1" : NULL } };
    if (operator_call(arguments.router, "POST", "/drain", parameters, 3, &answer) != STATUS_OK)
        return failed("drain");
    json_decref(answer);
    if (arguments.cancel || arguments.no_wait) {
        printf("%s was asked to %s\n", arguments.subject, arguments.cancel ? "serve again" : "drain");
        return COMMAND_EXIT_OK;
    }
    struct progress progress = { 0 };
    if (wait_drained(&arguments, &progress) != STATUS_OK)
        return failed("drain");
    if (progress.abandoned > 0)
        printf("%s is safe to delete: %" JSON_INTEGER_FORMAT " requests that still run there go on elsewhere when it ends\n", arguments.subject,
               progress.abandoned);
    else
        printf("%s is safe to delete\n", arguments.subject);
    return COMMAND_EXIT_OK;
}
