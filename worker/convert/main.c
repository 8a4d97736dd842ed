/* main.c - roost-convert: the command line. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/status.h"
#include "worker/convert/convert.h"
#include "worker/convert/random_weights.h"
#include "worker/convert/shapes.h"

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

static const char help[] =
    "usage: roost-convert SRC DST [OPTIONS]\n"
    "       roost-convert --random SHAPE DST [OPTIONS]\n"
    "       roost-convert --list-shapes\n"
    "\n"
    "Makes a roost directory DST from a Hugging Face directory SRC (config.json, model.safetensors or its shards,\n"
    "tokenizer.model): Gemma 3 and Gemma 4 (E2B, E4B) text, and roost's own. docs/models.md says more.\n"
    "\n"
    "  --format int8|float   int8 (default) is what the engine serves; float keeps the values, for evaluation\n"
    "  --recipe FILE         JSON: schemes per tensor, smoothing\n"
    "  --scheme NAME         one scheme for all matrices: dynamic, static, rotated or wide\n"
    "  --calibrate FILE      a sample, text or token ids: measures input ranges for smoothing and static scales\n"
    "  --print-recipe        prints the recipe in force and stops\n"
    "  --no-tokenizer        for tests: without tokenizer.model; what is written cannot be served\n"
    "  --ignore-key KEY      a key of config.json that says nothing about the text model; may be repeated\n"
    "  --random SHAPE        random int8 weights of a shape: a name of --list-shapes or the path of a config.json\n"
    "  --seed N              of --random; default 1\n"
    "  --layers N            of --random: only the first N layers\n"
    "  --vocab N             of --random: another vocabulary\n"
    "  --threads N           default: one for each processor\n"
    "  --quiet               no progress on stderr\n"
    "  --help, --version\n"
    "\n"
    "Exit code: 0 done, 1 failed, 2 wrong use.\n";

static volatile sig_atomic_t stop;

static void on_signal(int number)
{
    (void)number;
    stop = 1;
}

static int wrong_use(const char *words, const char *value)
{
    fprintf(stderr, "roost-convert: %s%s\n'roost-convert --help' says more\n", words, value);
    return EXIT_USAGE;
}

static uint32_t default_threads(void)
{
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count < 1 ? 1 : count > (long)CONVERT_THREADS_MAX ? CONVERT_THREADS_MAX : (uint32_t)count;
}

enum { OPTION_FORMAT = 256, OPTION_RECIPE, OPTION_SCHEME, OPTION_PRINT, OPTION_NO_TOKENIZER, OPTION_IGNORE, OPTION_THREADS,
              OPTION_QUIET, OPTION_VERSION, OPTION_RANDOM, OPTION_SEED, OPTION_LAYERS, OPTION_VOCAB, OPTION_SHAPES, OPTION_CALIBRATE };

static const struct option long_options[] = {
    { "format", required_argument, NULL, OPTION_FORMAT },
    { "recipe", required_argument, NULL, OPTION_RECIPE },
    { "scheme", required_argument, NULL, OPTION_SCHEME },
    { "print-recipe", no_argument, NULL, OPTION_PRINT },
    { "no-tokenizer", no_argument, NULL, OPTION_NO_TOKENIZER },
    { "ignore-key", required_argument, NULL, OPTION_IGNORE },
    { "threads", required_argument, NULL, OPTION_THREADS },
    { "quiet", no_argument, NULL, OPTION_QUIET },
    { "random", required_argument, NULL, OPTION_RANDOM },
    { "seed", required_argument, NULL, OPTION_SEED },
    { "layers", required_argument, NULL, OPTION_LAYERS },
    { "vocab", required_argument, NULL, OPTION_VOCAB },
    { "list-shapes", no_argument, NULL, OPTION_SHAPES },
    { "calibrate", required_argument, NULL, OPTION_CALIBRATE },
    { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, OPTION_VERSION },
    { 0 },
};

static int report(enum status st)
{
    if (st == STATUS_OK)
        return EXIT_DONE;
    fprintf(stderr, "roost-convert: %s\n", status_detail());
    return EXIT_FAILED;
}

struct command_line {
    struct convert_options convert;
    struct random_options random;         /* shape NULL: convert */
    bool print_recipe;
};

/* A whole number in [min, max]; false otherwise. */
static bool read_number(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
    char *end;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return errno == 0 && *text >= '0' && *text <= '9' && *end == '\0' && *out >= min && *out <= max;
}

/* One option; 0, or the exit code plus one. */
static int take_option(int option, struct command_line *line)
{
    struct convert_options *convert_options = &line->convert;
    uint64_t number;
    switch (option) {
    case OPTION_FORMAT:
        if (strcmp(optarg, "int8") != 0 && strcmp(optarg, "float") != 0)
            return 1 + wrong_use("--format: want int8 or float, not ", optarg);
        convert_options->format = strcmp(optarg, "int8") == 0 ? MODEL_FORMAT_INT8 : MODEL_FORMAT_FLOAT;
        return 0;
    case OPTION_RECIPE: convert_options->recipe_path = optarg; return 0;
    case OPTION_SCHEME: convert_options->scheme = optarg; return 0;
    case OPTION_CALIBRATE: convert_options->calibrate_path = optarg; return 0;
    case OPTION_PRINT: line->print_recipe = true; return 0;
    case OPTION_NO_TOKENIZER: convert_options->no_tokenizer = true; return 0;
    case OPTION_IGNORE:
        if (convert_options->ignored_key_count == CONVERT_IGNORED_KEYS_MAX)
            return 1 + wrong_use("--ignore-key: too many of them", "");
        convert_options->ignored_keys[convert_options->ignored_key_count++] = optarg;
        return 0;
    case OPTION_THREADS:
        if (!read_number(optarg, 1, CONVERT_THREADS_MAX, &number))
            return 1 + wrong_use("--threads: want a number from 1 to 64, not ", optarg);
        convert_options->threads = (uint32_t)number;
        return 0;
    case OPTION_RANDOM: line->random.shape = optarg; return 0;
    case OPTION_SEED:
        return read_number(optarg, 0, UINT64_MAX, &line->random.seed) ? 0 : 1 + wrong_use("--seed: want a number, not ", optarg);
    case OPTION_LAYERS:
        if (!read_number(optarg, 1, MODEL_LAYERS_MAX, &number))
            return 1 + wrong_use("--layers: want a number from 1, not ", optarg);
        line->random.layers = (uint32_t)number;
        return 0;
    case OPTION_VOCAB:
        if (!read_number(optarg, 8, MODEL_VOCAB_MAX, &number))
            return 1 + wrong_use("--vocab: want a number from 8 to 1048576, not ", optarg);
        line->random.vocab_size = (uint32_t)number;
        return 0;
    case OPTION_QUIET: convert_options->progress = NULL; return 0;
    case OPTION_SHAPES: shapes_list(stdout); return 1 + EXIT_DONE;
    case OPTION_VERSION: printf("roost-convert %s\n", ROOST_VERSION); return 1 + EXIT_DONE;
    case 'h': fputs(help, stdout); return 1 + EXIT_DONE;
    default: return 1 + EXIT_USAGE;
    }
}

static int run_random(struct command_line *line, const char *destination)
{
    struct random_options *random_options = &line->random;
    if (line->convert.format != MODEL_FORMAT_INT8)
        return wrong_use("--random makes int8 weights only", "");
    random_options->destination = destination;
    random_options->recipe_path = line->convert.recipe_path;
    random_options->scheme = line->convert.scheme;
    random_options->threads = line->convert.threads;
    random_options->progress = line->convert.progress;
    random_options->stop = &stop;
    return report(random_weights(random_options));
}

int main(int argc, char **argv)
{
    struct command_line line = { .convert = { .threads = default_threads(), .progress = stderr, .stop = &stop }, .random = { .seed = 1 } };
    for (int option; (option = getopt_long(argc, argv, "h", long_options, NULL)) != -1;) {
        const int code = take_option(option, &line);
        if (code != 0)
            return code - 1;
    }
    if (line.convert.recipe_path && line.convert.scheme)
        return wrong_use("--recipe and --scheme exclude each other", "");
    const bool random = line.random.shape != NULL;
    if (!random && (line.random.layers || line.random.vocab_size))
        return wrong_use("--layers and --vocab belong to --random", "");
    if (random && line.print_recipe)
        return wrong_use("--print-recipe wants SRC, not --random", "");
    if (argc - optind != (line.print_recipe || random ? 1 : 2))
        return wrong_use(line.print_recipe ? "want SRC" : random ? "want DST" : "want SRC and DST", "");
    struct sigaction action = { .sa_handler = on_signal };
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    if (random)
        return run_random(&line, argv[optind]);
    line.convert.source = argv[optind];
    line.convert.destination = argv[optind + 1];
    return report(line.print_recipe ? convert_print_recipe(&line.convert, stdout) : convert(&line.convert));
}
