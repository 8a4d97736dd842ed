/* redis_proxy.h - a process between a test and its redis-server: replies pass it delay_ms later. Aborts the test on
 * failure. */
#ifndef ROOST_TESTS_ROUTER_REDIS_PROXY_H
#define ROOST_TESTS_ROUTER_REDIS_PROXY_H
#include <sys/types.h>
#include "redis_server.h"

struct redis_proxy {
    char socket[112];
    pid_t pid;
};

void redis_proxy_start(struct redis_proxy *proxy, const struct redis_server *server, unsigned delay_ms);
void redis_proxy_stop(struct redis_proxy *proxy);

#endif
