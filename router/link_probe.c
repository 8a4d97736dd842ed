/* link_probe.c - see link_probe.h. connect --writable: SO_ERROR--> read --a byte of the greeting--> ANSWERED
 * A connect that fails at once is told from the loop too: a zero timer of libevent. */
#include "router/link_probe.h"
#include <arpa/inet.h>
#include <errno.h>
#include <event2/event.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "common/loop.h"

struct link_probe {
    int fd;
    int error; /* of connect, as far as it is known; EINPROGRESS: it is not */
    struct event *event;
    link_probe_fn *fn;
    void *user;
};

struct address {
    union {
        struct sockaddr any;
        struct sockaddr_storage storage;
        struct sockaddr_un path;
    };
    socklen_t size;
};

static enum status tcp_address(const char *text, struct address *out)
{
    char host[256];
    const char *port = strrchr(text, ':');
    if (!port || (size_t)(port - text) >= sizeof host)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s is no address and port", text);
    size_t size = (size_t)(port - text);
    const char *from = text;
    if (size >= 2 && text[0] == '[' && port[-1] == ']')
        from++, size -= 2;
    memcpy(host, from, size);
    host[size] = 0;
    const struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    if (getaddrinfo(strcmp(host, "localhost") == 0 ? "127.0.0.1" : host, port + 1, &hints, &found) != 0)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s is not numeric", text);
    memcpy(&out->storage, found->ai_addr, found->ai_addrlen);
    out->size = found->ai_addrlen;
    freeaddrinfo(found);
    return STATUS_OK;
}

static enum status address_of(const char *endpoint, struct address *out)
{
    memset(out, 0, sizeof *out);
    if (strncmp(endpoint, "tcp://", 6) == 0)
        return tcp_address(endpoint + 6, out);
    const char *path = endpoint + 6;
    if (strncmp(endpoint, "ipc://", 6) != 0 || !path[0] || strlen(path) >= sizeof out->path.sun_path)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "%s is neither tcp nor ipc", endpoint);
    out->path.sun_family = AF_UNIX;
    memcpy(out->path.sun_path, path, strlen(path));
    out->size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
    if (path[0] == '@')
        out->path.sun_path[0] = 0; /* Linux' abstract names, as ZeroMQ writes them */
    else
        out->size++;
    return STATUS_OK;
}

static void tell(struct link_probe *probe, enum link_probe_result result)
{
    event_del(probe->event);
    probe->fn(probe->user, result); /* may destroy it */
}

static enum link_probe_result result_of(int error)
{
    return error == ECONNREFUSED || error == ENOENT ? LINK_PROBE_REFUSED : LINK_PROBE_UNCLEAR;
}

static void on_readable(evutil_socket_t fd, short what, void *user)
{
    struct link_probe *probe = user;
    uint8_t byte;
    (void)what;
    ssize_t got = recv(fd, &byte, 1, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    tell(probe, got == 1 ? LINK_PROBE_ANSWERED : got < 0 ? result_of(errno) : LINK_PROBE_UNCLEAR);
}

static void on_connected(evutil_socket_t fd, short what, void *user)
{
    struct link_probe *probe = user;
    (void)what;
    if (probe->error == EINPROGRESS) {
        socklen_t size = sizeof probe->error;
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &probe->error, &size) != 0)
            probe->error = errno;
    }
    if (probe->error != 0) {
        tell(probe, result_of(probe->error));
        return;
    }
    struct event_base *base = event_get_base(probe->event);
    event_del(probe->event);
    if (event_assign(probe->event, base, fd, EV_READ | EV_PERSIST, on_readable, probe) != 0 ||
        event_add(probe->event, NULL) != 0)
        tell(probe, LINK_PROBE_UNCLEAR);
}

enum status link_probe_create(struct loop *loop, const char *endpoint, link_probe_fn *fn, void *user,
                              struct link_probe **out)
{
    struct address address;
    TRY(address_of(endpoint, &address));
    struct link_probe *probe = calloc(1, sizeof *probe);
    if (!probe)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a probe of %s", endpoint);
    probe->fn = fn;
    probe->user = user;
    probe->fd = socket(address.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (probe->fd < 0) {
        free(probe);
        return STATUS_FAIL(STATUS_IO, "no socket to ask %s: %s", endpoint, strerror(errno));
    }
    probe->error = connect(probe->fd, &address.any, address.size) == 0 ? 0 : errno;
    /* A backlog of a unix socket that is full says EAGAIN: unclear, as it should be. */
    probe->event = event_new(loop_event_base(loop), probe->fd, EV_WRITE, on_connected, probe);
    const struct timeval now = {0};
    if (!probe->event || event_add(probe->event, probe->error == EINPROGRESS ? NULL : &now) != 0) {
        link_probe_destroy(&probe);
        return STATUS_FAIL(STATUS_NO_MEMORY, "a probe of %s", endpoint);
    }
    *out = probe;
    return STATUS_OK;
}

void link_probe_destroy(struct link_probe **probe)
{
    struct link_probe *gone = *probe;
    if (!gone)
        return;
    *probe = NULL;
    if (gone->event)
        event_free(gone->event);
    close(gone->fd);
    free(gone);
}
