/* loop_fixture.h - for tests of the loop: one with a pair of PAIR sockets, of which the near one is watched and
 * counted. */
#ifndef ROOST_TESTS_LOOP_FIXTURE_H
#define ROOST_TESTS_LOOP_FIXTURE_H
#include <stdbool.h>
#include "common/loop.h"

enum { GIVE_UP_MS = 3000 };

struct fixture {
    struct loop *loop;
    void *context;
    void *near, *far; /* a pair of PAIR sockets; near is watched */
    struct loop_socket *watch;
    struct loop_timer *give_up;
    bool gave_up;
    unsigned received, wanted;
    void (*on_message)(struct fixture *);
};

int setup(void **state); /* for cmocka: *state is a fixture */
int teardown(void **state);

void burn(unsigned ms);     /* the thread is busy */
void stop_loop(void *user); /* a timer's callback; user is the loop */
void send_to_near(struct fixture *f, unsigned count);
void send_from_near(struct fixture *f);
void give_up_after(struct fixture *f, unsigned ms); /* in place of GIVE_UP_MS */
/* Runs the loop until so many messages came, or fails the test because the time to give up has come. */
void run(struct fixture *f, unsigned wanted);

#endif
