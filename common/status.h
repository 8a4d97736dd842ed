/* status.h - the one vocabulary of results.
 * Every fallible function returns enum status; STATUS_OK is 0. The detail of the last failure is kept per thread
 * (status_detail), with the place where it was raised. A function returns an error or logs it, never both:
 * loops and main do the logging. */
#ifndef ROOST_COMMON_STATUS_H
#define ROOST_COMMON_STATUS_H

enum status {
    STATUS_OK = 0,
    STATUS_INVALID,      /* input that breaks a rule: a file, a frame, a flag, a value out of range */
    STATUS_UNSUPPORTED,  /* well-formed, and not built (yet); the detail names it */
    STATUS_NOT_FOUND,    /* a file, a key, an id that does not exist */
    STATUS_EXISTS,       /* it is there already */
    STATUS_LIMIT,        /* over a stated limit: size, count, queue */
    STATUS_NO_MEMORY,    /* an allocation failed */
    STATUS_IO,           /* a system or library call failed; the detail has its words */
    STATUS_CLOSED,       /* the peer, socket or object is gone */
    STATUS_AGAIN,        /* would block, or nothing there now: try later */
    STATUS_TIMEOUT,      /* a deadline passed */
    STATUS_CANCELLED,    /* asked to stop */
    STATUS_CORRUPT,      /* data that fails its own check: digest, offsets, known answer */
    STATUS_INTERNAL,     /* our own mistake */
};

/* A short lower-case word for st, for logs and messages. Never NULL. */
const char *status_name(enum status st);

/* The detail of this thread's last failure, "" if there was none. Valid until the next status_fail on the thread. */
const char *status_detail(void);

/* Where that failure was raised, "loop.c:120", or "" if there was none. Valid as long. */
const char *status_where(void);

/* Records file, line and a formatted detail for this thread. Use through STATUS_FAIL. */
void status_fail(const char *file, int line, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Is st; where that is a constant the compiler knows that the call has failed, and what is not set then. */
#define STATUS_FAIL(st, ...) (status_fail(__FILE__, __LINE__, __VA_ARGS__), (st))

/* Return, or go to a label with the status in variable, as soon as a call fails. */
#define TRY(call)                                  \
    do {                                           \
        enum status try_status_ = (call);          \
        if (try_status_ != STATUS_OK)              \
            return try_status_;                    \
    } while (0)

#define TRY_GOTO(call, variable, label)            \
    do {                                           \
        (variable) = (call);                       \
        if ((variable) != STATUS_OK)               \
            goto label;                            \
    } while (0)

#endif
