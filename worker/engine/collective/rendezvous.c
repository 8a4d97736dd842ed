#include "worker/engine/collective/rendezvous.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "common/clock.h"

#define MAGIC        0x726f6f7374747031u /* "roosttp1" */
#define ABORTED      0x80000000u         /* of a word */
#define REASON_BYTES 256u
#define REASON_YIELDS 1000u              /* for whoever ends the group to write why; it may die over it */
#define SPINS        4096u               /* some 20 us before a wait sleeps; none where ranks outnumber processors */
#define PAGE         4096u

struct word {
    _Alignas(64) atomic_uint value;
    atomic_uint waiters;                 /* that sleep, or are about to */
};

struct segment {
    uint64_t magic, bytes, extra_at;
    uint32_t size;
    atomic_int pids[RENDEZVOUS_RANKS_MAX];         /* 0: has not joined */
    struct word joined, published;
    struct word words[RENDEZVOUS_RANKS_MAX][RENDEZVOUS_WORDS];
    atomic_uint aborted;                 /* 0, 1: the reason is being written, 2: it is there */
    char reason[REASON_BYTES];
    uint32_t value_bytes;
    uint8_t value[RENDEZVOUS_VALUE_BYTES];
};

struct rendezvous {
    struct segment *segment;             /* mapped */
    int fd, closing;                     /* owned; closing: an eventfd that ends the watch */
    uint32_t rank;
    bool spins, watching;
    pthread_t watch;
    int pidfds[RENDEZVOUS_RANKS_MAX];    /* owned; -1: none */
    void (*on_death)(void *user);
    void *user;
};

/* ---- waiting ---- */

static void futex_wait(atomic_uint *word, uint32_t seen, uint64_t ms)
{
    const struct timespec timeout = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
    (void)syscall(SYS_futex, word, FUTEX_WAIT, seen, ms == UINT64_MAX ? NULL : &timeout, NULL, 0);
}

static void futex_wake(atomic_uint *word)
{
    (void)syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static struct word *word_of(atomic_uint *value)
{
    return (struct word *)((char *)value - offsetof(struct word, value));
}

void rendezvous_advance(struct rendezvous *self, atomic_uint *value)
{
    (void)self;
    uint32_t seen = atomic_load(value);
    while (!atomic_compare_exchange_weak(value, &seen, (seen & ABORTED) | RENDEZVOUS_COUNT(seen + 1)))
        ;
    if (atomic_load(&word_of(value)->waiters) > 0)
        futex_wake(value);
}

static bool reached(uint32_t value, uint32_t count)
{
    return RENDEZVOUS_COUNT(value - count) < 1u << 30;
}

enum status rendezvous_wait(struct rendezvous *self, atomic_uint *value, uint32_t count, uint64_t deadline_ms)
{
    uint32_t seen = atomic_load(value);
    for (uint32_t i = 0; self->spins && i < SPINS && !reached(seen, count) && (seen & ABORTED) == 0; i++)
        seen = atomic_load_explicit(value, memory_order_acquire);
    struct word *word = word_of(value);
    while (!reached(seen, count) && (seen & ABORTED) == 0) {
        uint64_t left = UINT64_MAX;
        if (deadline_ms != 0) {
            const uint64_t now = clock_now_ms();
            if (now >= deadline_ms)
                return STATUS_FAIL(STATUS_TIMEOUT, "no answer from another rank within its time");
            left = deadline_ms - now;
        }
        atomic_fetch_add(&word->waiters, 1);
        futex_wait(value, seen, left);   /* returns at once if the value has changed since it was read */
        atomic_fetch_sub(&word->waiters, 1);
        seen = atomic_load(value);
    }
    return reached(seen, count) ? STATUS_OK : rendezvous_status(self);   /* an end does not undo what was said before it */
}

/* ---- the end of a group ---- */

static void abort_word(struct word *word)
{
    atomic_fetch_or(&word->value, ABORTED);
    futex_wake(&word->value);
}

void rendezvous_abort(struct rendezvous *self, const char *format, ...)
{
    struct segment *segment = self->segment;
    unsigned none = 0;
    if (!atomic_compare_exchange_strong(&segment->aborted, &none, 1))
        return;
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(segment->reason, sizeof segment->reason, format, arguments);
    va_end(arguments);
    atomic_store(&segment->aborted, 2);
    abort_word(&segment->joined);
    abort_word(&segment->published);
    for (uint32_t rank = 0; rank < segment->size; rank++)
        for (uint32_t i = 0; i < RENDEZVOUS_WORDS; i++)
            abort_word(&segment->words[rank][i]);
}

bool rendezvous_aborted(const struct rendezvous *self)
{
    return atomic_load(&self->segment->aborted) != 0;
}

enum status rendezvous_status(const struct rendezvous *self)
{
    unsigned aborted = atomic_load(&self->segment->aborted);
    if (aborted == 0)
        return STATUS_OK;
    for (uint32_t i = 0; aborted == 1 && i < REASON_YIELDS; i++) {
        (void)sched_yield();
        aborted = atomic_load(&self->segment->aborted);
    }
    char reason[REASON_BYTES];
    snprintf(reason, sizeof reason, "%.*s", (int)sizeof reason - 1, aborted == 2 ? self->segment->reason : "it ends");
    return STATUS_FAIL(STATUS_CLOSED, "the group of %u ranks is over: %s", self->segment->size, reason);
}

void rendezvous_on_death(struct rendezvous *self, void (*fn)(void *user), void *user)
{
    self->on_death = fn;
    self->user = user;
}

/* ---- watching the others ---- */

static void *watch_main(void *argument)
{
    struct rendezvous *self = argument;
    struct pollfd polled[RENDEZVOUS_RANKS_MAX + 1];
    const uint32_t size = self->segment->size;
    for (uint32_t rank = 0; rank < size; rank++)
        polled[rank] = (struct pollfd){.fd = self->pidfds[rank], .events = POLLIN};
    polled[size] = (struct pollfd){.fd = self->closing, .events = POLLIN};
    bool died = false;
    while (!died) {
        const int ready = poll(polled, size + 1, -1);
        if (ready > 0 && polled[size].revents != 0)
            return NULL;
        for (uint32_t rank = 0; ready > 0 && rank < size; rank++)
            if (polled[rank].revents != 0) {
                rendezvous_abort(self, "rank %u (process %d) has died", rank, atomic_load(&self->segment->pids[rank]));
                died = true;
            }
    }
    if (self->on_death != NULL)
        self->on_death(self->user);
    return NULL;
}

static enum status start_watch(struct rendezvous *self)
{
    for (uint32_t rank = 0; rank < self->segment->size; rank++) {
        const pid_t pid = atomic_load(&self->segment->pids[rank]);
        if (rank == self->rank || pid == getpid())
            continue;                    /* threads of one process, in tests, share their fate anyhow */
        self->pidfds[rank] = (int)syscall(SYS_pidfd_open, pid, 0);
        if (self->pidfds[rank] < 0) {
            const int error = errno;
            rendezvous_abort(self, "rank %u (process %d) cannot be watched: %s", rank, pid, strerror(error));
            return rendezvous_status(self);
        }
    }
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(&self->watch, NULL, watch_main, self);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0)
        return STATUS_FAIL(STATUS_IO, "cannot start the thread that watches the ranks: %s", strerror(error));
    self->watching = true;
    return STATUS_OK;
}

enum status rendezvous_meet(struct rendezvous *self, uint64_t deadline_ms)
{
    const enum status st = rendezvous_wait(self, &self->segment->joined.value, self->segment->size, deadline_ms);
    if (st == STATUS_TIMEOUT)
        return STATUS_FAIL(STATUS_TIMEOUT, "%u of %u ranks have come in time",
                           RENDEZVOUS_COUNT(atomic_load(&self->segment->joined.value)), self->segment->size);
    TRY(st);
    return start_watch(self);
}

/* ---- life ---- */

static enum status view(int fd, size_t bytes, struct rendezvous **out)
{
    struct rendezvous *self = calloc(1, sizeof *self);
    if (self == NULL) {
        close(fd);
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a rendezvous");
    }
    self->fd = fd;
    for (uint32_t rank = 0; rank < RENDEZVOUS_RANKS_MAX; rank++)
        self->pidfds[rank] = -1;
    self->closing = eventfd(0, EFD_CLOEXEC);
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory != MAP_FAILED)
        self->segment = memory;
    if (self->segment == NULL || self->closing < 0) {
        const int error = errno;
        rendezvous_destroy(&self);
        return STATUS_FAIL(STATUS_IO, "a rendezvous of %zu bytes: %s", bytes, strerror(error));
    }
    *out = self;
    return STATUS_OK;
}

static void join(struct rendezvous *self, uint32_t rank)
{
    self->rank = rank;
    self->spins = sysconf(_SC_NPROCESSORS_ONLN) >= (long)self->segment->size;
    rendezvous_advance(self, &self->segment->joined.value);
}

enum status rendezvous_create(uint32_t size, size_t extra_bytes, struct rendezvous **out)
{
    if (size < 1 || size > RENDEZVOUS_RANKS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "a group of %u ranks, want 1 to %u", size, RENDEZVOUS_RANKS_MAX);
    const size_t extra_at = (sizeof(struct segment) + PAGE - 1) / PAGE * PAGE, bytes = extra_at + extra_bytes;
    const int fd = memfd_create("roost-ranks", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0) {
        const int error = errno;
        if (fd >= 0)
            close(fd);
        return STATUS_FAIL(STATUS_IO, "cannot make shared memory of %zu bytes: %s", bytes, strerror(error));
    }
    struct rendezvous *self;
    TRY(view(fd, bytes, &self));
    self->segment->bytes = bytes;
    self->segment->extra_at = extra_at;
    self->segment->size = size;
    self->segment->magic = MAGIC;
    atomic_store(&self->segment->pids[0], getpid());
    join(self, 0);
    *out = self;
    return STATUS_OK;
}

enum status rendezvous_join(int fd, uint32_t rank, struct rendezvous **out)
{
    struct stat stat;
    struct rendezvous *self;
    if (fstat(fd, &stat) != 0 || stat.st_size < (off_t)sizeof(struct segment)) {
        close(fd);
        return STATUS_FAIL(STATUS_INVALID, "descriptor %d is no rendezvous", fd);
    }
    TRY(view(fd, (size_t)stat.st_size, &self));
    int none = 0;
    const struct segment *segment = self->segment;
    if (segment->magic != MAGIC || segment->bytes != (uint64_t)stat.st_size || rank == 0 || rank >= segment->size ||
        !atomic_compare_exchange_strong(&self->segment->pids[rank], &none, getpid())) {
        rendezvous_destroy(&self);
        return STATUS_FAIL(STATUS_INVALID, "rank %u has no place in this rendezvous", rank);
    }
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    join(self, rank);
    *out = self;
    return STATUS_OK;
}

void rendezvous_destroy(struct rendezvous **pointer)
{
    struct rendezvous *self = *pointer;
    if (self == NULL)
        return;
    if (self->watching) {
        const uint64_t one = 1;
        (void)!write(self->closing, &one, sizeof one);
        pthread_join(self->watch, NULL);
    }
    for (uint32_t rank = 0; rank < RENDEZVOUS_RANKS_MAX; rank++)
        if (self->pidfds[rank] >= 0)
            close(self->pidfds[rank]);
    if (self->segment != NULL)
        munmap(self->segment, self->segment->bytes != 0 ? self->segment->bytes : sizeof *self->segment);
    if (self->closing >= 0)
        close(self->closing);
    close(self->fd);
    free(self);
    *pointer = NULL;
}

/* ---- what it says ---- */

int rendezvous_fd(const struct rendezvous *self)
{
    return self->fd;
}

uint32_t rendezvous_rank(const struct rendezvous *self)
{
    return self->rank;
}

uint32_t rendezvous_size(const struct rendezvous *self)
{
    return self->segment->size;
}

void *rendezvous_extra(const struct rendezvous *self)
{
    return (char *)self->segment + self->segment->extra_at;
}

atomic_uint *rendezvous_word(const struct rendezvous *self, uint32_t rank, uint32_t index)
{
    return &self->segment->words[rank][index].value;
}

enum status rendezvous_publish(struct rendezvous *self, const void *value, size_t bytes)
{
    struct segment *segment = self->segment;
    if (bytes > sizeof segment->value || segment->value_bytes != 0)
        return STATUS_FAIL(STATUS_INVALID, "a group has one value of at most %u bytes to tell", RENDEZVOUS_VALUE_BYTES);
    memcpy(segment->value, value, bytes);
    segment->value_bytes = (uint32_t)bytes;
    rendezvous_advance(self, &segment->published.value);
    return STATUS_OK;
}

enum status rendezvous_await(struct rendezvous *self, void *value, size_t bytes, uint64_t deadline_ms)
{
    struct segment *segment = self->segment;
    TRY(rendezvous_wait(self, &segment->published.value, 1, deadline_ms));
    if (segment->value_bytes != bytes)
        return STATUS_FAIL(STATUS_CORRUPT, "a value of %u bytes was told, %zu are wanted", segment->value_bytes, bytes);
    memcpy(value, segment->value, bytes);
    return STATUS_OK;
}
