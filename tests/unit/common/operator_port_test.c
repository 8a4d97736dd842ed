/* operator_port_test.c - a port on a loop of its own thread, and clients on plain sockets. */
#include "tests/unit/unit.h"
#include <arpa/inet.h>
#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/loop.h"
#include "common/operator_port.h"

struct fixture {
    struct loop *loop;
    struct operator_port *port;
    pthread_t thread;
    struct operator_later *later; /* of /defer: one at a time */
    atomic_uint lates;            /* answered */
    struct loop_timer *timer;
    unsigned posts; /* touched on the loop's thread; read once it has ended, or behind an answer */
};

static void on_echo(void *user, struct operator_request *request)
{
    (void)user;
    const char *text = operator_query(request, "text");
    if (text)
        operator_answer(request, 200, "text/plain", text, strlen(text));
    else
        operator_answer_error(request, 400, "a \"text\" is missing\n\\");
}

static void on_post(void *user, struct operator_request *request)
{
    struct fixture *fixture = user;
    fixture->posts++;
    operator_answer(request, 202, OPERATOR_JSON, "{}", 2);
}

static void on_large(void *user, struct operator_request *request)
{
    enum { LARGE = 32 << 20 }; /* three times what kernels hold of a connection */
    (void)user;
    char *text = calloc(1, LARGE);
    assert_non_null(text);
    operator_answer(request, 200, "text/plain", text, LARGE);
    free(text);
}

/* Answered by a timer, 20 ms later. */
static void on_late(void *user)
{
    struct fixture *fixture = user;
    operator_answer_later(&fixture->later, 200, "text/plain", "late", 4);
    loop_timer_destroy(&fixture->timer);
    fixture->lates++;
}

static void on_defer(void *user, struct operator_request *request)
{
    struct fixture *fixture = user;
    assert_ok(operator_defer(request, &fixture->later));
    assert_ok(loop_timer_create(fixture->loop, 20, false, on_late, fixture, &fixture->timer));
}

static void *run_loop(void *user)
{
    struct fixture *fixture = user;
    (void)loop_run(fixture->loop);
    return NULL;
}

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof *fixture);
    assert_ok(loop_create(&fixture->loop));
    assert_ok(operator_port_create(fixture->loop, "127.0.0.1:0", &fixture->port));
    assert_ok(operator_port_add(fixture->port, "GET", "/echo", on_echo, NULL));
    assert_ok(operator_port_add(fixture->port, "POST", "/post", on_post, fixture));
    assert_ok(operator_port_add(fixture->port, "GET", "/large", on_large, NULL));
    assert_ok(operator_port_add(fixture->port, "GET", "/defer", on_defer, fixture));
    assert_int_equal(pthread_create(&fixture->thread, NULL, run_loop, fixture), 0);
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    loop_stop(fixture->loop);
    pthread_join(fixture->thread, NULL);
    operator_port_destroy(&fixture->port);
    operator_port_destroy(&fixture->port);
    loop_destroy(&fixture->loop);
    free(fixture);
    return 0;
}

/* ---- a client ---- */

static int dial(const struct fixture *fixture)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    const char *text = operator_port_address(fixture->port), *colon = strchr(text, ':');
    assert_int_equal(strncmp(text, "127.0.0.1:", 10), 0);
    address.sin_port = htons((uint16_t)atoi(colon + 1));
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    struct timeval limit = {.tv_sec = 20};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return fd;
}

static void say(int fd, const char *text)
{
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

/* All until the other end shuts down. */
static char *hear_all(int fd, char *out, size_t size)
{
    size_t used = 0;
    for (ssize_t got; used < size - 1 && (got = recv(fd, out + used, size - 1 - used, 0)) > 0;)
        used += (size_t)got;
    out[used] = 0;
    return out;
}

/* One answer of known length; its body. */
static const char *hear_one(int fd, char *out, size_t size, bool body)
{
    size_t used = 0;
    char *end = NULL;
    out[0] = 0;
    while (!(end = strstr(out, "\r\n\r\n"))) {
        assert_int_equal(recv(fd, out + used, 1, 0), 1);
        out[++used] = 0;
        assert_true(used < size - 1);
    }
    size_t length = (size_t)atoi(strstr(out, "Content-Length: ") + 16);
    assert_true(used + length < size);
    if (body && length)
        assert_int_equal(recv(fd, out + used, length, MSG_WAITALL), (ssize_t)length);
    out[used + (body ? length : 0)] = 0;
    return out + used;
}

static int code_of(const char *answer)
{
    return strncmp(answer, "HTTP/1.1 ", 9) == 0 ? atoi(answer + 9) : 0;
}

/* The code of one request on a connection of its own; the answer's body goes to *body, which may be NULL. */
static int ask(const struct fixture *fixture, const char *text, char **body)
{
    static char answer[20000];
    int fd = dial(fixture);
    say(fd, text);
    shutdown(fd, SHUT_WR);
    hear_all(fd, answer, sizeof answer);
    close(fd);
    char *end = strstr(answer, "\r\n\r\n");
    assert_non_null(end);
    if (body)
        *body = end + 4;
    return code_of(answer);
}

static void check_error(const char *body, const char *expected)
{
    json_t *json = json_loads(body, 0, NULL);
    assert_non_null(json);
    const char *error = json_string_value(json_object_get(json, "error"));
    assert_non_null(error);
    assert_string_equal(error, expected);
    json_decref(json);
}

/* ---- cases ---- */

static void test_answers(void **state)
{
    char *body;
    assert_int_equal(ask(*state, "GET /healthz HTTP/1.1\r\n\r\n", &body), 200);
    assert_string_equal(body, "{\"status\": \"ok\"}\n");
    assert_int_equal(ask(*state, "GET /echo?text=a%0Ab HTTP/1.1\r\n\r\n", &body), 200);
    assert_string_equal(body, "a\nb");
    assert_int_equal(ask(*state, "POST /post HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", &body), 202);
    assert_int_equal(((struct fixture *)*state)->posts, 1);
    assert_int_equal(ask(*state, "GET /echo HTTP/1.1\r\n\r\n", &body), 400);
    check_error(body, "a \"text\" is missing\\x0A\\");
}

static void test_wrong_path_and_method(void **state)
{
    char *body, answer[1000];
    assert_int_equal(ask(*state, "GET /nowhere HTTP/1.1\r\n\r\n", &body), 404);
    check_error(body, "there is no /nowhere here");
    assert_int_equal(ask(*state, "POST /echo HTTP/1.1\r\n\r\n", &body), 405);
    check_error(body, "/echo takes GET, HEAD");
    assert_int_equal(ask(*state, "DELETE /post HTTP/1.1\r\n\r\n", NULL), 405);
    int fd = dial(*state);
    say(fd, "GET /post HTTP/1.1\r\n\r\n");
    hear_one(fd, answer, sizeof answer, true);
    assert_int_equal(code_of(answer), 405);
    assert_non_null(strstr(answer, "\r\nAllow: POST\r\n"));
    close(fd);
}

static void test_bad_requests(void **state)
{
    char *body, answer[1000], text[32 * OPERATOR_REQUEST_BYTES_MAX];
    assert_int_equal(ask(*state, "nonsense\r\n\r\n", &body), 400);
    check_error(body, "the first line is not METHOD PATH HTTP/1.1");
    assert_int_equal(ask(*state, "POST /post HTTP/1.1\r\nContent-Length: 8193\r\n\r\n", NULL), 413);
    assert_int_equal(ask(*state, "POST /post HTTP/1.1\r\nOrigin: http://a.example\r\n\r\n", NULL), 403);
    assert_int_equal(((struct fixture *)*state)->posts, 0);

    /* Without an end, and far beyond where it is refused: the connection is not reset under the answer. */
    memset(text, 'a', sizeof text);
    memcpy(text, "GET /", 5);
    int fd = dial(*state);
    assert_int_equal(send(fd, text, sizeof text, MSG_NOSIGNAL), (ssize_t)sizeof text);
    errno = 0;
    hear_all(fd, answer, sizeof answer);
    assert_int_equal(errno, 0);
    assert_int_equal(code_of(answer), 431);
    assert_non_null(strstr(answer, "\r\nConnection: close\r\n"));
    close(fd);
}

static void test_kept_connection(void **state)
{
    char answer[1000];
    int fd = dial(*state);
    say(fd, "HEAD /healthz HTTP/1.1\r\n\r\n");
    hear_one(fd, answer, sizeof answer, false);
    assert_int_equal(code_of(answer), 200);
    assert_non_null(strstr(answer, "Content-Length: 17\r\n"));
    /* Two at once, the first with a body: answered in order. */
    say(fd, "POST /post HTTP/1.1\r\nContent-Length: 4\r\n\r\nGET GET /echo?text=second HTTP/1.1\r\n\r\n");
    assert_string_equal(hear_one(fd, answer, sizeof answer, true), "{}");
    assert_string_equal(hear_one(fd, answer, sizeof answer, true), "second");
    say(fd, "GET /echo?text=last HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_string_equal(hear_one(fd, answer, sizeof answer, true), "last");
    assert_int_equal(recv(fd, answer, 1, 0), 0);
    close(fd);
}

/* What comes while the answer is not there waits for it; an answer to one who has left goes nowhere. */
static void test_deferred_answers(void **state)
{
    char answer[1000];
    int fd = dial(*state);
    say(fd, "GET /defer HTTP/1.1\r\n\r\nGET /echo?text=next HTTP/1.1\r\n\r\n");
    assert_string_equal(hear_one(fd, answer, sizeof answer, true), "late");
    assert_string_equal(hear_one(fd, answer, sizeof answer, true), "next");
    say(fd, "GET /defer HTTP/1.1\r\n\r\n");
    struct linger at_once = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    usleep(5000); /* it is being answered: a reset, before the answer comes */
    close(fd);
    while (((struct fixture *)*state)->lates < 2)
        usleep(1000);
    assert_int_equal(ask(*state, "HEAD /defer HTTP/1.1\r\n\r\n", NULL), 200);
}

/* Whoever sends a byte now and then, or nothing, or does not take the answer, is gone after the deadline. */
static void test_slow_peers(void **state)
{
    int slow = dial(*state), silent = dial(*state), deaf = dial(*state);
    uint64_t begun = clock_now_ms();
    char answer[1000];
    say(deaf, "GET /large HTTP/1.1\r\n\r\n");
    say(slow, "GET / HTTP/1.1\r\n");
    uint64_t gone_ms = 0;
    while (gone_ms == 0 && clock_now_ms() - begun < 4 * OPERATOR_DEADLINE_MS) {
        struct pollfd wait = {.fd = slow, .events = POLLIN};
        if (poll(&wait, 1, 100) > 0 && recv(slow, answer, 1, 0) <= 0)
            gone_ms = clock_now_ms() - begun;
        else
            (void)send(slow, "A", 1, MSG_NOSIGNAL);
    }
    assert_in_range(gone_ms, OPERATOR_DEADLINE_MS - 100, OPERATOR_DEADLINE_MS + 4000);
    assert_true(recv(silent, answer, 1, 0) <= 0);
    /* The large answer was cut: fewer bytes than it has are there, and then the end. */
    size_t got = 0;
    static char part[65536];
    for (ssize_t n; (n = recv(deaf, part, sizeof part, 0)) > 0;)
        got += (size_t)n;
    assert_in_range(got, 1, (32 << 20) - 1);
    close(slow);
    close(silent);
    close(deaf);
}

static void test_too_many_connections(void **state)
{
    int fds[OPERATOR_CONNECTIONS_MAX];
    char answer[1000];
    for (unsigned i = 0; i < OPERATOR_CONNECTIONS_MAX; i++) {
        fds[i] = dial(*state);
        say(fds[i], "GET /healthz HTTP/1.1\r\n\r\n"); /* accepted, not only in the backlog */
        hear_one(fds[i], answer, sizeof answer, true);
        assert_int_equal(code_of(answer), 200);
    }
    int fd = dial(*state);
    assert_int_equal(code_of(hear_all(fd, answer, sizeof answer)), 503);
    close(fd);
    close(fds[0]);
    for (int code = 0, tries = 0; code != 200; tries++) { /* until the end of fds[0] was read */
        assert_in_range(tries, 0, 1000);
        fd = dial(*state);
        (void)send(fd, "GET /healthz HTTP/1.1\r\n\r\n", 25, MSG_NOSIGNAL);
        shutdown(fd, SHUT_WR);
        code = code_of(hear_all(fd, answer, sizeof answer));
        close(fd);
    }
    for (unsigned i = 1; i < OPERATOR_CONNECTIONS_MAX; i++)
        close(fds[i]);
}

static void test_addresses(void **state)
{
    const struct fixture *fixture = *state;
    static const char *const bad[] = {
        "",    "127.0.0.1", "127.0.0.1:", "localhost:80", "127.0.0.1:99999", "tcp://127.0.0.1:80", "127.0.0.1:8x",
        ":80", "[::1]"};
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(operator_address_check(bad[i], true), STATUS_INVALID);
    assert_ok(operator_address_check("127.0.0.1:7490", false));
    assert_ok(operator_address_check("[::1]:0", false));
    assert_int_equal(operator_address_check("0.0.0.0:7490", false), STATUS_INVALID);
    assert_int_equal(operator_address_check("[::]:7490", false), STATUS_INVALID);
    assert_ok(operator_address_check("0.0.0.0:7490", true));

    struct operator_port *second = NULL;
    assert_int_equal(operator_port_create(fixture->loop, operator_port_address(fixture->port), &second), STATUS_IO);
    assert_null(second);
    assert_non_null(strstr(status_detail(), strerror(EADDRINUSE)));
}

static void test_probe_is_armed(void **state)
{
    char *body;
#ifdef ROOST_PROBES
    assert_int_equal(ask(*state, "POST /probe?arm=test.operator=fail@1000000 HTTP/1.1\r\n\r\n", &body), 200);
    assert_int_equal(ask(*state, "POST /probe?arm=nonsense HTTP/1.1\r\n\r\n", &body), 400);
    assert_int_equal(ask(*state, "POST /probe HTTP/1.1\r\n\r\n", &body), 400);
#else
    assert_int_equal(ask(*state, "POST /probe?arm=test.operator=fail HTTP/1.1\r\n\r\n", &body), 501);
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_answers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_wrong_path_and_method, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_requests, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kept_connection, setup, teardown),
        cmocka_unit_test_setup_teardown(test_deferred_answers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slow_peers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_too_many_connections, setup, teardown),
        cmocka_unit_test_setup_teardown(test_addresses, setup, teardown),
        cmocka_unit_test_setup_teardown(test_probe_is_armed, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
