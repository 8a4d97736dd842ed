/* unit.h - what a unit test begins with: cmocka behind the headers that it wants before it, and the start of a program.
 */
#ifndef ROOST_TESTS_UNIT_H
#define ROOST_TESTS_UNIT_H
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/hash.h"
#include "common/log.h"
#include "common/status.h"

/* Fails with the words of the status. */
#define assert_ok(call)                                                                                                \
    do {                                                                                                               \
        enum status assert_ok_ = (call);                                                                               \
        if (assert_ok_ != STATUS_OK)                                                                                   \
            fail_msg("%s: %s: %s (%s)", #call, status_name(assert_ok_), status_detail(), status_where());              \
    } while (0)

/* First in a main whose tests draw ids or log: hashing is set up, errors are logged, everything if ROOST_TEST_LOG is
 * set. */
static inline bool unit_begin(void)
{
    log_setup(&(struct log_config){
        .program = "test", .level = getenv("ROOST_TEST_LOG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR, .fd = 2});
    return hash_setup() == STATUS_OK;
}

/* The main of such a program: an array of tests. */
#define unit_run(tests, setup, teardown) (unit_begin() ? cmocka_run_group_tests(tests, setup, teardown) : 1)

#endif
