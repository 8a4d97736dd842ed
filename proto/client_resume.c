/* What a call keeps so that another router can go on with it: the released ids of each choice, and whose numerics made
 * them. 4 bytes a token, until the call ends. */
#include "proto/client_internal.h"
#include <stdlib.h>
#include <string.h>

#define RESUME_IDS_MAX                                                                                                 \
    (WIRE_TOKENS_BYTES_MAX / 4) /* 65,536: the most that a HEAD takes (wire.h), and that fits client->columns */
#define IDS_MIN 64u

void call_free_ids(struct client_call *call)
{
    for (unsigned i = 0; call->ids && i < call->choices; i++)
        free(call->ids[i].ids);
    free(call->ids);
    call->ids = NULL;
}

static bool ids_reserve(struct call_ids *kept, uint32_t count)
{
    uint32_t size = kept->size ? kept->size : IDS_MIN;
    if (count <= kept->size)
        return true;
    while (size < count)
        size *= 2;
    uint32_t *ids = realloc(kept->ids, 4 * (size_t)size);
    if (!ids)
        return false;
    *kept = (struct call_ids){ids, size};
    return true;
}

void call_keep_ids(struct client_call *call, unsigned choice, struct wire_span ids)
{
    uint32_t count = (uint32_t)(ids.size / 4);
    if (call->ids_lost || count == 0)
        return;
    if (!call->ids)
        call->ids = calloc(call->choices, sizeof *call->ids);
    if (!call->ids || call->released_total + count > RESUME_IDS_MAX ||
        !ids_reserve(&call->ids[choice], call->released[choice] + count)) {
        call_free_ids(call);
        call->ids_lost = true;
        return;
    }
    memcpy(call->ids[choice].ids + call->released[choice], ids.data, ids.size);
}

void call_keep_numerics(struct client_call *call, struct wire_span numerics_id)
{
    if (numerics_id.size != sizeof call->numerics_id)
        return; /* of the previous release */
    if (call->numerics_known && call->released_total > 0 && call->inexact_allowed &&
        memcmp(call->numerics_id, numerics_id.data, numerics_id.size) != 0)
        call->inexact = true; /* the tokens so far may be of others: no later router can tell */
    memcpy(call->numerics_id, numerics_id.data, numerics_id.size);
    call->numerics_known = true;
}

const char *call_resume_trouble(const struct client_call *call)
{
    if (call->released_total == 0)
        return NULL;
    if (call->ids_lost)
        return "more tokens were released than can be carried to another router";
    return NULL;
}

void call_fill_resume(struct client_call *call, struct wire_head *head)
{
    uint32_t *at = call->client->columns;
    if (call->released_total == 0)
        return;
    for (unsigned i = 0; i < call->choices; i++) {
        if (call->released[i] > 0)
            memcpy(at, call->ids[i].ids, 4 * (size_t)call->released[i]);
        at += call->released[i];
    }
    head->resume.counts = wire_span_of(call->released, 4 * (size_t)call->choices);
    head->resume.ids = wire_span_of(call->client->columns, 4 * (size_t)call->released_total);
    if (call->numerics_known) /* else only the worker that still has it can go on */
        head->numerics_id = wire_span_of(call->numerics_id, sizeof call->numerics_id);
}
