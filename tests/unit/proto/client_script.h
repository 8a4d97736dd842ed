/* client_script.h - for tests of clients: fake routers that follow a script, which the conversation names, and replies
 * that keep all that came. */
#ifndef ROOST_TESTS_CLIENT_SCRIPT_H
#define ROOST_TESTS_CLIENT_SCRIPT_H
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include "fake_router.h"
#include "proto/client.h"

struct reply { /* what one call delivered */
    atomic_uint token_calls, tokens, ends, bad_order;
    char text[4096];
    size_t text_size;
    struct client_end end;
    char detail[WIRE_DETAIL_MAX + 1], worker[65], route[65];
    uint64_t end_ms;
    struct client *client; /* on_end starts another call with it */
    atomic_uint accepted;  /* of a chain of calls */
    unsigned cancel_after; /* cancels itself after so many tokens */
};

extern const struct client_callbacks callbacks; /* they write a reply */

void wait_until(atomic_uint *counter, unsigned at_least); /* fails after 10 s */

struct fake_router *start_router(void); /* with the script */
void script(void *user, struct fake_router *router, const struct fake_request *request);
void say_all(struct fake_router *router, const struct fake_request *request); /* "To be, or not", 5 tokens */

struct client *connect_to(struct fake_router *first, struct fake_router *second); /* second may be NULL */
/* Both links are there, so the order of the list decides. */
struct client *connect_to_both(struct fake_router *first, struct fake_router *second);

struct client_call *ask(struct client *client, const char *conversation, uint32_t deadline_ms, struct reply *reply);
void finish(struct client_call *call, struct reply *reply, enum wire_error_code expected);

#endif
