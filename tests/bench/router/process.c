#include "tests/bench/router/process.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

void process_pin_self(int core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    (void)sched_setaffinity(0, sizeof set, &set); /* on one core everything shares it */
}

enum status process_start(const char *const *argv, int core, int *pid)
{
    *pid = fork();
    if (*pid < 0)
        return STATUS_FAIL(STATUS_IO, "%s cannot be started: %s", argv[0], strerror(errno));
    if (*pid > 0)
        return STATUS_OK;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (core >= 0)
        process_pin_self(core);
    if (!getenv("ROOST_BENCH_VERBOSE")) {
        const int null = open("/dev/null", O_WRONLY);
        dup2(null, 1);
        dup2(null, 2);
    }
    execvp(argv[0], (char *const *)argv);
    _exit(127);
}

static void sleep_ms(unsigned ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000}, NULL);
}

void process_stop(int *pid)
{
    if (*pid <= 0)
        return;
    kill(*pid, SIGTERM);
    for (unsigned waited = 0; waitpid(*pid, NULL, WNOHANG) == 0; waited += 20) {
        if (waited == 5000)
            kill(*pid, SIGKILL);
        sleep_ms(20);
    }
    *pid = 0;
}

static struct sockaddr_in loopback(int port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

int process_free_port(void)
{
    struct sockaddr_in address = loopback(0);
    socklen_t size = sizeof address;
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bind(fd, (struct sockaddr *)&address, sizeof address);
    getsockname(fd, (struct sockaddr *)&address, &size);
    close(fd);
    return ntohs(address.sin_port);
}

enum status process_wait_port(int port, unsigned ms)
{
    for (unsigned waited = 0; waited < ms; waited += 20) {
        struct sockaddr_in address = loopback(port);
        const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        const int failed = connect(fd, (struct sockaddr *)&address, sizeof address);
        close(fd);
        if (!failed)
            return STATUS_OK;
        sleep_ms(20);
    }
    return STATUS_FAIL(STATUS_TIMEOUT, "nobody listens on port %d after %u ms", port, ms);
}
