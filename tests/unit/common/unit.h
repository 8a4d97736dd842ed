/* unit.h - cmocka with the headers it wants before it. */
#ifndef ROOST_TESTS_UNIT_H
#define ROOST_TESTS_UNIT_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include "common/status.h"

/* Fails with the words of the status. */
#define assert_ok(call)                                                                                      \
    do {                                                                                                     \
        enum status assert_ok_ = (call);                                                                     \
        if (assert_ok_ != STATUS_OK)                                                                         \
            fail_msg("%s: %s: %s (%s)", #call, status_name(assert_ok_), status_detail(), status_where());    \
    } while (0)

#endif
