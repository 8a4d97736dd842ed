#include "redis_proxy.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/clock.h"

enum { CHUNKS_MAX = 256, CHUNK_BYTES = 4096 };

struct chunk {
    uint64_t due_ms;
    ssize_t size;
    char bytes[CHUNK_BYTES];
};

static void fail(const char *what)
{
    perror(what);
    abort();
}

static int unix_socket(const char *path, struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    snprintf(address->sun_path, sizeof address->sun_path, "%s", path);
    if (fd < 0)
        fail("socket");
    return fd;
}

/* One connection, in a process of its own. */
static void carry(int client, const char *server_path, unsigned delay_ms)
{
    static struct chunk chunks[CHUNKS_MAX];
    unsigned first = 0, count = 0;
    char bytes[CHUNK_BYTES];
    struct sockaddr_un address;
    int server = unix_socket(server_path, &address);
    if (connect(server, (struct sockaddr *)&address, sizeof address) != 0)
        return;
    for (;;) {
        uint64_t now = clock_now_ms();
        while (count > 0 && chunks[first].due_ms <= now) {
            if (write(client, chunks[first].bytes, (size_t)chunks[first].size) != chunks[first].size)
                return;
            first = (first + 1) % CHUNKS_MAX;
            count--;
        }
        struct pollfd fds[2] = {{.fd = client, .events = POLLIN},
                                {.fd = count < CHUNKS_MAX ? server : -1, .events = POLLIN}};
        if (poll(fds, 2, count > 0 ? (int)(chunks[first].due_ms - now) : -1) < 0)
            return;
        if (fds[0].revents) {
            ssize_t got = read(client, bytes, sizeof bytes);
            if (got <= 0 || write(server, bytes, (size_t)got) != got)
                return;
        }
        if (fds[1].revents) {
            struct chunk *chunk = &chunks[(first + count) % CHUNKS_MAX];
            chunk->size = read(server, chunk->bytes, sizeof chunk->bytes);
            chunk->due_ms = clock_now_ms() + delay_ms;
            if (chunk->size <= 0)
                return;
            count++;
        }
    }
}

void redis_proxy_start(struct redis_proxy *proxy, const struct redis_server *server, unsigned delay_ms)
{
    struct sockaddr_un address;
    snprintf(proxy->socket, sizeof proxy->socket, "%s/proxy.sock", server->directory);
    unlink(proxy->socket);
    int listener = unix_socket(proxy->socket, &address);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 16) != 0)
        fail("listen");
    proxy->pid = fork();
    if (proxy->pid < 0)
        fail("fork");
    if (proxy->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        signal(SIGCHLD, SIG_IGN);
        for (;;) {
            int client = accept(listener, NULL, NULL);
            if (client < 0)
                _exit(1);
            if (fork() == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                close(listener);
                carry(client, server->socket, delay_ms);
                _exit(0);
            }
            close(client);
        }
    }
    close(listener);
}

void redis_proxy_stop(struct redis_proxy *proxy)
{
    kill(proxy->pid, SIGKILL);
    waitpid(proxy->pid, NULL, 0);
    proxy->pid = 0;
}
