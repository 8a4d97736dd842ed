/* loop.c - owns the libevent base, the wake descriptor, and every timer, socket watch, hook and signal made on it.
 *
 *   any thread:   loop_post, loop_stop --> posted list or stop flag --> eventfd --+
 *   libevent:     timers, descriptors, signals, ZMQ_FD ---------------------------+--> loop_run's turn (loop.h)
 *
 * Always true:
 *   1. a socket is on at most one of two lists: dirty (look at it before sleeping) and work (the rest of this turn's
 *      step 3); socket_move is the only function that moves it;
 *   2. the thread sleeps only after ZMQ_EVENTS of every dirty socket was read, or a receive was tried last, and showed nothing to
 *      read, and with nothing posted (a post after that check makes the eventfd readable);
 *   3. either empties the socket's mailbox, so a command that comes later makes ZMQ_FD readable again:
 *      2 and 3 together mean that no message waits while the thread sleeps;
 *   4. memory of a timer, socket or hook is freed at the end of a turn, never inside one of its callbacks. */
#include "common/loop.h"
#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include <utlist.h>
#include <zmq.h>
#include "common/clock.h"

struct grave { /* first member of what is freed at the end of a turn */
    struct grave *next;
};

enum socket_list { SOCKET_NONE, SOCKET_DIRTY, SOCKET_WORK };

struct loop_socket {
    struct grave grave;
    struct loop *loop; /* ref */
    void *zmq_socket;  /* ref, owned by the caller */
    bool (*on_readable)(void *user);
    void (*on_writable)(void *user); /* NULL: not watched */
    void *user;
    struct event *event; /* of ZMQ_FD */
    enum socket_list list;
    bool more;  /* the last batch was full: known to be readable, no need to ask */
    bool alive; /* false after loop_socket_destroy */
    struct loop_socket *prev, *next;
};

struct loop_timer {
    struct grave grave;
    struct loop *loop; /* ref */
    struct event *event;
    uint64_t due_ms, delay_ms;
    bool repeat;
    void (*fn)(void *user);
    void *user;
};

struct loop_hook {
    struct grave grave;
    struct loop *loop; /* ref */
    bool alive;
    void (*fn)(void *user);
    void *user;
    struct loop_hook *prev, *next;
};

struct posted {
    struct posted *next;
    void (*fn)(void *user);
    void *user;
};

struct signal_watch {
    struct signal_watch *next;
    struct loop *loop; /* ref */
    struct event *event;
    void (*fn)(int signal, void *user);
    void *user;
};

struct loop {
    struct event_base *base;
    int wake_fd;
    struct event *wake_event;
    atomic_bool stop;

    pthread_mutex_t post_lock; /* guards the two below */
    struct posted *posted_head;
    struct posted **posted_tail;

    struct loop_socket *dirty, *work;
    struct loop_hook *hooks;
    struct signal_watch *signals;
    struct grave *graves;
    unsigned timer_count, socket_count;

    struct pace {
        uint32_t us;         /* 0: off */
        bool busy;           /* the last window was */
        bool served;         /* this turn had messages */
        uint32_t turns;      /* such turns in this window */
        uint64_t window_us;  /* its beginning */
        uint64_t begun_us;   /* of the last such turn, its wait not counted */
        uint64_t waits;
    } pace;

    uint64_t turn;
    uint64_t now_ms;
    uint64_t stall_ms;
    uint64_t turn_start_ms;
    uint64_t worked_ms; /* steps 1 to 4 of this turn */
    uint64_t late_ms;   /* the latest timer of this turn's step 5 */
    bool asleep;        /* waiting in step 5, or back from it with the clock not refreshed yet */
};

/* ---- clock and stalls ---- */

/* First thing in every callback of step 5: the clock has moved on while the thread slept. */
static void note_awake(struct loop *loop)
{
    if (loop->asleep) {
        loop->asleep = false;
        loop->now_ms = clock_now_ms();
        loop->turn_start_ms = loop->now_ms; /* from here on the turn's time counts as work again */
    }
}

uint64_t loop_now_ms(const struct loop *loop)
{
    note_awake((struct loop *)loop); /* a refresh of the cache; no loop is ever a const object */
    return loop->now_ms;
}

uint64_t loop_stall_ms(const struct loop *loop)
{
    return loop->stall_ms;
}

uint64_t loop_turn(const struct loop *loop)
{
    return loop->turn;
}

/* Step 1. */
static void begin_turn(struct loop *loop)
{
    note_awake(loop);
    uint64_t now = clock_now_ms();
    uint64_t worked = loop->worked_ms + (now - loop->turn_start_ms);
    loop->stall_ms = worked > loop->late_ms ? worked : loop->late_ms;
    loop->late_ms = 0;
    loop->worked_ms = 0;
    loop->now_ms = loop->turn_start_ms = now;
    loop->turn++;
}

/* Before a wait, which does not count as work. */
static void end_work(struct loop *loop)
{
    loop->worked_ms = clock_now_ms() - loop->turn_start_ms;
    loop->asleep = true;
}

/* ---- objects that outlive their callback until the end of the turn ---- */

static void bury(struct loop *loop, struct grave *grave)
{
    grave->next = loop->graves;
    loop->graves = grave;
}

static void free_graves(struct loop *loop)
{
    while (loop->graves) {
        struct grave *grave = loop->graves;
        loop->graves = grave->next;
        free(grave); /* grave is the first member of the object */
    }
}

/* ---- posted work ---- */

static void wake(struct loop *loop)
{
    uint64_t one = 1;
    ssize_t rc;
    do
        rc = write(loop->wake_fd, &one, sizeof one);
    while (rc < 0 && errno == EINTR);
    /* EAGAIN: the counter is full, so the descriptor is readable already. */
}

static void on_wake(evutil_socket_t fd, short what, void *user)
{
    (void)what;
    note_awake(user);
    uint64_t count;
    ssize_t rc = read(fd, &count, sizeof count);
    (void)rc; /* EAGAIN is fine: what counts is that the thread is awake */
}

enum status loop_post(struct loop *loop, void (*fn)(void *user), void *user)
{
    struct posted *posted = malloc(sizeof *posted);
    if (!posted)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory to post work to a loop");
    *posted = (struct posted){.fn = fn, .user = user};
    pthread_mutex_lock(&loop->post_lock);
    bool was_empty = loop->posted_head == NULL;
    *loop->posted_tail = posted;
    loop->posted_tail = &posted->next;
    if (was_empty) /* under the lock: the loop may be destroyed as soon as its thread has seen this post */
        wake(loop);
    pthread_mutex_unlock(&loop->post_lock);
    return STATUS_OK;
}

static struct posted *take_posted(struct loop *loop)
{
    pthread_mutex_lock(&loop->post_lock);
    struct posted *list = loop->posted_head;
    loop->posted_head = NULL;
    loop->posted_tail = &loop->posted_head;
    pthread_mutex_unlock(&loop->post_lock);
    return list;
}

static bool has_posted(struct loop *loop)
{
    pthread_mutex_lock(&loop->post_lock);
    bool any = loop->posted_head != NULL;
    pthread_mutex_unlock(&loop->post_lock);
    return any;
}

/* Step 2. What these post runs in the next turn. */
static void run_posted(struct loop *loop)
{
    struct posted *next;
    for (struct posted *posted = take_posted(loop); posted; posted = next) {
        next = posted->next;
        posted->fn(posted->user);
        free(posted);
    }
}

/* ---- ZeroMQ sockets ---- */

static void socket_move(struct loop_socket *socket, enum socket_list to)
{
    struct loop *loop = socket->loop;
    if (socket->list == to)
        return;
    if (socket->list == SOCKET_DIRTY)
        DL_DELETE(loop->dirty, socket);
    else if (socket->list == SOCKET_WORK)
        DL_DELETE(loop->work, socket);
    socket->list = to;
    if (to == SOCKET_DIRTY)
        DL_APPEND(loop->dirty, socket);
    else if (to == SOCKET_WORK)
        DL_APPEND(loop->work, socket);
}

/* ZMQ_POLLIN and ZMQ_POLLOUT as they are now. Empties the mailbox (invariant 3). */
static int socket_events(struct loop_socket *socket)
{
    int events = 0;
    size_t size = sizeof events;
    int rc;
    do
        rc = zmq_getsockopt(socket->zmq_socket, ZMQ_EVENTS, &events, &size);
    while (rc != 0 && errno == EINTR);
    if (rc != 0) {               /* the context is being terminated: there will be no more messages, */
        event_del(socket->event); /* and a descriptor that stays readable would keep the thread awake */
        return 0;
    }
    return events;
}

static void serve_socket(struct loop_socket *socket)
{
    if (!socket->more || socket->on_writable) {
        int events = socket_events(socket);
        if ((events & ZMQ_POLLOUT) && socket->on_writable) {
            loop_socket_touch(socket); /* it is going to send */
            socket->on_writable(socket->user);
            if (!socket->alive)
                return;
        }
        if (!(events & ZMQ_POLLIN)) {
            socket->more = false;
            return;
        }
    }
    socket_move(socket, SOCKET_DIRTY);
    socket->more = true;
    socket->loop->pace.served = true;
    for (unsigned i = 0; i < LOOP_SOCKET_BATCH; i++) {
        bool received = socket->on_readable(socket->user);
        if (!socket->alive)
            return;
        if (!received) { /* which is as good as asking: that receive has emptied the mailbox too (invariant 3) */
            socket->more = false;
            if (!socket->on_writable)
                socket_move(socket, SOCKET_NONE);
            return;
        }
    }
}

/* Step 3. Sockets that are touched meanwhile go to the dirty list and are seen in settle_sockets or the next turn. */
static void run_sockets(struct loop *loop)
{
    while (loop->dirty)
        socket_move(loop->dirty, SOCKET_WORK);
    while (loop->work) {
        struct loop_socket *socket = loop->work;
        socket_move(socket, SOCKET_NONE);
        serve_socket(socket);
    }
}

/* Before step 5. Sockets that were touched leave the dirty list here, and only here. */
static void settle_sockets(struct loop *loop)
{
    struct loop_socket *socket, *next;
    DL_FOREACH_SAFE (loop->dirty, socket, next) {
        if (socket->more)
            continue;
        int wanted = ZMQ_POLLIN | (socket->on_writable ? ZMQ_POLLOUT : 0);
        if (!(socket_events(socket) & wanted))
            socket_move(socket, SOCKET_NONE);
    }
}

static void on_socket_event(evutil_socket_t fd, short what, void *user)
{
    (void)fd;
    (void)what;
    struct loop_socket *socket = user;
    note_awake(socket->loop);
    loop_socket_touch(socket);
}

enum status loop_socket_create(struct loop *loop, void *zmq_socket, bool (*on_readable)(void *user), void *user,
                               struct loop_socket **out)
{
    int fd = -1;
    size_t size = sizeof fd;
    if (zmq_getsockopt(zmq_socket, ZMQ_FD, &fd, &size) != 0)
        return STATUS_FAIL(STATUS_IO, "ZMQ_FD of a socket: %s", zmq_strerror(errno));
    struct loop_socket *socket = calloc(1, sizeof *socket);
    if (!socket)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory to watch a socket");
    *socket = (struct loop_socket){
        .loop = loop, .zmq_socket = zmq_socket, .on_readable = on_readable, .user = user, .alive = true};
    socket->event = event_new(loop->base, fd, EV_READ | EV_PERSIST, on_socket_event, socket);
    if (!socket->event || event_add(socket->event, NULL) != 0) {
        if (socket->event)
            event_free(socket->event);
        free(socket);
        return STATUS_FAIL(STATUS_NO_MEMORY, "libevent cannot watch the descriptor of a ZeroMQ socket");
    }
    loop->socket_count++;
    socket_move(socket, SOCKET_DIRTY); /* it may be readable already, with the edge gone */
    *out = socket;
    return STATUS_OK;
}

void loop_socket_touch(struct loop_socket *socket)
{
    if (socket->list == SOCKET_NONE)
        socket_move(socket, SOCKET_DIRTY);
}

void loop_socket_watch_writable(struct loop_socket *socket, void (*on_writable)(void *user))
{
    socket->on_writable = on_writable;
    loop_socket_touch(socket);
}

void loop_socket_destroy(struct loop_socket **socket)
{
    if (!socket || !*socket)
        return;
    struct loop_socket *dead = *socket;
    *socket = NULL;
    socket_move(dead, SOCKET_NONE);
    event_free(dead->event); /* at once: the caller may close the ZeroMQ socket, and its descriptor, next */
    dead->event = NULL;
    dead->alive = false;
    dead->loop->socket_count--;
    bury(dead->loop, &dead->grave);
}

/* ---- timers ---- */

static void timer_arm(struct loop_timer *timer, uint64_t wait_ms)
{
    struct timeval wait = {.tv_sec = (time_t)(wait_ms / 1000), .tv_usec = (suseconds_t)(wait_ms % 1000 * 1000)};
    int rc = event_add(timer->event, &wait); /* memory for it was reserved by the first one */
    assert(rc == 0);
    (void)rc;
}

static void on_timer(evutil_socket_t fd, short what, void *user)
{
    (void)fd;
    (void)what;
    struct loop_timer *timer = user;
    struct loop *loop = timer->loop;
    note_awake(loop);
    uint64_t now = clock_now_ms();
    if (now < timer->due_ms) { /* libevent's clock is coarse and may run a few ms ahead: a timer never fires early */
        timer_arm(timer, timer->due_ms - now);
        return;
    }
    uint64_t late = now - timer->due_ms;
    if (late > loop->late_ms)
        loop->late_ms = late;
    if (late > loop->stall_ms)
        loop->stall_ms = late; /* known to this very callback: it may be the one that expires things */
    loop->now_ms = now;
    if (timer->repeat) {
        /* Ticks that were missed are skipped, not made up for. */
        timer->due_ms += (late / timer->delay_ms + 1) * timer->delay_ms;
        timer_arm(timer, timer->due_ms - now);
    }
    timer->fn(timer->user);
}

enum status loop_timer_create(struct loop *loop, uint64_t delay_ms, bool repeat, void (*fn)(void *user), void *user,
                              struct loop_timer **out)
{
    struct loop_timer *timer = calloc(1, sizeof *timer);
    if (!timer)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a timer");
    if (repeat && delay_ms == 0)
        delay_ms = 1; /* every 0 ms would never let the thread sleep */
    *timer = (struct loop_timer){.loop = loop, .due_ms = clock_now_ms() + delay_ms, .delay_ms = delay_ms,
                                 .repeat = repeat, .fn = fn, .user = user};
    timer->event = evtimer_new(loop->base, on_timer, timer);
    struct timeval wait = {.tv_sec = (time_t)(delay_ms / 1000), .tv_usec = (suseconds_t)(delay_ms % 1000 * 1000)};
    if (!timer->event || event_add(timer->event, &wait) != 0) {
        if (timer->event)
            event_free(timer->event);
        free(timer);
        return STATUS_FAIL(STATUS_NO_MEMORY, "libevent has no memory for a timer");
    }
    loop->timer_count++;
    *out = timer;
    return STATUS_OK;
}

void loop_timer_destroy(struct loop_timer **timer)
{
    if (!timer || !*timer)
        return;
    struct loop_timer *dead = *timer;
    *timer = NULL;
    event_free(dead->event);
    dead->event = NULL;
    dead->loop->timer_count--;
    bury(dead->loop, &dead->grave);
}

/* ---- hooks ---- */

enum status loop_hook_create(struct loop *loop, void (*fn)(void *user), void *user, struct loop_hook **out)
{
    struct loop_hook *hook = calloc(1, sizeof *hook);
    if (!hook)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a hook");
    *hook = (struct loop_hook){.loop = loop, .fn = fn, .user = user, .alive = true};
    DL_APPEND(loop->hooks, hook);
    *out = hook;
    return STATUS_OK;
}

void loop_hook_destroy(struct loop_hook **hook)
{
    if (!hook || !*hook)
        return;
    (*hook)->alive = false; /* unlinked by run_hooks: it may be walking the list right now */
    *hook = NULL;
}

/* Step 4. */
static void run_hooks(struct loop *loop)
{
    struct loop_hook *hook, *next;
    DL_FOREACH (loop->hooks, hook) {
        if (hook->alive)
            hook->fn(hook->user);
    }
    DL_FOREACH_SAFE (loop->hooks, hook, next) {
        if (!hook->alive) {
            DL_DELETE(loop->hooks, hook);
            bury(loop, &hook->grave);
        }
    }
    free_graves(loop);
}

/* ---- signals ---- */

static void on_signal(evutil_socket_t signal, short what, void *user)
{
    (void)what;
    struct signal_watch *watch = user;
    note_awake(watch->loop);
    watch->fn((int)signal, watch->user);
}

enum status loop_on_signal(struct loop *loop, int signal, void (*fn)(int signal, void *user), void *user)
{
    struct signal_watch *watch = calloc(1, sizeof *watch);
    if (!watch)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory to watch signal %d", signal);
    *watch = (struct signal_watch){.loop = loop, .fn = fn, .user = user};
    watch->event = evsignal_new(loop->base, signal, on_signal, watch);
    if (!watch->event || event_add(watch->event, NULL) != 0) {
        if (watch->event)
            event_free(watch->event);
        free(watch);
        return STATUS_FAIL(STATUS_IO, "signal %d cannot be watched", signal);
    }
    watch->next = loop->signals;
    loop->signals = watch;
    return STATUS_OK;
}

/* ---- pace ---- */

enum {
    PACE_US_MAX = 1000,
    PACE_WINDOW_US = 10000,
    PACE_BUSY_TURNS = PACE_WINDOW_US / 500, /* in a window */
};

void loop_set_pace(struct loop *loop, uint32_t pace_us)
{
    assert(pace_us <= PACE_US_MAX);
    loop->pace = (struct pace){.us = pace_us, .waits = loop->pace.waits};
}

uint64_t loop_paced_turns(const struct loop *loop)
{
    return loop->pace.waits;
}

/* Before a wait in step 5: what comes meanwhile is found there. */
static void keep_pace(struct loop *loop)
{
    struct pace *pace = &loop->pace;
    if (pace->us == 0 || !pace->served)
        return;
    uint64_t now = clock_now_us();
    pace->served = false;
    pace->turns++;
    if (now - pace->window_us >= PACE_WINDOW_US) {
        pace->busy = now - pace->window_us < 2 * PACE_WINDOW_US && pace->turns > PACE_BUSY_TURNS;
        pace->window_us = now;
        pace->turns = 0;
    }
    if (pace->busy && now - pace->begun_us < pace->us) {
        const struct timespec rest = {.tv_nsec = (long)(pace->begun_us + pace->us - now) * 1000};
        (void)nanosleep(&rest, NULL); /* a signal ends it early, and is handled in step 5 */
        pace->waits++;
        now = clock_now_us();
    }
    pace->begun_us = now;
}

/* ---- the loop ---- */

enum status loop_create(struct loop **out)
{
    struct loop *loop = calloc(1, sizeof *loop);
    if (!loop)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for an event loop");
    enum status st = STATUS_OK;
    pthread_mutex_init(&loop->post_lock, NULL);
    loop->posted_tail = &loop->posted_head;
    loop->now_ms = loop->turn_start_ms = clock_now_ms();
    struct event_config *config = NULL;
    loop->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (loop->wake_fd < 0) {
        st = STATUS_FAIL(STATUS_IO, "no descriptor to wake an event loop: %s", strerror(errno));
        goto done;
    }
    config = event_config_new();
    if (config) {
        event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK); /* other threads use only the eventfd */
        loop->base = event_base_new_with_config(config);
        event_config_free(config);
    }
    if (loop->base)
        loop->wake_event = event_new(loop->base, loop->wake_fd, EV_READ | EV_PERSIST, on_wake, loop);
    if (!loop->wake_event || event_add(loop->wake_event, NULL) != 0)
        st = STATUS_FAIL(STATUS_IO, "libevent cannot make an event base: %s", strerror(errno));
done:
    if (st != STATUS_OK)
        loop_destroy(&loop);
    else
        *out = loop;
    return st;
}

void loop_destroy(struct loop **loop_pointer)
{
    if (!loop_pointer || !*loop_pointer)
        return;
    struct loop *loop = *loop_pointer;
    assert(loop->socket_count == 0 && loop->timer_count == 0);
    struct loop_hook *hook, *next_hook;
    DL_FOREACH_SAFE (loop->hooks, hook, next_hook) {
        assert(!hook->alive);
        DL_DELETE(loop->hooks, hook);
        free(hook);
    }
    free_graves(loop);
    while (loop->signals) {
        struct signal_watch *watch = loop->signals;
        loop->signals = watch->next;
        event_free(watch->event);
        free(watch);
    }
    struct posted *next;
    for (struct posted *posted = take_posted(loop); posted; posted = next) {
        next = posted->next;
        free(posted);
    }
    if (loop->wake_event)
        event_free(loop->wake_event);
    if (loop->base)
        event_base_free(loop->base);
    if (loop->wake_fd >= 0)
        close(loop->wake_fd);
    pthread_mutex_destroy(&loop->post_lock);
    free(loop);
    *loop_pointer = NULL;
}

enum status loop_run(struct loop *loop)
{
    loop->turn_start_ms = clock_now_ms();
    loop->worked_ms = loop->late_ms = 0;
    loop->asleep = false;
    for (;;) {
        begin_turn(loop);
        run_posted(loop);
        run_sockets(loop);
        run_hooks(loop);
        if (atomic_exchange(&loop->stop, false))
            return STATUS_OK;
        settle_sockets(loop);
        bool may_sleep = loop->dirty == NULL && !has_posted(loop);
        if (may_sleep) {
            end_work(loop);
            keep_pace(loop);
        }
        if (event_base_loop(loop->base, may_sleep ? EVLOOP_ONCE : EVLOOP_ONCE | EVLOOP_NONBLOCK) < 0)
            return STATUS_FAIL(STATUS_IO, "libevent cannot wait for events: %s", strerror(errno));
    }
}

void loop_stop(struct loop *loop)
{
    pthread_mutex_lock(&loop->post_lock); /* the loop may be destroyed as soon as its thread has seen the flag */
    atomic_store(&loop->stop, true);
    wake(loop);
    pthread_mutex_unlock(&loop->post_lock);
}

struct event_base *loop_event_base(struct loop *loop)
{
    return loop->base;
}
