/* cuda_health with a stand-in for the driver's library (nvml/nvml_standin.c), which LD_LIBRARY_PATH shows. */
#include "worker/engine/backend/cuda/cuda_health.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>
#include "worker/engine/backend/backend.h"

static char path[64];

static void say(const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

#define ALL                                                                                                                     \
    "memory_total 85899345920\nmemory_used 61847529062\nsm_mhz 1980\nmemory_mhz 2619\ncelsius 71\nmilliwatts 612345\n"         \
    "busy_percent 97\necc_corrected 12\necc_uncorrected 8589934593\nthrottle_reasons 4294967300\n"

static void test_everything(void **state)
{
    (void)state;
    struct backend_device_health health;
    say("bus 0000:01:00.0\n" ALL);
    struct cuda_health *gpu = cuda_health_open(0);
    assert_true(cuda_health_read(gpu, &health));
    assert_string_equal(health.device, "emulated GPU 0 at 0000:01:00.0");
    assert_true(health.nvml);
    assert_int_equal(health.memory_bytes, 85899345920);
    assert_int_equal(health.memory_used_bytes, 61847529062);
    assert_int_equal(health.sm_mhz, 1980);
    assert_int_equal(health.memory_mhz, 2619);
    assert_int_equal(health.celsius, 71);
    assert_int_equal(health.milliwatts, 612345);
    assert_int_equal(health.busy_percent, 97);
    assert_int_equal(health.ecc_corrected, 12);
    assert_int_equal(health.ecc_uncorrected, 8589934593);
    assert_int_equal(health.throttle_reasons, 4294967300);
    /* What a card does not have is 0, and the rest is there. */
    say("bus 0000:01:00.0\nmemory_total 4096\nmemory_used 1024\nsm_mhz 210\n");
    assert_true(cuda_health_read(gpu, &health));
    assert_true(health.nvml && health.memory_bytes == 4096 && health.memory_used_bytes == 1024 && health.sm_mhz == 210);
    assert_true(health.celsius == 0 && health.ecc_uncorrected == 0 && health.throttle_reasons == 0 && health.busy_percent == 0);
    /* A card that has fallen off the bus: its own size is all that is left. */
    say("bus 0000:01:00.0\nlost 1\n" ALL);
    assert_true(cuda_health_read(gpu, &health));
    assert_false(health.nvml);
    assert_true(health.memory_bytes == (uint64_t)4 << 30 && health.memory_used_bytes == 0);
    cuda_health_close(&gpu);
    assert_null(gpu);
}

/* The driver is asked about the card that the runtime uses, whatever number it has there. */
static void test_another_card(void **state)
{
    (void)state;
    struct backend_device_health health;
    say("bus 0000:02:00.0\n" ALL);
    struct cuda_health *gpu = cuda_health_open(0);
    assert_true(cuda_health_read(gpu, &health));
    assert_false(health.nvml);
    assert_int_equal(health.memory_bytes, (uint64_t)4 << 30);
    assert_int_equal(health.sm_mhz, 0);
    cuda_health_close(&gpu);
    gpu = cuda_health_open(1);
    assert_true(cuda_health_read(gpu, &health));
    assert_true(health.nvml);
    assert_string_equal(health.device, "emulated GPU 1 at 0000:02:00.0");
    /* Two cards, each with its own. */
    struct cuda_health *other = cuda_health_open(0);
    say("bus 0000:01:00.0\nmemory_total 1\nmemory_used 1\nsm_mhz 300\nbus 0000:02:00.0\n" ALL);
    assert_true(cuda_health_read(gpu, &health) && health.sm_mhz == 1980);
    cuda_health_close(&other);
    other = cuda_health_open(0);
    assert_true(cuda_health_read(other, &health) && health.nvml && health.sm_mhz == 300);
    assert_true(cuda_health_read(gpu, &health) && health.sm_mhz == 1980);
    cuda_health_close(&other);
    cuda_health_close(&gpu);
    assert_null(cuda_health_open(2));         /* there are two */
    assert_false(cuda_health_read(NULL, &health));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_everything),
        cmocka_unit_test(test_another_card),
    };
    snprintf(path, sizeof path, "/tmp/roost-nvml-%d", (int)getpid());
    setenv("ROOST_TEST_NVML", path, 1);
    setenv("ROOST_EMULATION_DEVICES", "2", 1);
    const int rc = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return rc;
}
