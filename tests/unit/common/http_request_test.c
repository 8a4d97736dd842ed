/* http_request_test.c - heads that are read, and heads that are refused with a code. */
#include "tests/unit/unit.h"
#include <string.h>
#include "common/http_request.h"

static char buffer[4096];

static int parse(const char *head, struct http_request *out)
{
    const char *why = NULL;
    size_t size = strlen(head);
    memcpy(buffer, head, size);
    assert_int_equal(http_head_bytes(buffer, size), size);
    int code = http_request_parse(buffer, size, out, &why);
    assert_non_null(why);
    return code;
}

static void test_whole_head(void **state)
{
    (void)state;
    struct http_request request;
    assert_int_equal(parse("POST /a%20b/c?x=1+2%263&flag&empty=&%79=z HTTP/1.1\r\n"
                           "Host: localhost\r\ncontent-length:  12 \r\nX: \r\n\r\n",
                           &request),
                     0);
    assert_string_equal(request.method, "POST");
    assert_string_equal(request.path, "/a b/c");
    static const char *const expected[][2] = {{"x", "1 2&3"}, {"flag", ""}, {"empty", ""}, {"y", "z"}};
    assert_int_equal(request.parameter_count, 4);
    for (unsigned i = 0; i < 4; i++) {
        assert_string_equal(request.parameters[i].name, expected[i][0]);
        assert_string_equal(request.parameters[i].value, expected[i][1]);
    }
    assert_int_equal(request.body_bytes, 12);
    assert_true(request.keep_alive);
    assert_false(request.from_page);
}

static void test_what_ends_a_connection(void **state)
{
    (void)state;
    struct http_request request;
    assert_int_equal(parse("GET / HTTP/1.1\nConnection: Close\nOrigin: http://a.example\n\n", &request), 0);
    assert_false(request.keep_alive);
    assert_true(request.from_page);
    assert_int_equal(parse("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &request), 0);
    assert_false(request.keep_alive); /* the answer says HTTP/1.1: nothing is promised to an older peer */
}

static void test_heads_that_are_not_whole(void **state)
{
    (void)state;
    static const char *const parts[] = {"", "GET / HTTP/1.1", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nA: b\r\n\r",
                                        "GET / HTTP/1.1\r\nA: b\r\n"};
    for (unsigned i = 0; i < sizeof parts / sizeof parts[0]; i++)
        assert_int_equal(http_head_bytes(parts[i], strlen(parts[i])), 0);
    static const char two[] = "GET / HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n";
    assert_int_equal(http_head_bytes(two, strlen(two)), 18);
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        int code;
        const char *head;
    } cases[] = {
        {400, "GET /\r\n\r\n"},
        {400, "GET  / HTTP/1.1\r\n\r\n"},
        {400, "get / HTTP/1.1\r\n\r\n"},
        {400, " / HTTP/1.1\r\n\r\n"},
        {400, "\r\n\r\n"},
        {505, "GET / HTTP/1.1 x\r\n\r\n"},
        {400, "GET http://a/ HTTP/1.1\r\n\r\n"},
        {400, "OPTIONS * HTTP/1.1\r\n\r\n"},
        {400, "GET /%zz HTTP/1.1\r\n\r\n"},
        {400, "GET /%4 HTTP/1.1\r\n\r\n"},
        {400, "GET /%00 HTTP/1.1\r\n\r\n"},
        {400, "GET /?a=%0 HTTP/1.1\r\n\r\n"},
        {400, "GET /?a&b&c&d&e&f&g&h&i&j&k&l&m&n&o&p&q HTTP/1.1\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nno colon\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\n: empty\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nA : b\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nContent-Length:\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nA: \x01\r\n\r\n"},
        {400, "GET /a\rb HTTP/1.1\r\n\r\n"},
        {501, "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"},
        {505, "GET / HTTP/2.0\r\n\r\n"},
        {400, "GET / SPDY\r\n\r\n"},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct http_request request;
        int code = parse(cases[i].head, &request);
        if (code != cases[i].code)
            fail_msg("%u: %d for %s", i, code, cases[i].head);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_head),
        cmocka_unit_test(test_what_ends_a_connection),
        cmocka_unit_test(test_heads_that_are_not_whole),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
