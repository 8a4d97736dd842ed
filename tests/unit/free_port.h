/* free_port.h - a port of loopback for a server that starts later, or that ends and comes back. */
#ifndef ROOST_TESTS_FREE_PORT_H
#define ROOST_TESTS_FREE_PORT_H
#include <arpa/inet.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* Below those that the kernel gives to whoever asks for any (net.ipv4.ip_local_port_range, from 32768): so nobody else gets
 * it meanwhile, and a client that tries it again and again never meets itself. Another each time. 0: all are taken. */
static inline unsigned free_port(void)
{
    enum { FIRST = 10000, PORTS = 22768 };
    static unsigned next;
    if (next == 0)
        next = (unsigned)getpid() * 37u; /* tests that run side by side begin far from one another */
    bool free = false;
    unsigned port = 0;
    for (unsigned tries = 0; tries < PORTS && !free; tries++) {
        port = FIRST + next++ % PORTS;
        struct sockaddr_in address = {
            .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        free = fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0;
        close(fd);
    }
    return free ? port : 0;
}
#endif
