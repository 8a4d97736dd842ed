/* subjects.h - what bench-router measures. Each is made for one load_run, which ends it. */
#ifndef ROOST_TESTS_BENCH_ROUTER_SUBJECTS_H
#define ROOST_TESTS_BENCH_ROUTER_SUBJECTS_H
#include "tests/bench/router/load.h"

struct roost_options {
    const char *program;             /* roost-router, or bench-router itself for the forwarder */
    bool forwarder;
    int redis_port;                  /* 0: placement in memory */
    int core;                        /* where the process runs; -1: anywhere */
};
struct load_subject subject_roost(const struct roost_options *options);

struct http_options {
    const char *program;             /* haproxy */
    int core;
};
struct load_subject subject_http(const struct http_options *options);

/* The bare forwarder's process: two ROUTER sockets, no look into frames, no copy of bytes; workers in turn. Returns on SIGTERM. */
int forward_run(int client_port, int worker_port);

#endif
