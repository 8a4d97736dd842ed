#include "worker/engine/backend/parallel_group.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/log.h"
#include "worker/engine/backend/parallel_wire.h"
#include "worker/engine/backend/rank.h"

#define ARGUMENT     "--follower="
#define STEP_MS_MIN  2000u
#define JOIN_MS      30000u   /* a process starts in some 10 ms; under a sanitizer and load in seconds */
#define END_MS       2000u    /* for a follower to end by itself */
#define LOST_MS      50u      /* of a lost group, where one may be standing still: time for the others' last words */
#define POLL_MS      5u

static void died(void *user)
{
    struct parallel_group *group = user;
    if (!group->closing && group->on_death != NULL)
        group->on_death(group->user);
}

bool parallel_group_argument(const char *argument)
{
    return strncmp(argument, ARGUMENT, strlen(ARGUMENT)) == 0;
}

/* In the child: only what is allowed between fork and exec. */
static void become_follower(const struct parallel_group *group, pid_t parent, char *argument)
{
    char *const arguments[] = {(char *)"roost-worker", argument, NULL};
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    (void)fcntl(rendezvous_fd(group->rendezvous), F_SETFD, 0);
    (void)fcntl(group->host_fd, F_SETFD, 0);
    (void)execv("/proc/self/exe", arguments);
    _exit(127);
}

static enum status start_follower(struct parallel_group *group, uint32_t rank)
{
    char argument[64];
    const pid_t parent = getpid();
    snprintf(argument, sizeof argument, ARGUMENT "%d,%d,%u", rendezvous_fd(group->rendezvous), group->host_fd, rank);
    const pid_t pid = fork();
    if (pid < 0)
        return STATUS_FAIL(STATUS_IO, "cannot start rank %u: %s", rank, strerror(errno));
    if (pid == 0)
        become_follower(group, parent, argument);
    group->pids[rank] = pid;
    return STATUS_OK;
}

/* Until all have joined; a follower that ends before is an error at once. */
static enum status meet(struct parallel_group *group)
{
    const uint64_t deadline_ms = clock_now_ms() + JOIN_MS;
    for (;;) {
        const enum status st = rendezvous_meet(group->rendezvous, clock_now_ms() + POLL_MS);
        if (st != STATUS_TIMEOUT || clock_now_ms() >= deadline_ms)
            return st;
        for (uint32_t rank = 1; rank < rendezvous_size(group->rendezvous); rank++) {
            int how;
            if (waitpid(group->pids[rank], &how, WNOHANG) == group->pids[rank]) {
                const pid_t pid = group->pids[rank];
                group->pids[rank] = 0;
                return STATUS_FAIL(STATUS_CLOSED, "rank %u (process %d) ended before it had joined", rank, (int)pid);
            }
        }
    }
}

enum status parallel_group_start(const struct parallel_group_config *config, struct parallel_group **out)
{
    enum status st;
    if (config->size < 1 || config->size > BACKEND_RANKS_MAX)
        return STATUS_FAIL(STATUS_INVALID, "a group of %u ranks, want 1 to %u", config->size, BACKEND_RANKS_MAX);
    struct parallel_group *group = calloc(1, sizeof *group);
    if (group == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a group");
    group->host_fd = memfd_create("roost-host-tier", MFD_CLOEXEC);
    group->model_dir = strdup(config->model_dir);
    group->plugin = config->plugin != NULL ? strdup(config->plugin) : NULL;
    group->ranks = config->ranks != NULL ? config->ranks : &rank_cpu_ops;
    group->step_ms_min = config->step_ms_min != 0 ? config->step_ms_min : STEP_MS_MIN;
    group->on_death = config->on_death;
    group->user = config->user;
    if (group->host_fd < 0 || group->model_dir == NULL || (config->plugin != NULL && group->plugin == NULL)) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a group");
        goto fail;
    }
    TRY_GOTO(rendezvous_create(config->size, parallel_extra_bytes(config->size), &group->rendezvous), st, fail);
    for (uint32_t rank = 1; rank < config->size; rank++)
        TRY_GOTO(start_follower(group, rank), st, fail);
    rendezvous_on_death(group->rendezvous, died, group);
    TRY_GOTO(meet(group), st, fail);
    *out = group;
    return STATUS_OK;
fail:
    parallel_group_stop(&group);
    return st;
}

static bool reaped(pid_t pid)
{
    int how;
    return waitpid(pid, &how, WNOHANG) != 0;
}

void parallel_group_stop(struct parallel_group **pointer)
{
    struct parallel_group *group = *pointer;
    if (group == NULL)
        return;
    group->closing = true;
    if (group->rendezvous != NULL && !group->taken)
        rendezvous_abort(group->rendezvous, "rank 0 ends");   /* nothing else has told them */
    const bool lost = group->rendezvous != NULL && rendezvous_aborted(group->rendezvous);
    const uint64_t deadline_ms = clock_now_ms() + (lost ? LOST_MS : END_MS);
    for (uint32_t rank = 1; rank < RENDEZVOUS_RANKS_MAX; rank++) {
        const pid_t pid = group->pids[rank];
        bool gone = pid <= 0;
        while (!gone && !(gone = reaped(pid)) && clock_now_ms() < deadline_ms)
            usleep(POLL_MS * 1000);
        if (gone)
            continue;
        (void)kill(pid, SIGKILL);
        (void)waitpid(pid, NULL, 0);
    }
    rendezvous_destroy(&group->rendezvous);
    if (group->host_fd >= 0)
        close(group->host_fd);
    free(group->model_dir);
    free(group->plugin);
    free(group);
    *pointer = NULL;
}

uint32_t parallel_group_size(const struct parallel_group *group)
{
    return rendezvous_size(group->rendezvous);
}

pid_t parallel_group_pid(const struct parallel_group *group, uint32_t rank)
{
    return rank == 0 ? getpid() : group->pids[rank];
}

enum status parallel_group_status(const struct parallel_group *group)
{
    return rendezvous_status(group->rendezvous);
}
