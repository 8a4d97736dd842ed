/* probe.c - owns the table of armed probes. Any thread.
 * Always true:
 *   1. armed_ is the number of entries in use, so that an unarmed process pays one relaxed load for each place;
 *   2. an entry leaves the table, and its line is written, before its action happens: it fires once, also when its
 * process goes on. */
#include "common/probe.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "common/utf8.h"

#ifdef ROOST_PROBES

enum {
    PROBES_MAX = 32, /* twice the places there are */
    NAME_BYTES_MAX = 48,
    COUNT_MAX = 1000000000, /* @N */
    SLEEP_MS_MAX = 3600000,
};

enum action { ACTION_KILL, ACTION_STOP, ACTION_ABORT, ACTION_HANG, ACTION_FAIL, ACTION_SLEEP };

static const char *const action_words_[] = {"kill", "stop", "abort", "hang", "fail", "sleep"};

struct probe {
    char name[NAME_BYTES_MAX];
    enum action action;
    unsigned sleep_ms;
    unsigned passes; /* that are left, the one that fires included */
};

static pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
static struct probe probes_[PROBES_MAX]; /* guarded by mutex_ */
static atomic_uint armed_;               /* written under mutex_ */

/* ---- arming ---- */

/* A whole number from 1 to max that ends at `end`. */
static bool number_parse(const char *text, const char *end, unsigned max, unsigned *out)
{
    uint64_t value = 0;
    if (text == end)
        return false;
    for (; text < end; text++) {
        if (*text < '0' || *text > '9')
            return false;
        value = 10 * value + (uint64_t)(*text - '0');
        if (value > max)
            return false;
    }
    *out = (unsigned)value;
    return value > 0;
}

static bool action_parse(const char *text, const char *end, struct probe *out)
{
    const char *colon = memchr(text, ':', (size_t)(end - text));
    size_t size = (size_t)((colon ? colon : end) - text);
    for (unsigned i = 0; i < sizeof action_words_ / sizeof action_words_[0]; i++) {
        if (strlen(action_words_[i]) != size || memcmp(action_words_[i], text, size) != 0)
            continue;
        out->action = (enum action)i;
        if (out->action == ACTION_SLEEP)
            return colon && number_parse(colon + 1, end, SLEEP_MS_MAX, &out->sleep_ms);
        return !colon;
    }
    return false;
}

/* NAME=ACTION[@N] */
static bool probe_parse(const char *text, size_t size, struct probe *out)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789._-";
    const char *end = text + size, *equal = memchr(text, '=', size);
    size_t name_size = equal ? (size_t)(equal - text) : 0;
    if (name_size == 0 || name_size >= sizeof out->name || strspn(text, letters) != name_size)
        return false;
    *out = (struct probe){.passes = 1};
    memcpy(out->name, text, name_size);
    const char *at = memchr(equal + 1, '@', (size_t)(end - equal - 1));
    if (at && !number_parse(at + 1, end, COUNT_MAX, &out->passes))
        return false;
    return action_parse(equal + 1, at ? at : end, out);
}

enum status probe_arm(const char *text)
{
    struct probe parsed[PROBES_MAX];
    unsigned count = 0;
    for (const char *part = text;; part++) {
        size_t size = strcspn(part, ",");
        if (count == PROBES_MAX)
            return STATUS_FAIL(STATUS_LIMIT, "more than %d probes", PROBES_MAX);
        if (!probe_parse(part, size, &parsed[count])) {
            char quoted[80];
            return STATUS_FAIL(
                STATUS_INVALID,
                "probe '%s': use NAME=ACTION or NAME=ACTION@N, comma separated, with kill, stop, abort, hang, fail or "
                "sleep:MS as the action",
                utf8_quote(part, size, quoted, sizeof quoted));
        }
        count++;
        part += size;
        if (!*part)
            break;
    }
    pthread_mutex_lock(&mutex_);
    unsigned armed = atomic_load_explicit(&armed_, memory_order_relaxed);
    bool room = armed + count <= PROBES_MAX;
    if (room) {
        memcpy(probes_ + armed, parsed, count * sizeof parsed[0]);
        atomic_store_explicit(&armed_, armed + count, memory_order_relaxed);
    }
    pthread_mutex_unlock(&mutex_);
    return room ? STATUS_OK : STATUS_FAIL(STATUS_LIMIT, "%u probes are armed already: at most %d", armed, PROBES_MAX);
}

/* ---- firing ---- */

/* Counts this pass for all entries of the name and takes out the one whose turn it is. */
static bool probe_take(const char *name, struct probe *out)
{
    bool taken = false;
    pthread_mutex_lock(&mutex_);
    unsigned armed = atomic_load_explicit(&armed_, memory_order_relaxed);
    for (unsigned i = 0; i < armed;) {
        struct probe *probe = &probes_[i];
        if (strcmp(probe->name, name) != 0) {
            i++;
        } else if (probe->passes > 1) {
            probe->passes--;
            i++;
        } else if (!taken) {
            *out = *probe;
            taken = true;
            armed--;
            memmove(probe, probe + 1, (armed - i) * sizeof *probe);
        } else {
            i++; /* two at the same pass: this one fires at the next */
        }
    }
    atomic_store_explicit(&armed_, armed, memory_order_relaxed);
    pthread_mutex_unlock(&mutex_);
    return taken;
}

static void sleep_ms(unsigned ms)
{
    struct timespec left = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        ;
}

bool probe_hit(const char *name)
{
    struct probe probe;
    if (atomic_load_explicit(&armed_, memory_order_relaxed) == 0 || !probe_take(name, &probe))
        return false;
    char line[NAME_BYTES_MAX + 32];
    int size = snprintf(line, sizeof line, "probe %s %s\n", probe.name, action_words_[probe.action]);
    (void)!write(STDERR_FILENO, line, (size_t)size); /* nothing to do if nobody reads it */
    switch (probe.action) {
    case ACTION_KILL: kill(getpid(), SIGKILL); break;
    case ACTION_STOP: kill(getpid(), SIGSTOP); break;
    case ACTION_ABORT: abort();
    case ACTION_HANG:
        for (;;)
            pause();
    case ACTION_FAIL: return true;
    case ACTION_SLEEP: sleep_ms(probe.sleep_ms); break;
    }
    return false;
}

#else

bool probe_hit(const char *name)
{
    (void)name;
    return false;
}

enum status probe_arm(const char *text)
{
    (void)text;
    return STATUS_FAIL(STATUS_UNSUPPORTED, "this program was built without probes: configure with -DROOST_PROBES=ON");
}

#endif

enum status probe_init(void)
{
    const char *text = getenv("ROOST_PROBES");
    return text && text[0] ? probe_arm(text) : STATUS_OK;
}
