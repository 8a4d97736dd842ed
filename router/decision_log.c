/* decision_log.c - see decision_log.h.
 *
 *   decision_log_add --under the lock--> filling half --write_loop swaps--> writing half --write(2)--> file
 *
 * A line is made whole before it is copied; one that does not fit in what is left of the filling half is dropped. */
#include "router/decision_log.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    HALF_BYTES = DECISION_LOG_BUFFER / 2,
    ROW_BYTES = 180, /* the longest: 16 hex, five numbers of 20 digits, one of 10, a ramp, flags */
    HEAD_BYTES = 768,
};

struct decision_log {
    int fd;
    uint64_t sample, number, dropped_untold; /* of the loop's thread */
    char *line;                              /* owned; grows to the longest table */
    size_t line_room;
    _Atomic uint64_t dropped;

    pthread_t thread;
    pthread_mutex_t lock; /* all below */
    pthread_cond_t wake;
    bool stop;
    char *halves[2]; /* owned */
    size_t filled;   /* of halves[0] */
};

static const char *const record_names[] = {"unknown", "ours", "other", "down"};

static void write_all(struct decision_log *log, const char *bytes, size_t size)
{
    while (size > 0) {
        ssize_t written = write(log->fd, bytes, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0) { /* a full disk: these lines are gone */
            for (size_t i = 0; i < size; i++)
                if (bytes[i] == '\n')
                    atomic_fetch_add_explicit(&log->dropped, 1, memory_order_relaxed);
            return;
        }
        bytes += written;
        size -= (size_t)written;
    }
}

static void *write_loop(void *user)
{
    struct decision_log *log = user;
    pthread_mutex_lock(&log->lock);
    while (!log->stop || log->filled > 0) {
        if (log->filled == 0) {
            pthread_cond_wait(&log->wake, &log->lock);
            continue;
        }
        char *full = log->halves[0];
        size_t size = log->filled;
        log->halves[0] = log->halves[1];
        log->halves[1] = full;
        log->filled = 0;
        pthread_mutex_unlock(&log->lock);
        write_all(log, full, size);
        pthread_mutex_lock(&log->lock);
    }
    pthread_mutex_unlock(&log->lock);
    return NULL;
}

enum status decision_log_create(const char *path, uint64_t sample, struct decision_log **out)
{
    struct decision_log *log = calloc(1, sizeof *log);
    if (!log)
        return STATUS_FAIL(STATUS_NO_MEMORY, "the decision log");
    log->sample = sample ? sample : 1;
    log->halves[0] = malloc(HALF_BYTES);
    log->halves[1] = malloc(HALF_BYTES);
    /* O_NONBLOCK: a FIFO must block neither here nor in the thread's end */
    log->fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0640);
    enum status st = STATUS_OK;
    if (!log->halves[0] || !log->halves[1])
        st = STATUS_FAIL(STATUS_NO_MEMORY, "the decision log");
    else if (log->fd < 0)
        st = STATUS_FAIL(STATUS_IO, "decision_log: %s: %s", path, strerror(errno));
    pthread_mutex_init(&log->lock, NULL);
    pthread_cond_init(&log->wake, NULL);
    if (st == STATUS_OK && pthread_create(&log->thread, NULL, write_loop, log) == 0) {
        *out = log;
        return STATUS_OK;
    }
    if (st == STATUS_OK)
        st = STATUS_FAIL(STATUS_NO_MEMORY, "a thread for the decision log");
    pthread_cond_destroy(&log->wake);
    pthread_mutex_destroy(&log->lock);
    if (log->fd >= 0)
        close(log->fd);
    free(log->halves[0]);
    free(log->halves[1]);
    free(log);
    return st;
}

void decision_log_destroy(struct decision_log **log)
{
    struct decision_log *gone = *log;
    if (!gone)
        return;
    *log = NULL;
    pthread_mutex_lock(&gone->lock);
    gone->stop = true;
    pthread_cond_signal(&gone->wake);
    pthread_mutex_unlock(&gone->lock);
    pthread_join(gone->thread, NULL);
    pthread_cond_destroy(&gone->wake);
    pthread_mutex_destroy(&gone->lock);
    close(gone->fd);
    free(gone->halves[0]);
    free(gone->halves[1]);
    free(gone->line);
    free(gone);
}

uint64_t decision_log_dropped(const struct decision_log *log)
{
    return log ? atomic_load_explicit(&log->dropped, memory_order_relaxed) : 0;
}

/* ---- a line ---- */

static bool make_room(struct decision_log *log, unsigned rows)
{
    size_t needed = HEAD_BYTES + (size_t)rows * ROW_BYTES;
    if (needed > HALF_BYTES)
        return false; /* more than 2,900 workers */
    if (needed <= log->line_room)
        return true;
    char *line = realloc(log->line, needed);
    if (!line)
        return false;
    log->line = line;
    log->line_room = needed;
    return true;
}

static const char *yes(bool value)
{
    return value ? "true" : "false";
}

static size_t write_row(char *out, const struct policy_worker *worker, bool first)
{
    return (size_t)sprintf(out,
                           "%s[\"%016" PRIx64 "\",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu32
                           ",%.9g,\"%s%s%s\"]",
                           first ? "" : ",", worker->name_hash, worker->weight, worker->load_tokens,
                           worker->queued_tokens, worker->overloaded_ms, worker->suspect_ms, worker->token_ns,
                           (double)worker->ramp, worker->ready ? "r" : "", worker->suspect ? "s" : "",
                           worker->draining ? "d" : "");
}

static size_t write_line(struct decision_log *log, const struct policy_table *table, const struct policy_query *query,
                         const struct policy_choice *choice)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    char *out = log->line;
    size_t size = (size_t)snprintf(
        out, HEAD_BYTES,
        "{\"t\":%lld,\"n\":%" PRIu64 ",\"dropped\":%" PRIu64 ",\"key\":\"%016" PRIx64
        "\",\"conversation\":%s,\"record\":\"%s\",\"owner\":%d,\"lost\":%s,\"may_take_over\":%s,\"may_choose\":%s,"
        "\"choices\":%u,\"prompt\":%" PRIu64 ",\"cached\":%" PRIu64 ",\"age_ms\":%" PRIu64
        ",\"chosen\":%d,\"reason\":\"%s\",\"take_over\":%s,\"by_choice\":%s,\"table\":[",
        (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000, log->number, log->dropped_untold, query->key,
        yes(query->conversation), record_names[query->record & 3], query->owner, yes(query->owner_lost),
        yes(query->may_take_over), yes(query->may_choose), query->new_choices, query->prompt_tokens,
        query->cached_tokens, query->record_age_ms, choice->worker, policy_reason_name(choice->reason),
        yes(choice->take_over), yes(choice->by_choice));
    for (unsigned i = 0; i < table->count; i++)
        size += write_row(out + size, &table->workers[i], i == 0);
    memcpy(out + size, "]}\n", 3);
    return size + 3;
}

static void drop(struct decision_log *log)
{
    log->dropped_untold++;
    atomic_fetch_add_explicit(&log->dropped, 1, memory_order_relaxed);
}

void decision_log_add(struct decision_log *log, const struct policy_table *table, const struct policy_query *query,
                      const struct policy_choice *choice)
{
    if (!log || log->number++ % log->sample != 0)
        return;
    if (!make_room(log, table->count)) {
        drop(log);
        return;
    }
    size_t size = write_line(log, table, query, choice);
    pthread_mutex_lock(&log->lock);
    bool fits = log->filled + size <= HALF_BYTES, asleep = log->filled == 0;
    if (fits) {
        memcpy(log->halves[0] + log->filled, log->line, size);
        log->filled += size;
    }
    pthread_mutex_unlock(&log->lock);
    if (!fits)
        drop(log);
    else if (log->dropped_untold = 0, asleep)
        pthread_cond_signal(&log->wake);
}

/* ---- back ---- */

struct reader {
    const char *at;
    bool failed;
};

static void expect(struct reader *reader, const char *text)
{
    size_t size = strlen(text);
    if (reader->failed || strncmp(reader->at, text, size) != 0)
        reader->failed = true;
    else
        reader->at += size;
}

static uint64_t take_number(struct reader *reader, int base)
{
    char *end = NULL;
    bool digit = (*reader->at >= '0' && *reader->at <= '9') || (base == 16 && *reader->at >= 'a' && *reader->at <= 'f');
    if (reader->failed || !digit) {
        reader->failed = true;
        return 0;
    }
    uint64_t value = strtoull(reader->at, &end, base);
    reader->at = end;
    return value;
}

static int take_int(struct reader *reader)
{
    int sign = !reader->failed && *reader->at == '-' ? -1 : 1;
    reader->at += sign < 0;
    return sign * (int)take_number(reader, 10);
}

static bool take_bool(struct reader *reader)
{
    bool value = strncmp(reader->at, "true", 4) == 0;
    expect(reader, value ? "true" : "false");
    return value;
}

/* A word in quotes that is one of names[count]. */
static unsigned take_word(struct reader *reader, const char *const *names, unsigned count)
{
    expect(reader, "\"");
    for (unsigned i = 0; !reader->failed && i < count; i++) {
        size_t size = strlen(names[i]);
        if (strncmp(reader->at, names[i], size) == 0 && reader->at[size] == '"') {
            reader->at += size + 1;
            return i;
        }
    }
    reader->failed = true;
    return 0;
}

static float take_ramp(struct reader *reader)
{
    char *end = NULL;
    double value = reader->failed ? 0 : strtod(reader->at, &end);
    if (reader->failed || end == reader->at)
        reader->failed = true;
    else
        reader->at = end;
    return (float)value;
}

static void take_row(struct reader *reader, struct policy_worker *out)
{
    memset(out, 0, sizeof *out);
    expect(reader, "[\"");
    out->name_hash = take_number(reader, 16);
    expect(reader, "\",");
    out->weight = take_number(reader, 10);
    expect(reader, ",");
    out->load_tokens = take_number(reader, 10);
    expect(reader, ",");
    out->queued_tokens = take_number(reader, 10);
    expect(reader, ",");
    out->overloaded_ms = take_number(reader, 10);
    expect(reader, ",");
    out->suspect_ms = take_number(reader, 10);
    expect(reader, ",");
    out->token_ns = (uint32_t)take_number(reader, 10);
    expect(reader, ",");
    out->ramp = take_ramp(reader);
    expect(reader, ",\"");
    for (; !reader->failed && *reader->at != '"'; reader->at++) {
        out->ready = out->ready || *reader->at == 'r';
        out->suspect = out->suspect || *reader->at == 's';
        out->draining = out->draining || *reader->at == 'd';
        reader->failed = !strchr("rsd", *reader->at) || !*reader->at;
    }
    expect(reader, "\"]");
}

static void take_query(struct reader *reader, struct policy_query *query)
{
    expect(reader, "{\"t\":");
    (void)take_number(reader, 10);
    expect(reader, ",\"n\":");
    (void)take_number(reader, 10);
    expect(reader, ",\"dropped\":");
    (void)take_number(reader, 10);
    expect(reader, ",\"key\":\"");
    query->key = take_number(reader, 16);
    expect(reader, "\",\"conversation\":");
    query->conversation = take_bool(reader);
    expect(reader, ",\"record\":");
    query->record = (enum policy_record)take_word(reader, record_names, 4);
    expect(reader, ",\"owner\":");
    query->owner = take_int(reader);
    expect(reader, ",\"lost\":");
    query->owner_lost = take_bool(reader);
    expect(reader, ",\"may_take_over\":");
    query->may_take_over = take_bool(reader);
    expect(reader, ",\"may_choose\":");
    query->may_choose = take_bool(reader);
    expect(reader, ",\"choices\":");
    query->new_choices = (unsigned)take_number(reader, 10);
    expect(reader, ",\"prompt\":");
    query->prompt_tokens = take_number(reader, 10);
    expect(reader, ",\"cached\":");
    query->cached_tokens = take_number(reader, 10);
    expect(reader, ",\"age_ms\":");
    query->record_age_ms = take_number(reader, 10);
}

static void take_choice(struct reader *reader, struct policy_choice *choice)
{
    const char *reasons[POLICY_REASON_COUNT];
    for (unsigned i = 0; i < POLICY_REASON_COUNT; i++)
        reasons[i] = policy_reason_name((enum policy_reason)i);
    expect(reader, ",\"chosen\":");
    choice->worker = take_int(reader);
    expect(reader, ",\"reason\":");
    choice->reason = (enum policy_reason)take_word(reader, reasons, POLICY_REASON_COUNT);
    expect(reader, ",\"take_over\":");
    choice->take_over = take_bool(reader);
    expect(reader, ",\"by_choice\":");
    choice->by_choice = take_bool(reader);
}

enum status decision_log_parse(const char *line, struct policy_worker *workers, unsigned workers_max,
                               struct policy_table *table, struct policy_query *query, struct policy_choice *choice)
{
    struct reader reader = {.at = line};
    unsigned count = 0;
    memset(query, 0, sizeof *query);
    memset(choice, 0, sizeof *choice);
    take_query(&reader, query);
    take_choice(&reader, choice);
    expect(&reader, ",\"table\":[");
    while (!reader.failed && *reader.at != ']') {
        if (count > 0)
            expect(&reader, ",");
        if (!reader.failed && count == workers_max)
            return STATUS_FAIL(STATUS_LIMIT, "a decision over more than %u workers", workers_max);
        if (!reader.failed)
            take_row(&reader, &workers[count++]);
    }
    expect(&reader, "]}");
    if (reader.failed)
        return STATUS_FAIL(STATUS_INVALID, "not a line of a decision log, at byte %zu", (size_t)(reader.at - line));
    *table = (struct policy_table){.workers = workers, .count = count};
    return STATUS_OK;
}
