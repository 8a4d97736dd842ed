#include "spin.h"
#include <stddef.h>
#include "common/clock.h"
#include "common/loop.h"

struct spinning {
    struct loop *loop;
    bool (*until)(void *user);
    void *user;
    uint64_t end_ms, turns_left;
    bool met;
};

static void on_timer(void *user)
{
    struct spinning *spinning = user;
    spinning->met = spinning->until && spinning->until(spinning->user);
    spinning->turns_left -= spinning->turns_left > 0;
    if (spinning->met || (clock_now_ms() >= spinning->end_ms && spinning->turns_left == 0))
        loop_stop(spinning->loop);
}

bool spin(struct loop *loop, uint64_t timeout_ms, bool (*until)(void *user), void *user)
{
    struct spinning spinning = {
        .loop = loop, .until = until, .user = user, .end_ms = clock_now_ms() + timeout_ms, .turns_left = timeout_ms / 4};
    struct loop_timer *timer;
    if (loop_timer_create(loop, 1, true, on_timer, &spinning, &timer) != STATUS_OK)
        return false;
    (void)loop_run(loop);
    loop_timer_destroy(&timer);
    return spinning.met;
}
