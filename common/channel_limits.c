/* channel_limits.c - the process's limit on descriptors, checked before ZeroMQ can run into it. Owns nothing. */
#include "common/channel.h"
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/resource.h>

enum { DESCRIPTOR_RESERVE = 64 }; /* log, Redis, evhttp, eventfds and epoll of the loops, ZeroMQ's mailboxes and monitors */

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

enum status channel_check_descriptors(unsigned needed)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return STATUS_FAIL(STATUS_IO, "the limit on open files cannot be read: %s", strerror(errno));
    rlim_t wanted = count_open() + DESCRIPTOR_RESERVE + needed;
    if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < limit.rlim_max) {
        struct rlimit raised = {.rlim_cur = limit.rlim_max, .rlim_max = limit.rlim_max};
        if (setrlimit(RLIMIT_NOFILE, &raised) == 0)
            limit = raised;
    }
    if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < wanted)
        return STATUS_FAIL(STATUS_LIMIT,
                           "the limit on open files is %llu, but %llu are needed for %u connections: raise it "
                           "(LimitNOFILE= in the unit file, or ulimit -n) or allow fewer connections",
                           (unsigned long long)limit.rlim_cur, (unsigned long long)wanted, needed);
    return STATUS_OK;
}
