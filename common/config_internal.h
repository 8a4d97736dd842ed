/* config_internal.h - what config.c and config_file.c share. */
#ifndef ROOST_COMMON_CONFIG_INTERNAL_H
#define ROOST_COMMON_CONFIG_INTERNAL_H
#include <stdbool.h>
#include "common/config.h"

#define CONFIG_VALUE_BYTES_MAX 4096   /* a string without its own limit */
#define CONFIG_ITEMS_MAX 1024         /* a list without its own limit */
#define CONFIG_QUOTE_BYTES 64         /* of a value, in a message */

const struct config_field *config_find(const struct config_program *program, const char *key);

/* The key most like a wrong one, NULL if none comes near. */
const char *config_suggest(const struct config_program *program, const char *key);

/* "a whole number from 1 to 64"; returns out. */
char *config_describe(const struct config_field *field, char *out, size_t size);

/* Sets a scalar, or a list from its items. prefix opens the message, "router.yaml:3: " or "". */
enum status config_assign(const struct config_field *field, void *settings, const char *value, const char *prefix);
enum status config_assign_list(const struct config_field *field, void *settings, char *const *items, unsigned count,
                               const char *prefix);

#endif
