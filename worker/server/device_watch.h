/* device_watch.h - asks once in a while how a device is, in a thread of its own: a driver may take its time to answer, and neither the
 * engine nor the I/O thread waits for it. Owns the thread and the last answer. Start and stop by one thread, read by any. */
#ifndef ROOST_WORKER_SERVER_DEVICE_WATCH_H
#define ROOST_WORKER_SERVER_DEVICE_WATCH_H
#include <stdbool.h>
#include <stdint.h>
#include "common/status.h"

struct backend_health;               /* worker/engine/backend/backend.h */
struct device_watch;

/* False: nothing is known, nor will be; the thread then asks no more. */
typedef bool device_watch_fn(void *user, struct backend_health *out);

enum status device_watch_start(uint32_t interval_ms, device_watch_fn *ask, void *user, struct device_watch **out);
/* Waits for an answer under way; afterwards nothing is asked. Accepts NULL. */
void device_watch_stop(struct device_watch **watch);
/* The last answer; false: none yet. */
bool device_watch_read(struct device_watch *watch, struct backend_health *out);

#endif
