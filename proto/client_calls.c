/* The life of a call on the background thread: sent, answered, sent again, ended. The drawing and the invariants are in
 * client_internal.h. */
#include "proto/client_internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>
#include "common/log.h"
#include "common/loop.h"
#include "proto/client_link.h"

#define CANCEL_WAIT_MS 2000u /* for the router's terminal after a CANCEL, or for a router that takes the CANCEL */
#define LOSSES_MAX     8u    /* routers lost with a call without a token in between: it may be what they die of */

/* ---- calls ---- */

void call_unref(struct client_call *call)
{
    if (atomic_fetch_sub(&call->refs, 1) != 1)
        return;
    pthread_mutex_destroy(&call->lock);
    pthread_cond_destroy(&call->ended_signal);
    call_free_ids(call);
    free(call->body);
    free(call);
}

void call_acknowledge(struct client_call *call)
{
    if (call->state != CALL_SENT || call->acknowledged)
        return;
    call->acknowledged = true;
    call->router->unacknowledged -= call->body_size;
    client_link_set_busy(call->router->link, call->router->unacknowledged > 0);
    call->client->dispatch_wanted = true;
}

/* Takes the call out of the list or table that its state names. */
static void call_detach(struct client_call *call)
{
    struct client *client = call->client;
    if (call->state == CALL_WAITING) {
        DL_DELETE(client->waiting, call);
    } else if (call->state == CALL_SENT) {
        call_acknowledge(call);
        call->router->stream_count--;
        call->router = NULL;
        HASH_DEL(client->sent, call);
        client->dispatch_wanted = true;
    }
    call->state = CALL_NEW;
}

void call_end(struct client_call *call, struct client_end *end)
{
    call_detach(call);
    call->state = CALL_ENDED;
    end->moves = call->attempt_client > 0 ? call->attempt_client - 1 : 0;
    if (call->callbacks.on_end)
        call->callbacks.on_end(call->user, call, end);
    pthread_mutex_lock(&call->lock);
    call->ended = true;
    call->error = end->error;
    pthread_cond_broadcast(&call->ended_signal);
    pthread_mutex_unlock(&call->lock);
    call_unref(call);
}

void call_end_error(struct client_call *call, enum wire_error_code code, const char *detail)
{
    struct client_end end = {.error = code, .detail = detail, .worker = "", .route = ""};
    call_end(call, &end);
}

static void call_wait_again(struct client_call *call)
{
    struct client *client = call->client;
    call_detach(call);
    call->state = CALL_WAITING;
    DL_PREPEND(client->waiting, call);
    client->dispatch_wanted = true;
}

void call_resend(struct client_call *call)
{
    const char *trouble = call_resume_trouble(call);
    if (trouble) {
        call_end_error(call, WIRE_ERROR_WORKER_LOST, trouble);
        return;
    }
    atomic_fetch_add(&call->client->resends, 1);
    call_wait_again(call);
}

void call_move(struct client_call *call, const char *why)
{
    const char *trouble = call_resume_trouble(call);
    char detail[WIRE_DETAIL_MAX + 1];
    if (!call->cancelled && trouble) {
        snprintf(detail, sizeof detail, "%s; %s", why, trouble);
        call_end_error(call, WIRE_ERROR_WORKER_LOST, detail);
    } else if (!call->cancelled && ++call->losses > LOSSES_MAX) {
        snprintf(detail, sizeof detail, "%u routers were lost with this request; the last: %s", call->losses, why);
        call_end_error(call, WIRE_ERROR_WORKER_LOST, detail);
    } else {
        if (!call->cancelled)
            atomic_fetch_add(&call->client->moves, 1);
        call_wait_again(call);
    }
}

/* ---- which router ---- */

static bool router_usable(const struct router *router, const struct client_call *call)
{
    return client_link_ready(router->link) && !router->draining &&
           (call->released_total == 0 || client_link_can(router->link, WIRE_CAN_RESUME));
}

/* The one that had it last, else the first of the rotation. */
static struct router *choose_router(struct client *client, const struct client_call *call)
{
    if (call->home && router_usable(call->home, call))
        return call->home;
    for (unsigned i = 0; i < client->router_count; i++) {
        struct router *router = &client->routers[(client->first_router + i) % client->router_count];
        if (router_usable(router, call))
            return router;
    }
    return NULL;
}

/* All routers are there, and each is of a release that cannot continue a reply. */
static bool nobody_resumes(const struct client *client)
{
    for (unsigned i = 0; i < client->router_count; i++) {
        const struct client_link *link = client->routers[i].link;
        if (!client_link_ready(link) || client_link_can(link, WIRE_CAN_RESUME))
            return false;
    }
    return true;
}

static void count_ready(struct client *client)
{
    unsigned ready = 0;
    for (unsigned i = 0; i < client->router_count; i++)
        ready += client_link_ready(client->routers[i].link) && !client->routers[i].draining;
    atomic_store(&client->routers_ready, ready);
}

/* ---- cancelling ---- */

bool call_send_cancel(struct client_call *call)
{
    struct client *client = call->client;
    struct router *router = call->router;
    for (unsigned i = 0; !router && i < client->router_count; i++)
        if (client_link_ready(client->routers[i].link))
            router = &client->routers[i];
    if (!router || !call->home)
        return false;
    struct wire_message message = {.kind = WIRE_CANCEL};
    message.cancel = (struct wire_cancel){
        .request_id = wire_span_of(call->request_id, WIRE_ID_BYTES),
        .tenant = wire_span_str(client->tenant),
        .conversation = wire_span_str(call->conversation),
        .session = wire_span_of(client->session, WIRE_ID_BYTES),
        /* Whatever a router made of the attempts up to ours. */
        .attempt = {call->attempt_client, UINT32_MAX},
    };
    /* Lost with the link: then the lease ends the work. */
    return client_link_send_control(router->link, &message) == STATUS_OK;
}

void call_cancel(struct client_call *call)
{
    if (call->state == CALL_ENDED || call->cancelled)
        return;
    call->cancelled = true;
    call->cancel_at_ms = loop_now_ms(call->client->loop) + CANCEL_WAIT_MS;
    if (call->state == CALL_SENT)
        (void)call_send_cancel(call);
    else if (call->attempt_client == 0)
        call_end_error(call, WIRE_ERROR_CANCELLED, "cancelled");
    else
        call->client->dispatch_wanted = true;
}

void call_abandon(struct client_call *call, const char *detail)
{
    (void)call_send_cancel(call);
    call_end_error(call, WIRE_ERROR_INTERNAL, detail);
}

/* ---- sending ---- */

/* False: it has to wait. The call may have ended. */
static bool call_send(struct client_call *call, struct router *router, uint64_t now_ms)
{
    struct client *client = call->client;
    const struct wire_limits *limits = client_link_limits(router->link);
    if (call->body_size > limits->body_bytes_max || call->message_count > limits->messages_max ||
        call->prompt_ids > limits->prompt_tokens_max) {
        char detail[160];
        snprintf(detail, sizeof detail, "%zu bytes, %u messages, %zu prompt ids; the router takes %llu, %u, %u",
                 call->body_size, call->message_count, call->prompt_ids, (unsigned long long)limits->body_bytes_max,
                 limits->messages_max, limits->prompt_tokens_max);
        call_end_error(call, WIRE_ERROR_TOO_LARGE, detail);
        return true;
    }
    bool room =
        router->unacknowledged == 0 || router->unacknowledged + call->body_size <= limits->unacknowledged_bytes_max;
    if (!room || router->stream_count >= limits->streams_max)
        return false;
    if (++client->last_stream == 0)
        client->last_stream = 1;
    struct client_call *taken;
    HASH_FIND(hh, client->sent, &client->last_stream, sizeof client->last_stream, taken);
    if (taken) /* after 2^32 attempts, and still open: the next one is free soon */
        return false;
    uint64_t spent_ms = call_age_ms(call, now_ms);
    struct wire_message head = {.kind = WIRE_HEAD};
    head.head = (struct wire_head){
        .request_id = wire_span_of(call->request_id, WIRE_ID_BYTES),
        .session = wire_span_of(client->session, WIRE_ID_BYTES),
        .stream = client->last_stream,
        .tenant = wire_span_str(client->tenant),
        .conversation = wire_span_str(call->conversation),
        .model = wire_span_str(call->model),
        .deadline_ms = spent_ms < call->deadline_ms ? (uint32_t)(call->deadline_ms - spent_ms) : 1,
        .priority = call->priority,
        .attempt = {call->attempt_client + 1, 0},
        .seed = call->seed,
        .seed_given = call->seed_given,
        .body_bytes = (uint32_t)call->body_size,
        .inexact_allowed = call->inexact_allowed,
    };
    call_fill_resume(call, &head.head);
    if (wire_encoded_size(&head) > limits->head_bytes_max) {
        call_end_error(call, WIRE_ERROR_WORKER_LOST, "its tokens are more than the router takes to continue it");
        return true;
    }
    call->stream = client->last_stream;
    HASH_ADD(hh, client->sent, stream, sizeof call->stream, call);
    if (!call->hh.tbl) /* no memory */
        return false;
    if (client_link_send_request(router->link, &head, call->body, call->body_size) != STATUS_OK) {
        HASH_DEL(client->sent, call);
        return false;
    }
    DL_DELETE(client->waiting, call);
    call->state = CALL_SENT;
    call->attempt_client++;
    call->attempt_router = 0;
    call->acknowledged = false;
    call->router = call->home = router;
    if (call->released_total > 0)
        atomic_fetch_add(&client->resumed, 1);
    router->stream_count++;
    router->unacknowledged += call->body_size;
    client_link_set_busy(router->link, true);
    call_grant_anew(call);
    return true;
}

/* In order of arrival, those that move first: a call that has to wait for the grant is not passed by a smaller one. */
void calls_dispatch(struct client *client)
{
    struct client_call *call, *next;
    client->dispatch_wanted = false;
    for (unsigned i = 0; i < client->router_count; i++)
        client->routers[i].full = false;
    DL_FOREACH_SAFE(client->waiting, call, next)
    {
        struct router *router = choose_router(client, call);
        if (call->cancelled) {
            if (call_send_cancel(call))
                call_end_error(call, WIRE_ERROR_CANCELLED, "cancelled");
        } else if (router && !router->full && call_send(call, router, loop_now_ms(client->loop))) {
            continue;
        } else if (router) {
            router->full = true;
            if (!call->home)
                return; /* and so have all behind it to wait */
        } else if (call->released_total > 0 && nobody_resumes(client)) {
            call_end_error(call, WIRE_ERROR_WORKER_LOST,
                           "its router was lost after tokens were released, and the others cannot continue it");
        } else if (!call->home) {
            return;
        }
    }
}

/* ---- routers come and go ---- */

void calls_on_ready(void *user, struct client_link *link)
{
    struct client *client = user;
    router_of(client, link)->draining = false;
    pthread_mutex_lock(&client->lock);
    client->limits = *client_link_limits(link);
    pthread_mutex_unlock(&client->lock);
    count_ready(client);
    client->dispatch_wanted = true;
}

/* It takes nothing new; what it has stays there. */
void calls_on_goaway(struct client *client, struct router *router)
{
    router->draining = true;
    count_ready(client);
}

void calls_on_lost(void *user, struct client_link *link)
{
    struct client *client = user;
    struct router *router = router_of(client, link);
    struct client_call *call, *next;
    LOG_DEBUG("router lost: %s", client_link_trouble(link));
    count_ready(client);
    HASH_ITER(hh, client->sent, call, next)
    {
        if (call->router == router)
            call_move(call, client_link_trouble(link));
    }
    client->dispatch_wanted = true;
}
