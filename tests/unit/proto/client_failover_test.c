/* client_failover_test - calls whose router dies, freezes, drains or asks for the request again: whatever happens, the
 * application sees one stream without a gap or a repeat, and a router gets what it needs to go on, to the token. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include "common/clock.h"
#include "client_fixture.h"

/* ---- a router dies ---- */

static void goes_on_at_the_next_router(void **state)
{
    (void)state;
    struct plan one = {.total = 9, .upto = {4}}, two = {.total = 9, .last_text = true};
    struct fake_router *first = start(&one, NULL, CAN), *second = start(&two, NULL, CAN);
    struct client *client = connect_to(first, second);
    struct reply reply;
    struct client_stats stats;
    struct client_call *call =
        ask(client, (struct client_request){.conversation = "c", .seed = 7, .seed_given = true}, &reply);
    wait_until(&reply.tokens[0], 4);
    for (unsigned i = 0; i < 100; i++) /* time passes */
        nap();
    fake_router_stop(&first);
    finish(call, &reply, WIRE_ERROR_UNKNOWN);
    assert_int_equal(reply.tokens[0], 9);
    assert_string_equal(reply.last, " end");
    assert_int_equal(reply.end.moves, 1);
    assert_int_equal(one.count, 1);
    assert_int_equal(request_of(&one, 0)->resume_choices, 0);
    assert_int_equal(two.count, 1);
    assert_resume(&two, 0, 2, 1, (uint32_t[]){4});
    assert_memory_equal(request_of(&one, 0)->id, request_of(&two, 0)->id, WIRE_ID_BYTES);
    assert_string_equal(request_of(&two, 0)->conversation, "c");
    assert_true(request_of(&two, 0)->deadline_ms <= request_of(&one, 0)->deadline_ms - 200);
    assert_true(request_of(&two, 0)->deadline_ms > 5000);
    client_stats(client, &stats);
    assert_int_equal(stats.moves, 1);
    assert_int_equal(stats.resumed, 1);
    assert_int_equal(stats.resends, 0);
    assert_int_equal(stats.dropped, 0);
    assert_int_equal(stats.routers_ready, 1);
    assert_int_equal(stats.routers, 2);
    client_destroy(&client);
    fake_router_stop(&second);
}

static void choices_go_on_each_at_its_own_place(void **state)
{
    (void)state;
    struct plan one = {.total = 6, .choices = 2, .upto = {6, 2}}, two = {.total = 6, .choices = 2};
    struct fake_router *first = start(&one, NULL, CAN), *second = start(&two, NULL, CAN);
    struct client *client = connect_to(first, second);
    struct reply reply;
    struct client_call *call = ask(client, (struct client_request){.sampling.choices = 2}, &reply);
    wait_until(&reply.tokens[0], 6);
    wait_until(&reply.tokens[1], 2);
    fake_router_stop(&first);
    finish(call, &reply, WIRE_ERROR_UNKNOWN);
    assert_int_equal(reply.tokens[0], 6);
    assert_int_equal(reply.tokens[1], 6);
    assert_int_equal(reply.end.choices, 2);
    assert_resume(&two, 0, 2, 2, (uint32_t[]){6, 2});
    client_destroy(&client);
    fake_router_stop(&second);
}

/* A choice without a token has a count of 0. */
static void a_choice_that_has_not_begun(void **state)
{
    (void)state;
    struct plan one = {.total = 6, .choices = 1, .upto = {3}}, two = {.total = 6, .choices = 2};
    struct fake_router *first = start(&one, NULL, CAN), *second = start(&two, NULL, CAN);
    struct client *client = connect_to(first, second);
    struct reply reply;
    struct client_call *call = ask(client, (struct client_request){.sampling.choices = 2}, &reply);
    wait_until(&reply.tokens[0], 3);
    fake_router_stop(&first);
    finish(call, &reply, WIRE_ERROR_UNKNOWN);
    assert_resume(&two, 0, 2, 2, (uint32_t[]){3, 0});
    client_destroy(&client);
    fake_router_stop(&second);
}

/* A worker that has the stream already says it from the start, in the rows that it had. */
static void what_is_there_already_is_dropped(void **state)
{
    (void)state;
    struct plan one = {.total = 9, .upto = {4}, .rows = 2, .prompt = true},
                two = {.total = 9, .from_start = true, .rows = 2, .prompt = true};
    struct fake_router *first = start(&one, NULL, CAN), *second = start(&two, NULL, CAN);
    struct client *client = connect_to(first, second);
    struct reply reply;
    struct client_call *call = ask(client, (struct client_request){.sampling.prompt_logprobs = true}, &reply);
    wait_until(&reply.tokens[0], 4);
    fake_router_stop(&first);
    finish(call, &reply, WIRE_ERROR_UNKNOWN);
    assert_int_equal(reply.tokens[0], 9);
    assert_int_equal(reply.prompt, 10);
    assert_int_equal(client_dropped(client), 3); /* two rows, and the prompt's */
    client_destroy(&client);
    fake_router_stop(&second);
}

static void a_row_that_is_half_there_ends_the_call(void **state)
{
    (void)state;
    struct plan one = {.total = 9, .upto = {4}, .rows = 2}, two = {.total = 9, .from_start = true, .rows = 3};
    struct fake_router *first = start(&one, NULL, CAN), *second = start(&two, NULL, CAN);
    struct client *client = connect_to(first, second);
    struct reply reply;
    struct client_call *call = ask(client, (struct client_request){0}, &reply);
    wait_until(&reply.tokens[0], 4);
    fake_router_stop(&first);
    finish(call, &reply, WIRE_ERROR_INTERNAL);
    assert_int_equal(reply.tokens[0], 4);
    assert_non_null(strstr(reply.detail, "tokens from 3 came, from 4 were due"));
    wait_until(&fake_router_counts(second)->cancels, 1);
    client_destroy(&client);
    fake_router_stop(&second);
}

static void a_router_dies_at_every_moment(void **state)
{
    (void)state;
    const struct plan moments[] = {
        {.total = 0, .no_ack = true},  /* before its ACK */
        {.total = 0},                  /* behind it */
        {.total = 5, .upto = {1}},     /* behind the first token */
        {.total = 5, .no_done = true}, /* behind the last token, before DONE */
    };
    for (size_t i = 0; i < sizeof moments / sizeof *moments; i++) {
        struct plan one = moments[i], two = {.total = 5};
        struct fake_router *first = start(&one, NULL, CAN), *second = start(&two, NULL, CAN);
        struct client *client = connect_to(first, second);
        struct reply reply;
        struct client_call *call = ask(client, (struct client_request){0}, &reply);
        uint32_t came = one.upto[0] ? one.upto[0] : one.total;
        wait_until(&fake_router_counts(first)->requests, 1);
        wait_until(&reply.tokens[0], came);
        for (unsigned j = 0; j < 10; j++) /* the ACK is there too */
            nap();
        fake_router_stop(&first);
        finish(call, &reply, WIRE_ERROR_UNKNOWN);
        assert_int_equal(reply.tokens[0], 5);
        assert_int_equal(two.count, 1);
        if (came > 0) {
            assert_resume(&two, 0, 2, 1, &came);
        } else {
            assert_int_equal(request_of(&two, 0)->attempt.client, 2);
            assert_int_equal(request_of(&two, 0)->resume_choices, 0);
        }
        client_destroy(&client);
        fake_router_stop(&second);
    }
}

/* The first is frozen, then the second; the first wakes up, says what it had to say of its old attempt, and takes the
 * new one. */
static void two_routers_freeze_in_turn(void **state)
{
    (void)state;
    struct plan one = {.total = 9, .upto = {2}}, two = {.total = 9, .upto = {5}};
    struct fake_router *first = start(&one, NULL, CAN), *second = start(&two, NULL, CAN);
    struct client *client = connect_to(first, second);
    struct reply reply;
    struct client_call *call = ask(client, (struct client_request){.deadline_ms = 20000}, &reply);
    wait_until(&reply.tokens[0], 2);
    fake_router_freeze(first);
    wait_until(&reply.tokens[0], 5);
    assert_resume(&two, 0, 2, 1, (uint32_t[]){2});
    one.old_first = true;
    one.upto[0] = 0;
    fake_router_freeze(second);
    fake_router_thaw(first);
    finish(call, &reply, WIRE_ERROR_UNKNOWN);
    assert_int_equal(reply.tokens[0], 9);
    assert_int_equal(reply.end.moves, 2);
    assert_int_equal(one.count, 2);
    assert_resume(&one, 1, 3, 1, (uint32_t[]){5});
    assert_true(client_dropped(client) >= 8); /* of the old attempt */
    client_destroy(&client);
    fake_router_stop(&first);
    fake_router_stop(&second);
}

/* There is only one: it is waited for, whether it is a new process or not. */
static void the_only_router_comes_back(void **state)
{
    (void)state;
    for (unsigned how = 0; how < 2; how++) { /* a new process; a reset connection */
        struct plan plan = {.total = 9, .upto = {4}};
        char endpoint[128];
        struct fake_router *router = start(&plan, NULL, CAN);
        snprintf(endpoint, sizeof endpoint, "%s", fake_router_endpoint(router));
        struct client *client = connect_to(router, NULL);
        struct reply reply;
        struct client_call *call = ask(client, (struct client_request){0}, &reply);
        wait_until(&reply.tokens[0], 4);
        struct plan again = {.total = 9};
        if (how == 0) {
            fake_router_stop(&router);
            for (unsigned i = 0; i < 50; i++)
                nap();
            assert_int_equal(reply.ends, 0);
            router = start(&again, endpoint, CAN);
        } else {
            plan.upto[0] = 0;
            fake_router_freeze(router);
            for (unsigned i = 0; i < 450; i++) /* more than its lease */
                nap();
            fake_router_thaw(router);
        }
        finish(call, &reply, WIRE_ERROR_UNKNOWN);
        assert_int_equal(reply.tokens[0], 9);
        assert_resume(how == 0 ? &again : &plan, how, 2, 1, (uint32_t[]){4});
        client_destroy(&client);
        fake_router_stop(&router);
    }
}

static void a_request_that_routers_die_of_does_not_go_on_for_ever(void **state)
{
    (void)state;
    struct plan plan = {.die = true};
    struct fake_router *router = start(&plan, NULL, CAN);
    struct client *client = connect_to(router, NULL);
    struct reply reply;
    finish(ask(client, (struct client_request){.deadline_ms = 60000}, &reply), &reply, WIRE_ERROR_WORKER_LOST);
    assert_non_null(strstr(reply.detail, "9 routers were lost with this request"));
    assert_non_null(strstr(reply.detail, "died of it"));
    assert_int_equal(reply.end.moves, 8);
    assert_int_equal(plan.count, 9);
    client_destroy(&client);
    fake_router_stop(&router);
}

/* The ACK went down with the control connection, the tokens had come by the other one. */
static void goes_on_without_knowing_the_numerics(void **state)
{
    (void)state;
    struct plan one = {.total = 9, .upto = {4}, .no_ack = true}, two = {.total = 9, .unnamed = true};
    struct fake_router *first = start(&one, NULL, CAN), *second = start(&two, NULL, CAN);
    struct client *client = connect_to(first, second);
    struct reply reply;
    struct client_call *call = ask(client, (struct client_request){0}, &reply);
    wait_until(&reply.tokens[0], 4);
    fake_router_stop(&first);
    finish(call, &reply, WIRE_ERROR_UNKNOWN);
    assert_int_equal(reply.tokens[0], 9);
    assert_resume(&two, 0, 2, 1, (uint32_t[]){4});
    client_destroy(&client);
    fake_router_stop(&second);
}

/* The second router's DONE knows of nothing: only the client knows that the numerics changed. */
static void other_numerics_are_not_forgotten(void **state)
{
    (void)state;
    struct plan one = {.total = 9, .upto = {4}}, two = {.total = 9, .numerics = 0x77};
    for (unsigned same = 0; same < 2; same++) {
        one.count = two.count = 0;
        two.numerics = same ? 0 : 0x77;
        struct fake_router *first = start(&one, NULL, CAN), *second = start(&two, NULL, CAN);
        struct client *client = connect_to(first, second);
        struct reply reply;
        struct client_call *call = ask(client, (struct client_request){.inexact_allowed = true}, &reply);
        wait_until(&reply.tokens[0], 4);
        fake_router_stop(&first);
        finish(call, &reply, WIRE_ERROR_UNKNOWN);
        assert_int_equal(reply.end.inexact, !same);
        client_destroy(&client);
        fake_router_stop(&second);
    }
}

static void routers_of_the_previous_release_cannot_go_on(void **state)
{
    (void)state;
    struct plan one = {.total = 9, .upto = {4}}, two = {.total = 9}, later = {.total = 9};
    char endpoint[128];
    struct fake_router *first = start(&one, NULL, CAN), *second = start(&two, NULL, 0);
    snprintf(endpoint, sizeof endpoint, "%s", fake_router_endpoint(first));
    struct client *client = connect_to(first, second);
    struct reply waits, cannot, other;
    struct client_call *short_one = ask(client, (struct client_request){.deadline_ms = 1500}, &waits);
    struct client_call *long_one = ask(client, (struct client_request){.deadline_ms = 20000}, &cannot);
    wait_until(&waits.tokens[0], 4);
    wait_until(&cannot.tokens[0], 4);
    fake_router_stop(&first);
    finish(ask(client, (struct client_request){0}, &other), &other, WIRE_ERROR_UNKNOWN); /* is not held back */
    assert_int_equal(two.count, 1);
    finish(short_one, &waits, WIRE_ERROR_WORKER_LOST); /* the other might have come back within the deadline */
    assert_int_equal(cannot.ends, 0);
    first = start(&later, endpoint, 0); /* it did, and is of the previous release too */
    finish(long_one, &cannot, WIRE_ERROR_WORKER_LOST);
    assert_non_null(strstr(cannot.detail, "cannot continue"));
    assert_int_equal(later.count + two.count, 1);
    client_destroy(&client);
    fake_router_stop(&first);
    fake_router_stop(&second);
}

/* ---- a router sends the call away ---- */

static void resend_brings_the_tokens_along(void **state)
{
    (void)state;
    struct plan one = {.total = 9, .upto = {4}, .resends = 1}, two = {.total = 9};
    struct fake_router *first = start(&one, NULL, CAN), *second = start(&two, NULL, CAN);
    struct client *client = connect_to(first, second);
    struct reply reply;
    struct client_stats stats;
    finish(ask(client, (struct client_request){0}, &reply), &reply, WIRE_ERROR_UNKNOWN);
    assert_int_equal(reply.tokens[0], 9);
    assert_int_equal(reply.end.moves, 1);
    assert_int_equal(one.count, 2); /* it stays with its router */
    assert_int_equal(two.count, 0);
    assert_resume(&one, 1, 2, 1, (uint32_t[]){4});
    client_stats(client, &stats);
    assert_int_equal(stats.resends, 1);
    assert_int_equal(stats.moves, 0);
    client_destroy(&client);
    fake_router_stop(&first);
    fake_router_stop(&second);
}

/* Though the first of the list is back. */
static void a_call_stays_with_its_router(void **state)
{
    (void)state;
    struct plan one = {.total = 9}, two = {.total = 9, .upto = {4}, .resends = 1, .resend_ms = 1000};
    char endpoint[128];
    struct fake_router *first = start(&one, NULL, CAN), *second = start(&two, NULL, CAN);
    snprintf(endpoint, sizeof endpoint, "%s", fake_router_endpoint(first));
    struct client *client = connect_to(first, second);
    struct reply reply;
    fake_router_stop(&first);
    struct client_call *call = ask(client, (struct client_request){0}, &reply);
    wait_until(&reply.tokens[0], 4);
    first = start(&one, endpoint, CAN);
    wait_until(&fake_router_counts(first)->leases_data, 1);
    finish(call, &reply, WIRE_ERROR_UNKNOWN);
    assert_int_equal(one.count, 0);
    assert_int_equal(two.count, 2);
    client_destroy(&client);
    fake_router_stop(&first);
    fake_router_stop(&second);
}

static void a_draining_router_sends_to_another(void **state)
{
    (void)state;
    struct plan one = {.refuse = "draining: use another router"}, two = {.total = 3};
    struct fake_router *first = start(&one, NULL, CAN), *second = start(&two, NULL, CAN);
    struct client *client = connect_to(first, second);
    struct reply reply;
    for (unsigned i = 0; i < 3; i++) {
        finish(ask(client, (struct client_request){0}, &reply), &reply, WIRE_ERROR_UNKNOWN);
        assert_int_equal(reply.end.moves, i == 0);
    }
    assert_int_equal(one.count, 1);
    assert_int_equal(two.count, 3);
    two.refuse = "as full as it gets"; /* that is the application's business */
    finish(ask(client, (struct client_request){0}, &reply), &reply, WIRE_ERROR_OVER_CAPACITY);
    assert_string_equal(reply.detail, "as full as it gets");
    client_destroy(&client);
    fake_router_stop(&first);
    fake_router_stop(&second);
}

static void a_cancel_goes_through_another_router(void **state)
{
    (void)state;
    struct plan one = {.total = 9, .upto = {4}}, two = {.total = 9};
    struct fake_router *first = start(&one, NULL, CAN), *second = start(&two, NULL, CAN);
    struct client *client = connect_to(first, second);
    struct reply reply;
    struct client_call *call = ask(client, (struct client_request){0}, &reply);
    wait_until(&reply.tokens[0], 4);
    client_cancel(call);
    wait_until(&fake_router_counts(first)->cancels, 1); /* which does not answer */
    uint64_t lost_ms = clock_now_ms();
    fake_router_stop(&first);
    finish(call, &reply, WIRE_ERROR_CANCELLED);
    assert_true(clock_now_ms() - lost_ms < 1900); /* not the 2 s of a cancel that nobody confirms */
    wait_until(&two.cancels, 1);
    assert_int_equal(two.count, 0);
    assert_int_equal(two.cancel.client, 1);
    assert_int_equal(two.cancel.router, UINT32_MAX);
    client_destroy(&client);
    fake_router_stop(&second);
}

/* It was sent and waits for a router: there may be work to stop. */
static void a_waiting_call_is_cancelled_where_it_can(void **state)
{
    (void)state;
    struct plan one = {.total = 9, .upto = {4}};
    struct fake_router *router = start(&one, NULL, CAN);
    struct client *client = connect_to(router, NULL);
    struct reply reply;
    struct client_call *call = ask(client, (struct client_request){.deadline_ms = 60000}, &reply);
    wait_until(&reply.tokens[0], 4);
    fake_router_stop(&router);
    for (unsigned i = 0; i < 50; i++)
        nap();
    uint64_t asked_ms = clock_now_ms();
    client_cancel(call);
    finish(call, &reply, WIRE_ERROR_CANCELLED);
    assert_in_range(clock_now_ms() - asked_ms, 1900, 20000); /* 2 s, and not its deadline */
    client_destroy(&client);
}

static void clients_spread_over_the_routers(void **state)
{
    (void)state;
    struct plan one = {.total = 1}, two = {.total = 1};
    struct fake_router *first = start(&one, NULL, CAN), *second = start(&two, NULL, CAN);
    const char *endpoints[] = {fake_router_endpoint(first), fake_router_endpoint(second)};
    for (unsigned i = 0; i < 24 && (one.count == 0 || two.count == 0); i++) { /* all at one: 1 in 8 million */
        struct client *client;
        struct reply reply;
        assert_int_equal(client_create(&(struct client_config){.routers = endpoints, .router_count = 2}, &client),
                         STATUS_OK);
        wait_until(&fake_router_counts(first)->leases_data, i + 1);
        wait_until(&fake_router_counts(second)->leases_data, i + 1);
        finish(ask(client, (struct client_request){0}, &reply), &reply, WIRE_ERROR_UNKNOWN);
        client_destroy(&client);
    }
    assert_true(one.count > 0 && two.count > 0);
    fake_router_stop(&first);
    fake_router_stop(&second);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(goes_on_at_the_next_router),
        cmocka_unit_test(choices_go_on_each_at_its_own_place),
        cmocka_unit_test(a_choice_that_has_not_begun),
        cmocka_unit_test(what_is_there_already_is_dropped),
        cmocka_unit_test(a_row_that_is_half_there_ends_the_call),
        cmocka_unit_test(a_router_dies_at_every_moment),
        cmocka_unit_test(two_routers_freeze_in_turn),
        cmocka_unit_test(the_only_router_comes_back),
        cmocka_unit_test(a_request_that_routers_die_of_does_not_go_on_for_ever),
        cmocka_unit_test(goes_on_without_knowing_the_numerics),
        cmocka_unit_test(other_numerics_are_not_forgotten),
        cmocka_unit_test(routers_of_the_previous_release_cannot_go_on),
        cmocka_unit_test(resend_brings_the_tokens_along),
        cmocka_unit_test(a_call_stays_with_its_router),
        cmocka_unit_test(a_draining_router_sends_to_another),
        cmocka_unit_test(a_cancel_goes_through_another_router),
        cmocka_unit_test(a_waiting_call_is_cancelled_where_it_can),
        cmocka_unit_test(clients_spread_over_the_routers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
