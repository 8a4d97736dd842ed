/* decision_log.h - writes what the policy was asked and what it said, one JSON line a decision, so that the same
 * decisions can be taken again with other constants, and people can see why.
 *
 * Lines go through a buffer of DECISION_LOG_BUFFER bytes to a thread of its own: a full disk or a slow file never
 * stalls the loop. What does not fit is dropped and counted; the next line that fits says how many were. The file is
 * appended to and never read, turned over or truncated here.
 *
 *   {"t":ms,"n":number,"dropped":0,"key":"16 hex","conversation":true,"record":"other","owner":0,"lost":false,
 *    "may_take_over":true,"may_choose":true,"choices":3,"prompt":5600,"cached":5400,"age_ms":9000,"chosen":0,
 *    "reason":"owner","take_over":false,"by_choice":false,"table":[["16
 * hex",weight,load,queued,overloaded_ms,suspect_ms, token_ns,ramp,"rsd"],...]}
 *
 * t is this host's wall clock, n counts decisions (sampled ones have gaps), owner and chosen are rows of the table or
 * -1, the letters at the end of a row say ready, suspect, draining. A table of one row means that nobody else was
 * looked at. Keys are keyed hashes of conversations: they tell no names.
 *
 * Loop thread only; owns the thread and the descriptor. */
#ifndef ROOST_ROUTER_DECISION_LOG_H
#define ROOST_ROUTER_DECISION_LOG_H
#include <stddef.h>
#include "common/status.h"
#include "router/policy.h"

#define DECISION_LOG_BUFFER                                                                                            \
    (1u << 20) /* some 600 decisions over 16 workers; a disk that stalls for longer loses lines */

struct decision_log;

/* Every sample-th decision (at least 1). STATUS_IO: the file cannot be opened (a FIFO without a reader neither). */
enum status decision_log_create(const char *path, uint64_t sample, struct decision_log **out);
/* Writes what is buffered and joins the thread. Accepts NULL. */
void decision_log_destroy(struct decision_log **log);

/* log NULL: no-op. */
void decision_log_add(struct decision_log *log, const struct policy_table *table, const struct policy_query *query,
                      const struct policy_choice *choice);
uint64_t
decision_log_dropped(const struct decision_log *log); /* lines, with those that could not be written; NULL: 0 */

/* A line back to what it was made of: workers[workers_max] holds the table. STATUS_INVALID: it is no such line. */
enum status decision_log_parse(const char *line, struct policy_worker *workers, unsigned workers_max,
                               struct policy_table *table, struct policy_query *query, struct policy_choice *choice);

#endif
