/* log.h - one line per event, for people or as JSON.
 * Process-wide, set up once by main, safe from any thread (one write(2) per line). Every line carries time, level,
 * program, and the request id in scope (log_request_scope) or "-". Prompts, replies and keys are never logged:
 * pass ids, sizes and counts. Control characters and invalid UTF-8 in arguments are escaped, so a peer cannot forge a line. */
#ifndef ROOST_COMMON_LOG_H
#define ROOST_COMMON_LOG_H
#include <stdbool.h>
#include <stdint.h>
#include "common/status.h"

enum log_level { LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, LOG_LEVEL_WARN, LOG_LEVEL_ERROR };
enum log_format { LOG_FORMAT_TEXT, LOG_FORMAT_JSON };

struct log_config {
    const char *program;      /* borrowed; "router", "worker", ... */
    enum log_level level;     /* lines below it are dropped */
    enum log_format format;
    int fd;                   /* borrowed; usually 2 */
};

void log_setup(const struct log_config *config);
enum status log_level_parse(const char *word, enum log_level *out);    /* debug, info, warn, error */
enum status log_format_parse(const char *word, enum log_format *out);  /* text, json */
bool log_enabled(enum log_level level);

/* Names the request (128-bit id) that this thread works on until the next call; NULL ends it. */
void log_request_scope(const uint8_t request_id[16]);

void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define LOG_DEBUG(...) do { if (log_enabled(LOG_LEVEL_DEBUG)) log_write(LOG_LEVEL_DEBUG, __VA_ARGS__); } while (0)
#define LOG_INFO(...)  log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define LOG_WARN(...)  log_write(LOG_LEVEL_WARN, __VA_ARGS__)
#define LOG_ERROR(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)

#endif
