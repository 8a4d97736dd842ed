/* Each planted fault is caught under every seed, by rule; mended, the same kernel is right under every seed. Then the fake runtime. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#include "kernels/cuda/kernels_cuda.h"
#include "kernels/cuda/runtime.h"
#include "tests/cuda_emulation/emulation.h"
#include "tests/cuda_emulation/emulator_faults.h"
#include "tests/unit/seed.h"

#define FAULT_SEEDS 8
#define MENDED_SEEDS 50

/* Runs the fault in a child; its standard error into `text`. Was it ended by a signal, or a sanitizer's exit after one? */
static bool dies(const struct emulator_fault *fault, char *text, size_t size)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        signal(SIGSEGV, SIG_DFL);
        signal(SIGABRT, SIG_DFL);
        _exit(fault->run(false) ? 0 : 3);
    }
    close(ends[1]);
    size_t length = 0;
    ssize_t got;
    while ((got = read(ends[0], text + length, size - 1 - length)) > 0)
        length += (size_t)got;
    text[length] = '\0';
    close(ends[0]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status);
}

static void each_fault_is_caught(void **state)
{
    (void)state;
    for (size_t i = 0; i < emulator_fault_count; i++)
        for (uint64_t seed = 0; seed < FAULT_SEEDS; seed++) {
            char text[4096];
            emulation_set_seed(test_seed(seed));
            if (!dies(&emulator_faults[i], text, sizeof text) || strstr(text, emulator_faults[i].message) == NULL)
                fail_msg("%s under seed %u was not caught; it said: %s", emulator_faults[i].name, (unsigned)seed, text);
            if (seed == 0 && *emulator_faults[i].message != '\0')
                printf("%s: %s", emulator_faults[i].name, text);
        }
}

static void each_mended_kernel_is_right(void **state)
{
    (void)state;
    for (size_t i = 0; i < emulator_fault_count; i++)
        for (uint64_t seed = 0; seed < MENDED_SEEDS; seed++) {
            emulation_set_seed(test_seed(seed));
            if (!emulator_faults[i].run(true))
                fail_msg("%s, mended, under seed %u: wrong", emulator_faults[i].name, (unsigned)seed);
        }
}

static void collectives_agree_with_plain_loops(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < MENDED_SEEDS; seed++) {
        emulation_set_seed(test_seed(seed));
        assert_true(emulator_lanes_agree(test_seed(1000 + seed)));
        assert_true(emulator_product_agrees(test_seed(1000 + seed)));
    }
}

static void too_many_threads_are_refused(void **state)
{
    (void)state;
    assert_true(emulator_launch_bounds());
}

static void *device_alloc(size_t size)
{
    void *p = NULL;
    assert_int_equal(cudaMalloc(&p, size), cudaSuccess);
    return p;
}

static void rows_are_gathered(void **state)
{
    (void)state;
    uint32_t in[7 * 5], index[4] = {6, 0, 3, 3}, out[4 * 5];
    for (uint32_t i = 0; i < 35; i++)
        in[i] = i;
    uint32_t *d_in = device_alloc(sizeof in), *d_index = device_alloc(sizeof index), *d_out = device_alloc(sizeof out);
    assert_int_equal(cudaMemcpy(d_in, in, sizeof in, cudaMemcpyHostToDevice), cudaSuccess);
    assert_int_equal(cudaMemcpy(d_index, index, sizeof index, cudaMemcpyHostToDevice), cudaSuccess);
    assert_true(cuda_gather_rows(d_in, d_index, 4, 5, d_out, NULL));
    assert_int_equal(cudaMemcpy(out, d_out, sizeof out, cudaMemcpyDeviceToHost), cudaSuccess);
    for (uint32_t i = 0; i < 20; i++)
        assert_int_equal(out[i], index[i / 5] * 5 + i % 5);
    cudaFree(d_in);
    cudaFree(d_index);
    cudaFree(d_out);
}

/* From pinned memory a copy reads when it runs, from pageable memory when it is called. */
static void copies_run_late(void **state)
{
    (void)state;
    uint32_t pageable[4] = {1, 2, 3, 4}, back[4], *pinned, *device = device_alloc(16);
    assert_int_equal(cudaMallocHost((void **)&pinned, 16), cudaSuccess);
    cudaStream_t stream;
    assert_int_equal(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    emulation_set_eagerness(0);
    memcpy(pinned, pageable, 16);
    assert_int_equal(cudaMemcpyAsync(device, pinned, 16, cudaMemcpyHostToDevice, stream), cudaSuccess);
    pinned[0] = 9;
    assert_int_equal(cudaMemcpyAsync(back, device, 16, cudaMemcpyDeviceToHost, stream), cudaSuccess);
    assert_int_equal(back[0], 9);
    assert_int_equal(cudaMemcpyAsync(device, pageable, 16, cudaMemcpyHostToDevice, stream), cudaSuccess);
    pageable[0] = 8;
    assert_int_equal(cudaMemcpyAsync(pinned, device, 16, cudaMemcpyDeviceToHost, stream), cudaSuccess);
    assert_int_equal(pinned[0], 9);
    cudaEvent_t event;
    assert_int_equal(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
    assert_int_equal(cudaEventRecord(event, stream), cudaSuccess);
    unsigned asked = 0;
    while (cudaEventQuery(event) == cudaErrorNotReady)
        asked++;
    assert_in_range(asked, 1, 100);
    assert_int_equal(pinned[0], 1);
    emulation_set_eagerness(64);
    assert_int_equal(cudaEventDestroy(event), cudaSuccess);
    assert_int_equal(cudaStreamDestroy(stream), cudaSuccess);
    assert_int_equal(cudaFree(device), cudaSuccess);
    assert_int_equal(cudaFreeHost(pinned), cudaSuccess);
}

static void memory_ends(void **state)
{
    (void)state;
    size_t available, total;
    void *p, *q;
    emulation_set_memory(1 << 20);
    assert_int_equal(cudaMalloc(&p, (1 << 20) - 4096), cudaSuccess);
    assert_int_equal(cudaMalloc(&q, 8192), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_int_equal(cudaMemGetInfo(&available, &total), cudaSuccess);
    assert_int_equal(available, 4096);
    assert_int_equal(cudaFree(p), cudaSuccess);
    assert_int_equal(cudaFree(p), cudaErrorInvalidValue);
    emulation_set_memory((size_t)4 << 30);
    assert_int_equal(cudaMalloc(&p, 64), cudaSuccess);
    assert_int_equal(cudaMemcpy(p, &q, 65, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(p, &q, 8, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    assert_int_equal(cudaFree(p), cudaSuccess);
}

static void a_poisoned_context_refuses_everything(void **state)
{
    (void)state;
    uint32_t zero = 0, *device = device_alloc(64);
    assert_int_equal(cudaMemset(device, 0, 64), cudaSuccess);
    emulation_refuse_at(1);
    assert_false(cuda_gather_rows(device, device, 1, 1, device + 4, NULL));
    assert_non_null(strstr(cuda_launch_error(), "gather_rows"));
    emulation_poison_at(2, cudaErrorECCUncorrectable);
    assert_true(cuda_gather_rows(device, device, 1, 1, device + 4, NULL));
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    emulation_set_eagerness(0);
    assert_true(cuda_gather_rows(device, device, 1, 1, device + 4, NULL));
    assert_int_equal(cudaDeviceSynchronize(), cudaErrorECCUncorrectable);
    assert_int_equal(cudaMemcpy(device, &zero, 4, cudaMemcpyHostToDevice), cudaErrorECCUncorrectable);
    assert_false(cuda_gather_rows(device, device, 1, 1, device + 4, NULL));
    assert_int_equal(cudaGetLastError(), cudaErrorECCUncorrectable);
    assert_int_equal(cudaGetLastError(), cudaErrorECCUncorrectable);
    emulation_heal();
    emulation_set_eagerness(64);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    assert_int_equal(cudaFree(device), cudaSuccess);
}

/* A graph keeps arguments by value; an update takes new ones; a capture refuses what would not replay. */
static void graphs_replay(void **state)
{
    (void)state;
    uint32_t host[8] = {3, 1, 4, 1, 5, 9, 2, 6}, index[2] = {1, 0}, out[8];
    uint32_t *in = device_alloc(32), *order = device_alloc(8), *to = device_alloc(32);
    assert_int_equal(cudaMemcpy(in, host, 32, cudaMemcpyHostToDevice), cudaSuccess);
    assert_int_equal(cudaMemcpy(order, index, 8, cudaMemcpyHostToDevice), cudaSuccess);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    assert_int_equal(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    uint32_t columns = 4;
    for (int round = 0; round < 2; round++) {
        assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
        assert_int_equal(cudaMemsetAsync(to, 0, 32, stream), cudaSuccess);
        assert_true(cuda_gather_rows(in, order, 2, columns, to, stream));
        assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
        if (round == 0)
            assert_int_equal(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
        else
            assert_int_equal(cudaGraphExecUpdate(exec, graph, NULL), cudaSuccess);
        assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
        for (int i = 0; i < 3; i++)
            assert_int_equal(cudaGraphLaunch(exec, stream), cudaSuccess);
        assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
        assert_int_equal(cudaMemcpy(out, to, 32, cudaMemcpyDeviceToHost), cudaSuccess);
        for (uint32_t i = 0; i < 8; i++)
            assert_int_equal(out[i], i < 2 * columns ? host[index[i / columns] * columns + i % columns] : 0);
        columns = 3;
    }
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    assert_int_equal(cudaMemcpyAsync(out, in, 32, cudaMemcpyDeviceToHost, stream), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    void *p;
    assert_int_equal(cudaMalloc(&p, 8), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    assert_int_equal(cudaGraphExecDestroy(exec), cudaSuccess);
    assert_int_equal(cudaStreamDestroy(stream), cudaSuccess);
    cudaFree(in);
    cudaFree(order);
    cudaFree(to);
}

/* Not a test of speed: the figure is printed, and a floor far below it keeps a slow path from creeping in. */
static void switches_are_fast(void **state)
{
    (void)state;
    struct emulation_counts before, after;
    struct timespec start, end;
    emulation_get_counts(&before);
    clock_gettime(CLOCK_MONOTONIC, &start);
    assert_true(emulator_measure(200, 256, 40));
    clock_gettime(CLOCK_MONOTONIC, &end);
    emulation_get_counts(&after);
    double seconds = (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) * 1e-9;
    double rate = (double)(after.switches - before.switches) / seconds;
    printf("%.1f million switches a second\n", rate * 1e-6);
    assert_true(rate > 2e5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_fault_is_caught),
        cmocka_unit_test(each_mended_kernel_is_right),
        cmocka_unit_test(collectives_agree_with_plain_loops),
        cmocka_unit_test(too_many_threads_are_refused),
        cmocka_unit_test(rows_are_gathered),
        cmocka_unit_test(copies_run_late),
        cmocka_unit_test(memory_ends),
        cmocka_unit_test(a_poisoned_context_refuses_everything),
        cmocka_unit_test(graphs_replay),
        cmocka_unit_test(switches_are_fast),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
