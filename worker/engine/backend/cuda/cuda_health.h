/* cuda_health.h - how a GPU is, as its driver's management library (NVML) says: memory, clocks, temperature, errors of its memory. It is
 * asked beside the CUDA runtime, so it answers also when the context is lost, and never waits for work on the device.
 *
 * The library is libnvidia-ml.so.1, opened when it is there; it belongs to the driver, and stays open. The device is found by its
 * address on the PCI bus, for NVML counts devices otherwise than CUDA_VISIBLE_DEVICES shows them. */
#ifndef ROOST_WORKER_ENGINE_BACKEND_CUDA_HEALTH_H
#define ROOST_WORKER_ENGINE_BACKEND_CUDA_HEALTH_H
#include <stdbool.h>
#include <stdint.h>

struct backend_device_health;
struct cuda_health;

/* Of a device of the runtime; by the thread that creates the backend. Never fails: without NVML the name and the size of its memory are all
 * that is known, and without memory not even that (NULL). */
struct cuda_health *cuda_health_open(int device);
void cuda_health_close(struct cuda_health **health);              /* accepts NULL */
/* From any thread, one at a time; milliseconds. */
bool cuda_health_read(const struct cuda_health *health, struct backend_device_health *out);

#endif
