/* client_loss_test.c - the client library and routers that are lost, fall silent, come back, drain or cannot be
 * reached. */
#include <string.h>
#include "client_script.h"
#include "common/clock.h"
#include "tests/unit/unit.h"

static void test_router_lost_before_tokens(void **state)
{
    (void)state;
    for (unsigned how = 0; how < 2; how++) { /* its sockets close; it falls silent */
        struct fake_router *first = start_router(), *second = start_router();
        struct client *client = connect_to_both(first, second);
        struct reply reply, again;
        memset(&reply, 0, sizeof reply);
        memset(&again, 0, sizeof again);
        struct client_call *call = ask(client, "slow", 8000, &reply);
        wait_until(&fake_router_counts(first)->requests, 1);
        assert_int_equal(fake_router_counts(second)->requests, 0);
        uint64_t lost_ms = clock_now_ms();
        if (how == 0)
            fake_router_stop(&first);
        else
            fake_router_freeze(first);
        /* A frozen router still has its timer: its answer to "slow" is of an old attempt by then or never leaves. */
        finish(call, &reply, WIRE_ERROR_UNKNOWN);
        assert_int_equal(reply.tokens, 5);
        assert_memory_equal(reply.text, "To be, or not", 13);
        if (how == 0)
            assert_int_equal(fake_router_counts(second)->requests, 1);
        assert_true(reply.end_ms - lost_ms < 7000); /* before its deadline */
        if (how == 0) {
            finish(ask(client, "happy", 5000, &again), &again, WIRE_ERROR_UNKNOWN);
            assert_int_equal(fake_router_counts(second)->requests, 2);
        }
        client_destroy(&client);
        fake_router_stop(&first);
        fake_router_stop(&second);
    }
}

static void test_silent_router_is_lost(void **state)
{
    (void)state;
    struct fake_router *first = start_router(), *second = start_router();
    struct client *client = connect_to_both(first, second);
    struct reply reply;
    memset(&reply, 0, sizeof reply);
    struct client_call *call = ask(client, "silent", 20000, &reply);
    wait_until(&fake_router_counts(first)->requests, 1);
    fake_router_freeze(first);
    uint64_t start = clock_now_ms();
    wait_until(&fake_router_counts(second)->requests, 1); /* sent again, to the next of the list */
    assert_in_range(clock_now_ms() - start, 400, 9000);   /* the lease is 600 ms */
    client_cancel(call);
    finish(call, &reply, WIRE_ERROR_CANCELLED);
    client_destroy(&client);
    fake_router_stop(&first);
    fake_router_stop(&second);
}

/* 0: never answered, 1: replayed, 2: only one direction moves, 3 and 4: answered on one connection only */
static void check_useless_leases(unsigned how)
{
    struct fake_router *first, *second = start_router();
    struct fake_router_config config = {.on_request = script,
                                        .no_leases = how == 0,
                                        .own_number = how == 1,
                                        .no_echo = how == 2,
                                        .no_control_leases = how == 3,
                                        .no_data_leases = how == 4};
    fake_router_start(&config, &first);
    struct client *client = connect_to_both(first, second);
    struct reply reply;
    memset(&reply, 0, sizeof reply);
    struct client_call *call = ask(client, "silent", 20000, &reply);
    wait_until(&fake_router_counts(first)->requests, 1);
    wait_until(&fake_router_counts(second)->requests, 1);
    assert_int_equal(client_dropped(client) > 0, how == 1);
    client_cancel(call);
    finish(call, &reply, WIRE_ERROR_CANCELLED);
    client_destroy(&client);
    fake_router_stop(&first);
    fake_router_stop(&second);
}

static void test_leases_without_answer(void **state)
{
    (void)state;
    for (unsigned how = 0; how < 5; how++)
        check_useless_leases(how);
}

/* One of the two connections goes; the lease is long, so it is the link that tells. */
static void test_one_connection_lost(void **state)
{
    (void)state;
    for (unsigned control = 0; control < 2; control++) {
        struct fake_router *first, *second = start_router();
        fake_router_start(
            &(struct fake_router_config){.on_request = script, .lease_ms = 1000, .lease_expiry_ms = 30000}, &first);
        struct client *client = connect_to_both(first, second);
        struct reply reply;
        memset(&reply, 0, sizeof reply);
        struct client_call *call = ask(client, "silent", 20000, &reply);
        wait_until(&fake_router_counts(first)->requests, 1);
        fake_router_cut(first, control);
        wait_until(&fake_router_counts(second)->requests, 1);
        client_cancel(call);
        client_destroy(&client);
        finish(call, &reply, WIRE_ERROR_CANCELLED);
        fake_router_stop(&first);
        fake_router_stop(&second);
    }
}

static void test_router_lost_after_tokens(void **state)
{
    (void)state;
    struct fake_router *first = start_router(), *second = start_router();
    struct client *client = connect_to_both(first, second);
    struct reply reply;
    memset(&reply, 0, sizeof reply);
    struct client_call *call = ask(client, "half", 8000, &reply);
    wait_until(&reply.tokens, 3);
    fake_router_stop(&first);
    finish(call, &reply, WIRE_ERROR_WORKER_LOST);
    assert_int_equal(reply.tokens, 3);
    assert_int_equal(fake_router_counts(second)->requests, 0);
    client_destroy(&client);
    fake_router_stop(&second);
}

static void test_router_comes_back(void **state)
{
    (void)state;
    struct fake_router *router = start_router();
    struct client *client = connect_to(router, NULL);
    char endpoint[128];
    struct reply first, second;
    memset(&first, 0, sizeof first);
    memset(&second, 0, sizeof second);
    snprintf(endpoint, sizeof endpoint, "%s", fake_router_endpoint(router));
    finish(ask(client, "happy", 5000, &first), &first, WIRE_ERROR_UNKNOWN);
    fake_router_stop(&router);
    struct client_call *call = ask(client, "happy", 15000, &second);
    fake_router_start(&(struct fake_router_config){.on_request = script, .control_endpoint = endpoint}, &router);
    finish(call, &second, WIRE_ERROR_UNKNOWN); /* another session, another data port */
    assert_int_equal(second.tokens, 5);
    client_destroy(&client);
    fake_router_stop(&router);
}

static void test_draining_router_gets_nothing_new(void **state)
{
    (void)state;
    struct fake_router *first = start_router(), *second = start_router();
    struct client *client = connect_to_both(first, second);
    struct reply running, next;
    memset(&running, 0, sizeof running);
    memset(&next, 0, sizeof next);
    struct client_call *call = ask(client, "goaway", 5000, &running);
    finish(call, &running, WIRE_ERROR_UNKNOWN); /* what runs there ends there */
    unsigned before = fake_router_counts(first)->requests;
    finish(ask(client, "happy", 5000, &next), &next, WIRE_ERROR_UNKNOWN);
    assert_int_equal(fake_router_counts(first)->requests, before);
    assert_true(fake_router_counts(second)->requests >= 1);
    client_destroy(&client);
    fake_router_stop(&first);
    fake_router_stop(&second);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_router_lost_before_tokens),
        cmocka_unit_test(test_silent_router_is_lost),
        cmocka_unit_test(test_leases_without_answer),
        cmocka_unit_test(test_one_connection_lost),
        cmocka_unit_test(test_router_lost_after_tokens),
        cmocka_unit_test(test_router_comes_back),
        cmocka_unit_test(test_draining_router_gets_nothing_new),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
