/* metrics_process.c - what the kernel says of this process. A value that cannot be read is left out. Owns nothing. */
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include "common/metrics.h"

static double seconds_of(struct timeval time)
{
    return (double)time.tv_sec + 1e-6 * (double)time.tv_usec;
}

static long resident_pages(void)
{
    long size = 0, resident = -1;
    FILE *file = fopen("/proc/self/statm", "re");
    if (!file)
        return -1;
    if (fscanf(file, "%ld %ld", &size, &resident) != 2)
        resident = -1;
    fclose(file);
    return resident;
}

static long open_descriptors(void)
{
    long count = -1; /* the folder's own */
    DIR *folder = opendir("/proc/self/fd");
    if (!folder)
        return -1;
    for (struct dirent *entry; (entry = readdir(folder));)
        count += entry->d_name[0] != '.';
    closedir(folder);
    return count;
}

/* Field 22 of stat, in ticks since boot; the command in field 2 may hold spaces, so what is behind it is counted. */
static double start_seconds(void)
{
    char text[1024];
    FILE *file = fopen("/proc/self/stat", "re");
    size_t size = file ? fread(text, 1, sizeof text - 1, file) : 0;
    if (file)
        fclose(file);
    text[size] = 0;
    const char *at = strrchr(text, ')');
    unsigned long long ticks = 0;
    struct timespec now, since_boot;
    if (!at || sscanf(at + 1, " %*c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu",
                      &ticks) != 1)
        return 0;
    clock_gettime(CLOCK_REALTIME, &now);
    clock_gettime(CLOCK_BOOTTIME, &since_boot);
    return (double)(now.tv_sec - since_boot.tv_sec) + 1e-9 * (double)(now.tv_nsec - since_boot.tv_nsec) +
           (double)ticks / (double)sysconf(_SC_CLK_TCK);
}

void metrics_process(struct metrics *metrics)
{
    struct rusage usage;
    struct rlimit limit;
    long pages = resident_pages(), descriptors = open_descriptors();
    double start = start_seconds();
    if (pages >= 0)
        metrics_gauge(metrics, "process_resident_memory_bytes", "Memory that this process takes",
                      (double)pages * (double)sysconf(_SC_PAGESIZE));
    if (descriptors >= 0)
        metrics_gauge(metrics, "process_open_fds", "Descriptors that are open", (double)descriptors);
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        metrics_gauge(metrics, "process_max_fds", "Most descriptors that may be open", (double)limit.rlim_cur);
    if (getrusage(RUSAGE_SELF, &usage) == 0) {
        metrics_family(metrics, "process_cpu_seconds_total", METRICS_COUNTER, "Processor time of all threads");
        metrics_value(metrics, NULL, NULL, seconds_of(usage.ru_utime) + seconds_of(usage.ru_stime));
    }
    if (start > 0)
        metrics_gauge(metrics, "process_start_time_seconds", "When this process started, in seconds since 1970", start);
}
