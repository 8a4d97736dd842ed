/* spin.h - runs a loop until something is so. */
#ifndef ROOST_TESTS_ROUTER_SPIN_H
#define ROOST_TESTS_ROUTER_SPIN_H
#include <stdbool.h>
#include <stdint.h>

struct loop;

/* True as soon as until(user) is; false when timeout_ms have passed without. until NULL: just lets timeout_ms pass. */
bool spin(struct loop *loop, uint64_t timeout_ms, bool (*until)(void *user), void *user);

/* spin until an expression over the variables in scope holds (a GCC nested function would need an executable stack, so:
 * poll). */
#define SPIN_UNTIL(loop, timeout_ms, expression)                                                                       \
    do {                                                                                                               \
        uint64_t spin_end_ = clock_now_ms() + (timeout_ms);                                                            \
        while (!(expression) && clock_now_ms() < spin_end_)                                                            \
            (void)spin((loop), 1, NULL, NULL);                                                                         \
        assert_true(expression);                                                                                       \
    } while (0)

#endif
