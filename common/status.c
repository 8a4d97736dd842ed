/* status.c - owns the last failure of each thread: its words and where it was raised. */
#include "common/status.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char detail_[1024];
static _Thread_local char where_[64];

const char *status_name(enum status st)
{
    switch (st) {
    case STATUS_OK: return "ok";
    case STATUS_INVALID: return "invalid";
    case STATUS_UNSUPPORTED: return "unsupported";
    case STATUS_NOT_FOUND: return "not found";
    case STATUS_EXISTS: return "exists";
    case STATUS_LIMIT: return "over a limit";
    case STATUS_NO_MEMORY: return "out of memory";
    case STATUS_IO: return "input/output error";
    case STATUS_CLOSED: return "closed";
    case STATUS_AGAIN: return "try again";
    case STATUS_TIMEOUT: return "timed out";
    case STATUS_CANCELLED: return "cancelled";
    case STATUS_CORRUPT: return "corrupt";
    case STATUS_INTERNAL: return "internal error";
    }
    return "unknown";
}

const char *status_detail(void)
{
    return detail_;
}

const char *status_where(void)
{
    return where_;
}

void status_fail(const char *file, int line, const char *format, ...)
{
    /* The arguments may include status_detail() or status_where(), so format first, beside them. */
    char words[sizeof detail_];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    memcpy(detail_, words, sizeof detail_);
    const char *slash = strrchr(file, '/');
    snprintf(where_, sizeof where_, "%s:%d", slash ? slash + 1 : file, line);
}
