/* process.h - a child process of bench-router: started, waited for, ended. */
#ifndef ROOST_TESTS_BENCH_ROUTER_PROCESS_H
#define ROOST_TESTS_BENCH_ROUTER_PROCESS_H
#include "common/status.h"

/* core below 0: any. Its output goes to /dev/null unless ROOST_BENCH_VERBOSE is set. STATUS_IO: it cannot be started. */
enum status process_start(const char *const *argv, int core, int *pid);
void process_stop(int *pid);                  /* SIGTERM, after 5 s SIGKILL; waits. 0: none */
void process_pin_self(int core);
int process_free_port(void);                  /* a TCP port of loopback that is free now */
/* STATUS_TIMEOUT: nobody listens there within the time. */
enum status process_wait_port(int port, unsigned ms);

#endif
