/* command.h - what a sub-command of the tool is. */
#ifndef ROOST_DEPLOY_ROOST_COMMAND_H
#define ROOST_DEPLOY_ROOST_COMMAND_H

enum command_exit {
    COMMAND_EXIT_OK = 0,
    COMMAND_EXIT_FAILED = 1,   /* what was asked could not be done; stderr says why */
    COMMAND_EXIT_USAGE = 2,    /* it was not asked properly */
};

struct command {
    const char *name;
    const char *summary;                    /* one line of the tool's --help */
    int (*run)(int argc, char **argv);      /* argv[0] is the command's name; returns enum command_exit */
};

int command_chat(int argc, char **argv);
int command_drain(int argc, char **argv);
int command_model(int argc, char **argv);
int command_whereis(int argc, char **argv);
int command_workers(int argc, char **argv);

#endif
