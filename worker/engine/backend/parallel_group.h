/* parallel_group.h - the processes of one worker with several ranks (docs/decisions/0005-tensor-parallelism.md): rank 0 is the process
 * that calls; the others execute the same program with one argument that parallel_group_argument recognises, before anything else in main:
 *
 *     if (argc == 2 && parallel_group_argument(argv[1]))
 *         return parallel_follower_main(argv[1], &log);
 *
 * They follow rank 0's batches (backend_parallel_ops) until it says that it ends, or dies: then they die with it, by a signal of the
 * kernel's and by the rendezvous. They ignore SIGTERM and SIGINT, for ending is rank 0's to decide.
 *
 * The group is started by a thread that lives as long as the process (the kernel's signal is tied to it), and before other threads and
 * sockets are there. It is one failure unit: when a rank dies, on_death is called and every computation ends with STATUS_CLOSED. */
#ifndef ROOST_WORKER_ENGINE_PARALLEL_GROUP_H
#define ROOST_WORKER_ENGINE_PARALLEL_GROUP_H
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "common/status.h"

struct log_config;
struct parallel_group;
struct rank_ops;

struct parallel_group_config {
    uint32_t size;                 /* ranks, rank 0 among them: 2 .. BACKEND_RANKS_MAX; 1: no followers (tests) */
    const char *model_dir;         /* copied; every rank reads it, and must find the same bytes */
    const struct rank_ops *ranks;  /* NULL: the CPU backend's (rank.h) */
    const char *plugin;            /* copied; where other ranks find `ranks` (backend_load.h); NULL for the CPU's */
    uint32_t step_ms_min;          /* a step that takes longer, and longer than step_patience.h allows, ends the group; 0: 2,000 */
    void (*on_death)(void *user);  /* in another thread, once: a follower has died without being told to. May be NULL */
    void *user;
};

enum status parallel_group_start(const struct parallel_group_config *config, struct parallel_group **out);
/* The followers are ended, at once where they do not end by themselves, and waited for. Accepts NULL. */
void parallel_group_stop(struct parallel_group **group);
uint32_t parallel_group_size(const struct parallel_group *group);
pid_t parallel_group_pid(const struct parallel_group *group, uint32_t rank);
/* Why it is over; STATUS_OK: it is not. */
enum status parallel_group_status(const struct parallel_group *group);

bool parallel_group_argument(const char *argument);
/* A follower's life; returns its exit code. */
int parallel_follower_main(const char *argument, const struct log_config *log);

#endif
