/* sampler_tally.h - which ids a history holds, and how often its reply does: what penalties need.
 * Owns a hash table of the distinct ids, 20 to 32 bytes each; used by one thread at a time. It follows one growing history: each
 * update reads only the ids added since the last, so a step costs the distinct ids and not the history (a 32k conversation has a
 * few thousand). A history that became shorter or has another prompt size is counted from its start. */
#ifndef ROOST_WORKER_ENGINE_SAMPLER_TALLY_H
#define ROOST_WORKER_ENGINE_SAMPLER_TALLY_H
#include <stdint.h>
#include "common/status.h"

struct sampler_history;              /* worker/engine/text/sampler.h */
struct sampler_tally;                /* opaque */

struct sampler_tally_entry {
    uint32_t id;
    uint32_t reply_count;            /* 0: in the prompt only */
};

enum status sampler_tally_create(struct sampler_tally **out);
void sampler_tally_destroy(struct sampler_tally **tally);      /* accepts NULL; sets *tally to NULL */
void sampler_tally_clear(struct sampler_tally *tally);         /* the next update starts over */

/* STATUS_NO_MEMORY: the tally stays right for the ids it has read, and the next update goes on from there. */
enum status sampler_tally_update(struct sampler_tally *tally, const struct sampler_history *history);
/* Each distinct id once, in the order of first use. Borrowed until the next update. */
const struct sampler_tally_entry *sampler_tally_entries(const struct sampler_tally *tally, uint32_t *count);

#endif
