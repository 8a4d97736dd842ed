/* admin_conversation.c - where a conversation is: its record, read from the store and left as it is, what this router
 * remembers of it, and what the policy would say to its next turn now. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "common/redis_record.h"
#include "common/redis_script.h"
#include "router/admin_internal.h"

enum { LOOK_MS = 500 }; /* a person waits for it, nobody else */

struct question { /* to Redis; outlives the connection that asked */
    struct admin *admin;
    struct operator_later *later; /* owned */
    char tenant[WIRE_NAME_MAX + 1], conversation[WIRE_NAME_MAX + 1];
    struct placement_key key;
};

static const char *const why_[POLICY_REASON_COUNT] = {
    [POLICY_NONE] = "nobody can take it now: it would wait",
    [POLICY_NEW] = "no worker holds it: the least loaded of the first in its order",
    [POLICY_OWNER] = "it is at home there",
    [POLICY_SPILL] = "its owner cannot take it now: next in its order, the record stays",
    [POLICY_OVERLOAD] = "its owner is overloaded: it is cheaper there this time, the record stays",
    [POLICY_MOVED] = "its owner drains, or has been overloaded for long: it moves",
    [POLICY_OWNER_DEAD] = "its owner is lost: it is taken over",
    [POLICY_REDIS_DOWN] = "Redis does not answer: where this router remembers it, else the first in its order",
    [POLICY_ATTACHED] = "it runs there already",
    [POLICY_LOAD] = "the least loaded of all",
};

static json_t *record_json(const struct placement_record *record, const uint64_t *age_ms)
{
    static const char *const tiers[] = {"", "device", "host"};
    char cache[HASH_HEX_SIZE(WIRE_ID_BYTES)] = "";
    if (!record)
        return json_null();
    if (record->has_cache)
        hash_hex(record->cache_id, WIRE_ID_BYTES, cache);
    json_t *json = json_pack("{s:s, s:I, s:s, s:I, s:s}", "owner", record->owner, "epoch", (json_int_t)record->epoch,
                             "cache", cache, "tokens", (json_int_t)record->tokens, "tier",
                             tiers[record->tier <= PLACEMENT_TIER_HOST ? record->tier : 0]);
    if (json && age_ms)
        json_object_set_new(json, "age_ms", json_integer((json_int_t)*age_ms));
    return json;
}

static json_t *choice_json(struct router *router, const struct placement_key *key,
                           const struct placement_answer *answer)
{
    struct policy_choice choice = router_would_choose(router, key, answer);
    const char *name = choice.worker < 0 ? NULL : worker_name(worker_pool_at(router->pool, (unsigned)choice.worker));
    return json_pack("{s:s?, s:s, s:s}", "worker", name, "reason", policy_reason_name(choice.reason), "why",
                     why_[choice.reason]);
}

static json_t *conversation_json(const struct question *question, const struct placement_answer *answer)
{
    struct router *router = question->admin->router;
    const struct placement_record *recent = placement_cache_find(router->recent, &question->key);
    return json_pack("{s:s, s:s, s:s, s:s, s:b, s:o, s:o, s:o}", "tenant", question->tenant, "conversation",
                     question->conversation, "key", question->key.hex, "store", router->placement->ops->name,
                     "store_answered", answer->st == STATUS_OK, "record",
                     record_json(answer->found ? &answer->record : NULL, &answer->age_ms), "remembered",
                     record_json(recent, NULL), "next_turn", choice_json(router, &question->key, answer));
}

static void on_record(void *user, enum status st, const struct redisReply *reply, bool late)
{
    struct question *question = user;
    struct placement_answer answer = {.st = st};
    if (st == STATUS_OK && !late && placement_redis_parse(reply, &answer) != STATUS_OK)
        answer.st = STATUS_IO;
    if (!late)
        admin_answer_json_later(&question->later, conversation_json(question, &answer));
    if (late || st != STATUS_TIMEOUT) /* once more otherwise */
        free(question);
}

static bool take_name(const char *text, char out[WIRE_NAME_MAX + 1])
{
    bool valid = text && wire_name_valid(wire_span_str(text));
    if (valid)
        memcpy(out, text, strlen(text) + 1);
    return valid;
}

void admin_on_conversation(void *user, struct operator_request *request)
{
    struct admin *admin = user;
    const char *tenant = operator_query(request, "tenant");
    struct question asked = {.admin = admin};
    if (!take_name(operator_query(request, "name"), asked.conversation) ||
        !take_name(tenant ? tenant : "default", asked.tenant)) {
        operator_answer_error(
            request, 400,
            "which one? GET /conversation?name=NAME[&tenant=TENANT], each 1 to 64 of A-Z a-z 0-9 . _ : -");
        return;
    }
    placement_key_make(&admin->router->salt, wire_span_str(asked.tenant), wire_span_str(asked.conversation),
                       &asked.key);
    struct placement_answer answer = {.st = STATUS_OK};
    if (!admin->look) { /* the store is this router: what it remembers is the record */
        const struct placement_record *recent = placement_cache_find(admin->router->recent, &asked.key);
        answer.found = recent != NULL;
        if (recent)
            answer.record = *recent;
        admin_answer_json(request, 200, conversation_json(&asked, &answer));
        return;
    }
    char key[REDIS_RECORD_KEY_SIZE];
    const char *words[] = {key};
    snprintf(key, sizeof key, REDIS_RECORD_KEY, asked.key.hex);
    struct question *question = malloc(sizeof *question);
    if (question)
        *question = asked;
    if (question && operator_defer(request, &question->later) == STATUS_OK) {
        if (redis_script_call(admin->look, LOOK_MS, on_record, question, 1, 1, words) != STATUS_OK)
            on_record(question, STATUS_CLOSED, NULL, false);
        return;
    }
    free(question);
    operator_answer_error(request, 503, "no memory for the answer");
}
