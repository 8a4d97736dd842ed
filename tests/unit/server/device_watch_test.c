/* device_watch with a device whose answers the test holds back. */
#include "worker/server/device_watch.h"
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include <cmocka.h>
#include "common/clock.h"
#include "worker/engine/backend/backend.h"

struct device {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    unsigned asked, answered, allowed;   /* questions that came, were answered, may be */
    bool silent;                         /* nothing is known any more */
};

static bool answer(void *user, struct backend_health *out)
{
    struct device *device = user;
    pthread_mutex_lock(&device->mutex);
    device->asked++;
    pthread_cond_broadcast(&device->changed);
    while (device->answered == device->allowed)
        pthread_cond_wait(&device->changed, &device->mutex);
    device->answered++;
    *out = (struct backend_health){.device_count = device->answered};
    const bool known = !device->silent;
    pthread_mutex_unlock(&device->mutex);
    return known;
}

static void allow(struct device *device, unsigned more)
{
    pthread_mutex_lock(&device->mutex);
    device->allowed += more;
    pthread_cond_broadcast(&device->changed);
    pthread_mutex_unlock(&device->mutex);
}

static void wait_asked(struct device *device, unsigned asked)
{
    pthread_mutex_lock(&device->mutex);
    while (device->asked < asked)
        pthread_cond_wait(&device->changed, &device->mutex);
    pthread_mutex_unlock(&device->mutex);
}

static void test_never_waits(void **state)
{
    (void)state;
    struct device device = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    struct device_watch *watch = NULL;
    struct backend_health health;
    assert_int_equal(device_watch_start(1, answer, &device, &watch), STATUS_OK);
    wait_asked(&device, 1);
    for (int i = 0; i < 1000; i++)
        assert_false(device_watch_read(watch, &health));     /* the device has not answered, and nobody waits */
    allow(&device, 3);
    wait_asked(&device, 4);                                  /* it is asked again and again; the third answer is in */
    for (int i = 0; i < 1000; i++)
        assert_true(device_watch_read(watch, &health) && health.device_count == 3);
    allow(&device, 1000000);
    device_watch_stop(&watch);
    assert_null(watch);
    const unsigned asked = device.asked;
    assert_int_equal(device.answered, asked);                /* stop waited for the answer, and none is asked for later */
    device_watch_stop(&watch);
}

static void test_interval(void **state)
{
    (void)state;
    struct device device = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .allowed = 1000000};
    struct device_watch *watch = NULL;
    uint64_t started = clock_now_ms();
    assert_int_equal(device_watch_start(60, answer, &device, &watch), STATUS_OK);
    wait_asked(&device, 4);
    assert_in_range(clock_now_ms() - started, 175, 60000);   /* three intervals, rounded */
    device_watch_stop(&watch);
    const unsigned asked = device.asked;
    started = clock_now_ms();
    assert_int_equal(device_watch_start(600000, answer, &device, &watch), STATUS_OK);
    wait_asked(&device, asked + 1);
    device_watch_stop(&watch);                               /* in the middle of an interval */
    assert_in_range(clock_now_ms() - started, 0, 60000);
}

static void test_nothing_known(void **state)
{
    (void)state;
    struct device device = {
        .mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .allowed = 1000000, .silent = true};
    struct device_watch *watch = NULL;
    assert_int_equal(device_watch_start(1, answer, &device, &watch), STATUS_OK);
    wait_asked(&device, 1);
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);  /* for 50 questions that must not come */
    device_watch_stop(&watch);
    assert_int_equal(device.asked, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_never_waits),
        cmocka_unit_test(test_interval),
        cmocka_unit_test(test_nothing_known),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
