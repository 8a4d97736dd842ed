/* main.c - the command-line tool: finds the sub-command and runs it. */
#include <stdio.h>
#include <string.h>
#include "common/hash.h"
#include "common/status.h"
#include "deploy/roost/command.h"

static const struct command commands[] = {
    { "chat", "talk to a cluster: tokens as they come, and what each turn cost", command_chat },
    { "workers", "the workers that a router knows, and how each one stands", command_workers },
    { "whereis", "which worker holds a conversation, and where its next turn would go", command_whereis },
    { "drain", "let a worker finish what it runs, until it may be deleted", command_drain },
    { "model", "describe a model directory, or seal it with its known answer", command_model },
};
#define COMMAND_COUNT (sizeof commands / sizeof commands[0])

static void print_help(FILE *stream)
{
    fprintf(stream, "usage: roost COMMAND [OPTIONS]\n\ncommands:\n");
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        fprintf(stream, "  %-8s %s\n", commands[i].name, commands[i].summary);
    fprintf(stream, "\n  --help, --version\n\n'roost COMMAND --help' says more. Exit code: 0 done, 1 failed, 2 wrong use.\n");
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return COMMAND_EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return COMMAND_EXIT_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("roost %s\n", ROOST_VERSION);
        return COMMAND_EXIT_OK;
    }
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(argv[1], commands[i].name) != 0)
            continue;
        if (hash_setup() != STATUS_OK) {
            fprintf(stderr, "roost: %s\n", status_detail());
            return COMMAND_EXIT_FAILED;
        }
        return commands[i].run(argc - 1, argv + 1);
    }
    fprintf(stderr, "roost: there is no command '%s'; 'roost --help' lists them\n", argv[1]);
    return COMMAND_EXIT_USAGE;
}
