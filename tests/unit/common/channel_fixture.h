/* channel_fixture.h - for tests of channels: a server and a client on one loop over real sockets, and what each of them
 * got. */
#ifndef ROOST_TESTS_CHANNEL_FIXTURE_H
#define ROOST_TESTS_CHANNEL_FIXTURE_H
#include <stdbool.h>
#include <stddef.h>
#include "common/channel.h"

struct loop;
struct loop_timer;

enum { GIVE_UP_MS = 8000, FRAME_BYTES_MAX = 100000, TEXT_MAX = 256 };

struct fixture {
    struct loop *loop;
    void *context;
    struct loop_timer *give_up, *tick;
    bool gave_up;
    struct channel *server, *client;

    /* server side */
    struct channel_peer peer; /* of the last message */
    unsigned server_received;
    size_t server_bytes;
    char server_text[TEXT_MAX]; /* of the last message, frames joined by | */
    bool echo;
    bool check_order;
    unsigned order_errors;

    /* client side */
    unsigned client_received, ups, downs;
    char client_text[TEXT_MAX];
    char events[64]; /* u: up, d: down, m: message */
    unsigned received_at_down;
    size_t pending_at_down;
    enum status send_at_down;
    bool wanted_up;
    bool hello; /* say hello in on_link(true) */

    bool (*done)(struct fixture *);
    void (*on_message)(struct fixture *);
};

int setup(void **state); /* for cmocka: *state is a fixture, with a loop and without channels */
int teardown(void **state);

/* What start_server and start_client use. */
struct channel_config server_config(struct fixture *f);
struct channel_config client_config(struct fixture *f);
void start_server(struct fixture *f, const char *endpoint);
void start_client(struct fixture *f); /* of that server */

/* Runs the loop until done(f), or fails the test after GIVE_UP_MS. */
void run_until(struct fixture *f, bool (*done)(struct fixture *));
void run_for(struct fixture *f, unsigned ms);

bool is_up(struct fixture *f);
bool is_down(struct fixture *f);
bool server_got_one(struct fixture *f);
bool server_got_two(struct fixture *f);
bool client_got_one(struct fixture *f);

void *raw_dealer(struct fixture *f); /* a bare DEALER at the server, without our limits */
void raw_send(void *dealer, unsigned frames, const char *text);

#endif
