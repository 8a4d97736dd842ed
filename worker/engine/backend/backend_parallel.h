/* backend_parallel.h - a backend (the CPU's, or a plugin's) over the ranks of a parallel_group: the table that rank 0's engine sees. Same
 * models, same pages, same bits as that backend alone, so a reply may go on from one to the other.
 *
 * backend_config.group is the group; one backend a group, once. Pages live on the rank whose arena they are in (arena_create_at); all
 * pages of a run are of one rank. Memory of other ranks has addresses here, but nothing behind them. STATUS_CLOSED of forward: the
 * group is over, and the process has to end. */
#ifndef ROOST_WORKER_ENGINE_BACKEND_PARALLEL_H
#define ROOST_WORKER_ENGINE_BACKEND_PARALLEL_H
#include <stdint.h>

struct backend;
struct backend_ops;

struct backend_parallel_counts {   /* since create */
    uint64_t steps, step_rows;     /* forwards, and rows in them */
    uint64_t collective_calls, collective_bytes;   /* of rank 0: what it was told by the others */
    uint64_t control_bytes;        /* told to each follower: batches and page tables */
};
void backend_parallel_counts(const struct backend *backend, struct backend_parallel_counts *out);

extern const struct backend_ops backend_parallel_ops;

#endif
