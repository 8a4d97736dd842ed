/* kv_homes.h - one KV cache for each place that has device memory of its own (backend.h: homes; one for most backends, one a rank
 * with tensor parallelism), and the choice between them. A conversation's KV lies in one home whole: its pages, its part of the tree,
 * its part of the host tier. So a cache need not know of the others (kv_cache.h), and a page never moves between homes.
 *
 * The choice, at open: the home that would hold the fewest bytes with the sequence in it: what it holds now (kept conversations too),
 * what its open sequences will take for their prompts, and what of this prompt it would have to add, which is less where a beginning of
 * it matches. A match of more than half of a prompt counts as much as the largest conversation so far, and a quarter of itself (to
 * compute it anew costs time). So
 *   - a conversation goes on where its KV lies, unless that home holds more than another one by the largest conversation; where it leaves,
 *     its kept path goes, so that none is kept twice;
 *   - a shared beginning (persona) is followed until a home holds too much in the same way, then it is computed once more elsewhere: it
 *     lies in each home at most once;
 *   - homes differ by at most 5/4 of the largest conversation, so the fullest holds at most 1/N of all bytes plus (N - 1)/N of that: with
 *     up to 5 homes, plus one conversation.
 * Homes that are full, where something has to go for what comes, count as equally full; among those the bytes that open sequences hold
 * decide in the same way, so the match does, and eviction is each home's own. Ties: the longer match, then the lower number. A
 * home that has no room now (STATUS_AGAIN) is passed over: nothing waits while another has room.
 *
 * Each home has an equal share of the device and of the host bytes; each must hold one sequence_tokens_max. Owns the caches. Called by
 * the engine thread. kv_sequence_* and kv_cache_* of one sequence work on its own cache (kv_sequence_cache). */
#ifndef ROOST_WORKER_ENGINE_KV_HOMES_H
#define ROOST_WORKER_ENGINE_KV_HOMES_H
#include "worker/engine/kv/kv_cache.h"

#define KV_HOMES_MAX 16u

struct kv_homes;                     /* opaque */

/* config: sizes of all homes together; its home is not looked at. Errors as kv_cache_create. */
enum status kv_homes_create(const struct kv_cache_config *config, struct kv_homes **out);
void kv_homes_destroy(struct kv_homes **homes);      /* accepts NULL */
uint32_t kv_homes_count(const struct kv_homes *homes);
struct kv_cache *kv_homes_cache(const struct kv_homes *homes, uint32_t home);

/* As kv_cache_* of the same name. match: in the home that open would choose now. */
uint32_t kv_homes_match(const struct kv_homes *homes, const struct kv_prompt *prompt);
enum status kv_homes_open(struct kv_homes *homes, const struct kv_prompt *prompt, struct kv_sequence **out);
/* A name is of one path in all homes: where another home's path bears it, that one becomes nameless and nothing is told of it. */
void kv_homes_keep(struct kv_homes *homes, struct kv_sequence **sequence, uint32_t prompt_tokens, const uint8_t *label);
bool kv_homes_labelled(const struct kv_homes *homes, const uint8_t *label);
bool kv_homes_poll(struct kv_homes *homes);
void kv_homes_load_by_layers(struct kv_homes *homes, bool by_layers);
void kv_homes_forget(struct kv_homes *homes);
uint64_t kv_homes_room(const struct kv_homes *homes);    /* of all; one sequence may find less, and open or reserve say so */
uint64_t kv_homes_need(const struct kv_homes *homes, const struct kv_sequence *sequence, uint32_t tokens);
void kv_homes_counts(const struct kv_homes *homes, struct kv_cache_counts *out);     /* sums */
enum status kv_homes_check(const struct kv_homes *homes);

#endif
