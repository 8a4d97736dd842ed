/* bench_time.c - the device, memory with something in it, and time by events around graphs of many launches, so that the host's part in starting
 * one is not in the figure. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "bench.h"

#define TURNS_MAX 200u
#define REPEAT_MICROSECONDS 3000.0     /* of one repeat, so that an event's half microsecond does not matter */
#define L2_TIMES 3u                    /* the cache's size that has to pass before something is gone */
#define COPIES_MAX 128u

bool bench_open(struct bench *bench)
{
    int count = 0, device = 0, value = 0;
    struct cudaDeviceProp properties;
    bench->read_gbs = bench->mma_tops = NAN;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0 || cudaSetDevice(device) != cudaSuccess ||
        cudaGetDeviceProperties(&properties, device) != cudaSuccess || cudaStreamCreate(&bench->stream) != cudaSuccess)
        return false;
    snprintf(bench->device, sizeof bench->device, "%s", properties.name);
    (void)cudaDriverGetVersion(&bench->driver);
    (void)cudaRuntimeGetVersion(&bench->runtime);
    bench->memory_bytes = properties.totalGlobalMem;
    bench->multiprocessors = (uint32_t)properties.multiProcessorCount;
    bench->l2_bytes = (size_t)properties.l2CacheSize;
    bench->pattern = malloc(BENCH_PATTERN);
    if (!bench->pattern)
        return false;
    uint64_t state = 1;
    for (size_t i = 0; i < BENCH_PATTERN; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        bench->pattern[i] = (unsigned char)(int8_t)((int)(state >> 33) % 255 - 127);
    }
    if (!bench_rates_of(bench->device, &bench->rates)) {
        (void)cudaDeviceGetAttribute(&value, cudaDevAttrClockRate, device);
        bench->rates = (struct bench_rates){.read_gbs = NAN, .clock_ghz = value * 1e-6, .products = 2048, .multiprocessors = bench->multiprocessors};
    }
    return true;
}

void bench_close(struct bench *bench)
{
    bench_release(bench);
    if (bench->stream)
        (void)cudaStreamDestroy(bench->stream);
    free(bench->results), free(bench->owned), free(bench->pattern);
    *bench = (struct bench){0};
}

void *bench_new(struct bench *bench, size_t bytes)
{
    void *memory = NULL;
    if (bench->owned_count == bench->owned_capacity) {
        const uint32_t capacity = 2 * bench->owned_capacity + 64;
        void **more = realloc(bench->owned, capacity * sizeof *more);
        if (!more)
            return NULL;
        bench->owned = more, bench->owned_capacity = capacity;
    }
    if (cudaMalloc(&memory, bytes > 0 ? bytes : 1) != cudaSuccess) {
        (void)cudaGetLastError();
        bench_fail(bench, "no %zu MiB of device memory", bytes >> 20);
        return NULL;
    }
    bench->owned[bench->owned_count++] = memory;
    return memory;
}

void bench_release(struct bench *bench)
{
    while (bench->owned_count > 0)
        (void)cudaFree(bench->owned[--bench->owned_count]);
}

void *bench_put(struct bench *bench, const void *from, size_t bytes)
{
    void *memory = bench_new(bench, bytes);
    if (memory && cudaMemcpy(memory, from, bytes, cudaMemcpyHostToDevice) != cudaSuccess)
        bench_fail(bench, "copying to the device: %s", cudaGetErrorString(cudaGetLastError()));
    return memory;
}

void *bench_repeat(struct bench *bench, const void *piece, size_t bytes, size_t count)
{
    char *memory = bench_new(bench, bytes * count);
    if (!memory || bytes * count == 0)
        return memory;
    bool copied = cudaMemcpyAsync(memory, piece, bytes, cudaMemcpyHostToDevice, bench->stream) == cudaSuccess;
    for (size_t done = 1; done < count && copied; done *= 2) {
        const size_t more = count - done < done ? count - done : done;
        copied = cudaMemcpyAsync(memory + done * bytes, memory, more * bytes, cudaMemcpyDeviceToDevice, bench->stream) == cudaSuccess;
    }
    if (!copied || cudaStreamSynchronize(bench->stream) != cudaSuccess)
        bench_fail(bench, "copying on the device: %s", cudaGetErrorString(cudaGetLastError()));
    return memory;
}

void *bench_bytes(struct bench *bench, size_t bytes)
{
    return bytes <= BENCH_PATTERN ? bench_put(bench, bench->pattern, bytes)
                                  : bench_repeat(bench, bench->pattern, BENCH_PATTERN, (bytes + BENCH_PATTERN - 1) / BENCH_PATTERN);
}

float *bench_floats(struct bench *bench, size_t count, float low, float high)
{
    const size_t drawn = count < BENCH_PATTERN ? count : BENCH_PATTERN;
    float *values = malloc((drawn + 1) * sizeof *values), *memory = NULL;
    if (!values)
        return NULL;
    for (size_t i = 0; i < drawn; i++)
        values[i] = low + (high - low) * (float)(bench->pattern[i] / 256.0 + bench->pattern[BENCH_PATTERN - 1 - i] / 65536.0);
    memory = bench_repeat(bench, values, drawn * sizeof *values, drawn > 0 ? (count + drawn - 1) / drawn : 0);
    free(values);
    return memory;
}

uint32_t bench_copies(const struct bench *bench, size_t bytes)
{
    if (bench->tiny)
        return 2;
    const size_t copies = (L2_TIMES * bench->l2_bytes + bytes - 1) / bytes;
    return copies < 1 ? 1 : copies > COPIES_MAX ? COPIES_MAX : (uint32_t)copies;
}

double bench_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec * 1e-3;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double bench_median(double *values, uint32_t count)
{
    qsort(values, count, sizeof *values, compare);
    return count == 0 ? NAN : count % 2 ? values[count / 2] : 0.5 * (values[count / 2 - 1] + values[count / 2]);
}

struct timer {
    cudaEvent_t begin, end;
    cudaGraphExec_t exec;
};

/* A graph of `turns` launches. */
static bool capture(struct bench *bench, bench_launch_fn *launch, void *user, uint32_t turns, cudaGraphExec_t *exec)
{
    cudaGraph_t graph = NULL;
    bool accepted = true;
    if (cudaStreamBeginCapture(bench->stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess)
        return false;
    for (uint32_t turn = 0; turn < turns && accepted; turn++)
        accepted = launch(user, turn, bench->stream);
    if (cudaStreamEndCapture(bench->stream, &graph) != cudaSuccess || !accepted)
        return false;
    const bool made = cudaGraphInstantiate(exec, graph, 0) == cudaSuccess;
    (void)cudaGraphDestroy(graph);
    return made;
}

static double one_time(struct bench *bench, struct timer *timer, uint32_t turns)
{
    float milliseconds = 0;
    if (cudaEventRecord(timer->begin, bench->stream) != cudaSuccess || cudaGraphLaunch(timer->exec, bench->stream) != cudaSuccess ||
        cudaEventRecord(timer->end, bench->stream) != cudaSuccess || cudaEventSynchronize(timer->end) != cudaSuccess ||
        cudaEventElapsedTime(&milliseconds, timer->begin, timer->end) != cudaSuccess)
        return NAN;
    return milliseconds * 1e3 / turns;
}

static double measure(struct bench *bench, struct timer *timer, bench_launch_fn *launch, void *user)
{
    double times[64];
    uint32_t turns = bench->tiny ? 2 : 4;
    if (!launch(user, 0, bench->stream) || cudaStreamSynchronize(bench->stream) != cudaSuccess ||       /* outside a graph: errors have words */
        !capture(bench, launch, user, turns, &timer->exec))
        return NAN;
    const double first = one_time(bench, timer, turns);
    if (!bench->tiny && first < REPEAT_MICROSECONDS / turns) {
        const double wanted = REPEAT_MICROSECONDS / (first > 0.1 ? first : 0.1);
        turns = wanted > TURNS_MAX ? TURNS_MAX : (uint32_t)wanted + 1;
        (void)cudaGraphExecDestroy(timer->exec);
        timer->exec = NULL;
        if (!capture(bench, launch, user, turns, &timer->exec))
            return NAN;
        (void)one_time(bench, timer, turns);
    }
    const uint32_t repeats = bench->repeats < 64 ? bench->repeats : 64;
    for (uint32_t i = 0; i < repeats; i++)
        times[i] = one_time(bench, timer, turns);
    return bench_median(times, repeats);
}

double bench_time(struct bench *bench, bench_launch_fn *launch, void *user)
{
    struct timer timer = {0};
    double time = NAN;
    if (cudaEventCreate(&timer.begin) == cudaSuccess && cudaEventCreate(&timer.end) == cudaSuccess)
        time = measure(bench, &timer, launch, user);
    if (timer.exec)
        (void)cudaGraphExecDestroy(timer.exec);
    if (timer.begin)
        (void)cudaEventDestroy(timer.begin);
    if (timer.end)
        (void)cudaEventDestroy(timer.end);
    const cudaError_t error = cudaGetLastError();
    if (isnan(time))
        bench_fail(bench, "not timed: %s, %s", cuda_launch_error(), cudaGetErrorString(error));
    return time;
}
