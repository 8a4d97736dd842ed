/* config.h - settings of a program: one table of fields gives the YAML schema, the environment variables, the flags,
 * the help text, the checks and --print-config.
 *
 * Later wins: default, YAML file (--config FILE), environment (ROOST_<PROGRAM>_<KEY>, upper case), flag (--key-name VALUE
 * or --key-name=VALUE, dashes for underscores). An unknown key, a wrong type or a value out of range is an error that names
 * the file, the line, the key and what would be accepted. Keys are flat snake_case words with units last.
 *
 * <PROGRAM> is the program's name without "roost-". An environment variable with that prefix that names no key is an error
 * too, except the ones that Kubernetes sets for a service of the same name (..._SERVICE_HOST, ..._PORT_5555_TCP and so on).
 * Files: UTF-8, at most CONFIG_FILE_BYTES_MAX, one mapping of scalars and flat lists, no anchors; only comments: all defaults.
 *
 * Standard flags, handled here: --config FILE, --check-config, --print-config, --help, --version. */
#ifndef ROOST_COMMON_CONFIG_H
#define ROOST_COMMON_CONFIG_H
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include "common/status.h"

#define CONFIG_FILE_BYTES_MAX (1u << 20)   /* far above 100 settings of 4096 bytes; a wrong --config stops here */

enum config_type {
    CONFIG_STRING,   /* char *, owned by the settings struct, UTF-8; never NULL after config_load */
    CONFIG_UINT,     /* uint64_t, within [min, max]; max 0: no upper limit */
    CONFIG_BOOL,     /* bool: true/false, yes/no, on/off */
    CONFIG_LIST,     /* struct config_list of strings; in environment and flags separated by commas */
};

struct config_list {
    char **items;    /* owned */
    unsigned count;
};

struct config_field {
    const char *key;             /* "listen_client" */
    enum config_type type;
    size_t offset;               /* of the member in the program's settings struct */
    const char *default_value;   /* as a flag would write it; NULL: empty or zero, whatever the limits say */
    uint64_t min, max;           /* CONFIG_UINT: the range. CONFIG_STRING: max length (0: 4096). CONFIG_LIST: max items (0: 1024) */
    const char *choices;         /* CONFIG_STRING: "text|json", or NULL for any */
    const char *help;            /* one line, with the unit and the trade-off */
};

struct config_program {
    const char *name;                    /* "roost-router"; the environment prefix is ROOST_ROUTER_ */
    const char *summary;                 /* first line of --help */
    const struct config_field *fields;
    unsigned field_count;
    size_t settings_size;
    /* Checks that need more than one field; NULL if none. Fails with a detail that says what to do. */
    enum status (*check)(const void *settings);
};

enum config_outcome {
    CONFIG_RUN,       /* settings are complete: go on */
    CONFIG_EXIT_OK,   /* --help, --version, --check-config or --print-config has printed what was asked: exit 0 */
    CONFIG_EXIT_BAD,  /* one clear line was printed to stderr: exit 2 */
};

/* Fills *settings (settings_size bytes, zeroed here). Prints only for the EXIT outcomes, after which *settings is empty. */
enum config_outcome config_load(const struct config_program *program, int argc, char **argv, void *settings);

/* The parts, for tests: read a YAML file over *settings; apply one key (origin opens the message: "router.yaml:3", "--threads";
 * NULL for none). After a failure *settings may hold some of the values and can still be freed. */
enum status config_read_file(const struct config_program *program, const char *path, void *settings);
enum status config_set(const struct config_program *program, void *settings, const char *key, const char *value, const char *origin);
/* As YAML that reads back. A value that was never set and has no valid default is left out, as a comment. */
void config_print(const struct config_program *program, const void *settings, FILE *stream);
void config_free(const struct config_program *program, void *settings);

#endif
