/* model.c - sub-commands about a model directory. */
#include <stdio.h>
#include <string.h>
#include "common/status.h"
#include "deploy/roost/command.h"
#include "deploy/roost/model_describe.h"
#include "deploy/roost/model_eval.h"
#include "worker/engine/engine.h"

static const char usage[] =
    "usage: roost model describe DIR    layers, parameters, bytes, and what conversations cost in KV\n"
    "       roost model eval DIR ...    how well the model predicts a text, and how far int8 is from float\n"
    "       roost model seal DIR        run the model once and write the answer to DIR/known_answer.json, which every\n"
    "                                   worker checks at start: do it on a machine that you trust\n";

static int model_seal(int argc, char **argv)
{
    if (argc != 2 || argv[1][0] == '-') {
        fputs(usage, stderr);
        return COMMAND_EXIT_USAGE;
    }
    if (engine_seal(argv[1]) != STATUS_OK) {
        fprintf(stderr, "roost model seal: %s\n", status_detail());
        return COMMAND_EXIT_FAILED;
    }
    printf("sealed %s/known_answer.json\n", argv[1]);
    return COMMAND_EXIT_OK;
}

int command_model(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } actions[] = { { "describe", model_describe }, { "eval", model_eval }, { "seal", model_seal } };

    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(usage, stdout);
        return COMMAND_EXIT_OK;
    }
    for (size_t i = 0; argc >= 2 && i < sizeof actions / sizeof actions[0]; i++)
        if (strcmp(argv[1], actions[i].name) == 0)
            return actions[i].run(argc - 1, argv + 1);
    fputs(usage, stderr);
    return COMMAND_EXIT_USAGE;
}
