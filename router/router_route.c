/* router_route.c - where a request goes: asks the store, asks the policy; router_dispatch.c sends it there.
 *
 *   request_place --claim--> on_claim --> request_route --policy: take over--> on_take_over --> request_dispatch
 *        |                                  |   ^ no answer in time, or no store: without a record
 *        `--nobody ready--> request_wait <--'   `-- on_late_answer: adopted, or who ran it may be written
 *
 * Always true:
 *   1. a request asks the store for at most PLACEMENT_BUDGET_MS in all (PATIENT_BUDGET_MS if it comes from a router
 *      that was lost, or in the second after this one opened), and not at all once it was sent anywhere;
 *   2. a question outlives its request: request and placement_call point at each other, or not at all;
 *   3. the record changes owner only by a takeover that the policy asked for, or because another worker has run the
 *      conversation's turn while its owner was lost or draining, or before the answer to the claim that made the
 * record;
 *   4. at most LEAVE_SHARE of the requests leave an owner that could have taken them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/probe.h"
#include "router/decision_log.h"
#include "router/router_internal.h"

enum {
    PATIENT_BUDGET_MS =
        50,             /* a thousand claims at once are 1,000 scripts of some 30 us; as long as ATTACH is waited for */
    LATE_FIX_MS = 1000, /* nobody waits for these writes; over it they are given up, and the next turn tells again */
    BYTES_PER_TOKEN = 4,  /* of a body, roughly: text has about 4.5, ids have exactly 4 */
    LEAVE_SAVED_MAX = 20, /* of the budget: the overload of one worker in a fleet, 400 quiet requests before it */
};
#define LEAVE_SHARE 0.05

static uint64_t prompt_tokens(const struct request *request)
{
    return request->body_bytes / BYTES_PER_TOKEN + request->released + 1;
}

uint64_t request_tokens_at(const struct request *request, const struct worker *worker)
{
    uint64_t prompt = prompt_tokens(request), cached = 0;
    if (request->has_record && strcmp(request->record.owner, worker_name(worker)) == 0)
        cached = request->record.tokens;
    return cached < prompt ? prompt - cached : 1;
}

/* ---- the table ---- */

static struct policy_worker row_of(struct router *router, const struct request *request, const struct worker *worker)
{
    bool may_use = !request || request_may_use(router, request, worker);
    uint64_t suspect_ms;
    bool suspect = worker_suspect(worker, &suspect_ms);
    return (struct policy_worker){
        .name_hash = worker_name_hash(worker),
        .weight = worker_weight(worker),
        .load_tokens = worker_load_tokens(worker),
        .queued_tokens = worker_queued_tokens(worker),
        .overloaded_ms = worker_overloaded_ms(worker),
        .suspect_ms = suspect_ms,
        .token_ns = worker_token_ns(worker),
        .ramp = (float)worker_ramp(worker),
        .ready = may_use && worker_ready(worker),
        .suspect = may_use && suspect,
        .draining = worker_draining(worker),
    };
}

static struct policy_table fill_table(struct router *router, const struct request *request)
{
    unsigned count = worker_pool_count(router->pool);
    for (unsigned i = 0; i < count; i++)
        router->table[i] = row_of(router, request, worker_pool_at(router->pool, i));
    return (struct policy_table){.workers = router->table, .count = count};
}

/* An owner that can take it and is not in overload is chosen whatever the others are: 1,024 of them need not be looked
 * at. The index of the answer is that of the pool in both cases. */
static struct policy_choice choose(struct router *router, const struct request *request, struct policy_query *query)
{
    struct policy_table table;
    int owner = query->conversation ? query->owner : POLICY_NO_WORKER;
    bool home = false;
    if (owner >= 0) {
        router->table[0] = row_of(router, request, worker_pool_at(router->pool, (unsigned)owner));
        home = router->table[0].ready && router->table[0].overloaded_ms == 0;
    }
    if (home) {
        table = (struct policy_table){.workers = router->table, .count = 1};
        query->owner = 0;
    } else {
        table = fill_table(router, request);
    }
    struct policy_choice choice = policy_choose(&table, query);
    decision_log_add(router->decisions, &table, query, &choice);
    query->owner = owner;
    if (home)
        choice.worker = owner;
    return choice;
}

static struct placement_call *call_create(struct router *router, struct request *request)
{
    struct placement_call *call = calloc(1, sizeof *call);
    if (!call)
        return NULL;
    call->router = router;
    call->request = request;
    call->key = request->key;
    call->asked_us = clock_now_us();
    request->call = call;
    return call;
}

/* Whose router was lost has waited longer already, and comes together with all others of that router; so does everybody
 * who waited for this one to open. */
static uint32_t budget_ms(const struct router *router, const struct request *request)
{
    bool patient = request->ask_first || router_now_ms(router) < router->patient_until_ms;
    return patient ? PATIENT_BUDGET_MS : PLACEMENT_BUDGET_MS;
}

static uint32_t budget_left_ms(const struct router *router, const struct request *request)
{
    uint64_t used_us = clock_now_us() - request->arrived_us, all_us = 1000 * (uint64_t)budget_ms(router, request);
    return used_us >= all_us ? 0 : (uint32_t)((all_us - used_us + 999) / 1000);
}

static void adopt_record(struct request *request, const struct placement_answer *answer)
{
    request->record = answer->record;
    request->record_age_ms = answer->age_ms;
    request->has_record = true;
    request->record_ours = answer->ours;
}

static void remember(struct router *router, const struct placement_key *key, const struct placement_answer *answer)
{
    if (answer->st == STATUS_OK && answer->found)
        (void)placement_cache_put(router->recent, key, &answer->record);
}

/* It has this record, and is not coming back to it or is to leave it. */
static bool owner_leaves(const struct router *router, const char *owner)
{
    int index = worker_pool_find(router->pool, owner);
    return worker_pool_owner_lost(router->pool, index) ||
           (index >= 0 && worker_draining(worker_pool_at(router->pool, (unsigned)index)));
}

/* The answer came after its request went on without it. Adopted if nothing was dispatched; else who ran it is written
 * where nobody has the conversation: the record was made by this very claim, or its owner is lost. An owner that is
 * there keeps it with all that it holds; one turn was computed elsewhere, and the next goes home. */
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
    if (!call->ran_on[0] || strcmp(call->ran_on, answer->record.owner) == 0 ||
        !(answer->ours || owner_leaves(router, answer->record.owner)))
        return;
    struct placement_record ran = {.epoch = answer->record.epoch};
    snprintf(ran.owner, sizeof ran.owner, "%s", call->ran_on);
    (void)router->placement->ops->replace(router->placement, &call->key, &answer->record, &ran, LATE_FIX_MS, NULL,
                                          NULL);
}

static void count_answer(struct router *router, uint64_t asked_us)
{
    double seconds = 1e-6 * (double)(clock_now_us() - asked_us);
    unsigned slot = 0;
    while (slot < ROUTER_PLACEMENT_BOUNDS && seconds > router_placement_bounds[slot])
        slot++;
    router->stats.placement_counts[slot]++;
    router->stats.placement_seconds += seconds;
}

/* The common part of both callbacks. True: the request goes on with the answer (or without: answer->st). */
static bool take_answer(struct placement_call *call, const struct placement_answer *answer)
{
    struct request *request = call->request;
    if (answer->st == STATUS_OK)
        count_answer(call->router, call->asked_us);
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
    enum policy_reason reason = call->reason;
    if (!take_answer(call, answer))
        return;
    log_request_scope(request->id_key.id);
    int chosen = POLICY_NO_WORKER;
    if (answer->st == STATUS_OK && answer->found) {
        if (answer->ours)
            LOG_INFO("conversation of %s goes to %s: %s", request->record.owner, answer->record.owner,
                     policy_reason_name(reason));
        adopt_record(request, answer);
        chosen = worker_pool_find(router->pool, answer->record.owner);
    }
    if (answer->ours && chosen >= 0 && worker_ready(worker_pool_at(router->pool, (unsigned)chosen)))
        request_dispatch_or_wait(router, request, chosen, reason);
    else
        request_route(router, request); /* take_over_tried: it goes home to the winner, or spills */
    log_request_scope(NULL);
}

/* False: it could not be asked; the request goes on without. */
static bool take_over(struct router *router, struct request *request, const struct policy_choice *choice)
{
    uint32_t left_ms = budget_left_ms(router, request);
    request->take_over_tried = true;
    if (left_ms == 0 || request->dispatched || request->call)
        return false;
    struct placement_record desired = {.epoch = request->record.epoch};
    snprintf(desired.owner, sizeof desired.owner, "%s",
             worker_name(worker_pool_at(router->pool, (unsigned)choice->worker)));
    struct placement_call *call = call_create(router, request);
    if (!call)
        return false;
    call->reason = choice->reason;
    if (router->placement->ops->replace(router->placement, &request->key, &request->record, &desired, left_ms,
                                        on_take_over, call) != STATUS_OK) {
        request->call = NULL;
        free(call);
        return false;
    }
    inflight_move(router->inflight, request, REQUEST_PLACING);
    return true;
}

/* ---- choosing ---- */

static void fill_leave_budget(struct router *router)
{
    router->leave_budget += LEAVE_SHARE * (double)(router->stats.requests - router->leave_seen);
    router->leave_seen = router->stats.requests;
    if (router->leave_budget > LEAVE_SAVED_MAX)
        router->leave_budget = LEAVE_SAVED_MAX;
}

/* The worker that we remember for it; POLICY_NO_WORKER: none, or it is not here. */
static int remembered_owner(struct router *router, const struct placement_key *key)
{
    const struct placement_record *recent = placement_cache_find(router->recent, key);
    return recent ? worker_pool_find(router->pool, recent->owner) : POLICY_NO_WORKER;
}

static void query_record(struct router *router, struct policy_query *query, const struct placement_record *record,
                         uint64_t age_ms)
{
    query->owner = worker_pool_find(router->pool, record->owner);
    query->owner_lost = worker_pool_owner_lost(router->pool, query->owner);
    query->cached_tokens = record->tokens;
    query->record_age_ms = age_ms;
}

static struct policy_query query_of(struct router *router, const struct request *request)
{
    struct policy_query query = {.conversation = request->head.head.conversation.size > 0,
                                 .key = request->policy_key,
                                 .record = POLICY_RECORD_DOWN,
                                 .owner = POLICY_NO_WORKER,
                                 .new_choices = router->new_choices,
                                 .prompt_tokens = prompt_tokens(request),
                                 .may_take_over = !request->take_over_tried && !request->dispatched,
                                 .may_choose = !request->dispatched && router->leave_budget >= 1};
    if (query.conversation && request->has_record) {
        query.record = request->record_ours ? POLICY_RECORD_OURS : POLICY_RECORD_OTHER;
        query_record(router, &query, &request->record, request->record_age_ms);
    } else if (query.conversation) {
        query.owner = remembered_owner(router, &request->key);
    }
    return query;
}

void request_route(struct router *router, struct request *request)
{
    fill_leave_budget(router);
    struct policy_query query = query_of(router, request);
    struct policy_choice choice = choose(router, request, &query);
    if (choice.take_over) {
        if (take_over(router, request, &choice)) {
            router->leave_budget -= choice.by_choice;
            return;
        }
        query.may_take_over = false;
        choice = choose(router, request, &query);
    }
    router->leave_budget -= choice.by_choice;
    request_dispatch_or_wait(router, request, choice.worker, choice.reason);
}

/* A conversation that we remember goes home also when its record is gone: Redis may have come back empty. So does one
 * whose owner's link has just dropped. */
static int proposed_owner(struct router *router, struct request *request)
{
    int home = remembered_owner(router, &request->key);
    if (home >= 0) {
        struct policy_worker row = row_of(router, request, worker_pool_at(router->pool, (unsigned)home));
        if (row.ready || row.suspect)
            return home;
    }
    struct policy_query query = {.conversation = true,
                                 .key = request->policy_key,
                                 .record = POLICY_RECORD_UNKNOWN,
                                 .owner = POLICY_NO_WORKER,
                                 .new_choices = router->new_choices,
                                 .prompt_tokens = prompt_tokens(request)};
    struct policy_table table = fill_table(router, request);
    return policy_choose(&table, &query).worker;
}

void request_place(struct router *router, struct request *request)
{
    bool ask = request->head.head.conversation.size > 0 && !request->has_record && !request->store_failed &&
               !request->dispatched;
    if (!ask || request->call) {
        request_route(router, request);
        return;
    }
    int proposed = proposed_owner(router, request);
    if (proposed < 0) {
        request_wait(router, request); /* nobody is ready: nobody is proposed */
        return;
    }
    const struct placement_record *recent = placement_cache_find(router->recent, &request->key);
    struct placement_record proposal = {.epoch = recent ? recent->epoch : 0};
    snprintf(proposal.owner, sizeof proposal.owner, "%s",
             worker_name(worker_pool_at(router->pool, (unsigned)proposed)));
    struct placement_call *call = PROBE("router.claim") ? NULL : call_create(router, request);
    if (call && router->placement->ops->claim(router->placement, &request->key, &proposal, budget_ms(router, request),
                                              on_claim, call) == STATUS_OK) {
        inflight_move(router->inflight, request, REQUEST_PLACING);
        return;
    }
    request->call = NULL;
    free(call);
    request->store_failed = true;
    request_route(router, request);
}

struct policy_choice router_would_choose(struct router *router, const struct placement_key *key,
                                         const struct placement_answer *answer)
{
    const struct placement_record *recent = placement_cache_find(router->recent, key);
    const struct placement_record *record = answer->found ? &answer->record : recent;
    struct policy_query query = {.conversation = true,
                                 .key = hash_fast(key->id, sizeof key->id, 0),
                                 .record = answer->st != STATUS_OK ? POLICY_RECORD_DOWN
                                           : record                ? POLICY_RECORD_OTHER
                                                                   : POLICY_RECORD_UNKNOWN,
                                 .owner = POLICY_NO_WORKER,
                                 .new_choices = router->new_choices,
                                 .may_take_over = true,
                                 .may_choose = router->leave_budget >= 1};
    if (record) {
        query_record(router, &query, record, answer->found ? answer->age_ms : 0);
        query.prompt_tokens = record->tokens;
    }
    struct policy_table table = fill_table(router, NULL);
    return policy_choose(&table, &query);
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

/* The owner of its record; else, if that is lost by now, whoever holds the conversation since this turn. */
static bool notes_record(struct router *router, const struct request *request)
{
    return strcmp(request->record.owner, worker_name(request->worker)) == 0 ||
           owner_leaves(router, request->record.owner);
}

void request_note_cache(struct router *router, struct request *request, struct wire_span cache_id)
{
    struct placement_record *record = &request->record;
    if (!request->has_record || cache_id.size != WIRE_ID_BYTES || !notes_record(router, request))
        return;
    struct placement_record desired = *record;
    snprintf(desired.owner, sizeof desired.owner, "%s", worker_name(request->worker));
    desired.has_cache = true;
    memcpy(desired.cache_id, cache_id.data, WIRE_ID_BYTES);
    bool same_owner = strcmp(desired.owner, record->owner) == 0;
    if (same_owner && record->has_cache && memcmp(record->cache_id, desired.cache_id, WIRE_ID_BYTES) == 0)
        return;
    (void)router->placement->ops->replace(router->placement, &request->key, record, &desired, LATE_FIX_MS, NULL, NULL);
    if (!same_owner)
        return; /* the next turn learns from the store what stands */
    (void)placement_cache_put(router->recent, &request->key, &desired);
    *record = desired;
}
