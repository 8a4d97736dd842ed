/* worker_pool.c - see worker_pool.h.
 *
 *   control: HELLO LEASE CANCEL -->  worker  <-- HELLO LEASE HEAD+BODY :data
 *   control: WELCOME LEASE ACK GOAWAY <--    --> WELCOME LEASE TOKENS DONE ERROR :data */
#include "router/worker_pool.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/channel.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/loop.h"
#include "router/frame.h"

#define LOAD_MAX (UINT64_C(1) << 40) /* what a worker may claim: products of two fit a double well enough */

enum {
    HELLO_AGAIN_MS = 1000,   /* a HELLO that was lost or refused: 1,024 workers are 1,024 small frames a second */
    LOAD_SLOTS = 32,         /* leases of ours whose echo is awaited: 32 of 200 ms are more than WORKER_DEAD_MS */
    GRANT_DEFAULT = 4 << 20, /* four of the largest bodies, when a WELCOME does not say */
    BYTES_PER_TOKEN = 4,     /* of a body, roughly; 5,600 prompt tokens are about 25 KB */
};

struct worker {
    struct worker_pool *pool; /* ref */
    char endpoint[WORKER_ENDPOINT_MAX], data_endpoint[WORKER_ENDPOINT_MAX];
    char next_endpoint[WORKER_ENDPOINT_MAX]; /* the directory says it moved; "" otherwise */
    char name[WIRE_NAME_MAX + 1];
    uint64_t name_hash;
    bool configured, listed;

    struct channel *control, *data;
    bool control_up, data_up;           /* the ZeroMQ links */
    bool welcome_control, welcome_data; /* since the link came up */
    bool data_renew;                    /* another data endpoint: at the end of the turn */
    bool refused_name;                  /* somebody else has it and is up */
    uint64_t hello_ms;
    uint8_t incarnation[WIRE_ID_BYTES];
    bool has_incarnation;

    bool up;
    uint64_t since_ms;            /* of up, or of not up */
    uint64_t number, data_number; /* of our last lease on each connection */
    uint64_t heard_number, data_heard_number;
    uint64_t echoed;   /* highest of our numbers that came back */
    uint64_t alive_ms; /* when it did */
    uint64_t data_heard_ms;
    enum wire_life life;
    bool goaway;

    uint64_t weight, load_tokens;
    uint64_t sent_tokens[LOAD_SLOTS]; /* sent to it after lease `number` of ours, by number */
    uint64_t body_bytes_open, body_bytes_max;
    uint32_t streams, streams_max;
};

struct worker_pool {
    struct loop *loop; /* ref */
    void *zmq_context; /* ref */
    struct worker_pool_events events;
    char name[WIRE_NAME_MAX + 1];
    uint8_t session[WIRE_ID_BYTES];
    uint32_t lease_ms;
    bool has_directory;
    struct loop_timer *lease_timer;
    uint64_t created_ms, directory_begun_ms; /* of the last complete reading; 0: none */
    uint64_t complained_ms;
    unsigned count;
    struct worker *workers[WORKER_POOL_MAX];
};

static uint64_t clamp(uint64_t value, uint64_t low, uint64_t high)
{
    return value < low ? low : value > high ? high : value;
}

static uint64_t now_of(const struct worker *worker)
{
    return loop_now_ms(worker->pool->loop);
}

/* One line a second over all workers, so that a broken one cannot fill the log. */
static bool may_log(struct worker_pool *pool)
{
    uint64_t now = loop_now_ms(pool->loop);
    if (pool->complained_ms && now - pool->complained_ms < 1000)
        return false;
    pool->complained_ms = now;
    return true;
}

/* ---- up and down ---- */

static void worker_down(struct worker *worker, const char *why)
{
    if (!worker->up)
        return;
    worker->up = false;
    worker->since_ms = now_of(worker);
    LOG_WARN("worker %s is lost: %s", worker->name, why);
    worker->pool->events.on_lost(worker->pool->events.user, worker);
    worker->body_bytes_open = 0;
    worker->streams = 0;
    worker->load_tokens = 0;
    memset(worker->sent_tokens, 0, sizeof worker->sent_tokens);
}

static void worker_maybe_up(struct worker *worker)
{
    uint64_t now = now_of(worker);
    if (worker->up || !worker->control_up || !worker->data_up || !worker->welcome_control || !worker->welcome_data ||
        worker->refused_name || worker->echoed == 0 || now - worker->alive_ms > WORKER_SUSPECT_MS)
        return;
    worker->up = true;
    worker->since_ms = worker->data_heard_ms = now;
    LOG_INFO("worker %s is up at %s", worker->name, worker->endpoint);
    worker->pool->events.on_ready(worker->pool->events.user, worker);
}

/* ---- leases ---- */

static void send_lease(struct worker *worker, bool data)
{
    bool up = data ? worker->data_up && worker->welcome_data : worker->control_up && worker->welcome_control;
    if (!up)
        return;
    struct wire_message lease = {.kind = WIRE_LEASE,
                                 .lease = {.session = wire_span_of(worker->pool->session, WIRE_ID_BYTES),
                                           .number = data ? ++worker->data_number : ++worker->number,
                                           .echo = data ? worker->data_heard_number : worker->heard_number,
                                           .state = WIRE_LIFE_READY}};
    if (!data)
        worker->sent_tokens[worker->number % LOAD_SLOTS] = 0;
    (void)frame_send(data ? worker->data : worker->control, NULL, &lease);
}

static void on_lease_timer(void *user)
{
    struct worker_pool *pool = user;
    for (unsigned i = 0; i < pool->count; i++) {
        send_lease(pool->workers[i], false);
        send_lease(pool->workers[i], true);
    }
}

/* What was sent before lease `echo` of ours is in the worker's own figures by now. */
static void forget_sent_tokens(struct worker *worker, uint64_t from, uint64_t echo)
{
    if (echo - from > LOAD_SLOTS)
        from = echo - LOAD_SLOTS;
    for (uint64_t number = from; number < echo; number++)
        worker->sent_tokens[number % LOAD_SLOTS] = 0;
}

static void on_lease(struct worker *worker, bool data, const struct wire_lease *lease)
{
    if (!worker->has_incarnation || lease->session.size != WIRE_ID_BYTES ||
        memcmp(lease->session.data, worker->incarnation, WIRE_ID_BYTES) != 0)
        return; /* of a process that we do not speak to: its WELCOME is on the way */
    if (data) {
        if (lease->number > worker->data_heard_number)
            worker->data_heard_number = lease->number;
        return;
    }
    if (lease->number > worker->heard_number)
        worker->heard_number = lease->number;
    worker->life = lease->state;
    if (lease->has_load) {
        uint64_t tokens =
            clamp(lease->load.queued_tokens, 0, LOAD_MAX) + clamp(lease->load.running_tokens, 0, LOAD_MAX);
        worker->load_tokens = clamp(tokens, 0, LOAD_MAX);
        if (lease->load.kv_tokens_max)
            worker->weight = clamp(lease->load.kv_tokens_max, 1, LOAD_MAX);
    }
    if (lease->echo > worker->echoed && lease->echo <= worker->number) {
        forget_sent_tokens(worker, worker->echoed, lease->echo);
        worker->echoed = lease->echo;
        worker->alive_ms = now_of(worker);
    }
    worker_maybe_up(worker);
    if (worker->up)
        worker->pool->events.on_ready(worker->pool->events.user, worker);
}

/* ---- hello ---- */

static void send_hello(struct worker *worker, bool data)
{
    worker->hello_ms = now_of(worker);
    struct wire_message hello = {.kind = WIRE_HELLO,
                                 .hello = {.version_min = WIRE_VERSION,
                                           .version_max = WIRE_VERSION,
                                           .session = wire_span_of(worker->pool->session, WIRE_ID_BYTES),
                                           .role = WIRE_ROLE_ROUTER,
                                           .connection = data ? WIRE_CONNECTION_DATA : WIRE_CONNECTION_CONTROL,
                                           .name = wire_span_str(worker->pool->name),
                                           .build = wire_span_str(ROOST_VERSION),
                                           .lease_ms = worker->pool->lease_ms}};
    (void)frame_send(data ? worker->data : worker->control, NULL, &hello);
}

/* "*" as the host stands for the host of the control endpoint. False: nothing that can be connected to. */
static bool resolve_endpoint(const char *control, struct wire_span given, char *out, size_t size)
{
    char text[WORKER_ENDPOINT_MAX];
    if (given.size == 0 || given.size >= sizeof text || memchr(given.data, 0, given.size))
        return false;
    memcpy(text, given.data, given.size);
    text[given.size] = 0;
    const char *port = strncmp(text, "tcp://*:", 8) == 0 ? text + 7 : NULL;
    const char *host_end = strrchr(control, ':');
    int written;
    if (port && strncmp(control, "tcp://", 6) == 0 && host_end > control + 5)
        written = snprintf(out, size, "%.*s%s", (int)(host_end - control), control, port);
    else if (port ||
             (strncmp(text, "tcp://", 6) != 0 && strncmp(text, "ipc://", 6) != 0 && strncmp(text, "inproc://", 9) != 0))
        return false;
    else
        written = snprintf(out, size, "%s", text);
    return written > 0 && (size_t)written < size;
}

/* False: the name is taken by another process that is up. */
static bool take_name(struct worker *worker, struct wire_span name)
{
    struct worker_pool *pool = worker->pool;
    for (unsigned i = 0; i < pool->count; i++) {
        const struct worker *other = pool->workers[i];
        if (other != worker && other->up && wire_span_equal(wire_span_str(other->name), name))
            return false;
    }
    memcpy(worker->name, name.data, name.size);
    worker->name[name.size] = 0;
    worker->name_hash = hash_fast(name.data, name.size, 0);
    return true;
}

static void on_welcome(struct worker *worker, bool data, const struct wire_welcome *welcome)
{
    if (welcome->version != WIRE_VERSION || welcome->session.size != WIRE_ID_BYTES || !wire_name_valid(welcome->name)) {
        if (may_log(worker->pool))
            LOG_WARN("the worker at %s answers with version %" PRIu32 " or without a name: not used", worker->endpoint,
                     welcome->version);
        return;
    }
    bool same = worker->has_incarnation && memcmp(worker->incarnation, welcome->session.data, WIRE_ID_BYTES) == 0;
    if (data) {
        worker->welcome_data = same; /* else the control connection will tell who this is; HELLO goes out again */
        if (same)
            send_lease(worker, true);
        worker_maybe_up(worker);
        return;
    }
    char endpoint[WORKER_ENDPOINT_MAX];
    if (!resolve_endpoint(worker->endpoint, welcome->data_endpoint, endpoint, sizeof endpoint)) {
        if (may_log(worker->pool))
            LOG_WARN("worker at %s: its data endpoint cannot be used", worker->endpoint);
        return;
    }
    if (!same) {
        worker_down(worker, "another process answers under its address");
        memcpy(worker->incarnation, welcome->session.data, WIRE_ID_BYTES);
        worker->has_incarnation = true;
        worker->welcome_data = false;
        worker->goaway = false;
        if (worker->data_up)
            send_hello(worker, true);
    }
    if (worker->up && !wire_span_equal(wire_span_str(worker->name), welcome->name))
        worker_down(worker, "it changed its name");
    bool refused = !take_name(worker, welcome->name);
    if (refused && !worker->refused_name && may_log(worker->pool))
        LOG_WARN("the worker at %s has a name that another one has already: not used", worker->endpoint);
    worker->refused_name = refused;
    worker->life = welcome->state;
    worker->weight = clamp(welcome->kv_tokens_max, 1, LOAD_MAX);
    worker->body_bytes_max =
        welcome->limits.unacknowledged_bytes_max ? welcome->limits.unacknowledged_bytes_max : GRANT_DEFAULT;
    worker->streams_max = welcome->limits.streams_max ? welcome->limits.streams_max : UINT32_MAX;
    worker->welcome_control = true;
    if (strcmp(endpoint, worker->data_endpoint) != 0) {
        snprintf(worker->data_endpoint, sizeof worker->data_endpoint, "%s", endpoint);
        worker->data_renew = true;
    }
    send_lease(worker, false);
    worker_maybe_up(worker);
    if (worker->up)
        worker->pool->events.on_ready(worker->pool->events.user, worker);
}

/* ---- channels ---- */

static void on_frames(struct worker *worker, bool data, zmq_msg_t *frames, unsigned count)
{
    struct wire_span frame = frame_span(&frames[0]);
    struct wire_message message;
    enum status st = count == 1 ? wire_decode(frame.data, frame.size, &message)
                                : STATUS_FAIL(STATUS_INVALID, "a message of %u frames", count);
    if (st != STATUS_OK) {
        if (may_log(worker->pool))
            LOG_WARN("worker %s sent a frame that is refused: %s", worker->name[0] ? worker->name : worker->endpoint,
                     status_detail());
        return;
    }
    if (data)
        worker->data_heard_ms = now_of(worker);
    switch (message.kind) {
    case WIRE_WELCOME: on_welcome(worker, data, &message.welcome); break;
    case WIRE_LEASE: on_lease(worker, data, &message.lease); break;
    case WIRE_GOAWAY: worker->goaway = true; break;
    case WIRE_ERROR:
        if (message.error.request_id.size == 0) {
            if (may_log(worker->pool))
                LOG_WARN("worker %s says: %s", worker->name[0] ? worker->name : worker->endpoint,
                         wire_error_name(message.error.code));
            break;
        }
        /* fall through */
    case WIRE_TOKENS:
    case WIRE_DONE:
    case WIRE_NEED_HISTORY:
    case WIRE_RESEND:
    case WIRE_WRONG_OWNER:
    case WIRE_ACK:
        if (worker->up)
            worker->pool->events.on_message(worker->pool->events.user, worker, &message);
        break;
    default: break; /* SUPERSEDED: an older attempt of ours, which nobody waits for; others do not come from workers */
    }
    wire_message_free(&message);
}

static void on_control_message(void *user, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    (void)peer;
    on_frames(user, false, frames, count);
}

static void on_data_message(void *user, const struct channel_peer *peer, zmq_msg_t *frames, unsigned count)
{
    (void)peer;
    on_frames(user, true, frames, count);
}

static void on_control_link(void *user, bool up)
{
    struct worker *worker = user;
    worker->control_up = up;
    worker->welcome_control = false;
    worker->number = worker->echoed = worker->heard_number = 0;
    memset(worker->sent_tokens, 0, sizeof worker->sent_tokens);
    if (up)
        send_hello(worker, false);
    else
        worker_down(worker, "its control link dropped");
}

static void on_data_link(void *user, bool up)
{
    struct worker *worker = user;
    worker->data_up = up;
    worker->welcome_data = false;
    worker->data_number = worker->data_heard_number = 0;
    if (up)
        send_hello(worker, true);
    else
        worker_down(worker, "its data link dropped");
}

static enum status connect_control(struct worker *worker)
{
    struct channel_config config = {.heartbeat = true,
                                    .frame_bytes_max = WIRE_LEASE_BYTES_MAX,
                                    .receive_messages_max = 1000,
                                    .send_messages_max = 1000,
                                    .queue_bytes_max = 1 << 20,
                                    .on_message = on_control_message,
                                    .on_link = on_control_link,
                                    .user = worker};
    return channel_create_client(worker->pool->loop, worker->pool->zmq_context, &config, worker->endpoint,
                                 &worker->control);
}

static enum status connect_data(struct worker *worker)
{
    /* bodies are bounded by the worker's grant, 4 MiB; token batches come once per step */
    struct channel_config config = {.heartbeat = false,
                                    .frame_bytes_max = WIRE_FRAME_BYTES_MAX,
                                    .receive_messages_max = 64,
                                    .send_messages_max = 64,
                                    .queue_bytes_max = 8 << 20,
                                    .on_message = on_data_message,
                                    .on_link = on_data_link,
                                    .user = worker};
    return channel_create_client(worker->pool->loop, worker->pool->zmq_context, &config, worker->data_endpoint,
                                 &worker->data);
}

static void disconnect(struct worker *worker, bool control)
{
    channel_destroy(&worker->data);
    worker->data_up = worker->welcome_data = false;
    if (control) {
        channel_destroy(&worker->control);
        worker->control_up = worker->welcome_control = false;
        worker->data_endpoint[0] = 0;
    }
}

/* ---- members ---- */

static enum status add_worker(struct worker_pool *pool, const char *endpoint, struct worker **out)
{
    if (pool->count >= WORKER_POOL_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "%d workers are known already", WORKER_POOL_MAX);
    struct worker *worker = calloc(1, sizeof *worker);
    if (!worker)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a worker");
    worker->pool = pool;
    worker->weight = 1;
    worker->streams_max = UINT32_MAX;
    worker->body_bytes_max = GRANT_DEFAULT;
    worker->since_ms = loop_now_ms(pool->loop);
    snprintf(worker->endpoint, sizeof worker->endpoint, "%s", endpoint);
    enum status st = connect_control(worker);
    if (st != STATUS_OK) {
        free(worker);
        return st;
    }
    pool->workers[pool->count++] = worker;
    *out = worker;
    return STATUS_OK;
}

static void worker_free(struct worker *worker)
{
    disconnect(worker, true);
    free(worker);
}

static struct worker *find_listed(struct worker_pool *pool, const struct worker_directory_entry *entry)
{
    int index = worker_pool_find(pool, entry->name);
    if (index >= 0)
        return pool->workers[index];
    for (unsigned i = 0; i < pool->count; i++)
        if (!pool->workers[i]->name[0] && strcmp(pool->workers[i]->endpoint, entry->endpoint) == 0)
            return pool->workers[i];
    return NULL;
}

void worker_pool_directory(void *user, const struct worker_directory_entry *entries, unsigned count, uint64_t begun_ms)
{
    struct worker_pool *pool = user;
    pool->directory_begun_ms = begun_ms;
    for (unsigned i = 0; i < pool->count; i++)
        pool->workers[i]->listed = false;
    for (unsigned i = 0; i < count; i++) {
        struct worker *worker = find_listed(pool, &entries[i]);
        if (!worker && add_worker(pool, entries[i].endpoint, &worker) != STATUS_OK) {
            if (may_log(pool))
                LOG_WARN("worker %s from the directory is not used: %s", entries[i].name, status_detail());
            continue;
        }
        worker->listed = true;
        if (!worker->name[0]) {
            snprintf(worker->name, sizeof worker->name, "%s", entries[i].name);
            worker->name_hash = hash_fast(worker->name, strlen(worker->name), 0);
        }
        /* It moved. An old address that still accepts connections but serves nobody must not hold it there. */
        bool given_up = !worker->control_up || loop_now_ms(pool->loop) - worker->since_ms > WORKER_DEAD_MS;
        if (!worker->up && given_up && strcmp(worker->endpoint, entries[i].endpoint) != 0)
            snprintf(worker->next_endpoint, sizeof worker->next_endpoint, "%s", entries[i].endpoint);
    }
}

void worker_pool_expire(struct worker_pool *pool, uint64_t now_ms)
{
    for (unsigned i = 0; i < pool->count; i++) {
        struct worker *worker = pool->workers[i];
        if (worker->up && now_ms > worker->alive_ms && now_ms - worker->alive_ms > WORKER_DEAD_MS)
            worker_down(worker, "its leases stopped, or stopped echoing ours");
        if (worker->up && now_ms > worker->data_heard_ms && now_ms - worker->data_heard_ms > WORKER_DATA_STALLED_MS)
            worker_down(worker, "its data link is stalled");
        if (now_ms - worker->hello_ms > HELLO_AGAIN_MS) {
            if (worker->control_up && (!worker->welcome_control || worker->refused_name))
                send_hello(worker, false);
            if (worker->data_up && !worker->welcome_data)
                send_hello(worker, true);
        }
    }
}

void worker_pool_turn(struct worker_pool *pool)
{
    uint64_t now = loop_now_ms(pool->loop);
    unsigned kept = 0;
    for (unsigned i = 0; i < pool->count; i++) {
        struct worker *worker = pool->workers[i];
        if (!worker->configured && !worker->listed && !worker->up && now - worker->since_ms > WORKER_FORGET_MS) {
            LOG_INFO("worker %s is forgotten", worker->name[0] ? worker->name : worker->endpoint);
            worker_free(worker);
            continue;
        }
        pool->workers[kept++] = worker;
        if (worker->next_endpoint[0]) {
            disconnect(worker, true);
            snprintf(worker->endpoint, sizeof worker->endpoint, "%s", worker->next_endpoint);
            worker->next_endpoint[0] = 0;
            if (connect_control(worker) != STATUS_OK && may_log(pool))
                LOG_WARN("worker %s: %s", worker->name, status_detail());
        }
        if (worker->data_renew) {
            worker->data_renew = false;
            worker_down(worker, "its data endpoint changed");
            disconnect(worker, false);
            if (connect_data(worker) != STATUS_OK && may_log(pool))
                LOG_WARN("worker %s: %s", worker->name, status_detail());
        }
    }
    pool->count = kept;
}

unsigned worker_pool_count(const struct worker_pool *pool)
{
    return pool->count;
}

struct worker *worker_pool_at(const struct worker_pool *pool, unsigned index)
{
    return pool->workers[index];
}

/* One that is up comes before an old link under the same name. */
int worker_pool_find(const struct worker_pool *pool, const char *name)
{
    int found = -1;
    for (unsigned i = 0; i < pool->count && name[0]; i++)
        if (strcmp(pool->workers[i]->name, name) == 0 && !pool->workers[i]->refused_name &&
            (found < 0 || pool->workers[i]->up))
            found = (int)i;
    return found;
}

bool worker_pool_owner_lost(const struct worker_pool *pool, int index)
{
    uint64_t now = loop_now_ms(pool->loop);
    if (index < 0) {
        /* Nobody here has that name: it counts as down since we began, and as expired when a reading did not list it.
         * A worker of the settings that has not answered yet may turn out to be the one. */
        bool unnamed = false;
        for (unsigned i = 0; i < pool->count; i++)
            unnamed = unnamed || !pool->workers[i]->name[0];
        bool read = !pool->has_directory || pool->directory_begun_ms > 0;
        return now - pool->created_ms > WORKER_TAKE_OVER_MS || (read && !unnamed);
    }
    const struct worker *worker = pool->workers[index];
    if (worker->up)
        return worker->goaway || worker->life == WIRE_LIFE_DRAINING || worker->life == WIRE_LIFE_SAFE_TO_DELETE ||
               worker->life == WIRE_LIFE_GONE;
    if (now - worker->since_ms > WORKER_TAKE_OVER_MS)
        return true;
    return !pool->has_directory || (pool->directory_begun_ms > worker->since_ms && !worker->listed);
}

/* ---- one worker ---- */

const char *worker_name(const struct worker *worker)
{
    return worker->name;
}

uint64_t worker_name_hash(const struct worker *worker)
{
    return worker->name_hash;
}

uint64_t worker_weight(const struct worker *worker)
{
    return worker->weight;
}

uint64_t worker_load_tokens(const struct worker *worker)
{
    uint64_t tokens = worker->load_tokens;
    for (unsigned i = 0; i < LOAD_SLOTS; i++)
        tokens += worker->sent_tokens[i];
    return clamp(tokens, 0, LOAD_MAX);
}

bool worker_ready(const struct worker *worker)
{
    return worker->up && worker->life == WIRE_LIFE_READY && !worker->goaway &&
           now_of(worker) - worker->alive_ms <= WORKER_SUSPECT_MS;
}

const uint8_t *worker_incarnation(const struct worker *worker)
{
    return worker->incarnation;
}

enum status worker_send_request(struct worker *worker, zmq_msg_t *head, zmq_msg_t *body)
{
    zmq_msg_t frames[2];
    size_t bytes = zmq_msg_size(body);
    enum status st = STATUS_OK;
    if (!worker_ready(worker))
        st = STATUS_FAIL(STATUS_CLOSED, "worker %s is not ready", worker->name);
    else if (worker->streams >= worker->streams_max ||
             (worker->body_bytes_open > 0 && worker->body_bytes_open + bytes > worker->body_bytes_max))
        st = STATUS_FAIL(STATUS_AGAIN, "worker %s has as much as it can take now", worker->name);
    if (st != STATUS_OK) {
        zmq_msg_close(head);
        zmq_msg_close(body);
        return st;
    }
    zmq_msg_init(&frames[0]);
    zmq_msg_init(&frames[1]);
    zmq_msg_move(&frames[0], head);
    zmq_msg_move(&frames[1], body);
    st = channel_send(worker->data, NULL, frames, 2);
    if (st != STATUS_OK)
        return st == STATUS_LIMIT ? STATUS_AGAIN : st;
    worker->streams++;
    worker->body_bytes_open += bytes;
    worker->sent_tokens[worker->number % LOAD_SLOTS] += bytes / BYTES_PER_TOKEN + 1;
    return STATUS_OK;
}

void worker_send_cancel(struct worker *worker, const struct wire_cancel *cancel)
{
    if (!worker->control_up)
        return; /* its session ends with our lease there */
    struct wire_message message = {.kind = WIRE_CANCEL, .cancel = *cancel};
    message.cancel.session = wire_span_of(worker->pool->session, WIRE_ID_BYTES);
    (void)frame_send(worker->control, NULL, &message);
}

void worker_body_acknowledged(struct worker *worker, uint64_t bytes)
{
    worker->body_bytes_open -= bytes < worker->body_bytes_open ? bytes : worker->body_bytes_open;
}

void worker_stream_close(struct worker *worker)
{
    worker->streams -= worker->streams > 0;
}

/* ---- life ---- */

enum status worker_pool_create(struct loop *loop, void *zmq_context, const struct worker_pool_config *config,
                               const struct worker_pool_events *events, struct worker_pool **out)
{
    struct worker_pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return STATUS_FAIL(STATUS_NO_MEMORY, "the worker pool");
    pool->loop = loop;
    pool->zmq_context = zmq_context;
    pool->events = *events;
    snprintf(pool->name, sizeof pool->name, "%s", config->name);
    memcpy(pool->session, config->session, WIRE_ID_BYTES);
    pool->lease_ms = config->lease_ms;
    pool->has_directory = config->has_directory;
    pool->created_ms = loop_now_ms(loop);
    enum status st;
    for (unsigned i = 0; i < config->endpoint_count; i++) {
        struct worker *worker;
        if (strlen(config->endpoints[i]) >= WORKER_ENDPOINT_MAX) {
            st = STATUS_FAIL(STATUS_INVALID, "workers: an endpoint is longer than %d characters",
                             WORKER_ENDPOINT_MAX - 1);
            goto fail;
        }
        TRY_GOTO(add_worker(pool, config->endpoints[i], &worker), st, fail);
        worker->configured = true;
    }
    TRY_GOTO(loop_timer_create(loop, config->lease_ms, true, on_lease_timer, pool, &pool->lease_timer), st, fail);
    *out = pool;
    return STATUS_OK;
fail:
    worker_pool_destroy(&pool);
    return st;
}

void worker_pool_destroy(struct worker_pool **pool)
{
    struct worker_pool *gone = *pool;
    if (!gone)
        return;
    *pool = NULL;
    loop_timer_destroy(&gone->lease_timer);
    for (unsigned i = 0; i < gone->count; i++)
        worker_free(gone->workers[i]);
    free(gone);
}
