/* A libnvidia-ml.so.1 for tests: the functions that cuda_health.c calls. What they answer is in the file that ROOST_TEST_NVML names, read
 * anew at each call: for each device "bus 0000:01:00.0", then lines of a word and a number. A word that is missing: NVML_ERROR_NOT_SUPPORTED.
 * "wait_ms": how long nvmlDeviceGetMemoryInfo takes. "lost 1": every call of a device says NVML_ERROR_GPU_IS_LOST. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, GPU_IS_LOST = 15 };

struct memory {
    unsigned long long total, free, used;
};
struct utilization {
    unsigned gpu, memory;
};

int nvmlInit_v2(void);
int nvmlShutdown(void);
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device);
int nvmlDeviceGetMemoryInfo(void *device, struct memory *out);
int nvmlDeviceGetClockInfo(void *device, int type, unsigned *mhz);
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius);
int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts);
int nvmlDeviceGetUtilizationRates(void *device, struct utilization *out);
int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, unsigned long long *count);
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *bits);

static int users;
static char names[8][64];          /* the bus addresses that were asked for: a device's handle is one of these */

/* In the part of the file that is of this device. */
static int find(const char *bus, const char *word, char *text, size_t size)
{
    const char *path = getenv("ROOST_TEST_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char key[64], value[64];
    int here = 0, found = 0;
    while (file && !found && fscanf(file, "%63s %63s", key, value) == 2) {
        if (strcmp(key, "bus") == 0)
            here = strcmp(value, bus) == 0;
        found = here && strcmp(key, word) == 0;
    }
    if (found)
        snprintf(text, size, "%s", value);
    if (file)
        fclose(file);
    return found;
}

static int number(void *device, const char *word, unsigned long long *out)
{
    char text[64];
    if (users == 0)
        return UNINITIALIZED;
    if (!find(device, "bus", text, sizeof text))
        return INVALID_ARGUMENT;
    if (find(device, "lost", text, sizeof text) && strcmp(text, "1") == 0)
        return GPU_IS_LOST;
    if (!find(device, word, text, sizeof text))
        return NOT_SUPPORTED;
    *out = strtoull(text, NULL, 10);
    return SUCCESS;
}

static int small(void *device, const char *word, unsigned *out)
{
    unsigned long long value = 0;
    const int rc = number(device, word, &value);
    if (rc == SUCCESS)
        *out = (unsigned)value;
    return rc;
}

int nvmlInit_v2(void)
{
    users++;
    return SUCCESS;
}

int nvmlShutdown(void)
{
    return users-- > 0 ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device)
{
    char text[64];
    size_t i = 0;
    if (!find(bus, "bus", text, sizeof text))
        return NOT_FOUND;
    while (i < sizeof names / sizeof *names - 1 && names[i][0] != 0 && strcmp(names[i], bus) != 0)
        i++;
    snprintf(names[i], sizeof names[i], "%s", bus);
    *device = names[i];
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, struct memory *out)
{
    unsigned long long wait_ms = 0;
    if (number(device, "wait_ms", &wait_ms) == SUCCESS && wait_ms > 0)
        nanosleep(&(struct timespec){.tv_sec = (time_t)(wait_ms / 1000), .tv_nsec = (long)(wait_ms % 1000) * 1000000}, NULL);
    const int rc = number(device, "memory_total", &out->total);
    if (rc == SUCCESS)
        return number(device, "memory_used", &out->used);
    return rc;
}

int nvmlDeviceGetClockInfo(void *device, int type, unsigned *mhz)
{
    return small(device, type == 1 ? "sm_mhz" : type == 2 ? "memory_mhz" : "no such clock", mhz);
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius)
{
    return sensor == 0 ? small(device, "celsius", celsius) : INVALID_ARGUMENT;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts)
{
    return small(device, "milliwatts", milliwatts);
}

int nvmlDeviceGetUtilizationRates(void *device, struct utilization *out)
{
    return small(device, "busy_percent", &out->gpu);
}

int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, unsigned long long *count)
{
    if (counter != 0)
        return INVALID_ARGUMENT;
    return number(device, type == 0 ? "ecc_corrected" : type == 1 ? "ecc_uncorrected" : "no such type", count);
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *bits)
{
    return number(device, "throttle_reasons", bits);
}
