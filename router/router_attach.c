/* router_attach.c - who has this request already? A request that its client has sent before, through a router that may
 * be gone, still runs somewhere or has just finished: it is found there instead of being computed twice.
 *
 *   request_dispatch_or_wait --ask_first--> request_ask: ATTACH to a few workers; ASKING
 *        ^                                       |-- router_attach_reply: known --> request_dispatch there
 *        `---- request_route <-------------------+-- nobody knows it, or ASK_MS passed
 *
 * After a link was lost the worker of a request is asked too: request_ask_again; one that does not know it has given it
 * up.
 *
 * Those asked are the owner of the conversation and the next in its order, which is where any router would have sent
 * it; without a conversation it may be anywhere. A CANCEL of a request that is not in flight here goes the same way.
 *
 * Borrows everything from struct router (router_internal.h); owns nothing. Loop thread only. Always true: a request
 * asks once, as soon as there is somebody to ask, and waits ASK_MS and a tick at most. */
#include <string.h>
#include "common/hash.h"
#include "common/log.h"
#include "common/probe.h"
#include "router/router_internal.h"

enum {
    ASK_MS = 50,          /* an answer needs no step of the worker: one turn of two loops, and a slow network between */
    ASK_WORKERS = 3,      /* the owner and the next two: a conversation that moved twice within the life of a request */
    ASK_WORKERS_ANY = 16, /* without a conversation: so many frames of some 100 bytes for each such repeat */
};

struct asked {
    struct wire_span request_id, tenant, conversation;
    struct placement_key key;         /* valid with a conversation */
    const char *owner;                /* or NULL */
    const struct wire_cancel *cancel; /* what is sent; NULL: ATTACH */
    struct wire_attempt attempt;
};

/* True: it will be heard. */
static bool ask_worker(const struct asked *asked, struct worker *worker)
{
    if (!worker_connected(worker) || !(worker_capabilities(worker) & WIRE_CAN_ATTACH))
        return false;
    if (asked->cancel) {
        worker_send_cancel(worker, asked->cancel);
        return true;
    }
    return worker_send_attach(worker, &(struct wire_attach){.request_id = asked->request_id,
                                                            .tenant = asked->tenant,
                                                            .conversation = asked->conversation,
                                                            .attempt = asked->attempt}) == STATUS_OK;
}

static unsigned ask_in_order(struct router *router, const struct asked *asked)
{
    unsigned order[WORKER_POOL_MAX], count = worker_pool_count(router->pool), told = 0;
    int owner = asked->owner ? worker_pool_find(router->pool, asked->owner) : -1;
    for (unsigned i = 0; i < count; i++) {
        const struct worker *worker = worker_pool_at(router->pool, i);
        router->table[i] =
            (struct policy_worker){.name_hash = worker_name_hash(worker), .weight = worker_weight(worker)};
    }
    policy_order(&(struct policy_table){.workers = router->table, .count = count},
                 hash_fast(asked->key.id, sizeof asked->key.id, 0), order);
    if (owner >= 0)
        told += ask_worker(asked, worker_pool_at(router->pool, (unsigned)owner));
    for (unsigned i = 0; i < count && told < ASK_WORKERS; i++)
        if ((int)order[i] != owner)
            told += ask_worker(asked, worker_pool_at(router->pool, order[i]));
    return told;
}

/* To those that may have it. Returns how many. */
static unsigned ask_workers(struct router *router, const struct asked *asked)
{
    if (asked->conversation.size > 0)
        return ask_in_order(router, asked);
    unsigned told = 0;
    for (unsigned i = 0; i < worker_pool_count(router->pool) && told < ASK_WORKERS_ANY; i++)
        told += ask_worker(asked, worker_pool_at(router->pool, i));
    return told;
}

static const char *owner_of(struct router *router, const struct placement_key *key)
{
    const struct placement_record *recent = placement_cache_find(router->recent, key);
    return recent ? recent->owner : NULL;
}

bool request_ask(struct router *router, struct request *request)
{
    const struct wire_head *head = &request->head.head;
    if (PROBE("router.attach"))
        return false;
    struct asked asked = {.request_id = request_id_span(request),
                          .tenant = head->tenant,
                          .conversation = head->conversation,
                          .key = request->key,
                          .attempt = request->client_attempt};
    if (head->conversation.size > 0)
        asked.owner = request->has_record ? request->record.owner : owner_of(router, &request->key);
    request->asked = ask_workers(router, &asked);
    if (request->asked == 0)
        return false;
    request->ask_first = false;
    router->stats.asked++;
    request->ask_until_ms = router_now_ms(router) + ASK_MS;
    inflight_move(router->inflight, request, REQUEST_ASKING);
    return true;
}

void request_ask_over(struct router *router, struct request *request)
{
    LOG_DEBUG("no worker has it yet");
    request_route(router, request);
}

void request_ask_again(struct request *request)
{
    const struct wire_head *head = &request->head.head;
    struct asked asked = {.request_id = request_id_span(request),
                          .tenant = head->tenant,
                          .conversation = head->conversation,
                          .attempt = request->sent};
    request->asked_again = ask_worker(&asked, request->worker);
}

void router_attach_reply(struct router *router, struct worker *worker, const struct wire_attach_reply *reply)
{
    struct request *request = inflight_find_id(router->inflight, reply->tenant, reply->request_id);
    bool again = request && request->asked_again && request->worker == worker;
    if (!request || (request->state != REQUEST_ASKING && !again))
        return; /* another one has it, or it went on without */
    log_request_scope(request->id_key.id);
    if (again) {
        request->asked_again = false;
        if (!reply->known && request->state != REQUEST_CANCELLING)
            request_given_up(router, request);
    } else if (reply->known && request_dispatch(router, request, worker, POLICY_ATTACHED) == STATUS_OK) {
        router->stats.attached++;
        LOG_DEBUG("found at %s, %s", worker_name(worker), reply->running ? "running" : "finished");
    } else if (--request->asked == 0) {
        request_ask_over(router, request);
    }
    log_request_scope(NULL);
}

void router_cancel_elsewhere(struct router *router, const struct wire_cancel *cancel)
{
    struct wire_cancel passed = *cancel;
    struct asked asked = {.tenant = cancel->tenant, .conversation = cancel->conversation, .cancel = &passed};
    if (passed.attempt.client > 0)
        passed.attempt.router = UINT32_MAX; /* its client does not know how often a router sent it */
    if (cancel->conversation.size > 0) {
        placement_key_make(&router->salt, cancel->tenant, cancel->conversation, &asked.key);
        asked.owner = owner_of(router, &asked.key);
    }
    router->stats.cancels_passed += ask_workers(router, &asked) > 0;
}
