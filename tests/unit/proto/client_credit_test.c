/* client_credit_test - what the client library grants: to routers with a window of 8 tokens that keep to it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include "common/clock.h"
#include "client_fixture.h"

static void credit_comes_as_callbacks_return(void **state)
{
    (void)state;
    struct plan plan = {.total = 300, .credit = true};
    struct fake_router *router = start(&plan, NULL, CAN);
    struct client *client = connect_to(router, NULL);
    struct reply reply;
    uint64_t start_ms = clock_now_ms();
    finish(ask(client, (struct client_request){0}, &reply), &reply, WIRE_ERROR_UNKNOWN);
    assert_int_equal(reply.tokens[0], 300);
    assert_true(clock_now_ms() - start_ms < 3000); /* early leases: else 8 tokens a lease of 100 ms */
    assert_true(plan.bytes_credit_max > 4u << 20);
    assert_true(plan.bytes_credit_max < (4u << 20) + 100000);
    client_destroy(&client);
    fake_router_stop(&router);
}

static void credit_comes_as_tokens_are_consumed(void **state)
{
    (void)state;
    const unsigned credits[] = {8, 20, 1};
    for (unsigned i = 0; i < 3; i++) {
        struct plan plan = {.total = 60, .credit = true};
        struct fake_router *router = start(&plan, NULL, CAN);
        struct client *client = connect_to(router, NULL);
        struct reply reply;
        struct client_call *call = ask(client, (struct client_request){.credit_tokens = credits[i]}, &reply);
        unsigned window = credits[i] > 8 ? credits[i] : 8; /* not less than the router's first one */
        wait_until(&reply.tokens[0], window);
        for (unsigned j = 0; j < 150; j++) /* leases pass, and nothing comes */
            nap();
        assert_int_equal(reply.tokens[0], window);
        for (unsigned read = 0; read < 60; read++) {
            wait_until(&reply.unread, 1);
            atomic_fetch_sub(&reply.unread, 1);
            client_consumed(call, 1);
        }
        finish(call, &reply, WIRE_ERROR_UNKNOWN);
        assert_int_equal(reply.tokens[0], 60);
        assert_int_equal(reply.unread_max, window);
        client_destroy(&client);
        fake_router_stop(&router);
    }
}

/* What was consumed counts for the next router too, and its grants are totals of the whole reply. */
static void credit_goes_on_at_the_next_router(void **state)
{
    (void)state;
    struct plan one = {.total = 60, .upto = {4}}, two = {.total = 60, .credit = true};
    struct fake_router *first = start(&one, NULL, CAN), *second = start(&two, NULL, CAN);
    one.upto[0] = 12;
    struct client *client = connect_to(first, second);
    struct reply reply;
    struct client_call *call = ask(client, (struct client_request){.credit_tokens = 8}, &reply);
    wait_until(&reply.tokens[0], 12); /* this one cares for no credit */
    atomic_fetch_sub(&reply.unread, 8);
    client_consumed(call, 8);
    fake_router_stop(&first);
    wait_until(&reply.tokens[0], 16);
    for (unsigned i = 0; i < 100; i++)
        nap();
    assert_int_equal(reply.tokens[0], 16);
    client_consumed(call, 100);
    finish(call, &reply, WIRE_ERROR_UNKNOWN);
    assert_int_equal(reply.tokens[0], 60);
    assert_resume(&two, 0, 2, 1, (uint32_t[]){12});
    client_destroy(&client);
    fake_router_stop(&second);
}

static void routers_without_credit_hear_nothing_of_it(void **state)
{
    (void)state;
    struct plan plan = {.total = 100};
    struct fake_router *router = start(&plan, NULL, WIRE_CAN_RESUME);
    struct client *client = connect_to(router, NULL);
    struct reply reply;
    finish(ask(client, (struct client_request){.credit_tokens = 4}, &reply), &reply, WIRE_ERROR_UNKNOWN);
    assert_int_equal(reply.tokens[0], 100);
    assert_int_equal(plan.bytes_credit_max, 0);
    client_destroy(&client);
    fake_router_stop(&router);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(credit_comes_as_callbacks_return),
        cmocka_unit_test(credit_comes_as_tokens_are_consumed),
        cmocka_unit_test(credit_goes_on_at_the_next_router),
        cmocka_unit_test(routers_without_credit_hear_nothing_of_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
