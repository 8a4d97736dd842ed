/* router_route.c - where a request goes: asks the store, asks the policy, sends it to the worker.
 *
 *   request_place --claim--> on_claim --> request_route --policy: take over--> on_take_over --> request_dispatch
 *        |                                  |   ^ no answer in time, or no store: without a record
 *        `--nobody ready--> request_wait <--'   `-- on_late_answer: adopted, or who ran it is written
 *
 * Always true:
 *   1. a request asks the store for at most PLACEMENT_BUDGET_MS in all, and not at all once it was sent anywhere;
 *   2. a question outlives its request: request and placement_call point at each other, or not at all;
 *   3. the record changes owner only by a claim of a free one, by a takeover that the policy asked for, or because
 *      another worker has already run the conversation's turn when the answer came. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/log.h"
#include "router/frame.h"
#include "router/router_internal.h"

enum {
    WAIT_MS = 2000,     /* for a worker: as long as one takes to be declared dead */
    LATE_FIX_MS = 1000, /* nobody waits for these writes; over it they are given up, and the next turn tells again */
};

void request_wait(struct router *router, struct request *request)
{
    if (request->wait_until_ms == 0)
        request->wait_until_ms = router_now_ms(router) + WAIT_MS;
    inflight_move(router->inflight, request, REQUEST_WAITING);
}

static bool was_refused_by(const struct request *request, uint64_t name_hash)
{
    for (unsigned i = 0; i < request->refusals; i++)
        if (request->refused_by[i] == name_hash)
            return true;
    return false;
}

static struct policy_table fill_table(struct router *router, const struct request *request)
{
    unsigned count = worker_pool_count(router->pool);
    for (unsigned i = 0; i < count; i++) {
        const struct worker *worker = worker_pool_at(router->pool, i);
        router->table[i] = (struct policy_worker){
            .name_hash = worker_name_hash(worker),
            .weight = worker_weight(worker),
            .load_tokens = worker_load_tokens(worker),
            .ready = worker_ready(worker) && !was_refused_by(request, worker_name_hash(worker)),
        };
    }
    return (struct policy_table){.workers = router->table, .count = count};
}

bool request_has_other_worker(struct router *router, const struct request *request)
{
    struct policy_table table = fill_table(router, request);
    for (unsigned i = 0; i < table.count; i++)
        if (table.workers[i].ready)
            return true;
    return false;
}

enum status request_dispatch(struct router *router, struct request *request, struct worker *worker,
                             enum policy_reason reason)
{
    TRY(inflight_bind(router->inflight, request, worker));
    struct wire_message head = {.kind = WIRE_HEAD, .head = request->head.head};
    struct wire_attempt attempt = request->client_attempt;
    attempt.router = request->dispatched ? request->sent.router + 1 : attempt.router;
    uint64_t now = router_now_ms(router);
    head.head.session = wire_span_of(router->session, WIRE_ID_BYTES);
    head.head.stream = request->backend_stream;
    head.head.deadline_ms = request->deadline_ms > now ? (uint32_t)(request->deadline_ms - now) : 1;
    head.head.attempt = attempt;
    head.head.loss_count = request->loss_count;
    head.head.incarnation = wire_span_of(worker_incarnation(worker), WIRE_ID_BYTES);
    bool home = request->has_record && strcmp(request->record.owner, worker_name(worker)) == 0;
    head.head.cache_id = wire_span_of(request->record.cache_id, home && request->record.has_cache ? WIRE_ID_BYTES : 0);
    head.head.epoch = request->has_record ? request->record.epoch : 0;
    zmq_msg_t head_frame, body_frame;
    enum status st = frame_make(&head, &head_frame);
    if (st == STATUS_OK) {
        zmq_msg_init(&body_frame);
        zmq_msg_copy(&body_frame, &request->body_frame); /* shares the bytes */
        st = worker_send_request(worker, &head_frame, &body_frame);
    }
    if (st != STATUS_OK) {
        inflight_unbind(router->inflight, request);
        return st;
    }
    if (!request->dispatched)
        request->route_us = (uint32_t)(clock_now_us() - request->arrived_us);
    request->sent = attempt;
    request->dispatched = true;
    request->sent_unacknowledged = true;
    request->reason = reason;
    request->wait_until_ms = 0; /* request->next stays: no choice has released anything, and what came of the prompt comes again */
    if (request->call)
        snprintf(request->call->ran_on, sizeof request->call->ran_on, "%s", worker_name(worker));
    inflight_move(router->inflight, request, REQUEST_SENT);
    router->stats.reasons[reason]++;
    LOG_DEBUG("goes to %s: %s", worker_name(worker), policy_reason_name(reason));
    return STATUS_OK;
}

/* Takes it away from its worker, whatever happens next. */
void request_leave_worker(struct router *router, struct request *request)
{
    struct worker *worker = request->worker;
    if (!worker)
        return;
    if (request->sent_unacknowledged)
        worker_body_acknowledged(worker, zmq_msg_size(&request->body_frame));
    request->sent_unacknowledged = false;
    worker_stream_close(worker);
    inflight_unbind(router->inflight, request);
    router->retry_waiting = true; /* there is room now */
}

static void dispatch_or_wait(struct router *router, struct request *request, int worker, enum policy_reason reason)
{
    if (worker < 0 ||
        request_dispatch(router, request, worker_pool_at(router->pool, (unsigned)worker), reason) != STATUS_OK)
        request_wait(router, request);
}

static struct placement_call *call_create(struct router *router, struct request *request)
{
    struct placement_call *call = calloc(1, sizeof *call);
    if (!call)
        return NULL;
    call->router = router;
    call->request = request;
    call->key = request->key;
    request->call = call;
    return call;
}

static uint32_t budget_left_ms(const struct request *request)
{
    uint64_t used_us = clock_now_us() - request->arrived_us;
    return used_us >= PLACEMENT_BUDGET_MS * 1000 ? 0 : (uint32_t)((PLACEMENT_BUDGET_MS * 1000 - used_us + 999) / 1000);
}

static void adopt_record(struct request *request, const struct placement_answer *answer)
{
    request->record = answer->record;
    request->has_record = true;
    request->record_ours = answer->ours;
}

static void remember(struct router *router, const struct placement_key *key, const struct placement_answer *answer)
{
    if (answer->st == STATUS_OK && answer->found)
        (void)placement_cache_put(router->recent, key, &answer->record);
}

/* The answer came after its request went on without it. Adopted if nothing was dispatched; else who ran it is written.
 */
static void on_late_answer(struct placement_call *call, const struct placement_answer *answer)
{
    struct router *router = call->router;
    struct request *request = call->request;
    if (answer->st != STATUS_OK || !answer->found)
        return;
    remember(router, &call->key, answer);
    if (request && !request->dispatched) {
        adopt_record(request, answer);
        return;
    }
    if (!call->ran_on[0] || strcmp(call->ran_on, answer->record.owner) == 0)
        return;
    struct placement_record ran = {.epoch = answer->record.epoch};
    snprintf(ran.owner, sizeof ran.owner, "%s", call->ran_on);
    (void)router->placement->ops->replace(router->placement, &call->key, &answer->record, &ran, LATE_FIX_MS, NULL,
                                          NULL);
}

/* The common part of both callbacks. True: the request goes on with the answer (or without: answer->st). */
static bool take_answer(struct placement_call *call, const struct placement_answer *answer)
{
    struct request *request = call->request;
    if (answer->late) {
        on_late_answer(call, answer);
    } else if (answer->st == STATUS_TIMEOUT) {
        call->router->stats.placement_late++;
        return request != NULL; /* the call stays open for the late answer */
    }
    if (request)
        request->call = NULL;
    bool go_on = request && !answer->late;
    if (!answer->late)
        remember(call->router, &call->key, answer);
    free(call);
    return go_on;
}

static void on_claim(void *user, const struct placement_answer *answer)
{
    struct placement_call *call = user;
    struct router *router = call->router;
    struct request *request = call->request;
    if (!take_answer(call, answer))
        return;
    log_request_scope(request->id_key.id);
    if (answer->st == STATUS_OK && answer->found)
        adopt_record(request, answer);
    else
        request->store_failed = true;
    request_route(router, request);
    log_request_scope(NULL);
}

static void on_take_over(void *user, const struct placement_answer *answer)
{
    struct placement_call *call = user;
    struct router *router = call->router;
    struct request *request = call->request;
    if (!take_answer(call, answer))
        return;
    log_request_scope(request->id_key.id);
    int chosen = worker_pool_find(router->pool, request->record.owner);
    if (answer->st == STATUS_OK && answer->found) {
        if (answer->ours)
            LOG_INFO("conversation of %s taken over by %s", request->record.owner, answer->record.owner);
        adopt_record(request, answer);
        chosen = worker_pool_find(router->pool, answer->record.owner);
    } else {
        chosen = -1;
    }
    if (answer->ours && chosen >= 0 && worker_ready(worker_pool_at(router->pool, (unsigned)chosen)))
        dispatch_or_wait(router, request, chosen, POLICY_OWNER_DEAD);
    else
        request_route(router, request); /* take_over_tried: it goes home to the winner, or spills */
    log_request_scope(NULL);
}

/* False: it could not be asked; the request goes on without. */
static bool take_over(struct router *router, struct request *request, int worker)
{
    uint32_t budget_ms = budget_left_ms(request);
    request->take_over_tried = true;
    if (budget_ms == 0 || request->dispatched || request->call)
        return false;
    struct placement_record desired = {.epoch = request->record.epoch};
    snprintf(desired.owner, sizeof desired.owner, "%s", worker_name(worker_pool_at(router->pool, (unsigned)worker)));
    struct placement_call *call = call_create(router, request);
    if (!call)
        return false;
    if (router->placement->ops->replace(router->placement, &request->key, &request->record, &desired, budget_ms,
                                        on_take_over, call) != STATUS_OK) {
        request->call = NULL;
        free(call);
        return false;
    }
    inflight_move(router->inflight, request, REQUEST_PLACING);
    return true;
}

/* Sends it where the policy says, with what is known about its conversation by now. */
void request_route(struct router *router, struct request *request)
{
    struct policy_table table = fill_table(router, request);
    struct policy_query query = {.conversation = request->head.head.conversation.size > 0,
                                 .key = request->policy_key,
                                 .record = POLICY_RECORD_DOWN,
                                 .owner = POLICY_NO_WORKER,
                                 .new_choices = router->new_choices};
    if (query.conversation && request->has_record) {
        query.record = request->record_ours ? POLICY_RECORD_OURS : POLICY_RECORD_OTHER;
        query.owner = worker_pool_find(router->pool, request->record.owner);
        query.owner_lost = !request->take_over_tried && worker_pool_owner_lost(router->pool, query.owner);
    } else if (query.conversation) {
        const struct placement_record *recent = placement_cache_find(router->recent, &request->key);
        query.owner = recent ? worker_pool_find(router->pool, recent->owner) : POLICY_NO_WORKER;
    }
    struct policy_choice choice = policy_choose(&table, &query);
    if (choice.take_over) {
        if (take_over(router, request, choice.worker))
            return;
        query.owner_lost = false;
        choice = policy_choose(&table, &query);
    }
    dispatch_or_wait(router, request, choice.worker, choice.reason);
}

/* Asks the store, naming the worker that a new conversation would go to. */
void request_place(struct router *router, struct request *request)
{
    bool ask = request->head.head.conversation.size > 0 && !request->has_record && !request->store_failed &&
               !request->dispatched;
    if (!ask || request->call) {
        request_route(router, request);
        return;
    }
    struct policy_table table = fill_table(router, request);
    struct policy_choice choice = policy_choose(&table, &(struct policy_query){.conversation = true,
                                                                               .key = request->policy_key,
                                                                               .record = POLICY_RECORD_UNKNOWN,
                                                                               .owner = POLICY_NO_WORKER,
                                                                               .new_choices = router->new_choices});
    /* A conversation that we remember goes home also when its record is gone: Redis may have come back empty. */
    const struct placement_record *recent = placement_cache_find(router->recent, &request->key);
    int home = recent ? worker_pool_find(router->pool, recent->owner) : POLICY_NO_WORKER;
    if (home >= 0 && table.workers[home].ready)
        choice.worker = home;
    if (choice.worker < 0) {
        request_wait(router, request); /* nobody is ready: nobody is proposed */
        return;
    }
    struct placement_record proposal = {.epoch = recent ? recent->epoch : 0};
    snprintf(proposal.owner, sizeof proposal.owner, "%s",
             worker_name(worker_pool_at(router->pool, (unsigned)choice.worker)));
    struct placement_call *call = call_create(router, request);
    if (call && router->placement->ops->claim(router->placement, &request->key, &proposal, PLACEMENT_BUDGET_MS,
                                              on_claim, call) == STATUS_OK) {
        inflight_move(router->inflight, request, REQUEST_PLACING);
        return;
    }
    request->call = NULL;
    free(call);
    request->store_failed = true;
    request_route(router, request);
}

void router_retry_waiting(struct router *router)
{
    router->retry_waiting = false;
    struct request *request = inflight_first(router->inflight, REQUEST_WAITING);
    unsigned left = inflight_count_in(router->inflight, REQUEST_WAITING); /* who waits again goes to the end */
    while (request && left-- > 0) {
        struct request *next = inflight_next(request);
        log_request_scope(request->id_key.id);
        request_place(router, request);
        request = next;
    }
    log_request_scope(NULL);
}

void request_note_cache(struct router *router, struct request *request, struct wire_span cache_id)
{
    struct placement_record *record = &request->record;
    if (!request->has_record || cache_id.size != WIRE_ID_BYTES ||
        strcmp(record->owner, worker_name(request->worker)) != 0 ||
        (record->has_cache && memcmp(record->cache_id, cache_id.data, WIRE_ID_BYTES) == 0))
        return;
    struct placement_record desired = *record;
    desired.has_cache = true;
    memcpy(desired.cache_id, cache_id.data, WIRE_ID_BYTES);
    (void)router->placement->ops->replace(router->placement, &request->key, record, &desired, LATE_FIX_MS, NULL, NULL);
    (void)placement_cache_put(router->recent, &request->key, &desired);
    *record = desired;
}
