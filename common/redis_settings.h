/* redis_settings.h - what the settings of a program say about Redis: one set of rules for router and worker. */
#ifndef ROOST_COMMON_REDIS_SETTINGS_H
#define ROOST_COMMON_REDIS_SETTINGS_H
#include <stdbool.h>
#include <stddef.h>
#include "common/status.h"

#define REDIS_PASSWORD_MAX 512 /* with its NUL */

struct redis_settings {  /* a view; borrowed */
    const char *address; /* NULL or empty: none */
    const char *const *sentinels;
    unsigned sentinel_count;
    const char *sentinel_master;
    bool tls;
};

/* Redis is asked for: it has an address, or sentinels. */
bool redis_settings_given(const struct redis_settings *settings);
/* STATUS_INVALID, or STATUS_UNSUPPORTED (TLS): the detail names the setting and says what to do. */
enum status redis_settings_check(const struct redis_settings *settings);
/* The first line of a file that others may not read. path NULL or empty: "". out has REDIS_PASSWORD_MAX bytes. */
enum status redis_settings_password(const char *path, char *out);

#endif
