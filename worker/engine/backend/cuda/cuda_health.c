/* cuda_health.c - owns the handle of one device. The prototypes are the few that are called, from NVML's reference manual: their names
 * and layouts are fixed by the library's own rule that a changed function gets a new suffix (_v2). */
#include "worker/engine/backend/cuda/cuda_health.h"
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/log.h"
#include "kernels/cuda/runtime.h"
#include "worker/engine/backend/backend.h"

#define NVML_LIBRARY "libnvidia-ml.so.1"

enum { NVML_SUCCESS = 0 };
enum { NVML_CLOCK_SM = 1, NVML_CLOCK_MEM = 2 };
enum { NVML_TEMPERATURE_GPU = 0 };
enum { NVML_MEMORY_ERROR_TYPE_CORRECTED = 0, NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1 };
enum { NVML_VOLATILE_ECC = 0 };               /* since the driver was loaded */

struct nvml_memory {
    unsigned long long total, free, used;
};

struct nvml_utilization {
    unsigned gpu, memory;                     /* percent */
};

struct nvml {
    int (*init)(void);
    int (*shutdown)(void);
    int (*device_by_bus)(const char *bus, void **device);
    int (*memory)(void *device, struct nvml_memory *out);
    int (*clock)(void *device, int type, unsigned *mhz);
    int (*temperature)(void *device, int sensor, unsigned *celsius);
    int (*power)(void *device, unsigned *milliwatts);
    int (*utilization)(void *device, struct nvml_utilization *out);
    int (*ecc_errors)(void *device, int type, int counter, unsigned long long *count);
    int (*throttle_reasons)(void *device, unsigned long long *bits);
};

struct cuda_health {
    struct nvml nvml;
    void *device;                             /* NVML's; NULL: there is no NVML, or it does not know the device */
    uint64_t memory_bytes;
    char name[96];
};

/* ---- the library ---- */

static bool find_function(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);
    *(void **)function = symbol;              /* as POSIX has it for dlsym */
    return symbol != NULL;
}

static bool open_library(struct nvml *nvml)
{
    void *library = dlopen(NVML_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        LOG_WARN("the GPU's health is not known: no " NVML_LIBRARY " of a driver (containers want the capability utility)");
        return false;
    }
    if (find_function(library, "nvmlInit_v2", &nvml->init) && find_function(library, "nvmlShutdown", &nvml->shutdown) &&
           find_function(library, "nvmlDeviceGetHandleByPciBusId_v2", &nvml->device_by_bus) &&
           find_function(library, "nvmlDeviceGetMemoryInfo", &nvml->memory) &&
           find_function(library, "nvmlDeviceGetClockInfo", &nvml->clock) &&
           find_function(library, "nvmlDeviceGetTemperature", &nvml->temperature) &&
           find_function(library, "nvmlDeviceGetPowerUsage", &nvml->power) &&
           find_function(library, "nvmlDeviceGetUtilizationRates", &nvml->utilization) &&
           find_function(library, "nvmlDeviceGetTotalEccErrors", &nvml->ecc_errors) &&
           find_function(library, "nvmlDeviceGetCurrentClocksThrottleReasons", &nvml->throttle_reasons))
        return true;
    LOG_WARN("the GPU's health is not known: " NVML_LIBRARY " is too old or too new: %s", dlerror());
    (void)dlclose(library);
    return false;
}

static void *open_device(struct nvml *nvml, const char *bus)
{
    void *device = NULL;
    if (!open_library(nvml))
        return NULL;
    int error = nvml->init();
    if (error == NVML_SUCCESS) {
        error = nvml->device_by_bus(bus, &device);
        if (error == NVML_SUCCESS)
            return device;
        nvml->shutdown();
    }
    LOG_WARN("the GPU's health is not known: NVML has no device %s (error %d)", bus, error);
    return NULL;
}

/* ---- a device ---- */

struct cuda_health *cuda_health_open(int device)
{
    struct cudaDeviceProp properties;
    char bus[32];
    struct cuda_health *health = calloc(1, sizeof *health);
    if (!health)
        return NULL;
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess || cudaDeviceGetPCIBusId(bus, sizeof bus, device) != cudaSuccess) {
        (void)cudaGetLastError();
        free(health);
        return NULL;
    }
    snprintf(health->name, sizeof health->name, "%.60s at %s", properties.name, bus);
    health->memory_bytes = properties.totalGlobalMem;
    health->device = open_device(&health->nvml, bus);
    return health;
}

void cuda_health_close(struct cuda_health **health)
{
    if (*health && (*health)->device)
        (void)(*health)->nvml.shutdown();
    free(*health);
    *health = NULL;
}

/* What a device does not have (ECC of some cards, power in some containers) stays 0. */
bool cuda_health_read(const struct cuda_health *health, struct backend_device_health *out)
{
    struct nvml_memory memory = {0};
    struct nvml_utilization busy = {0};
    unsigned long long count = 0;
    if (!health)
        return false;
    *out = (struct backend_device_health){.memory_bytes = health->memory_bytes};
    snprintf(out->device, sizeof out->device, "%s", health->name);
    const struct nvml *nvml = &health->nvml;
    void *device = health->device;
    if (!device || nvml->memory(device, &memory) != NVML_SUCCESS)      /* every device has memory: it has fallen off the bus */
        return true;
    out->nvml = true;
    out->memory_bytes = memory.total;
    out->memory_used_bytes = memory.used;
    unsigned value;
    out->sm_mhz = nvml->clock(device, NVML_CLOCK_SM, &value) == NVML_SUCCESS ? value : 0;
    out->memory_mhz = nvml->clock(device, NVML_CLOCK_MEM, &value) == NVML_SUCCESS ? value : 0;
    out->celsius = nvml->temperature(device, NVML_TEMPERATURE_GPU, &value) == NVML_SUCCESS ? value : 0;
    out->milliwatts = nvml->power(device, &value) == NVML_SUCCESS ? value : 0;
    out->busy_percent = nvml->utilization(device, &busy) == NVML_SUCCESS ? busy.gpu : 0;
    if (nvml->ecc_errors(device, NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_VOLATILE_ECC, &count) == NVML_SUCCESS)
        out->ecc_corrected = count;
    if (nvml->ecc_errors(device, NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC, &count) == NVML_SUCCESS)
        out->ecc_uncorrected = count;
    if (nvml->throttle_reasons(device, &count) == NVML_SUCCESS)
        out->throttle_reasons = count;
    return true;
}
