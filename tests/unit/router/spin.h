/* spin.h - runs a loop until something is so. */
#ifndef ROOST_TESTS_ROUTER_SPIN_H
#define ROOST_TESTS_ROUTER_SPIN_H
#include <stdbool.h>
#include <stdint.h>

struct loop;

/* True as soon as until(user) is; false when timeout_ms have passed without. until NULL: just lets timeout_ms pass. Both with
 * a turn of the loop in every 4 ms of them, on average: a machine that stood still meanwhile is given the time to catch up. */
bool spin(struct loop *loop, uint64_t timeout_ms, bool (*until)(void *user), void *user);

/* spin until an expression over the variables in scope holds (a GCC nested function would need an executable stack, so:
 * poll). timeout_ms counts turns of the loop of 1 ms at least: time in which this machine stands still is not waited. */
#define SPIN_UNTIL(loop, timeout_ms, expression)                                                                       \
    do {                                                                                                               \
        for (uint64_t spin_turns_ = 0; !(expression) && spin_turns_ < (timeout_ms); spin_turns_++)                     \
            (void)spin((loop), 1, NULL, NULL);                                                                         \
        assert_true(expression);                                                                                       \
    } while (0)

#endif
