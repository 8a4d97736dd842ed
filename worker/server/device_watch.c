/* device_watch.c - owns the thread. `mutex` guards everything under "shared". */
#include "worker/server/device_watch.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "worker/engine/backend/backend.h"

struct device_watch {
    uint32_t interval_ms;
    device_watch_fn *ask;
    void *user;
    pthread_t thread;

    /* shared */
    pthread_mutex_t mutex;
    pthread_cond_t wake; /* stop */
    struct backend_health last;
    bool known, stop;
};

static struct timespec later(uint32_t ms)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    const uint64_t ns = (uint64_t)at.tv_nsec + (uint64_t)ms * 1000000;
    at.tv_sec += (time_t)(ns / 1000000000);
    at.tv_nsec = (long)(ns % 1000000000);
    return at;
}

static void *run(void *arg)
{
    struct device_watch *watch = arg;
    struct backend_health health;
    while (watch->ask(watch->user, &health)) {
        const struct timespec next = later(watch->interval_ms);
        pthread_mutex_lock(&watch->mutex);
        watch->last = health;
        watch->known = true;
        while (!watch->stop && pthread_cond_timedwait(&watch->wake, &watch->mutex, &next) != ETIMEDOUT)
            ;
        const bool stop = watch->stop;
        pthread_mutex_unlock(&watch->mutex);
        if (stop)
            break;
    }
    return NULL;
}

enum status device_watch_start(uint32_t interval_ms, device_watch_fn *ask, void *user, struct device_watch **out)
{
    struct device_watch *watch = calloc(1, sizeof *watch);
    pthread_condattr_t monotonic;
    sigset_t all, before; /* signals are the loop's business */
    if (!watch)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory to watch a device");
    watch->interval_ms = interval_ms;
    watch->ask = ask;
    watch->user = user;
    pthread_condattr_init(&monotonic); /* none of these can fail on Linux */
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&watch->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&watch->mutex, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int rc = pthread_create(&watch->thread, NULL, run, watch);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) {
        pthread_cond_destroy(&watch->wake);
        pthread_mutex_destroy(&watch->mutex);
        free(watch);
        return STATUS_FAIL(STATUS_IO, "cannot start a thread: %s", strerror(rc));
    }
    *out = watch;
    return STATUS_OK;
}

void device_watch_stop(struct device_watch **pointer)
{
    struct device_watch *watch = *pointer;
    if (!watch)
        return;
    pthread_mutex_lock(&watch->mutex);
    watch->stop = true;
    pthread_cond_signal(&watch->wake);
    pthread_mutex_unlock(&watch->mutex);
    pthread_join(watch->thread, NULL);
    pthread_cond_destroy(&watch->wake);
    pthread_mutex_destroy(&watch->mutex);
    free(watch);
    *pointer = NULL;
}

bool device_watch_read(struct device_watch *watch, struct backend_health *out)
{
    pthread_mutex_lock(&watch->mutex);
    *out = watch->last;
    const bool known = watch->known;
    pthread_mutex_unlock(&watch->mutex);
    return known;
}
