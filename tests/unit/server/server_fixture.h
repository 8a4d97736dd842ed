/* server_fixture.h - what the tests of the server share: one server with the fake engine, two routers, and how a request is expected to end. */
#ifndef ROOST_TESTS_SERVER_FIXTURE_H
#define ROOST_TESTS_SERVER_FIXTURE_H
#include <stddef.h>
#include "fake_router.h"

struct CMUnitTest;

#define SERVER_PROMPT_TOKENS 5u                      /* of "hello" in the fake engine */

extern struct bench bench;
extern struct router router, other;
extern const struct wire_attempt first_attempt;      /* {0, 0} */

int server_setup(void **state);
int server_run(const struct CMUnitTest *tests, size_t count);

void start(void);          /* the server with what the test put into bench.config, ready, and a router that said hello */
void start_two(void);
void start_with(uint32_t capabilities);   /* two, both with these */
void stop(void);
void stop_two(void);

void expect_ack(struct router *from, uint32_t stream);
/* A whole request that must work: the connection and the worker are as good as new. */
void works(struct router *from, uint8_t id);
void expect_error(struct router *from, uint32_t stream, enum wire_error_code code, const char *word);
/* The same, which may be tried again after so long. */
void expect_error_after(struct router *from, uint32_t stream, enum wire_error_code code, const char *word,
                        uint32_t retry_after_ms);
void expect_connection_error(struct router *from, int link, enum wire_error_code code, const char *word);

struct attach_answer {
    bool known, running;
    unsigned choices;
    uint32_t released[WIRE_CHOICES_MAX];
};
struct attach_answer attach(struct router *from, uint8_t id, const char *tenant);
/* Returns when the worker has read everything sent on control so far: an attach is answered, and order is kept. Drops ACKs and SUPERSEDED. */
void control_is_read(struct router *from);
/* The tokens of the fake engine's reply to "hello". */
void check_tokens(const struct reply *reply, uint32_t first, uint32_t count);
/* Polls until the condition holds; fails the test after WAIT_MS. */
#define until(condition)                                                                                               \
    do {                                                                                                               \
        uint64_t until_end_ = clock_now_ms() + WAIT_MS;                                                                \
        while (!(condition))                                                                                           \
            if (clock_now_ms() > until_end_)                                                                           \
                fail_msg("not within %d ms: %s", WAIT_MS, #condition);                                                 \
    } while (0)

#endif
