/* on_device.h - device memory for tests of kernels, each piece as large as asked, so that the emulator sees an index beyond it. */
#ifndef ROOST_TESTS_CUDA_ON_DEVICE_H
#define ROOST_TESTS_CUDA_ON_DEVICE_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>
#include "kernels/cuda/kernels_cuda.h"
#include "kernels/cuda/runtime.h"
#include "tests/cuda_emulation/emulation.h"
#include "tests/unit/seed.h"

#define SCHEDULES 3u                 /* seeds of the emulator's orders that a test goes through */

static inline void *device_new(size_t bytes)
{
    void *p = NULL;
    assert_int_equal(cudaMalloc(&p, bytes), cudaSuccess);
    return p;
}

/* NULL stays NULL. */
static inline void *device_put(const void *from, size_t bytes)
{
    if (!from)
        return NULL;
    void *p = device_new(bytes);
    assert_int_equal(cudaMemcpy(p, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return p;
}

static inline void device_get(void *to, const void *from, size_t bytes)
{
    assert_int_equal(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
}

static inline void device_drop(const void *p)
{
    assert_int_equal(cudaFree((void *)(uintptr_t)p), cudaSuccess);
}

static inline uint32_t *bad_row_new(void)
{
    const uint32_t none = CUDA_NO_BAD_ROW;
    return device_put(&none, sizeof none);
}

/* Also drops it. */
static inline uint32_t bad_row_take(uint32_t *bad_row)
{
    uint32_t row;
    device_get(&row, bad_row, sizeof row);
    device_drop(bad_row);
    return row;
}

static inline void launched(bool accepted)
{
    if (!accepted)
        fail_msg("launch refused: %s", cuda_launch_error());
}

#endif
