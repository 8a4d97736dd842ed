/* runtime.cc - the lock, errors, the device's properties, memory calls and copies; and how a fault is told. */
#include <dlfcn.h>
#include <execinfo.h>
#include <mutex>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tests/cuda_emulation/stream.h"

draw emulation_draw = {1};
emulation_counts emulation_count;

static std::mutex mutex;
static thread_local bool inside_call;
static thread_local cudaError_t last_error;
static cudaError_t poison;                       /* every call fails with it */
static uint64_t seed, poison_in, refuse_in;
static cudaError_t poison_error = cudaErrorIllegalAddress;

static uint64_t environment_number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text != nullptr && *text != '\0' ? strtoull(text, nullptr, 10) : otherwise;
}

static void begin_once()
{
    static bool begun;
    if (begun)
        return;
    begun = true;
    (void)emulation_seed();
    poison_in = environment_number("ROOST_EMULATION_POISON", 0);
    refuse_in = environment_number("ROOST_EMULATION_REFUSE", 0);
}

bool emulation_present(void)
{
    return true;
}

uint64_t emulation_seed(void)
{
    if (seed == 0)
        emulation_set_seed(environment_number("ROOST_TEST_SEED", 1));
    return seed;
}

void emulation_set_seed(uint64_t value)
{
    seed = value != 0 ? value : 1;
    uint64_t z = seed * 0x9E3779B97F4A7C15u;     /* splitmix64's finaliser */
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    emulation_draw.state = z != 0 ? z : 1;
}

/* ---- faults */

/* The source lines of the kernel's own frames, if addr2line is there to tell them. */
static void print_lines()
{
    void *frames[24];
    int count = backtrace(frames, 24);
    for (int i = 1; i < count; i++) {
        Dl_info info;
        if (dladdr(frames[i], &info) == 0 || info.dli_fname == nullptr)
            continue;
        char command[700], line[600];
        snprintf(command, sizeof command, "addr2line -Cpfie '%s' 0x%zx 2>/dev/null", info.dli_fname,
                 static_cast<size_t>(static_cast<char *>(frames[i]) - static_cast<char *>(info.dli_fbase)) - 1);
        FILE *pipe = popen(command, "r");
        if (pipe == nullptr)
            return;
        while (fgets(line, sizeof line, pipe) != nullptr) {
            bool own = strchr(line, '?') != nullptr;
            for (const char *name : {"/block.cc", "/shadow.cc", "/order.cc", "/lanes.cc", "/stream.cc", "/runtime.cc", "/fiber.cc", "/device_emulated.h"})
                own = own || strstr(line, name) != nullptr;
            if (!own)
                fprintf(stderr, "  %s", line);
        }
        pclose(pipe);
    }
}

void emulation_fault(const char *format, ...)
{
    char text[700], where[400] = "";
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    bool in_kernel = emulation_inside;
    emulation_inside = false;
    fprintf(stderr, "cuda emulation: %s\n", text);
    if (in_kernel)
        fprintf(stderr, "  %s\n", block_describe(where, sizeof where));
    fprintf(stderr, "  ROOST_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
    fflush(stderr);
    if (in_kernel && block_on_fiber())
        print_lines();
    abort();
}

/* ---- the lock and errors */

runtime_lock::runtime_lock()
{
    if (inside_call)
        emulation_fault("a call of the runtime from within a kernel or a host function of a stream");
    mutex.lock();
    inside_call = true;
    begin_once();
}

runtime_lock::~runtime_lock()
{
    inside_call = false;
    mutex.unlock();
}

cudaError_t runtime_return(cudaError_t error)
{
    if (error != cudaSuccess && error != cudaErrorNotReady)
        last_error = error;
    return error;
}

cudaError_t runtime_poisoned()
{
    return poison;
}

bool runtime_kernel_runs()
{
    if (poison_in != 0 && --poison_in == 0)
        poison = poison_error;
    return poison == cudaSuccess;
}

bool runtime_launch_refused()
{
    return refuse_in != 0 && --refuse_in == 0;
}

void emulation_poison_at(uint64_t launch, int error)
{
    runtime_lock lock;
    poison_in = launch;
    poison_error = static_cast<cudaError_t>(error);
}

void emulation_refuse_at(uint64_t launch)
{
    runtime_lock lock;
    refuse_in = launch;
}

void emulation_heal(void)
{
    runtime_lock lock;
    poison = cudaSuccess;
    poison_in = 0;
    refuse_in = 0;
    last_error = cudaSuccess;
    stream_drop();
}

void emulation_set_memory(size_t bytes)
{
    runtime_lock lock;
    memory_set_limit(bytes);
}

void emulation_get_counts(struct emulation_counts *counts)
{
    runtime_lock lock;
    *counts = emulation_count;
}

static const struct {
    cudaError_t error;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection", "invalid copy direction for memcpy"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorECCUncorrectable, "cudaErrorECCUncorrectable", "uncorrectable ECC error encountered"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated", "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched", "capture was not ended in the same stream as it began"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined", "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit", "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent", "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorGraphExecUpdateFailure, "cudaErrorGraphExecUpdateFailure", "the graph update was not performed because it included unsupported changes"},
};

const char *cudaGetErrorName(cudaError_t error)
{
    for (const auto &known : errors)
        if (known.error == error)
            return known.name;
    return "cudaErrorUnknown";
}

const char *cudaGetErrorString(cudaError_t error)
{
    for (const auto &known : errors)
        if (known.error == error)
            return known.text;
    return "unknown error";
}

cudaError_t cudaPeekAtLastError(void)
{
    return poison != cudaSuccess ? poison : last_error;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t error = cudaPeekAtLastError();
    last_error = cudaSuccess;
    return error;
}

#define ENTER()                                                                                                             \
    runtime_lock lock;                                                                                                      \
    if (poison != cudaSuccess)                                                                                              \
        return runtime_return(poison)

/* ---- the device */

static int device_count()
{
    return static_cast<int>(environment_number("ROOST_EMULATION_DEVICES", 1));
}

static void capability(int *major, int *minor)
{
    const char *text = getenv("ROOST_EMULATION_CAPABILITY");
    *major = 8;
    *minor = 0;
    if (text != nullptr && sscanf(text, "%d.%d", major, minor) != 2)
        *minor = 0;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = device_count() > 0 ? 13000 : 0;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    ENTER();
    *count = device_count();
    return runtime_return(*count > 0 ? cudaSuccess : cudaErrorInsufficientDriver);
}

static thread_local int current_device;

cudaError_t cudaSetDevice(int device)
{
    ENTER();
    if (device < 0 || device >= device_count())
        return runtime_return(device_count() > 0 ? cudaErrorInvalidDevice : cudaErrorInsufficientDriver);
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    ENTER();
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
    ENTER();
    if (device < 0 || device >= device_count())
        return runtime_return(cudaErrorInvalidDevice);
    *properties = {};
    snprintf(properties->name, sizeof properties->name, "emulated GPU %d", device);
    memcpy(properties->uuid.bytes, "roost-emulated-0", 16);
    properties->uuid.bytes[15] = static_cast<char>('0' + device);
    properties->totalGlobalMem = memory_limit();
    properties->sharedMemPerBlock = 48 * 1024;
    properties->sharedMemPerBlockOptin = EMULATION_SHARED_MAX;
    properties->sharedMemPerMultiprocessor = 164 * 1024;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = EMULATION_THREADS_MAX;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->maxBlocksPerMultiProcessor = 32;
    capability(&properties->major, &properties->minor);
    properties->multiProcessorCount = 108;
    properties->l2CacheSize = 40 << 20;
    properties->memoryBusWidth = 5120;
    properties->asyncEngineCount = 3;
    properties->concurrentKernels = properties->ECCEnabled = properties->unifiedAddressing = properties->canMapHostMemory = 1;
    properties->pciBusID = 1 + device;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    struct cudaDeviceProp properties;
    cudaError_t error = cudaGetDeviceProperties(&properties, device);
    if (error != cudaSuccess)
        return error;
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = properties.maxThreadsPerBlock; break;
    case cudaDevAttrClockRate: *value = 1410000; break;
    case cudaDevAttrMultiProcessorCount: *value = properties.multiProcessorCount; break;
    case cudaDevAttrPciBusId: *value = properties.pciBusID; break;
    case cudaDevAttrPciDeviceId: *value = properties.pciDeviceID; break;
    case cudaDevAttrPciDomainId: *value = properties.pciDomainID; break;
    case cudaDevAttrL2CacheSize: *value = properties.l2CacheSize; break;
    case cudaDevAttrComputeCapabilityMajor: *value = properties.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = properties.minor; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = static_cast<int>(properties.sharedMemPerMultiprocessor); break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(properties.sharedMemPerBlockOptin); break;
    default: return runtime_return(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device)
{
    snprintf(text, static_cast<size_t>(size), "0000:%02x:00.0", 1 + device);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaDeviceReset(void)
{
    emulation_heal();                            /* what it had allocated stays, to be told as a leak */
    return cudaSuccess;
}

/* ---- memory */

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    ENTER();
    *total = memory_limit();
    *available = *total > emulation_count.memory_used ? *total - emulation_count.memory_used : 0;
    return cudaSuccess;
}

#define NOT_IN_CAPTURE()                                                                                                    \
    if (capture_forbids() != cudaSuccess)                                                                                   \
        return runtime_return(cudaErrorStreamCaptureUnsupported)

cudaError_t cudaMalloc(void **pointer, size_t size)
{
    ENTER();
    NOT_IN_CAPTURE();
    *pointer = nullptr;
    if (size == 0)
        return cudaSuccess;
    *pointer = memory_device_alloc(size);
    return runtime_return(*pointer != nullptr ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void *pointer)
{
    ENTER();
    if (pointer == nullptr)
        return cudaSuccess;
    NOT_IN_CAPTURE();
    stream_drain();                              /* as the real one waits for the device */
    if (poison != cudaSuccess)
        return runtime_return(poison);
    return runtime_return(memory_device_free(pointer) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned)
{
    ENTER();
    NOT_IN_CAPTURE();
    *pointer = size == 0 ? nullptr : memory_pinned_alloc(size);
    return runtime_return(*pointer != nullptr || size == 0 ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaMallocHost(void **pointer, size_t size)
{
    return cudaHostAlloc(pointer, size, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void *pointer)
{
    ENTER();
    if (pointer == nullptr)
        return cudaSuccess;
    stream_drain();
    return runtime_return(memory_pinned_free(pointer) ? poison : cudaErrorInvalidValue);
}

cudaError_t cudaHostRegister(void *pointer, size_t size, unsigned)
{
    ENTER();
    return runtime_return(memory_pinned_register(pointer, size) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaHostUnregister(void *pointer)
{
    ENTER();
    stream_drain();
    return runtime_return(memory_pinned_unregister(pointer) ? poison : cudaErrorInvalidValue);
}

/* ---- copies */

static bool direction_fits(enum cudaMemcpyKind kind, memory_kind to, memory_kind from)
{
    bool to_device = to == MEMORY_DEVICE, from_device = from == MEMORY_DEVICE;
    switch (kind) {
    case cudaMemcpyHostToHost: return !to_device && !from_device;
    case cudaMemcpyHostToDevice: return to_device && !from_device;
    case cudaMemcpyDeviceToHost: return !to_device && from_device;
    case cudaMemcpyDeviceToDevice: return to_device && from_device;
    default: return true;
    }
}

/* Under the lock. Host to pageable memory ends before the call does; from pageable memory the bytes are taken at once. */
static cudaError_t put_copy(copy_job job, enum cudaMemcpyKind kind, cudaStream_t handle)
{
    if (!stream_known(handle))
        return cudaErrorInvalidResourceHandle;
    if (job.width == 0 || job.height == 0)
        return cudaSuccess;
    if ((job.height > 1 && (job.to_pitch < job.width || job.from_pitch < job.width)) || job.to == nullptr || job.from == nullptr)
        return cudaErrorInvalidValue;
    memory_kind to = memory_kind_of(job.to), from = memory_kind_of(job.from);
    if (!direction_fits(kind, to, from))
        return cudaErrorInvalidValue;
    if ((to != MEMORY_PAGEABLE && memory_left(job.to) < (job.height - 1) * job.to_pitch + job.width) ||
        (from != MEMORY_PAGEABLE && memory_left(job.from) < (job.height - 1) * job.from_pitch + job.width))
        return cudaErrorInvalidValue;
    CUstream_st *stream = stream_of(handle);
    bool pageable = to == MEMORY_PAGEABLE || from == MEMORY_PAGEABLE;
    if (stream->capture != nullptr && pageable) {        /* a replay would read or write host memory that nobody keeps */
        stream->capture->invalid = true;
        return cudaErrorStreamCaptureUnsupported;
    }
    if (from == MEMORY_PAGEABLE) {
        job.staged = std::make_shared<std::vector<unsigned char>>(job.width * job.height);
        for (size_t row = 0; row < job.height; row++)
            memcpy(job.staged->data() + row * job.width, job.from + row * job.from_pitch, job.width);
    }
    payload work = {};
    work.kind = OPERATION_COPY;
    work.name = "a copy";
    work.copy = std::move(job);
    cudaError_t error = stream_put_work(stream, std::move(work));
    if (error == cudaSuccess && to == MEMORY_PAGEABLE)
        error = stream_wait({{stream, stream->last}});
    return error;
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream)
{
    ENTER();
    return runtime_return(put_copy({static_cast<unsigned char *>(to), static_cast<const unsigned char *>(from), to_pitch, from_pitch, width, height,
                                    nullptr, 0}, kind, stream));
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    return cudaMemcpy2DAsync(to, size, from, size, size, 1, kind, stream);
}

/* On the legacy stream, and waited for; of work on non-blocking streams it knows nothing. */
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind)
{
    ENTER();
    NOT_IN_CAPTURE();
    cudaError_t error = put_copy({static_cast<unsigned char *>(to), static_cast<const unsigned char *>(from), size, size, size, 1, nullptr, 0}, kind,
                                 nullptr);
    CUstream_st *stream = stream_of(nullptr);
    if (error == cudaSuccess)
        error = stream_wait({{stream, stream->last}});
    order_merge(stream_host_clock, stream->clock);
    return runtime_return(error);
}

cudaError_t cudaMemset2DAsync(void *to, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream)
{
    ENTER();
    if (!stream_known(stream))
        return runtime_return(cudaErrorInvalidResourceHandle);
    if (width == 0 || height == 0)
        return cudaSuccess;
    if (memory_kind_of(to) == MEMORY_PAGEABLE || memory_left(to) < (height - 1) * pitch + width)
        return runtime_return(cudaErrorInvalidValue);
    payload work = {};
    work.kind = OPERATION_SET;
    work.name = "a set";
    work.copy = {static_cast<unsigned char *>(to), nullptr, pitch, 0, width, height, nullptr, value};
    return runtime_return(stream_put_work(stream_of(stream), std::move(work)));
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream)
{
    return cudaMemset2DAsync(to, size, value, size, 1, stream);
}

cudaError_t cudaMemset(void *to, int value, size_t size)
{
    return cudaMemsetAsync(to, value, size, nullptr);
}
