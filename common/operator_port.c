/* operator_port.c - owns the listener, the routes and the connections.
 *
 *   accepted -> READING --whole request--> handler --answer--> WRITING --taken--+--keep-alive--> READING
 *                  |                                              |             '--else--> CLOSING: our end is shut,
 * what still
 *                  '-- deadline, end, refusal (an answer too) ----+----------------------> comes is read and dropped,
 * then closed
 *
 * CLOSING is there because a close with bytes unread makes the kernel drop the answer that is on its way. */
#include "common/operator_port.h"
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <utlist.h>
#include "common/http_request.h"
#include "common/loop.h"
#include "common/probe.h"
#include "common/utf8.h"

enum {
    CLOSING_MS = 1000,
    ACCEPT_AGAIN_MS = 100, /* after accept failed for want of descriptors: without a pause it would spin */
    ADDRESS_BYTES = 64,
};

struct route {
    const char *method, *path;
    operator_handler_fn *fn;
    void *user;
};

enum connection_state { CONNECTION_READING, CONNECTION_WRITING, CONNECTION_CLOSING };

struct connection {
    struct operator_port *port; /* ref */
    struct bufferevent *buffer; /* owned, with its descriptor */
    struct event *deadline;     /* owned */
    enum connection_state state;
    bool keep_alive;              /* of the request that is answered now */
    bool ended;                   /* the peer has shut its end */
    size_t skip_bytes;            /* of its body, not read yet */
    struct operator_later *later; /* ref: its answer has been deferred; or NULL */
    struct connection *prev, *next;
};

struct operator_port {
    struct loop *loop; /* ref */
    struct evconnlistener *listener;
    struct event *accept_again;
    char address[ADDRESS_BYTES];
    struct route routes[OPERATOR_ROUTES_MAX];
    unsigned route_count, connection_count;
    struct connection *connections;
};

struct operator_later {            /* owned by whoever will answer */
    struct connection *connection; /* ref; NULL: it has ended */
    bool head;
};

struct operator_request {
    struct connection *connection;
    struct http_request http;
    bool head; /* asked with HEAD: no body in the answer */
    bool answered;
    char allow[16]; /* methods of the path, for a 405 */
};

/* ---- addresses ---- */

/* By hand: evutil_parse_sockaddr_port takes no port 0. */
static enum status parse_address(const char *text, struct sockaddr_storage *out, int *size)
{
    const char *colon = strrchr(text, ':');
    char host[INET6_ADDRSTRLEN + 2];
    size_t host_size = colon ? (size_t)(colon - text) : sizeof host;
    size_t digits = colon ? strspn(colon + 1, "0123456789") : 0;
    unsigned long port = digits > 0 && digits <= 5 && !colon[1 + digits] ? strtoul(colon + 1, NULL, 10) : ULONG_MAX;
    struct sockaddr_in *v4 = (struct sockaddr_in *)out;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
    memset(out, 0, sizeof *out);
    if (host_size < sizeof host && port <= UINT16_MAX) {
        memcpy(host, text, host_size);
        host[host_size] = 0;
        if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
            v4->sin_family = AF_INET;
            v4->sin_port = htons((uint16_t)port);
            *size = sizeof *v4;
            return STATUS_OK;
        }
        bool bracketed = host_size > 2 && host[0] == '[' && host[host_size - 1] == ']';
        if (bracketed)
            host[host_size - 1] = 0;
        if (bracketed && inet_pton(AF_INET6, host + 1, &v6->sin6_addr) == 1) {
            v6->sin6_family = AF_INET6;
            v6->sin6_port = htons((uint16_t)port);
            *size = sizeof *v6;
            return STATUS_OK;
        }
    }
    return STATUS_FAIL(STATUS_INVALID, "'%s' is not IP:PORT or [IP]:PORT, as in 127.0.0.1:7490", text);
}

static bool is_loopback(const struct sockaddr_storage *address)
{
    if (address->ss_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24 == 127;
    return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)address)->sin6_addr);
}

enum status operator_address_check(const char *address, bool allow_remote)
{
    struct sockaddr_storage parsed;
    int size;
    TRY(parse_address(address, &parsed, &size));
    if (!allow_remote && !is_loopback(&parsed))
        return STATUS_FAIL(
            STATUS_INVALID,
            "%s can be reached from other hosts, and whoever reaches it may drain: use 127.0.0.1:PORT, or "
            "set allow_remote: true where the network is trusted",
            address);
    return STATUS_OK;
}

static void write_address(int fd, char out[ADDRESS_BYTES])
{
    struct sockaddr_storage bound = {0};
    socklen_t size = sizeof bound;
    char host[INET6_ADDRSTRLEN] = "";
    getsockname(fd, (struct sockaddr *)&bound, &size);
    if (bound.ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)&bound;
        inet_ntop(AF_INET, &v4->sin_addr, host, sizeof host);
        snprintf(out, ADDRESS_BYTES, "%s:%u", host, ntohs(v4->sin_port));
    } else {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&bound;
        inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof host);
        snprintf(out, ADDRESS_BYTES, "[%s]:%u", host, ntohs(v6->sin6_port));
    }
}

/* ---- connections ---- */

static void connection_close(struct connection *connection)
{
    struct operator_port *port = connection->port;
    DL_DELETE(port->connections, connection);
    port->connection_count--;
    if (connection->later)
        connection->later->connection = NULL;
    event_free(connection->deadline);
    bufferevent_free(connection->buffer);
    free(connection);
}

static void set_deadline(struct connection *connection, unsigned ms)
{
    struct timeval delay = {.tv_sec = ms / 1000, .tv_usec = (long)(ms % 1000) * 1000};
    event_add(connection->deadline, &delay);
}

static void connection_move(struct connection *connection, enum connection_state state)
{
    connection->state = state;
    set_deadline(connection, state == CONNECTION_CLOSING ? CLOSING_MS : OPERATOR_DEADLINE_MS);
    if (state == CONNECTION_CLOSING)
        shutdown(bufferevent_getfd(connection->buffer), SHUT_WR);
}

static const char *reason_of(int code)
{
    switch (code) {
    case 200: return "OK";
    case 202: return "Accepted";
    case 400: return "Bad Request";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 409: return "Conflict";
    case 413: return "Content Too Large";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 505: return "HTTP Version Not Supported";
    default: return "Answer";
    }
}

static int format_head(char *out, size_t out_size, int code, const char *type, size_t size, const char *allow,
                       bool keep_alive)
{
    return snprintf(
        out, out_size,
        "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nCache-Control: no-store\r\n%s%s%s%s\r\n", code,
        reason_of(code), type, size, allow[0] ? "Allow: " : "", allow, allow[0] ? "\r\n" : "",
        keep_alive ? "" : "Connection: close\r\n");
}

static void write_answer(struct connection *connection, int code, const char *type, const char *text, size_t size,
                         const char *allow, bool head_alone)
{
    struct evbuffer *out = bufferevent_get_output(connection->buffer);
    char head[512];
    int head_size = format_head(head, sizeof head, code, type, size, allow, connection->keep_alive);
    if (evbuffer_add(out, head, (size_t)head_size) != 0 || (!head_alone && evbuffer_add(out, text, size) != 0))
        connection->keep_alive = false; /* no memory: it ends short of its length, which the peer notices */
}

void operator_answer(struct operator_request *request, int code, const char *type, const char *text, size_t size)
{
    assert(!request->answered);
    request->answered = true;
    write_answer(request->connection, code, type, text, size, request->allow, request->head);
}

enum status operator_defer(struct operator_request *request, struct operator_later **out)
{
    assert(!request->answered);
    struct operator_later *later = malloc(sizeof *later);
    if (!later)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for an answer");
    *later = (struct operator_later){.connection = request->connection, .head = request->head};
    request->answered = true;
    request->connection->later = *out = later;
    return STATUS_OK;
}

void operator_answer_later(struct operator_later **later, int code, const char *type, const char *text, size_t size)
{
    struct connection *connection = (*later)->connection;
    if (connection) {
        connection->later = NULL;
        write_answer(connection, code, type, text, size, "", (*later)->head);
    }
    free(*later);
    *later = NULL;
}

/* {"error": detail} with what JSON wants escaped; what is not plain text was quoted as \xNN before. */
static size_t format_error(char *out, size_t out_size, const char *detail)
{
    char plain[600];
    utf8_quote(detail, strlen(detail), plain, sizeof plain);
    size_t used = (size_t)snprintf(out, out_size, "{\"error\": \"");
    for (const char *at = plain; *at && used < out_size - 8; at++) {
        if (*at == '"' || *at == '\\')
            out[used++] = '\\';
        out[used++] = *at;
    }
    return used + (size_t)snprintf(out + used, out_size - used, "\"}\n");
}

void operator_answer_error(struct operator_request *request, int code, const char *detail)
{
    char text[1400];
    size_t size = format_error(text, sizeof text, detail);
    operator_answer(request, code, OPERATOR_JSON, text, size);
}

const char *operator_query(struct operator_request *request, const char *name)
{
    for (unsigned i = 0; i < request->http.parameter_count; i++)
        if (strcmp(request->http.parameters[i].name, name) == 0)
            return request->http.parameters[i].value;
    return NULL;
}

/* ---- requests ---- */

static const struct route *find_route(const struct operator_port *port, struct operator_request *request,
                                      const char *method)
{
    request->allow[0] = 0;
    for (unsigned i = 0; i < port->route_count; i++) {
        const struct route *route = &port->routes[i];
        if (strcmp(route->path, request->http.path) != 0)
            continue;
        if (strcmp(route->method, method) == 0) {
            request->allow[0] = 0;
            return route;
        }
        snprintf(request->allow, sizeof request->allow, "%s", strcmp(route->method, "GET") == 0 ? "GET, HEAD" : "POST");
    }
    return NULL;
}

static void dispatch(struct operator_request *request)
{
    const struct operator_port *port = request->connection->port;
    (void)loop_now_ms(port->loop); /* the loop's wait ends here: what a handler takes is work */
    request->head = strcmp(request->http.method, "HEAD") == 0;
    const char *method = request->head ? "GET" : request->http.method;
    const struct route *route = find_route(port, request, method);
    char path[80], text[160];
    utf8_quote(request->http.path, strlen(request->http.path), path, sizeof path);
    if (!route && request->allow[0]) {
        snprintf(text, sizeof text, "%s takes %s", path, request->allow);
        operator_answer_error(request, 405, text);
    } else if (!route) {
        snprintf(text, sizeof text, "there is no %s here", path);
        operator_answer_error(request, 404, text);
    } else if (request->http.from_page && strcmp(method, "POST") == 0) {
        operator_answer_error(request, 403, "not for web pages: send it without an Origin");
    } else {
        route->fn(route->user, request);
        assert(request->answered);
    }
}

static void refuse(struct connection *connection, int code, const char *why)
{
    struct operator_request request = {.connection = connection};
    connection->keep_alive = false;
    operator_answer_error(&request, code, why);
    connection_move(connection, CONNECTION_WRITING);
}

/* One request, if it is there as a whole. */
static void read_request(struct connection *connection)
{
    struct evbuffer *in = bufferevent_get_input(connection->buffer);
    char text[OPERATOR_REQUEST_BYTES_MAX + 1];
    size_t size = evbuffer_get_length(in);
    size = size < sizeof text - 1 ? size : sizeof text - 1;
    evbuffer_copyout(in, text, size);
    size_t head_bytes = http_head_bytes(text, size);
    if (head_bytes == 0) {
        if (size == sizeof text - 1)
            refuse(connection, 431, "the head of the request is too long");
        return;
    }
    struct operator_request request = {.connection = connection};
    const char *why = "";
    evbuffer_drain(in, head_bytes);
    int code = http_request_parse(text, head_bytes, &request.http, &why);
    if (code == 0 && request.http.body_bytes > OPERATOR_REQUEST_BYTES_MAX) {
        code = 413;
        why = "no bodies here: parameters go into the query";
    }
    if (code != 0) {
        refuse(connection, code, why);
        return;
    }
    connection->keep_alive = request.http.keep_alive;
    connection->skip_bytes = request.http.body_bytes;
    dispatch(&request);
    connection_move(connection, CONNECTION_WRITING);
}

static void on_read(struct bufferevent *buffer, void *user)
{
    struct connection *connection = user;
    struct evbuffer *in = bufferevent_get_input(buffer);
    size_t size = evbuffer_get_length(in);
    if (connection->state == CONNECTION_CLOSING) {
        evbuffer_drain(in, size);
        return;
    }
    size_t skip = size < connection->skip_bytes ? size : connection->skip_bytes;
    evbuffer_drain(in, skip);
    connection->skip_bytes -= skip;
    if (connection->state == CONNECTION_READING && connection->skip_bytes == 0 && size > skip)
        read_request(connection);
}

/* The answer was taken: what was read meanwhile may hold the next request. */
static void on_written(struct bufferevent *buffer, void *user)
{
    struct connection *connection = user;
    if (connection->state != CONNECTION_WRITING)
        return;
    if (connection->ended) {
        connection_close(connection);
    } else if (!connection->keep_alive) {
        connection_move(connection, CONNECTION_CLOSING);
    } else {
        connection_move(connection, CONNECTION_READING);
        on_read(buffer, user);
    }
}

static void on_event(struct bufferevent *buffer, short what, void *user)
{
    (void)buffer;
    struct connection *connection = user;
    if (what & BEV_EVENT_EOF && connection->state == CONNECTION_WRITING)
        connection->ended = true; /* it still reads */
    else
        connection_close(connection);
}

static void on_deadline(evutil_socket_t fd, short what, void *user)
{
    (void)fd;
    (void)what;
    connection_close(user);
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *peer, int size, void *user)
{
    static const char full[] = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    struct operator_port *port = user;
    struct event_base *base = evconnlistener_get_base(listener);
    (void)peer;
    (void)size;
    if (port->connection_count == OPERATOR_CONNECTIONS_MAX) {
        (void)!send(fd, full, sizeof full - 1, MSG_DONTWAIT | MSG_NOSIGNAL); /* a new socket has room for it */
        close(fd);
        return;
    }
    struct connection *connection = calloc(1, sizeof *connection);
    if (connection) {
        connection->buffer = bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE);
        connection->deadline = evtimer_new(base, on_deadline, connection);
    }
    if (!connection || !connection->buffer || !connection->deadline) {
        if (connection && connection->buffer)
            bufferevent_free(connection->buffer);
        else
            close(fd);
        if (connection && connection->deadline)
            event_free(connection->deadline);
        free(connection);
        return;
    }
    connection->port = port;
    DL_APPEND(port->connections, connection);
    port->connection_count++;
    bufferevent_setcb(connection->buffer, on_read, on_written, on_event, connection);
    /* Room for a whole head and its body; more is left with the kernel until the answer is taken. */
    bufferevent_setwatermark(connection->buffer, EV_READ, 0, (size_t)2 * OPERATOR_REQUEST_BYTES_MAX);
    bufferevent_enable(connection->buffer, EV_READ | EV_WRITE);
    connection_move(connection, CONNECTION_READING);
}

static void on_accept_again(evutil_socket_t fd, short what, void *user)
{
    (void)fd;
    (void)what;
    struct operator_port *port = user;
    evconnlistener_enable(port->listener);
}

static void on_accept_error(struct evconnlistener *listener, void *user)
{
    struct operator_port *port = user;
    struct timeval delay = {.tv_usec = ACCEPT_AGAIN_MS * 1000};
    evconnlistener_disable(listener);
    event_add(port->accept_again, &delay);
}

/* ---- what every port has ---- */

static void on_health(void *user, struct operator_request *request)
{
    static const char text[] = "{\"status\": \"ok\"}\n";
    (void)user;
    operator_answer(request, 200, OPERATOR_JSON, text, sizeof text - 1);
}

static void on_probe(void *user, struct operator_request *request)
{
    static const char text[] = "{\"status\": \"armed\"}\n";
    const char *arm = operator_query(request, "arm");
    (void)user;
    enum status st = arm ? probe_arm(arm) : STATUS_FAIL(STATUS_INVALID, "which? POST /probe?arm=NAME=ACTION[@N]");
    if (st == STATUS_OK)
        operator_answer(request, 200, OPERATOR_JSON, text, sizeof text - 1);
    else
        operator_answer_error(request, st == STATUS_UNSUPPORTED ? 501 : 400, status_detail());
}

/* ---- life ---- */

enum status operator_port_create(struct loop *loop, const char *address, struct operator_port **out)
{
    struct sockaddr_storage parsed;
    int size;
    TRY(parse_address(address, &parsed, &size));
    struct operator_port *port = calloc(1, sizeof *port);
    if (!port)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the operator port");
    port->loop = loop;
    struct event_base *base = loop_event_base(loop);
    port->listener = evconnlistener_new_bind(base, on_accept, port,
                                             LEV_OPT_REUSEABLE | LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC,
                                             OPERATOR_BACKLOG, (struct sockaddr *)&parsed, size);
    enum status st = STATUS_OK;
    if (!port->listener)
        st = STATUS_FAIL(STATUS_IO, "operator port %s: %s", address, strerror(errno));
    else if (!(port->accept_again = evtimer_new(base, on_accept_again, port)))
        st = STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the operator port");
    if (st == STATUS_OK)
        st = operator_port_add(port, "GET", "/healthz", on_health, NULL);
    if (st == STATUS_OK)
        st = operator_port_add(port, "POST", "/probe", on_probe, NULL);
    if (st != STATUS_OK) {
        operator_port_destroy(&port);
        return st;
    }
    evconnlistener_set_error_cb(port->listener, on_accept_error);
    write_address(evconnlistener_get_fd(port->listener), port->address);
    *out = port;
    return STATUS_OK;
}

void operator_port_destroy(struct operator_port **port)
{
    if (!*port)
        return;
    while ((*port)->connections)
        connection_close((*port)->connections);
    if ((*port)->accept_again)
        event_free((*port)->accept_again);
    if ((*port)->listener)
        evconnlistener_free((*port)->listener);
    free(*port);
    *port = NULL;
}

const char *operator_port_address(const struct operator_port *port)
{
    return port->address;
}

enum status operator_port_add(struct operator_port *port, const char *method, const char *path, operator_handler_fn *fn,
                              void *user)
{
    if (port->route_count == OPERATOR_ROUTES_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "more than %d paths on an operator port", OPERATOR_ROUTES_MAX);
    port->routes[port->route_count++] = (struct route){method, path, fn, user};
    return STATUS_OK;
}
