/* loop.h - the event loop: one thread, one libevent base, ZeroMQ sockets, timers, work posted from other threads.
 *
 * One turn, in order:
 *   1. refresh the cached clock;
 *   2. posted work (loop_post), in order of posting;
 *   3. ZeroMQ sockets marked dirty: re-read ZMQ_EVENTS, call their handler while readable, at most LOOP_SOCKET_BATCH
 *      messages each; a socket leaves the dirty list only when ZMQ_EVENTS shows nothing to read, or a receive found nothing;
 *   4. hooks for the end of a turn (batches are flushed here, objects freed during the turn go here); loop_stop takes effect
 *      after this step, so what was batched is flushed;
 *   5. libevent: timers and descriptors; waits only if no socket is dirty and nothing was posted.
 * A paced loop (loop_set_pace) may sleep before step 5 while it is busy, so that its turns find more messages each.
 *
 * Why step 3: ZMQ_FD is edge-triggered and any zmq_send or zmq_recv may swallow the edge, so after either the socket must be
 * looked at again before the thread sleeps. Code that touches a socket outside its handler calls loop_socket_touch.
 *
 * All functions are for the loop's thread, except loop_post and loop_stop, which any thread may call. */
#ifndef ROOST_COMMON_LOOP_H
#define ROOST_COMMON_LOOP_H
#include <stdbool.h>
#include <stdint.h>
#include "common/status.h"

struct event_base;               /* libevent's, for hiredis and evhttp adapters */
struct loop;                     /* opaque */
struct loop_timer;
struct loop_socket;
struct loop_hook;

#define LOOP_SOCKET_BATCH 256    /* messages handled per socket and turn, so that one flood cannot starve the others */

enum status loop_create(struct loop **out);
void loop_destroy(struct loop **loop);          /* after loop_run returned; sockets, timers and hooks must be gone */
enum status loop_run(struct loop *loop);        /* until loop_stop */
void loop_stop(struct loop *loop);              /* any thread, or a signal handler of this loop */
uint64_t loop_now_ms(const struct loop *loop);  /* the clock as of this turn; in step 5 as of waking up */

/* How long this loop was away from its work: the larger of the last turn's time without its wait, and how late the latest
 * timer fired (a process that was stopped or starved while it waited shows there; a timer callback already sees its own
 * lateness). After a stall, drain before expiring anything. */
uint64_t loop_stall_ms(const struct loop *loop);
uint64_t loop_turn(const struct loop *loop);    /* number of the turn, for what is done once per turn */
/* Busy turns, those that had messages, begin at least pace_us apart from now on, while there are more than one in half a millisecond
 * for 10 ms: each wake-up then costs less than a message instead of more (docs/performance/router.md). A message waits pace_us at
 * most for it, and not at all where fewer come. 0, as at the start: never. At most 1,000. */
void loop_set_pace(struct loop *loop, uint32_t pace_us);
uint64_t loop_paced_turns(const struct loop *loop);      /* that waited so, since the start */
struct event_base *loop_event_base(struct loop *loop);   /* borrowed */

/* Calls fn(user) on the loop's thread in its next turn. Fails only without memory. Posts not yet run when the loop is
 * destroyed are dropped: post owned objects only to a loop that outlives you. */
enum status loop_post(struct loop *loop, void (*fn)(void *user), void *user);

/* SIGTERM, SIGINT and the like, on the loop's thread. Lives as long as the loop. */
enum status loop_on_signal(struct loop *loop, int signal, void (*fn)(int signal, void *user), void *user);

/* A timer fires once after delay_ms, or every delay_ms if repeat (at least 1; ticks that were missed are skipped). Never early
 * by clock_now_ms. May be destroyed in its own callback. A timer that has fired still has to be destroyed. */
enum status loop_timer_create(struct loop *loop, uint64_t delay_ms, bool repeat, void (*fn)(void *user), void *user,
                              struct loop_timer **out);
void loop_timer_destroy(struct loop_timer **timer);   /* accepts NULL */

/* fn(user) runs at the end of every turn, in order of creation. May be destroyed in its own callback. */
enum status loop_hook_create(struct loop *loop, void (*fn)(void *user), void *user, struct loop_hook **out);
void loop_hook_destroy(struct loop_hook **hook);

/* Watches a ZeroMQ socket (borrowed; made by this thread). on_readable must receive exactly one message without blocking
 * and return true, or return false when zmq_msg_recv found none, as the last thing that it did with the socket. It may destroy
 * its own or any other socket, timer or hook. */
enum status loop_socket_create(struct loop *loop, void *zmq_socket, bool (*on_readable)(void *user), void *user,
                               struct loop_socket **out);
void loop_socket_touch(struct loop_socket *socket);   /* after any zmq call on the socket outside on_readable */
/* Until it is called with NULL: on_writable(user) when the socket can take a message (ZMQ_POLLOUT), in step 3. It must send
 * until a send would block, or stop watching; otherwise the loop never sleeps. user is that of loop_socket_create. */
void loop_socket_watch_writable(struct loop_socket *socket, void (*on_writable)(void *user));
void loop_socket_destroy(struct loop_socket **socket);

#endif
