#include "spin.h"
#include <stddef.h>
#include "common/loop.h"

struct spinning {
    struct loop *loop;
    bool (*until)(void *user);
    void *user;
    uint64_t left_ms;
    bool met;
};

static void on_timer(void *user)
{
    struct spinning *spinning = user;
    spinning->met = spinning->until && spinning->until(spinning->user);
    if (spinning->met || --spinning->left_ms == 0)
        loop_stop(spinning->loop);
}

bool spin(struct loop *loop, uint64_t timeout_ms, bool (*until)(void *user), void *user)
{
    struct spinning spinning = {.loop = loop, .until = until, .user = user, .left_ms = timeout_ms ? timeout_ms : 1};
    struct loop_timer *timer;
    if (loop_timer_create(loop, 1, true, on_timer, &spinning, &timer) != STATUS_OK)
        return false;
    (void)loop_run(loop);
    loop_timer_destroy(&timer);
    return spinning.met;
}
