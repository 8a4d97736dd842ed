#include "client_fixture.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "common/clock.h"

/* Token i of choice c; its text is one letter. */
static uint32_t id_of(unsigned choice, uint32_t token)
{
    return 1000 * choice + token;
}
static char letter_of(unsigned choice, uint32_t token)
{
    return (char)((choice ? 'A' : 'a') + token % 26);
}

/* ---- what a call delivers ---- */

static void on_tokens(void *user, struct client_call *call, const struct client_tokens *tokens)
{
    struct reply *reply = user;
    (void)call;
    if (tokens->choice >= CHOICES_MAX || tokens->first != reply->tokens[tokens->choice]) {
        reply->wrong = "a gap, a repeat or no choice";
        return;
    }
    for (unsigned i = 0; i < tokens->count; i++) {
        if (tokens->ids[i] != id_of(tokens->choice, tokens->first + i))
            reply->wrong = "ids";
        if (i >= tokens->text_size || tokens->text[i] != letter_of(tokens->choice, tokens->first + i))
            reply->wrong = "text";
    }
    if (tokens->count == 0)
        snprintf(reply->last + strlen(reply->last), sizeof reply->last - strlen(reply->last), "%.*s",
                 (int)tokens->text_size, tokens->text);
    unsigned unread = atomic_fetch_add(&reply->unread, tokens->count) + tokens->count;
    if (unread > reply->unread_max)
        reply->unread_max = unread;
    atomic_fetch_add(&reply->tokens[tokens->choice], tokens->count);
}

static void on_prompt(void *user, struct client_call *call, const struct client_tokens *tokens)
{
    struct reply *reply = user;
    (void)call;
    if (tokens->first != reply->prompt)
        reply->wrong = "the prompt";
    atomic_fetch_add(&reply->prompt, tokens->count);
}

static void on_end(void *user, struct client_call *call, const struct client_end *end)
{
    struct reply *reply = user;
    (void)call;
    reply->end = *end;
    snprintf(reply->detail, sizeof reply->detail, "%s", end->detail);
    atomic_fetch_add(&reply->ends, 1);
}

void nap(void)
{
    nanosleep(&(struct timespec){0, 2000000}, NULL);
}

void wait_until(atomic_uint *counter, unsigned at_least)
{
    uint64_t give_up = clock_now_ms() + 10000;
    for (; atomic_load(counter) < at_least; nap())
        if (clock_now_ms() > give_up)
            fail_msg("a counter stays at %u instead of %u", atomic_load(counter), at_least);
}

struct client_call *ask(struct client *client, struct client_request request, struct reply *reply)
{
    static const struct client_callbacks callbacks = {on_tokens, on_end, on_prompt};
    static const struct client_message message = {WIRE_MESSAGE_USER, NULL, "To be?", 6};
    struct client_call *call = NULL;
    memset(reply, 0, sizeof *reply);
    request.messages = &message;
    request.message_count = 1;
    request.deadline_ms = request.deadline_ms ? request.deadline_ms : 10000;
    if (client_generate(client, &request, &callbacks, reply, &call) != STATUS_OK)
        fail_msg("%s", status_detail());
    return call;
}

void finish(struct client_call *call, struct reply *reply, enum wire_error_code expected)
{
    enum wire_error_code error;
    assert_int_equal(client_wait(call, &error), STATUS_OK);
    if (error != expected || reply->wrong)
        fail_msg("ended with %s (%s) instead of %s; wrong: %s", wire_error_name(error), reply->detail,
                 wire_error_name(expected), reply->wrong ? reply->wrong : "nothing");
    assert_int_equal(reply->ends, 1);
    client_call_release(&call);
}

/* ---- what a fake router does with a request ---- */

static void send_rows(struct fake_router *router, const struct fake_request *request, const struct plan *plan,
                      unsigned choice, uint32_t first, uint32_t end)
{
    for (uint32_t at = first, count; at < end; at += count) {
        uint32_t ids[16];
        uint8_t text[16];
        count = plan->rows ? plan->rows : 1;
        if (count > end - at)
            count = end - at;
        for (uint32_t i = 0; i < count; i++) {
            ids[i] = id_of(choice, at + i);
            text[i] = (uint8_t)letter_of(choice, at + i);
        }
        fake_send_row(router, request,
                      (struct wire_tokens_row){.choice = (uint16_t)choice,
                                               .first = at,
                                               .count = (uint16_t)count,
                                               .ids = wire_span_of(ids, 4 * (size_t)count),
                                               .text = wire_span_of(text, count)});
    }
}

static void send_done(struct fake_router *router, const struct fake_request *request, const struct plan *plan)
{
    static const uint8_t finish[CHOICES_MAX] = {WIRE_FINISH_LENGTH, WIRE_FINISH_LENGTH};
    fake_send_done_of(router, request, wire_span_of(finish, plan->choices), plan->total * plan->choices);
}

/* As far as the credit goes. */
static void send_within_credit(struct fake_router *router, struct plan *plan)
{
    const struct fake_request *request = &plan->requests[plan->count - 1];
    uint64_t credit = fake_credit(router, request);
    if (credit < 8) /* the window of these tests */
        credit = 8;
    while (plan->open && plan->sent < plan->total && plan->sent < credit) {
        send_rows(router, request, plan, 0, plan->sent, plan->sent + 1);
        plan->sent++;
    }
    if (plan->open && plan->sent == plan->total) {
        plan->open = false;
        send_done(router, request, plan);
    }
}

static void send_prompt(struct fake_router *router, const struct fake_request *request)
{
    uint32_t ids[10] = {0};
    float values[10] = {0};
    fake_send_row(router, request,
                  (struct wire_tokens_row){.choice = WIRE_CHOICE_PROMPT,
                                           .count = 10,
                                           .ids = wire_span_of(ids, sizeof ids),
                                           .logprobs = wire_span_of(values, sizeof values)});
}

static void resend(struct fake_router *router, const struct fake_request *request)
{
    fake_send_ref(router, request, WIRE_RESEND);
}

static void serve(struct fake_router *router, const struct fake_request *request, struct plan *plan)
{
    const char *refuse = plan->refuse;
    if (refuse) {
        struct wire_message error = {.kind = WIRE_ERROR};
        error.error = (struct wire_error){.request_id = wire_span_of(request->id, WIRE_ID_BYTES),
                                          .stream = request->stream,
                                          .attempt = request->attempt,
                                          .code = WIRE_ERROR_OVER_CAPACITY,
                                          .detail = wire_span_str(refuse)};
        fake_send(router, request, false, &error);
        return;
    }
    if (plan->die) {
        struct wire_message error = {.kind = WIRE_ERROR};
        error.error = (struct wire_error){.code = WIRE_ERROR_INTERNAL, .detail = wire_span_str("died of it")};
        fake_send(router, request, false, &error);
        return;
    }
    if (plan->old_first) {
        struct fake_request old = *request; /* what a router that slept says of the attempt that it had */
        old.stream = plan->requests[0].stream;
        old.attempt = plan->requests[0].attempt;
        send_rows(router, &old, plan, 0, plan->upto[0], plan->total);
        send_done(router, &old, plan);
    }
    if (!plan->no_ack)
        fake_send_ack(router, request);
    if (plan->total == 0)
        return;
    if (plan->credit) {
        plan->sent = request->resume_choices ? request->resume_counts[0] : 0;
        plan->open = true;
        send_within_credit(router, plan);
        return;
    }
    if (plan->prompt)
        send_prompt(router, request);
    bool whole = true;
    for (unsigned i = 0; i < plan->choices; i++) {
        uint32_t first = request->resume_choices ? request->resume_counts[i] : 0;
        uint32_t end = plan->upto[i] ? plan->upto[i] : plan->total;
        send_rows(router, request, plan, i, plan->from_start ? 0 : first, end);
        whole = whole && end == plan->total;
    }
    if (plan->resends > 0) {
        plan->resends--;
        plan->upto[0] = 0;
        if (plan->resend_ms > 0)
            fake_later(router, plan->resend_ms, resend, request);
        else
            resend(router, request);
        return;
    }
    if (whole && plan->last_text)
        fake_send_row(router, request, (struct wire_tokens_row){.first = plan->total, .text = wire_span_str(" end")});
    if (whole && !plan->no_done)
        send_done(router, request, plan);
}

static void on_request(void *user, struct fake_router *router, const struct fake_request *request)
{
    struct plan *plan = user;
    if (plan->count < REQUESTS_MAX) {
        plan->requests[plan->count] = *request;
        atomic_fetch_add(&plan->count, 1);
    }
    serve(router, request, plan);
}

static void on_cancel(void *user, struct fake_router *router, const struct wire_cancel *cancel)
{
    struct plan *plan = user;
    (void)router;
    plan->cancel = cancel->attempt;
    atomic_fetch_add(&plan->cancels, 1);
}

static void on_lease(void *user, struct fake_router *router, const struct wire_lease *lease)
{
    struct plan *plan = user;
    if (lease->credit_connection_bytes > plan->bytes_credit_max)
        plan->bytes_credit_max = lease->credit_connection_bytes;
    if (plan->open)
        send_within_credit(router, plan);
}

struct fake_router *start(struct plan *plan, const char *endpoint, uint32_t capabilities)
{
    struct fake_router *router;
    if (plan->choices == 0)
        plan->choices = 1;
    fake_router_start(&(struct fake_router_config){.on_request = on_request,
                                                   .on_cancel = on_cancel,
                                                   .on_lease = on_lease,
                                                   .user = plan,
                                                   .control_endpoint = endpoint,
                                                   .capabilities = capabilities,
                                                   .numerics = plan->numerics ? plan->numerics : 0x5a,
                                                   .limits = {.stream_credit_tokens = 8}},
                      &router);
    return router;
}

/* Two routers are ready and taken in this order; or one. */
struct client *connect_to(struct fake_router *first, struct fake_router *second)
{
    const char *endpoints[] = {fake_router_endpoint(first), second ? fake_router_endpoint(second) : NULL};
    struct client *client = NULL;
    if (client_create(&(struct client_config){.routers = endpoints, .router_count = second ? 2 : 1, .keep_order = true},
                      &client) != STATUS_OK)
        fail_msg("%s", status_detail());
    wait_until(&fake_router_counts(first)->leases_data, 1);
    if (second)
        wait_until(&fake_router_counts(second)->leases_data, 1);
    return client;
}

const struct fake_request *request_of(struct plan *plan, unsigned number)
{
    wait_until(&plan->count, number + 1);
    return &plan->requests[number];
}

/* The request asks to go on behind these tokens of each choice. */
void assert_resume(struct plan *plan, unsigned number, unsigned attempt, unsigned choices, const uint32_t *counts)
{
    const struct fake_request *request = request_of(plan, number);
    uint8_t numerics[32];
    uint32_t at = 0;
    memset(numerics, plan->unnamed ? 0 : 0x5a, sizeof numerics);
    assert_int_equal(request->attempt.client, attempt);
    assert_int_equal(request->attempt.router, 0);
    assert_int_equal(request->resume_choices, choices);
    for (unsigned i = 0; i < choices; i++) {
        assert_int_equal(request->resume_counts[i], counts[i]);
        for (uint32_t j = 0; j < counts[i]; j++)
            assert_int_equal(request->resume_ids[at++], id_of(i, j));
    }
    assert_int_equal(request->resume_total, at);
    if (plan->unnamed || request->numerics_id[0] != 0) /* none: the ACK had not come yet */
        assert_memory_equal(request->numerics_id, numerics, sizeof numerics);
}
