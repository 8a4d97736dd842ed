#include "deploy/roost/model_eval.h"
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/clock.h"
#include "deploy/roost/command.h"
#include "deploy/roost/options.h"
#include "worker/engine/backend/backend.h"
#include "worker/eval/eval.h"

static const char usage[] =
    "usage: roost model eval DIR (--text FILE | --conversations FILE) [OPTIONS]\n"
    "\n"
    "How well the model in DIR predicts a text: perplexity, and with --against how far it is from another model, usually the\n"
    "float one that it was converted from (roost-convert --format float).\n"
    "\n"
    "  --text FILE            plain UTF-8 text, cut into windows\n"
    "  --conversations FILE   JSON lines {\"messages\": [{\"role\": \"user\", \"text\": \"...\"}]}, encoded by the model's template\n"
    "  --against DIR          also: the other model's perplexity, mean KL from it, how often both prefer the same token\n"
    "  --per-tensor           also: each matrix alone as int8 in the float model (slow: one pass a matrix), largest KL first\n"
    "  --window N             tokens that are read at a time (default 1024, or the context)\n"
    "  --tokens N             stop after so many predicted tokens (default: the whole file)\n"
    "  --threads N            that compute (default: all processors)\n"
    "  --json                 one JSON object instead of a table\n";

struct arguments {
    struct eval_options options;
    bool json, help;
};

static enum status parse_value(struct arguments *arguments, const char *option, const char *value, bool *known)
{
    struct eval_options *options = &arguments->options;
    uint64_t number;
    *known = true;
    if (strcmp(option, "--text") == 0) {
        options->text = value;
    } else if (strcmp(option, "--conversations") == 0) {
        options->conversations = value;
    } else if (strcmp(option, "--against") == 0) {
        options->against = value;
    } else if (strcmp(option, "--window") == 0) {
        TRY(options_uint(option, value, UINT32_MAX, &number));
        if (number == 0)
            return STATUS_FAIL(STATUS_INVALID, "--window takes at least 2");
        options->window = (uint32_t)number;
    } else if (strcmp(option, "--tokens") == 0) {
        TRY(options_uint(option, value, UINT64_MAX, &options->tokens_max));
    } else if (strcmp(option, "--threads") == 0) {
        TRY(options_uint(option, value, BACKEND_THREADS_MAX, &number));
        if (number == 0)
            return STATUS_FAIL(STATUS_INVALID, "--threads takes at least 1");
        options->threads = (uint32_t)number;
    } else {
        *known = false;
    }
    return STATUS_OK;
}

static enum status parse_arguments(int argc, char **argv, struct arguments *arguments)
{
    for (int i = 1; i < argc; i++) {
        bool known;
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            arguments->help = true;
        } else if (strcmp(argv[i], "--json") == 0) {
            arguments->json = true;
        } else if (strcmp(argv[i], "--per-tensor") == 0) {
            arguments->options.per_tensor = true;
        } else if (argv[i][0] != '-') {
            if (arguments->options.dir != NULL)
                return STATUS_FAIL(STATUS_INVALID, "there are two directories, %s and %s: the other model goes behind --against",
                                   arguments->options.dir, argv[i]);
            arguments->options.dir = argv[i];
        } else {
            TRY(parse_value(arguments, argv[i], i + 1 < argc ? argv[i + 1] : "", &known));
            if (!known)
                return STATUS_FAIL(STATUS_INVALID, "there is no option '%s'", argv[i]);
            if (++i == argc)
                return STATUS_FAIL(STATUS_INVALID, "%s needs a value", argv[i - 1]);
        }
    }
    return STATUS_OK;
}

static enum status check_arguments(const struct eval_options *options)
{
    if (options->dir == NULL)
        return STATUS_FAIL(STATUS_INVALID, "which model? Name its directory");
    if ((options->text == NULL) == (options->conversations == NULL))
        return STATUS_FAIL(STATUS_INVALID, "give a text with --text, or conversations with --conversations");
    if (options->per_tensor && options->against == NULL)
        return STATUS_FAIL(STATUS_INVALID, "--per-tensor needs --against and the float model");
    return STATUS_OK;
}

struct progress {
    uint64_t started_ms, shown_ms;
};

/* A line on stderr, twice a second on a terminal and every 10 s elsewhere. */
static void show_progress(void *user, const char *what, uint64_t done, uint64_t total)
{
    struct progress *progress = user;
    const bool terminal = isatty(STDERR_FILENO);
    const uint64_t now = clock_now_ms();
    if (done == total) {
        if (terminal)
            fprintf(stderr, "\r\033[K");
        return;
    }
    if (now - progress->shown_ms < (terminal ? 500u : 10000u))
        return;
    progress->shown_ms = now;
    const uint64_t left_s = (now - progress->started_ms) * (total - done) / done / 1000;
    fprintf(stderr, terminal ? "\r\033[K%llu of %llu passes, about %llu s left (%s)" : "%llu of %llu passes, about %llu s left (%s)\n",
            (unsigned long long)done, (unsigned long long)total, (unsigned long long)left_s, what);
}

static const char *format_name(enum model_format format)
{
    return format == MODEL_FORMAT_FLOAT ? "roost-float" : "roost-int8";
}

static void print_table(const struct eval_options *options, const struct eval_report *report)
{
    printf("text              %s: %llu tokens in %u windows of %u\n", options->text != NULL ? options->text : options->conversations,
           (unsigned long long)report->score.tokens, report->windows, report->window);
    printf("model             %s (%s)\n", options->dir, format_name(report->format));
    printf("perplexity        %.4f (%.5f nats a token)\n", score_perplexity(&report->score), score_loss(&report->score));
    if (options->against == NULL)
        return;
    printf("against           %s (%s)\n", options->against, format_name(report->against_format));
    printf("its perplexity    %.4f (%.5f nats a token)\n", score_perplexity(&report->reference), score_loss(&report->reference));
    printf("KL                %.6f nats mean, %.4f at worst\n", score_kl(&report->score), report->score.kl_max);
    printf("same first token  %.2f%%\n", 100 * score_agreement(&report->score));
    printf("logit distance    %.5f mean, %.4f at most\n", score_distance(&report->score), report->score.distance_max);
    if (report->tensor_count == 0)
        return;
    printf("\nthe float model with this in int8                    scheme   KL mean     same first  perplexity\n");
    for (uint32_t i = 0; i < report->tensor_count; i++) {
        const struct eval_tensor *tensor = &report->tensors[i];
        printf("%-52s %-8s %.8f  %8.3f%%  %.4f\n", tensor->name, tensor->scheme, score_kl(&tensor->score),
               100 * score_agreement(&tensor->score), score_perplexity(&tensor->score));
    }
}

static json_t *score_json(const struct score *score, bool compared)
{
    json_t *object = json_pack("{s:I, s:f, s:f}", "tokens", (json_int_t)score->tokens, "perplexity", score_perplexity(score), "loss",
                               score_loss(score));
    json_t *more = json_pack("{s:f, s:f, s:f, s:f, s:f}", "kl", score_kl(score), "kl_max", score->kl_max, "agreement",
                             score_agreement(score), "distance", score_distance(score), "distance_max", score->distance_max);
    if (compared && object != NULL && more != NULL)
        json_object_update(object, more);
    json_decref(more);
    return object;
}

static void print_json(const struct eval_options *options, const struct eval_report *report)
{
    const bool compared = options->against != NULL;
    json_t *object = json_pack("{s:s, s:s, s:I, s:I, s:o}", "model", options->dir, "format", format_name(report->format), "window",
                               (json_int_t)report->window, "windows", (json_int_t)report->windows, "score",
                               score_json(&report->score, compared));
    if (compared) {
        json_object_set_new(object, "against", json_string(options->against));
        json_object_set_new(object, "against_format", json_string(format_name(report->against_format)));
        json_object_set_new(object, "against_score", score_json(&report->reference, false));
    }
    if (report->tensor_count > 0) {
        json_t *list = json_array();
        for (uint32_t i = 0; i < report->tensor_count; i++)
            json_array_append_new(list, json_pack("{s:s, s:s, s:o}", "name", report->tensors[i].name, "scheme", report->tensors[i].scheme,
                                                  "score", score_json(&report->tensors[i].score, true)));
        json_object_set_new(object, "tensors", list);
    }
    json_dumpf(object, stdout, JSON_REAL_PRECISION(9) | JSON_COMPACT);
    putchar('\n');
    json_decref(object);
}

int model_eval(int argc, char **argv)
{
    const long processors = sysconf(_SC_NPROCESSORS_ONLN);
    struct progress progress = { .started_ms = clock_now_ms(), .shown_ms = clock_now_ms() };
    struct arguments arguments = { .options = { .progress = show_progress, .user = &progress } };
    arguments.options.threads = processors < 1 ? 1 : processors > BACKEND_THREADS_MAX ? BACKEND_THREADS_MAX : (uint32_t)processors;
    enum status st = parse_arguments(argc, argv, &arguments);
    if (st == STATUS_OK && arguments.help) {
        fputs(usage, stdout);
        return COMMAND_EXIT_OK;
    }
    if (st == STATUS_OK)
        st = check_arguments(&arguments.options);
    if (st != STATUS_OK) {
        fprintf(stderr, "roost model eval: %s; 'roost model eval --help' says more\n", status_detail());
        return COMMAND_EXIT_USAGE;
    }
    struct eval_report report = { 0 };
    if (eval_run(&arguments.options, &report) != STATUS_OK) {
        fprintf(stderr, "roost model eval: %s\n", status_detail());
        return COMMAND_EXIT_FAILED;
    }
    (arguments.json ? print_json : print_table)(&arguments.options, &report);
    eval_report_free(&report);
    return COMMAND_EXIT_OK;
}
