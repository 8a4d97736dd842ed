/* The client library: its thread, and what applications call. The drawing and the invariants are in client_internal.h.
 */
#include "proto/client.h"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>
#include <zmq.h>
#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/loop.h"
#include "proto/client_internal.h"
#include "proto/client_link.h"

#define ROUTERS_MAX 64u
#define TICK_MS     50u
#define FAREWELL_MS 20u /* lets ZeroMQ's thread write the CANCELs and the GOAWAY of client_destroy */

/* ---- the thread ---- */

static void on_commands(void *user)
{
    struct client *client = user;
    struct client_call *new_calls, *cancels, *consumers, *call, *next;
    pthread_mutex_lock(&client->lock);
    new_calls = client->new_calls;
    cancels = client->cancels;
    consumers = client->consumers;
    client->new_calls = client->cancels = client->consumers = NULL;
    pthread_mutex_unlock(&client->lock);
    DL_FOREACH_SAFE(new_calls, call, next)
    {
        DL_DELETE(new_calls, call);
        call->state = CALL_WAITING;
        DL_APPEND(client->waiting, call);
        client->dispatch_wanted = true;
    }
    DL_FOREACH_SAFE2(cancels, call, next, cancel_next)
    {
        DL_DELETE2(cancels, call, cancel_prev, cancel_next);
        call_cancel(call);
        call_unref(call);
    }
    DL_FOREACH_SAFE2(consumers, call, next, consumers_next)
    {
        DL_DELETE2(consumers, call, consumers_prev, consumers_next);
        pthread_mutex_lock(&call->lock);
        call->consumed_queued = false;
        pthread_mutex_unlock(&call->lock);
        call_grant(call);
        call_unref(call);
    }
}

static void call_expire(struct client_call *call, uint64_t now_ms)
{
    if (call->cancelled && now_ms >= call->cancel_at_ms) {
        call_end_error(call, WIRE_ERROR_CANCELLED, "cancelled; the router did not confirm it");
    } else if (call_age_ms(call, now_ms) >= call->deadline_ms) {
        bool stranded = call->state == CALL_WAITING && call->released_total > 0;
        const char *detail = "the deadline passed";
        if (call->state == CALL_WAITING) {
            detail = stranded ? "no router came back to continue the reply"
                              : "the deadline passed before a router took the request";
            for (unsigned i = 0; i < call->client->router_count; i++)
                if (*client_link_trouble(call->client->routers[i].link))
                    detail = client_link_trouble(call->client->routers[i].link);
        }
        (void)call_send_cancel(call);
        call_end_error(call, stranded ? WIRE_ERROR_WORKER_LOST : WIRE_ERROR_DEADLINE, detail);
    }
}

static void on_tick(void *user)
{
    struct client *client = user;
    struct client_call *call, *next;
    uint64_t now_ms = loop_now_ms(client->loop);
    /* After a stall of our own what arrived meanwhile is read first: silence is judged at the next tick. */
    bool expire = now_ms - client->last_tick_ms <= 4 * TICK_MS && loop_stall_ms(client->loop) <= 4 * TICK_MS;
    client->last_tick_ms = now_ms;
    for (unsigned i = 0; i < client->router_count; i++)
        client_link_tick(client->routers[i].link, now_ms, expire);
    DL_FOREACH_SAFE(client->waiting, call, next)
    call_expire(call, now_ms);
    HASH_ITER(hh, client->sent, call, next)
    call_expire(call, now_ms);
    client->dispatch_wanted = true; /* a send that failed for want of room is tried again */
}

static void on_turn_end(void *user)
{
    struct client *client = user;
    if (client->dispatch_wanted)
        calls_dispatch(client);
    for (unsigned i = 0; i < client->router_count; i++)
        client_link_flush(client->routers[i].link);
}

static void on_farewell(void *user)
{
    struct client *client = user;
    loop_stop(client->loop);
}

static void on_stop(void *user)
{
    struct client *client = user;
    struct client_call *call, *next;
    bool said = false;
    pthread_mutex_lock(&client->lock);
    client->stopping = true;
    pthread_mutex_unlock(&client->lock);
    on_commands(client);
    DL_FOREACH_SAFE(client->waiting, call, next)
    {
        (void)call_send_cancel(call);
        call_end_error(call, WIRE_ERROR_CANCELLED, "the client was destroyed");
    }
    HASH_ITER(hh, client->sent, call, next)
    {
        (void)call_send_cancel(call);
        call_end_error(call, WIRE_ERROR_CANCELLED, "the client was destroyed");
    }
    for (unsigned i = 0; i < client->router_count; i++) {
        if (client->routers[i].link && client_link_ready(client->routers[i].link)) {
            client_link_say_goodbye(client->routers[i].link);
            said = true;
        }
    }
    if (!said ||
        loop_timer_create(client->loop, FAREWELL_MS, false, on_farewell, client, &client->farewell_timer) != STATUS_OK)
        loop_stop(client->loop);
}

static enum status thread_open(struct client *client)
{
    TRY(loop_hook_create(client->loop, on_turn_end, client, &client->hook));
    TRY(loop_timer_create(client->loop, TICK_MS, true, on_tick, client, &client->tick_timer));
    client->last_tick_ms = loop_now_ms(client->loop);
    for (unsigned i = 0; i < client->router_count; i++) {
        struct client_link_config config = {
            .loop = client->loop,
            .zmq_context = client->zmq_context,
            .endpoint = client->endpoints[i],
            .name = client->name,
            .session = client->session,
            .on_ready = calls_on_ready,
            .on_lost = calls_on_lost,
            .on_message = calls_on_message,
            .on_lease = calls_on_lease,
            .on_dropped = calls_on_dropped,
            .user = client,
        };
        TRY(client_link_create(&config, &client->routers[i].link));
    }
    return STATUS_OK;
}

static void *thread_main(void *user)
{
    struct client *client = user;
    enum status st = thread_open(client);
    pthread_mutex_lock(&client->lock);
    client->start_status = st;
    if (st != STATUS_OK)
        snprintf(client->start_detail, sizeof client->start_detail, "%s", status_detail());
    client->started = true;
    pthread_cond_signal(&client->started_signal);
    pthread_mutex_unlock(&client->lock);
    if (st == STATUS_OK && loop_run(client->loop) != STATUS_OK) {
        LOG_ERROR("the client's loop failed: %s", status_detail());
        on_stop(client); /* nobody waits for ever */
    }
    for (unsigned i = 0; i < client->router_count; i++)
        client_link_destroy(&client->routers[i].link);
    loop_timer_destroy(&client->farewell_timer);
    loop_timer_destroy(&client->tick_timer);
    loop_hook_destroy(&client->hook);
    return NULL;
}

/* ---- what applications call ---- */

static enum status copy_name(const char *from, const char *fallback, char to[WIRE_NAME_MAX + 1], const char *what)
{
    const char *name = from ? from : fallback;
    if (!wire_name_valid(wire_span_str(name)))
        return STATUS_FAIL(STATUS_INVALID, "the %s must have 1 to %u characters of A-Z a-z 0-9 . _ : -", what,
                           WIRE_NAME_MAX);
    memcpy(to, name, strlen(name) + 1);
    return STATUS_OK;
}

static void client_free(struct client *client)
{
    loop_destroy(&client->loop);
    if (client->zmq_context)
        zmq_ctx_term(client->zmq_context);
    for (unsigned i = 0; client->endpoints && i < client->router_count; i++)
        free(client->endpoints[i]);
    free(client->endpoints);
    free(client->routers);
    free(client->columns);
    free(client->credit_streams);
    free(client->credit_tokens);
    pthread_mutex_destroy(&client->lock);
    pthread_cond_destroy(&client->started_signal);
    free(client);
}

/* The library's thread leaves all signals to the application. */
static enum status start_thread(struct client *client)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&client->thread, NULL, thread_main, client);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0)
        return STATUS_FAIL(STATUS_IO, "no thread for the client: %s", strerror(error));
    pthread_mutex_lock(&client->lock);
    while (!client->started)
        pthread_cond_wait(&client->started_signal, &client->lock);
    pthread_mutex_unlock(&client->lock);
    if (client->start_status != STATUS_OK) {
        pthread_join(client->thread, NULL);
        return STATUS_FAIL(client->start_status, "%s", client->start_detail);
    }
    return STATUS_OK;
}

enum status client_create(const struct client_config *config, struct client **out)
{
    enum status st;
    if (config->router_count == 0 || config->router_count > ROUTERS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "%u routers: 1 to %u can be given", config->router_count, ROUTERS_MAX);
    TRY(hash_setup());
    struct client *client = calloc(1, sizeof *client);
    if (!client)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a client");
    pthread_mutex_init(&client->lock, NULL);
    pthread_cond_init(&client->started_signal, NULL);
    TRY_GOTO(copy_name(config->tenant, "default", client->tenant, "tenant"), st, fail);
    TRY_GOTO(copy_name(config->name, "client", client->name, "name"), st, fail);
    client->router_count = config->router_count;
    client->routers = calloc(client->router_count, sizeof *client->routers);
    client->endpoints = calloc(client->router_count, sizeof *client->endpoints);
    client->columns = malloc(WIRE_TOKENS_BYTES_MAX);
    client->credit_streams = malloc(CREDIT_ROWS_MAX * sizeof *client->credit_streams);
    client->credit_tokens = malloc(CREDIT_ROWS_MAX * sizeof *client->credit_tokens);
    st = STATUS_NO_MEMORY;
    if (!client->routers || !client->endpoints || !client->columns || !client->credit_streams || !client->credit_tokens)
        goto no_memory;
    for (unsigned i = 0; i < client->router_count; i++)
        if (!(client->endpoints[i] = strdup(config->routers[i])))
            goto no_memory;
    hash_random(client->session, sizeof client->session);
    hash_random(&client->first_router, sizeof client->first_router);
    client->first_router = config->keep_order ? 0 : client->first_router % client->router_count;
    client->zmq_context = zmq_ctx_new();
    if (!client->zmq_context)
        goto no_memory;
    TRY_GOTO(loop_create(&client->loop), st, fail);
    TRY_GOTO(start_thread(client), st, fail);
    *out = client;
    return STATUS_OK;
no_memory:
    (void)STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a client");
fail:
    client_free(client);
    return st;
}

void client_destroy(struct client **client_pointer)
{
    struct client *client = *client_pointer;
    if (!client)
        return;
    while (loop_post(client->loop, on_stop, client) != STATUS_OK)
        ; /* no memory for 24 bytes: there will be some */
    pthread_join(client->thread, NULL);
    struct client_call *call, *next; /* of calls that ended meanwhile */
    DL_FOREACH_SAFE2(client->cancels, call, next, cancel_next)
    {
        DL_DELETE2(client->cancels, call, cancel_prev, cancel_next);
        call_unref(call);
    }
    DL_FOREACH_SAFE2(client->consumers, call, next, consumers_next)
    {
        DL_DELETE2(client->consumers, call, consumers_prev, consumers_next);
        call_unref(call);
    }
    client_free(client);
    *client_pointer = NULL;
}

static enum status encode_body(struct client *client, const struct client_request *request, struct client_call *call)
{
    enum status st = STATUS_OK;
    struct wire_message body = {.kind = WIRE_BODY};
    if (request->message_count > WIRE_MESSAGES_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "%u messages, at most %u are allowed", request->message_count,
                           WIRE_MESSAGES_MAX);
    struct wire_chat_message *messages = calloc(request->message_count + 1u, sizeof *messages);
    if (!messages)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for %u messages", request->message_count);
    for (unsigned i = 0; i < request->message_count; i++) {
        messages[i].role = request->messages[i].role;
        messages[i].name = wire_span_str(request->messages[i].name);
        messages[i].text = wire_span_of(request->messages[i].text, request->messages[i].text_size);
    }
    body.body.messages = messages;
    body.body.message_count = request->message_count;
    body.body.prompt_ids = wire_span_of(request->prompt_ids, 4 * (size_t)request->prompt_id_count);
    body.body.sampling = request->sampling;
    body.body.reply_name = wire_span_str(request->reply_name);
    body.body.truncate = request->truncate;
    TRY_GOTO(wire_validate(&body), st, done);

    pthread_mutex_lock(&client->lock);
    struct wire_limits limits = client->limits; /* zeroes before the first WELCOME */
    pthread_mutex_unlock(&client->lock);
    size_t size = wire_encoded_size(&body),
           size_max = limits.body_bytes_max ? limits.body_bytes_max : WIRE_BODY_BYTES_MAX;
    if (size > size_max)
        st = STATUS_FAIL(STATUS_LIMIT, "the body has %zu bytes, at most %zu are allowed", size, size_max);
    else if (limits.messages_max && request->message_count > limits.messages_max)
        st = STATUS_FAIL(STATUS_LIMIT, "%u messages, the router takes %u", request->message_count, limits.messages_max);
    else if (limits.prompt_tokens_max && request->prompt_id_count > limits.prompt_tokens_max)
        st = STATUS_FAIL(STATUS_LIMIT, "%u prompt ids, the router takes %u", request->prompt_id_count,
                         limits.prompt_tokens_max);
    else if (!(call->body = malloc(size)))
        st = STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a body of %zu bytes", size);
    if (st == STATUS_OK)
        call->body_size = wire_encode(&body, call->body);
done:
    free(messages);
    return st;
}

/* The same rules that the router applies to a head. */
static enum status check_head(const struct client *client, const struct client_call *call,
                              const struct client_request *request)
{
    struct wire_message head = {.kind = WIRE_HEAD};
    head.head = (struct wire_head){
        .request_id = wire_span_of(call->request_id, WIRE_ID_BYTES),
        .session = wire_span_of(client->session, WIRE_ID_BYTES),
        .tenant = wire_span_str(client->tenant),
        .conversation = wire_span_str(request->conversation),
        .model = wire_span_str(request->model),
        .deadline_ms = request->deadline_ms,
        .priority = request->priority,
    };
    return wire_validate(&head);
}

enum status client_generate(struct client *client, const struct client_request *request,
                            const struct client_callbacks *callbacks, void *user, struct client_call **out)
{
    enum status st;
    struct client_call *call = calloc(1, sizeof *call);
    if (!call)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a call");
    pthread_mutex_init(&call->lock, NULL);
    pthread_cond_init(&call->ended_signal, NULL);
    atomic_init(&call->refs, 1);
    call->client = client;
    if (request->request_id)
        memcpy(call->request_id, request->request_id, WIRE_ID_BYTES);
    else
        hash_random(call->request_id, WIRE_ID_BYTES);
    TRY_GOTO(check_head(client, call, request), st, fail);
    TRY_GOTO(encode_body(client, request, call), st, fail);
    snprintf(call->conversation, sizeof call->conversation, "%s", request->conversation ? request->conversation : "");
    snprintf(call->model, sizeof call->model, "%s", request->model ? request->model : "");
    call->deadline_ms = request->deadline_ms ? request->deadline_ms : WIRE_DEADLINE_MS_DEFAULT;
    call->priority = request->priority;
    call->seed = request->seed;
    call->seed_given = request->seed_given;
    call->message_count = request->message_count;
    call->prompt_ids = request->prompt_id_count;
    call->choices = request->sampling.choices ? request->sampling.choices : 1;
    call->prompt_logprobs = request->sampling.prompt_logprobs;
    call->inexact_allowed = request->inexact_allowed;
    call->credit_tokens = request->credit_tokens;
    if (callbacks)
        call->callbacks = *callbacks;
    call->user = user;
    call->start_ms = clock_now_ms();
    *out = call; /* before the callbacks can run */
    atomic_store(&call->refs, 2);

    pthread_mutex_lock(&client->lock);
    st = client->stopping ? STATUS_FAIL(STATUS_CLOSED, "the client is being destroyed")
                          : loop_post(client->loop, on_commands, client);
    if (st == STATUS_OK)
        DL_APPEND(client->new_calls, call); /* on_commands waits for the lock */
    pthread_mutex_unlock(&client->lock);
    if (st == STATUS_OK)
        return STATUS_OK;
    *out = NULL;
    call_unref(call);
fail:
    call_unref(call);
    return st;
}

void client_cancel(struct client_call *call)
{
    pthread_mutex_lock(&call->lock);
    if (!call->ended && !call->cancel_queued) {
        struct client *client = call->client;
        pthread_mutex_lock(&client->lock);
        DL_APPEND2(client->cancels, call, cancel_prev, cancel_next);
        if (loop_post(client->loop, on_commands, client) == STATUS_OK) {
            call->cancel_queued = true;
            atomic_fetch_add(&call->refs, 1);
        } else {
            DL_DELETE2(client->cancels, call, cancel_prev, cancel_next); /* no memory: the caller may ask again */
        }
        pthread_mutex_unlock(&client->lock);
    }
    pthread_mutex_unlock(&call->lock);
}

void client_consumed(struct client_call *call, uint32_t tokens)
{
    uint64_t consumed = atomic_fetch_add(&call->consumed, tokens) + tokens;
    if (call->credit_tokens == 0 || consumed - atomic_load(&call->consumed_told) < credit_step(call->credit_tokens))
        return;
    pthread_mutex_lock(&call->lock);
    if (!call->ended && !call->consumed_queued) {
        struct client *client = call->client;
        pthread_mutex_lock(&client->lock);
        if (loop_post(client->loop, on_commands, client) == STATUS_OK) { /* no memory: the next one asks again */
            DL_APPEND2(client->consumers, call, consumers_prev, consumers_next);
            call->consumed_queued = true;
            atomic_fetch_add(&call->refs, 1);
        }
        pthread_mutex_unlock(&client->lock);
    }
    pthread_mutex_unlock(&call->lock);
}

enum status client_wait(struct client_call *call, enum wire_error_code *error)
{
    pthread_mutex_lock(&call->lock);
    while (!call->ended)
        pthread_cond_wait(&call->ended_signal, &call->lock);
    if (error)
        *error = call->error;
    pthread_mutex_unlock(&call->lock);
    return STATUS_OK;
}

void client_call_release(struct client_call **call)
{
    if (*call)
        call_unref(*call);
    *call = NULL;
}

const uint8_t *client_call_request_id(const struct client_call *call)
{
    return call->request_id;
}

void client_stats(struct client *client, struct client_stats *out)
{
    *out = (struct client_stats){
        .dropped = atomic_load(&client->dropped),
        .moves = atomic_load(&client->moves),
        .resends = atomic_load(&client->resends),
        .resumed = atomic_load(&client->resumed),
        .routers_ready = atomic_load(&client->routers_ready),
        .routers = client->router_count,
    };
}

uint64_t client_dropped(const struct client *client)
{
    return atomic_load(&client->dropped);
}
