/* engine_thread.h - the one thread that touches the engine, and the two queues between it and the I/O thread.
 *
 *     I/O thread                                  engine thread
 *     engine_thread_submit, _cancel  -- commands -->  engine_submit, engine_cancel, engine_step
 *     on_event, in the loop's turn   <-- outbox ----  events of one step, copied, one loop_post for as many as wait;
 *                                                     ENGINE_STARTED before the step goes on
 *
 * Owns the engine, the thread and both queues, and with a device the thread that watches it (device_watch.h). Always true:
 *   1. commands run in order, so a cancel never overtakes its submit;
 *   2. each submit is answered by ACCEPTED or REFUSED, and after ACCEPTED by one DONE or FAILED, unless the thread is stopped;
 *   3. submits waiting in the queue are bounded by submits_max; cancels by the caller, one for each open job;
 *   4. events waiting for a slow I/O thread are bounded: the engine pauses at ENGINE_THREAD_OUTBOX_BYTES of them.
 * All functions are for the I/O thread (the loop's). */
#ifndef ROOST_WORKER_SERVER_ENGINE_THREAD_H
#define ROOST_WORKER_SERVER_ENGINE_THREAD_H
#include <stdbool.h>
#include <stdint.h>
#include "common/status.h"
#include "worker/engine/engine.h"

struct backend_health;              /* worker/engine/backend/backend.h */
struct loop;
struct request;                     /* worker/server/request.h */
struct engine_thread;

/* An event takes about 330 bytes, with 20 alternatives 168 more for each token: a step of 1,024 sequences takes 0.5 MB, the log
 * probabilities of a prompt of 32,768 tokens 5.5 MB. One step may go over it. */
#define ENGINE_THREAD_OUTBOX_BYTES (8u << 20)

enum engine_thread_event_kind {
    ENGINE_THREAD_READY,            /* the model is loaded: engine_thread_info answers */
    ENGINE_THREAD_FAILED,           /* it could not be loaded, or no memory was left for events: status and detail; nothing more comes */
    ENGINE_THREAD_ACCEPTED,         /* job is queued in the engine */
    ENGINE_THREAD_REFUSED,          /* engine_submit failed: status, detail, and for STATUS_AGAIN when to come again */
    ENGINE_THREAD_JOB,              /* event is the engine's own */
};

struct engine_thread_event {        /* pointers are borrowed for the call */
    enum engine_thread_event_kind kind;
    uint64_t job;
    enum status status;
    const char *detail;             /* "" if none */
    uint32_t retry_after_ms;        /* REFUSED; 0: not known */
    struct engine_event event;
};

struct engine_thread_config {
    struct engine_config engine;    /* its strings are copied */
    uint32_t submits_max;
    struct loop *loop;              /* ref; must not run again after engine_thread_stop */
    void (*on_event)(void *user, const struct engine_thread_event *event);
    void *user;
};

/* Starts the thread, which loads the model and then reports READY or FAILED. */
enum status engine_thread_start(const struct engine_thread_config *config, struct engine_thread **out);
/* Ends after the running step and joins. Open jobs end without events. Accepts NULL. */
void engine_thread_stop(struct engine_thread **thread);

/* Takes *request in every case. STATUS_AGAIN: submits_max are waiting already. */
enum status engine_thread_submit(struct engine_thread *thread, struct request **request);
/* STATUS_NO_MEMORY: nothing was queued, ask again. */
enum status engine_thread_cancel(struct engine_thread *thread, uint64_t job);

const struct engine_info *engine_thread_info(const struct engine_thread *thread);   /* NULL before READY */
void engine_thread_progress(struct engine_thread *thread, struct engine_progress *out);   /* zeros before READY */
void engine_thread_pressure(struct engine_thread *thread, struct engine_pressure *out);   /* as of the last step with an event */
/* How the device was within the last second or so; false: it has none that says. */
bool engine_thread_health(const struct engine_thread *thread, struct backend_health *out);
uint32_t engine_thread_submits(struct engine_thread *thread);    /* waiting in the queue now */
/* Hands out waiting events now; also for when a loop_post failed without memory. */
void engine_thread_poll(struct engine_thread *thread);

#endif
