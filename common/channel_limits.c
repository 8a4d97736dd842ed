/* channel_limits.c - the process's limit on descriptors, checked before ZeroMQ can run into it. Owns nothing. */
#include "common/channel.h"
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/resource.h>

enum {
    DESCRIPTOR_RESERVE = 64
}; /* log, Redis, operators, eventfds and epoll of the loops, ZeroMQ's mailboxes and monitors */

static rlim_t count_open(void)
{
    rlim_t count = 0;
    DIR *folder = opendir("/proc/self/fd");
    if (!folder)
        return 3; /* no /proc: the standard ones */
    for (struct dirent *entry; (entry = readdir(folder));)
        count += entry->d_name[0] != '.';
    closedir(folder);
    return count - 1; /* the folder itself */
}

/* The limit, raised as far as it goes; RLIM_INFINITY: none. */
static enum status raise_limit(rlim_t *out)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return STATUS_FAIL(STATUS_IO, "the limit on open files cannot be read: %s", strerror(errno));
    if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < limit.rlim_max) {
        struct rlimit raised = {.rlim_cur = limit.rlim_max, .rlim_max = limit.rlim_max};
        if (setrlimit(RLIMIT_NOFILE, &raised) == 0)
            limit = raised;
    }
    *out = limit.rlim_cur;
    return STATUS_OK;
}

enum status channel_check_descriptors(unsigned needed)
{
    rlim_t limit, wanted = count_open() + DESCRIPTOR_RESERVE + needed;
    TRY(raise_limit(&limit));
    if (limit != RLIM_INFINITY && limit < wanted)
        return STATUS_FAIL(STATUS_LIMIT,
                           "the limit on open files is %llu, but %llu are needed, %u of them for connections: raise it "
                           "(LimitNOFILE= in the unit file, or ulimit -n) or allow fewer connections",
                           (unsigned long long)limit, (unsigned long long)wanted, needed);
    return STATUS_OK;
}

unsigned channel_descriptors_left(void)
{
    rlim_t limit, used = count_open() + DESCRIPTOR_RESERVE;
    if (raise_limit(&limit) != STATUS_OK || limit == RLIM_INFINITY)
        return UINT_MAX;
    rlim_t left = limit < used ? 0 : limit - used;
    return left < UINT_MAX ? (unsigned)left : UINT_MAX;
}
