/* log.c - owns the process's log settings and each thread's request in scope.
 * Always true:
 *   1. one call is one write(2) of at most LINE_BYTES_MAX bytes that ends in the line's only newline, so lines of several
 *      threads do not mix (a pipe takes up to PIPE_BUF = 4096 bytes at once);
 *   2. what comes out is valid UTF-8, and valid JSON in that format, whatever the arguments were. */
#include "common/log.h"
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "common/hash.h"
#include "common/utf8.h"

enum {
    LINE_BYTES_MAX = 2000,
    MESSAGE_BYTES_MAX = 4096, /* before escaping; more could not fit in a line */
    TAIL_BYTES = 8,           /* kept free for "..." and the end of a JSON line */
};

static struct log_config config_ = {.program = "roost", .level = LOG_LEVEL_INFO, .format = LOG_FORMAT_TEXT, .fd = 2};
static atomic_int level_ = LOG_LEVEL_INFO;
static _Thread_local char request_[HASH_HEX_SIZE(16)] = "-";

static const char *const level_words_[] = {"debug", "info", "warn", "error"};
static const char *const level_labels_[] = {"DEBUG", "INFO", "WARN", "ERROR"};

void log_setup(const struct log_config *config)
{
    config_ = *config;
    atomic_store(&level_, (int)config->level);
}

enum status log_level_parse(const char *word, enum log_level *out)
{
    for (unsigned i = 0; i < sizeof level_words_ / sizeof level_words_[0]; i++) {
        if (strcmp(word, level_words_[i]) == 0) {
            *out = (enum log_level)i;
            return STATUS_OK;
        }
    }
    char quoted[40];
    return STATUS_FAIL(STATUS_INVALID, "unknown log level '%s': use debug, info, warn or error",
                       utf8_quote(word, strlen(word), quoted, sizeof quoted));
}

enum status log_format_parse(const char *word, enum log_format *out)
{
    if (strcmp(word, "text") == 0)
        *out = LOG_FORMAT_TEXT;
    else if (strcmp(word, "json") == 0)
        *out = LOG_FORMAT_JSON;
    else {
        char quoted[40];
        return STATUS_FAIL(STATUS_INVALID, "unknown log format '%s': use text or json",
                           utf8_quote(word, strlen(word), quoted, sizeof quoted));
    }
    return STATUS_OK;
}

bool log_enabled(enum log_level level)
{
    return (int)level >= atomic_load_explicit(&level_, memory_order_relaxed);
}

void log_request_scope(const uint8_t request_id[16])
{
    if (request_id)
        hash_hex(request_id, 16, request_);
    else
        strcpy(request_, "-");
}

struct line {
    char bytes[LINE_BYTES_MAX];
    size_t used;
    bool cut; /* something did not fit: nothing more is appended */
};

static void line_append(struct line *line, const char *bytes, size_t size)
{
    if (line->cut || line->used + size > LINE_BYTES_MAX - TAIL_BYTES) {
        line->cut = true;
        return;
    }
    memcpy(line->bytes + line->used, bytes, size);
    line->used += size;
}

static void line_append_escaped(struct line *line, const char *text, enum log_format format)
{
    size_t size = strlen(text);
    for (size_t i = 0; i < size && !line->cut;) {
        uint32_t c = 0;
        unsigned length = utf8_decode(text + i, size - i, &c);
        size_t step = length > 0 ? length : 1;
        char escaped[24];
        if (length == 0 || !utf8_is_plain(c)) {
            int used = 0;
            if (format == LOG_FORMAT_JSON && length == 1)
                used = snprintf(escaped, sizeof escaped, "\\u%04x", (unsigned)c);
            else
                for (size_t k = 0; k < step; k++)
                    used += snprintf(escaped + used, sizeof escaped - (size_t)used,
                                     format == LOG_FORMAT_JSON ? "\\\\x%02X" : "\\x%02X", (unsigned)(uint8_t)text[i + k]);
            line_append(line, escaped, (size_t)used);
        } else if (format == LOG_FORMAT_JSON && (c == '"' || c == '\\')) {
            escaped[0] = '\\';
            escaped[1] = (char)c;
            line_append(line, escaped, 2);
        } else {
            line_append(line, text + i, step);
        }
        i += step;
    }
}

static void line_append_text(struct line *line, const char *text)
{
    line_append(line, text, strlen(text));
}

static void format_time(char out[32])
{
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t used = strftime(out, 32, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(out + used, 32 - used, ".%03uZ", (unsigned)(now.tv_nsec / 1000000) % 1000u);
}

static void write_once(int fd, const char *bytes, size_t size)
{
    ssize_t rc;
    do
        rc = write(fd, bytes, size);
    while (rc < 0 && errno == EINTR);
    /* A log that cannot be written must not stop the service: a full disk or a full pipe loses the line. */
}

void log_write(enum log_level level, const char *format, ...)
{
    if (!log_enabled(level))
        return;
    int saved_errno = errno;
    char message[MESSAGE_BYTES_MAX];
    va_list args;
    va_start(args, format);
    int wanted = vsnprintf(message, sizeof message, format, args);
    va_end(args);
    if (wanted < 0)
        snprintf(message, sizeof message, "(a message that could not be formatted)");

    char when[32];
    format_time(when);
    struct line line = {.used = 0};
    if (config_.format == LOG_FORMAT_JSON) {
        line_append_text(&line, "{\"ts\":\"");
        line_append_text(&line, when);
        line_append_text(&line, "\",\"level\":\"");
        line_append_text(&line, level_words_[level]);
        line_append_text(&line, "\",\"program\":\"");
        line_append_escaped(&line, config_.program, LOG_FORMAT_JSON);
        line_append_text(&line, "\",\"request\":\"");
        line_append_text(&line, request_);
        line_append_text(&line, "\",\"msg\":\"");
    } else {
        line_append_text(&line, when);
        line_append_text(&line, " ");
        line_append_text(&line, level_labels_[level]);
        line_append_text(&line, " ");
        line_append_escaped(&line, config_.program, LOG_FORMAT_TEXT);
        line_append_text(&line, " [req ");
        line_append_text(&line, request_);
        line_append_text(&line, "] ");
    }
    line_append_escaped(&line, message, config_.format);

    /* TAIL_BYTES were kept for this: "..." + "\"}" + newline are 6. */
    const char *end = config_.format == LOG_FORMAT_JSON ? "\"}\n" : "\n";
    char tail[TAIL_BYTES];
    int tail_size = snprintf(tail, sizeof tail, "%s%s", line.cut ? "..." : "", end);
    memcpy(line.bytes + line.used, tail, (size_t)tail_size);
    write_once(config_.fd, line.bytes, line.used + (size_t)tail_size);
    errno = saved_errno;
}
