/* The subject is HAProxy with consistent hashing on a header: each stream is a connection with keep-alive, a request is a POST, a token a chunk of a
 * chunked answer. Client and backend ends are both here, on one epoll. */
#include "tests/bench/router/subjects.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include "tests/bench/router/process.h"

#define EVENTS 256
#define TOKEN_BYTES 16u
#define CHUNK "10\r\ndata: \" words\"\n\n\r\n" /* TOKEN_BYTES behind the size line */
#define END "0\r\n\r\n"
#define ANSWER "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

enum end_kind { END_LISTENER, END_CLIENT, END_BACKEND };

struct chunked { /* an answer, read so far */
    uint64_t payload, size, in_data;
    unsigned digits;
    bool last;
};

struct end { /* of one connection */
    enum end_kind kind;
    int fd;
    unsigned index;              /* CLIENT: stream; LISTENER, BACKEND: worker */
    struct stream *stream;       /* BACKEND: that it answers */
    uint64_t left;               /* BACKEND: bytes of a request's body */
    struct chunked answer;       /* CLIENT */
    char *out;                   /* what the socket would not take */
    size_t out_size, out_capacity;
    char head[2048];             /* BACKEND: of a request so far */
    size_t head_size;
    bool head_seen;
    struct end *next;
};

struct http {
    const struct http_options *options;
    int epoll, pid;
    char folder[64];
    int front_port, ports[LOAD_WORKERS_MAX];
    struct end *clients;         /* (streams) */
    struct end listeners[LOAD_WORKERS_MAX];
    struct end *backends;        /* all accepted */
    struct end **answering;      /* (streams): the backend of a stream */
    char *request;               /* head and body of a request; the conversation is written in */
    size_t request_size;
    char *conversation;
};

static struct sockaddr_in loopback(int port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static void watch(struct http *http, struct end *end, uint32_t events, int operation)
{
    struct epoll_event event = {.events = events, .data.ptr = end};
    epoll_ctl(http->epoll, operation, end->fd, &event);
}

/* ---- writing ---- */

static void put(struct http *http, struct end *end, const char *data, size_t size)
{
    ssize_t sent = 0;
    if (end->out_size == 0)
        sent = send(end->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0)
        sent = 0;
    if ((size_t)sent == size)
        return;
    const size_t rest = size - (size_t)sent;
    if (end->out_size + rest > end->out_capacity) {
        end->out_capacity = 2 * (end->out_size + rest);
        end->out = realloc(end->out, end->out_capacity);
        if (!end->out)
            abort();
    }
    if (end->out_size == 0)
        watch(http, end, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    memcpy(end->out + end->out_size, data + sent, rest);
    end->out_size += rest;
}

static void flush_end(struct http *http, struct end *end)
{
    const ssize_t sent = send(end->fd, end->out, end->out_size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent <= 0)
        return;
    memmove(end->out, end->out + sent, end->out_size - (size_t)sent);
    end->out_size -= (size_t)sent;
    if (end->out_size == 0)
        watch(http, end, EPOLLIN, EPOLL_CTL_MOD);
}

/* ---- the client's end ---- */

static void ask(struct load *load, void *subject, struct stream *stream)
{
    struct http *http = subject;
    struct end *end = &http->clients[stream->number - 1];
    char text[9];
    snprintf(text, sizeof text, "%08u", load_random(load, load->config.conversations));
    memcpy(http->conversation, text, 8);
    snprintf(text, sizeof text, "%08u", stream->number - 1);
    memcpy(http->conversation + 20, text, 8);
    end->head_seen = false;
    end->head_size = 0;
    put(http, end, http->request, http->request_size);
}

/* The proxy may cut chunks anew, so the payload is counted: TOKEN_BYTES of it are a token. True: the answer is complete. */
static bool take_chunked(struct chunked *chunked, const char *data, size_t size)
{
    for (size_t i = 0; i < size;) {
        if (chunked->in_data > 0) { /* and the line end behind it */
            const uint64_t taken = size - i < chunked->in_data ? size - i : chunked->in_data;
            const uint64_t line_end = chunked->in_data > 2 ? chunked->in_data - 2 : 0;
            chunked->payload += taken < line_end ? taken : line_end;
            chunked->in_data -= taken;
            i += taken;
            continue;
        }
        const char c = data[i++];
        if (c == '\n' && chunked->digits) {
            chunked->in_data = chunked->size + 2;
            chunked->last = chunked->size == 0;
            chunked->size = chunked->digits = 0;
        } else if (c != '\r' && c != '\n') {
            chunked->size = chunked->size * 16 + (unsigned)(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
            chunked->digits++;
        }
    }
    return chunked->last && chunked->in_data == 0;
}

static void take_answer(struct load *load, struct end *end, const char *data, size_t size)
{
    struct stream *stream = &load->streams[end->index];
    if (!end->head_seen) {
        const size_t room = sizeof end->head - end->head_size, taken = size < room ? size : room;
        memcpy(end->head + end->head_size, data, taken);
        end->head_size += taken;
        const char *body = memmem(end->head, end->head_size, "\r\n\r\n", 4);
        if (!body)
            return;
        if (memcmp(end->head, "HTTP/1.1 200", 12) != 0) {
            load_ended(load, stream, false);
            return;
        }
        const size_t behind = end->head_size - (size_t)(body + 4 - end->head) + (size - taken);
        end->head_seen = true;
        end->answer = (struct chunked){0};
        data += size - behind;
        size = behind;
    }
    const bool complete = take_chunked(&end->answer, data, size);
    const uint64_t tokens = end->answer.payload / TOKEN_BYTES;
    if (tokens > stream->received)
        load_row_received(load, stream, (unsigned)(tokens - stream->received));
    if (complete)
        load_ended(load, stream, true);
}

/* ---- the backend's end ---- */

static void take_request(struct load *load, struct http *http, struct end *end, const char *data, size_t size)
{
    if (!end->head_seen) {
        const size_t room = sizeof end->head - end->head_size, taken = size < room ? size : room;
        memcpy(end->head + end->head_size, data, taken);
        end->head_size += taken;
        const char *body = memmem(end->head, end->head_size, "\r\n\r\n", 4);
        const char *number = memmem(end->head, end->head_size, "x-stream: ", 10);
        if (!body || !number)
            return;
        const unsigned at = (unsigned)strtoul(number + 10, NULL, 10);
        end->head_seen = true;
        end->stream = at < load->config.streams ? &load->streams[at] : NULL;
        end->left = load->config.body_bytes;
        size = end->head_size - (size_t)(body + 4 - end->head) + (size - taken);
    }
    end->left -= size < end->left ? size : end->left;
    if (end->left > 0 || !end->stream)
        return;
    put(http, end, ANSWER, sizeof ANSWER - 1);
    http->answering[end->stream->number - 1] = end;
    load_at_worker(load, end->stream, end->index);
    end->stream = NULL;
    end->head_seen = false;
    end->head_size = 0;
}

static void step(struct load *load, void *subject, unsigned worker)
{
    struct http *http = subject;
    for (struct stream *stream = load->workers[worker].streams, *next; stream; stream = next) {
        struct end *end = http->answering[stream->number - 1];
        next = stream->next;
        if (load->config.rate == 0 && stream->sent - stream->received >= LOAD_STEPS_AHEAD)
            continue;
        load_row_sent(load, stream);
        put(http, end, CHUNK, sizeof CHUNK - 1);
        if (stream->sent == load->config.tokens) {
            put(http, end, END, sizeof END - 1);
            load_left_worker(load, stream);
        }
    }
}

static void take_connection(struct http *http, struct end *listener)
{
    const int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    struct end *end = fd < 0 ? NULL : calloc(1, sizeof *end);
    const int yes = 1;
    if (!end)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    *end = (struct end){.kind = END_BACKEND, .fd = fd, .index = listener->index, .next = http->backends};
    http->backends = end;
    watch(http, end, EPOLLIN, EPOLL_CTL_ADD);
}

static bool poll_all(struct load *load, void *subject)
{
    static char data[65536];
    struct http *http = subject;
    struct epoll_event events[EVENTS];
    const int count = epoll_wait(http->epoll, events, EVENTS, 0);
    for (int i = 0; i < count; i++) {
        struct end *end = events[i].data.ptr;
        if (end->kind == END_LISTENER) {
            take_connection(http, end);
            continue;
        }
        if (events[i].events & EPOLLOUT)
            flush_end(http, end);
        if (!(events[i].events & EPOLLIN))
            continue;
        const ssize_t size = recv(end->fd, data, sizeof data, MSG_DONTWAIT);
        if (size == 0) /* closed; a client's end would miss its answer, which the count of errors and requests shows */
            epoll_ctl(http->epoll, EPOLL_CTL_DEL, end->fd, NULL);
        else if (size > 0 && end->kind == END_CLIENT)
            take_answer(load, end, data, (size_t)size);
        else if (size > 0)
            take_request(load, http, end, data, (size_t)size);
    }
    return count > 0;
}

/* ---- start and end ---- */

static enum status listen_all(struct http *http, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct end *end = &http->listeners[i];
        const int yes = 1;
        http->ports[i] = process_free_port();
        struct sockaddr_in address = loopback(http->ports[i]);
        *end = (struct end){.kind = END_LISTENER, .index = i, .fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)};
        setsockopt(end->fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        if (bind(end->fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(end->fd, 4096) != 0)
            return STATUS_FAIL(STATUS_IO, "a backend cannot listen: %s", strerror(errno));
        watch(http, end, EPOLLIN, EPOLL_CTL_ADD);
    }
    return STATUS_OK;
}

static enum status write_config(struct http *http, unsigned workers)
{
    char path[96];
    snprintf(http->folder, sizeof http->folder, "/tmp/bench-router-XXXXXX");
    if (!mkdtemp(http->folder))
        return STATUS_FAIL(STATUS_IO, "no folder for the proxy's configuration");
    snprintf(path, sizeof path, "%s/haproxy.cfg", http->folder);
    FILE *file = fopen(path, "w");
    if (!file)
        return STATUS_FAIL(STATUS_IO, "%s cannot be written", path);
    fprintf(file, "global\n  nbthread 1\n  maxconn 8000\n  tune.bufsize 65536\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n"
                  "  timeout server 60s\n  option http-no-delay\n  http-reuse always\n");
    fprintf(file, "frontend front\n  bind 127.0.0.1:%d\n  default_backend workers\n", http->front_port);
    fprintf(file, "backend workers\n  balance hdr(x-conversation)\n  hash-type consistent\n");
    for (unsigned i = 0; i < workers; i++)
        fprintf(file, "  server w%u 127.0.0.1:%d\n", i, http->ports[i]);
    fclose(file);
    return STATUS_OK;
}

static enum status make_request(struct http *http, uint32_t body_bytes)
{
    http->request = malloc(body_bytes + 512u);
    if (!http->request)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a request of %u bytes", body_bytes);
    const int size = snprintf(http->request, 512,
                              "POST /generate HTTP/1.1\r\nhost: bench\r\nx-conversation: 00000000\r\nx-stream: 00000000\r\n"
                              "content-type: application/json\r\ncontent-length: %u\r\n\r\n",
                              body_bytes);
    memset(http->request + size, 'a', body_bytes);
    http->request_size = (size_t)size + body_bytes;
    http->conversation = strstr(http->request, "00000000");
    return STATUS_OK;
}

static enum status connect_clients(struct http *http, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct end *end = &http->clients[i];
        struct sockaddr_in address = loopback(http->front_port);
        const int yes = 1;
        *end = (struct end){.kind = END_CLIENT, .index = i, .fd = socket(AF_INET, SOCK_STREAM, 0)};
        if (connect(end->fd, (struct sockaddr *)&address, sizeof address) != 0)
            return STATUS_FAIL(STATUS_IO, "the proxy cannot be connected to: %s", strerror(errno));
        setsockopt(end->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        watch(http, end, EPOLLIN, EPOLL_CTL_ADD);
    }
    return STATUS_OK;
}

static enum status start(struct load *load, struct load_subject *self)
{
    struct http *http = self->subject;
    char path[96];
    http->epoll = epoll_create1(EPOLL_CLOEXEC);
    http->clients = calloc(load->config.streams, sizeof *http->clients);
    http->answering = calloc(load->config.streams, sizeof *http->answering);
    if (!http->clients || !http->answering)
        return STATUS_FAIL(STATUS_NO_MEMORY, "the connections");
    TRY(make_request(http, load->config.body_bytes));
    TRY(listen_all(http, load->config.workers));
    http->front_port = process_free_port();
    TRY(write_config(http, load->config.workers));
    snprintf(path, sizeof path, "%s/haproxy.cfg", http->folder);
    const char *const argv[] = {http->options->program, "-db", "-f", path, NULL};
    TRY(process_start(argv, http->options->core, &http->pid));
    self->pid = http->pid;
    TRY(process_wait_port(http->front_port, 10000));
    return connect_clients(http, load->config.streams);
}

static void close_end(struct end *end)
{
    close(end->fd);
    free(end->out);
}

static void stop(struct load *load, void *subject)
{
    struct http *http = subject;
    process_stop(&http->pid);
    for (unsigned i = 0; http->clients && i < load->config.streams; i++)
        close_end(&http->clients[i]);
    for (unsigned i = 0; i < load->config.workers; i++)
        close_end(&http->listeners[i]);
    for (struct end *end = http->backends, *next; end; end = next) {
        next = end->next;
        close_end(end);
        free(end);
    }
    close(http->epoll);
    if (http->folder[0]) {
        char path[96];
        snprintf(path, sizeof path, "%s/haproxy.cfg", http->folder);
        unlink(path);
        rmdir(http->folder);
    }
    free(http->clients);
    free(http->answering);
    free(http->request);
    free(http);
}

struct load_subject subject_http(const struct http_options *options)
{
    struct http *http = calloc(1, sizeof *http);
    if (!http)
        abort();
    http->options = options;
    return (struct load_subject){.start = start, .ask = ask, .poll = poll_all, .step = step, .stop = stop, .subject = http};
}
