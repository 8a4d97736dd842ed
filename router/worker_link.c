/* worker_link.c - the two links of one worker: HELLO and WELCOME, who answers there, up, suspect and down.
 *
 *   on_link(true) -> HELLO -> on_welcome -> worker_maybe_up --all there--> on_ready, or on_relinked after a drop
 *   on_link(false) while up -> link_dropped: worker_link_turn asks by a connection of its own, again and again
 *        |-- refused, another incarnation in WELCOME, WORKER_DEAD_MS: worker_down -> on_lost
 *        `-- WELCOME of the same incarnation on both: worker_maybe_up
 *
 *   control: HELLO LEASE CANCEL ATTACH DRAIN -->  worker  <-- HELLO LEASE HEAD+BODY :data
 *   control: WELCOME LEASE ACK ATTACH_REPLY GOAWAY SUPERSEDED DRAIN_STATUS <--  --> WELCOME LEASE TOKENS DONE ERROR
 * :data */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "common/log.h"
#include "router/frame.h"
#include "router/worker_internal.h"

enum {
    HELLO_AGAIN_MS = 1000,   /* a HELLO that was lost or refused: 1,024 workers are 1,024 small frames a second */
    CONNECT_AGAIN_MS = 1000, /* a channel that could not be created: no descriptor was left, say */
    PROBE_AGAIN_MS = 50,     /* while a link is down and somebody speaks: as often as ZeroMQ tries at its fastest */
    PROBE_UNCLEAR_MS = 10,   /* a process that is being killed accepts until its listener is closed: microseconds */
    GRANT_DEFAULT = 4 << 20, /* four of the largest bodies, when a WELCOME does not say */
};

/* ---- up and down ---- */

static bool links_whole(const struct worker *worker)
{
    return worker->control_up && worker->data_up && worker->welcome_control && worker->welcome_data &&
           !worker->refused_name;
}

void worker_down(struct worker *worker, const char *why)
{
    if (!worker->up)
        return;
    uint64_t now = worker_now_ms(worker);
    bool leaving = worker_draining(worker);
    LOG_WARN("worker %s is lost: %s", worker->name, why);
    worker_health_lost(worker, now, leaving);
    worker->up = false;
    worker->pool->due = true;
    worker->since_ms = now;
    worker->link_dropped = false;
    worker->suspect_ms = 0;
    link_probe_destroy(&worker->probe);
    worker->pool->events.on_lost(worker->pool->events.user, worker);
    worker->body_bytes_open = 0;
    worker->streams = 0;
    worker_load_reset(worker);
}

void worker_maybe_up(struct worker *worker)
{
    uint64_t now = worker_now_ms(worker);
    if (!links_whole(worker))
        return;
    if (worker->up && worker->link_dropped) {
        worker->link_dropped = false;
        worker->data_heard_ms = worker->data_alive_ms = now;
        worker->relinks++;
        link_probe_destroy(&worker->probe);
        LOG_INFO("worker %s is there again: its link had dropped", worker->name);
        if (worker->pool->events.on_relinked)
            worker->pool->events.on_relinked(worker->pool->events.user, worker);
    }
    if (worker->up || worker->hung || worker->echoed == 0 || now - worker->alive_ms > WORKER_SUSPECT_MS)
        return;
    worker->up = worker->pool->due = true;
    worker->since_ms = worker->data_heard_ms = worker->data_alive_ms = now;
    worker_health_up(worker, now);
    LOG_INFO("worker %s is up at %s", worker->name, worker->endpoint);
    worker_call_ready(worker);
}

static void link_dropped(struct worker *worker)
{
    if (!worker->up || worker->link_dropped)
        return;
    worker->link_dropped = worker->pool->due = true;
    worker->dropped_ms = worker->probe_ms = worker_now_ms(worker);
    LOG_INFO("worker %s: a link dropped; asking whether it is there", worker->name);
}

/* ---- asking by a connection of our own ---- */

static void on_probe(void *user, enum link_probe_result result)
{
    struct worker *worker = user;
    link_probe_destroy(&worker->probe);
    worker->probe_ms = worker_now_ms(worker) + (result == LINK_PROBE_ANSWERED ? PROBE_AGAIN_MS : PROBE_UNCLEAR_MS);
    if (result == LINK_PROBE_REFUSED)
        worker_down(worker, "nobody listens at its address any more");
}

static void probe_if_due(struct worker *worker, uint64_t now_ms)
{
    if (!worker->up || !worker->link_dropped || worker->probe || now_ms < worker->probe_ms)
        return;
    enum status st = link_probe_create(worker->pool->loop, worker->endpoint, on_probe, worker, &worker->probe);
    if (st != STATUS_OK) /* a name that would have to be looked up: it is lost by the clock */
        worker->probe_ms = st == STATUS_UNSUPPORTED ? UINT64_MAX : now_ms + PROBE_AGAIN_MS;
}

/* ---- hello ---- */

static void send_hello(struct worker *worker, bool data)
{
    worker->hello_ms = worker_now_ms(worker);
    struct wire_message hello = {.kind = WIRE_HELLO,
                                 .hello = {.version_min = WIRE_VERSION,
                                           .version_max = WIRE_VERSION,
                                           .session = wire_span_of(worker->pool->session, WIRE_ID_BYTES),
                                           .role = WIRE_ROLE_ROUTER,
                                           .connection = data ? WIRE_CONNECTION_DATA : WIRE_CONNECTION_CONTROL,
                                           .name = wire_span_str(worker->pool->name),
                                           .build = wire_span_str(ROOST_VERSION),
                                           .lease_ms = worker->pool->lease_ms,
                                           .capabilities = WIRE_CAN_RESUME | WIRE_CAN_ATTACH | WIRE_CAN_CREDIT}};
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

static bool welcome_usable(struct worker *worker, const struct wire_welcome *welcome)
{
    if (welcome->version == WIRE_VERSION && welcome->session.size == WIRE_ID_BYTES && wire_name_valid(welcome->name))
        return true;
    if (worker_pool_may_log(worker->pool))
        LOG_WARN("the worker at %s answers with version %" PRIu32 " or without a name: not used", worker->endpoint,
                 welcome->version);
    return false;
}

static void on_data_welcome(struct worker *worker, bool same)
{
    worker->welcome_data = same; /* else the control connection will tell who this is; HELLO goes out again */
    if (!same)
        return;
    worker_lease_send(worker, true);
    worker_maybe_up(worker);
}

static void another_incarnation(struct worker *worker, const struct wire_welcome *welcome)
{
    worker_down(worker, "another process answers under its address");
    worker_cancels_drop(worker);
    memcpy(worker->incarnation, welcome->session.data, WIRE_ID_BYTES);
    worker->has_incarnation = true;
    worker->welcome_data = worker->goaway = worker->hung = false;
    worker->born_ms = 0;
    if (worker->data_up)
        send_hello(worker, true);
}

static void take_welcome(struct worker *worker, const struct wire_welcome *welcome)
{
    worker->life = welcome->state;
    worker->capabilities = welcome->capabilities;
    worker->stream_window = welcome->capabilities & WIRE_CAN_CREDIT ? welcome->limits.stream_credit_tokens : 0;
    worker->has_numerics_id = welcome->numerics_id.size == sizeof worker->numerics_id;
    if (worker->has_numerics_id)
        memcpy(worker->numerics_id, welcome->numerics_id.data, sizeof worker->numerics_id);
    worker->weight = worker_clamp(welcome->kv_tokens_max, 1, WORKER_LOAD_MAX);
    worker->body_bytes_max =
        welcome->limits.unacknowledged_bytes_max ? welcome->limits.unacknowledged_bytes_max : GRANT_DEFAULT;
    worker->streams_max = welcome->limits.streams_max ? welcome->limits.streams_max : UINT32_MAX;
    worker->welcome_control = true;
}

static void on_welcome(struct worker *worker, bool data, const struct wire_welcome *welcome)
{
    char endpoint[WORKER_ENDPOINT_MAX];
    if (!welcome_usable(worker, welcome))
        return;
    bool same = worker->has_incarnation && memcmp(worker->incarnation, welcome->session.data, WIRE_ID_BYTES) == 0;
    if (data) {
        on_data_welcome(worker, same);
        return;
    }
    if (!resolve_endpoint(worker->endpoint, welcome->data_endpoint, endpoint, sizeof endpoint)) {
        if (worker_pool_may_log(worker->pool))
            LOG_WARN("worker at %s: its data endpoint cannot be used", worker->endpoint);
        return;
    }
    if (!same)
        another_incarnation(worker, welcome);
    if (worker->up && !wire_span_equal(wire_span_str(worker->name), welcome->name))
        worker_down(worker, "it changed its name");
    bool refused = !worker_take_name(worker, welcome->name);
    if (refused && !worker->refused_name && worker_pool_may_log(worker->pool))
        LOG_WARN("the worker at %s has a name that another one has already: not used", worker->endpoint);
    worker->refused_name = refused;
    take_welcome(worker, welcome);
    if (strcmp(endpoint, worker->data_endpoint) != 0) {
        snprintf(worker->data_endpoint, sizeof worker->data_endpoint, "%s", endpoint);
        worker->data_renew = worker->pool->due = true;
    }
    worker_lease_send(worker, false);
    worker_cancels_send(worker);
    worker_maybe_up(worker);
    if (worker->up)
        worker_call_ready(worker);
}

/* ---- channels ---- */

static void on_connection_error(struct worker *worker, const struct wire_error *error)
{
    if (worker_pool_may_log(worker->pool))
        LOG_WARN("worker %s says: %s", worker_label(worker), wire_error_name(error->code));
}

static void on_frames(struct worker *worker, bool data, zmq_msg_t *frames, unsigned count)
{
    struct wire_span frame = frame_span(&frames[0]);
    struct wire_message message;
    enum status st = count == 1 ? wire_decode(frame.data, frame.size, &message)
                                : STATUS_FAIL(STATUS_INVALID, "a message of %u frames", count);
    if (st != STATUS_OK) {
        if (worker_pool_may_log(worker->pool))
            LOG_WARN("worker %s sent a frame that is refused: %s", worker_label(worker), status_detail());
        return;
    }
    if (data)
        worker->data_heard_ms = worker_now_ms(worker);
    switch (message.kind) {
    case WIRE_WELCOME: on_welcome(worker, data, &message.welcome); break;
    case WIRE_LEASE: worker_lease_take(worker, data, &message.lease); break;
    case WIRE_GOAWAY: worker->goaway = true; break;
    case WIRE_DRAIN_STATUS:
        worker->drain = (struct worker_drain){message.drain_status.streams, message.drain_status.abandoned,
                                              message.drain_status.bytes_left};
        break;
    case WIRE_ERROR:
        if (message.error.request_id.size == 0) {
            on_connection_error(worker, &message.error);
            break;
        }
        /* fall through */
    case WIRE_TOKENS:
    case WIRE_DONE:
    case WIRE_NEED_HISTORY:
    case WIRE_RESEND:
    case WIRE_WRONG_OWNER:
    case WIRE_ACK:
    case WIRE_SUPERSEDED:
    case WIRE_ATTACH_REPLY:
        if (message.kind == WIRE_TOKENS)
            worker_tokens_received(worker, frame.size);
        if (worker->up)
            worker->pool->events.on_message(worker->pool->events.user, worker, &message);
        break;
    default: break; /* others do not come from workers */
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
    worker_lease_reset(worker, false);
    if (up)
        send_hello(worker, false);
    else
        link_dropped(worker);
}

static void on_data_link(void *user, bool up)
{
    struct worker *worker = user;
    worker->data_up = up;
    worker->welcome_data = false;
    worker_lease_reset(worker, true);
    if (up)
        send_hello(worker, true);
    else
        link_dropped(worker);
}

enum status worker_connect(struct worker *worker)
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

void worker_disconnect(struct worker *worker, bool control)
{
    channel_destroy(&worker->data);
    worker->data_up = worker->welcome_data = false;
    if (control) {
        channel_destroy(&worker->control);
        worker->control_up = worker->welcome_control = false;
        worker->data_endpoint[0] = 0;
    }
}

/* ---- time ---- */

/* Silence counts from when it is seen here: after a stall of ours it gets WORKER_DEAD_MS - WORKER_SUSPECT_MS to end. */
static void judge_silence(struct worker *worker, uint64_t now_ms)
{
    uint64_t silent_ms = now_ms > worker->alive_ms ? now_ms - worker->alive_ms : 0;
    if (silent_ms <= WORKER_SUSPECT_MS)
        worker->suspect_ms = 0;
    else if (worker->suspect_ms == 0)
        worker->suspect_ms = now_ms;
    if (silent_ms > WORKER_DEAD_MS && now_ms - worker->suspect_ms >= WORKER_DEAD_MS - WORKER_SUSPECT_MS)
        worker_down(worker, "its leases stopped, or stopped echoing ours");
}

static bool longer_than(uint64_t now_ms, uint64_t since_ms, uint64_t limit_ms)
{
    return now_ms > since_ms && now_ms - since_ms > limit_ms;
}

void worker_link_expire(struct worker *worker, uint64_t now_ms)
{
    if (worker->up)
        judge_silence(worker, now_ms);
    if (worker->up && worker->link_dropped && longer_than(now_ms, worker->dropped_ms, WORKER_DEAD_MS))
        worker_down(worker, "its link dropped and did not come back");
    if (worker->up && longer_than(now_ms, worker->data_heard_ms, WORKER_DATA_STALLED_MS))
        worker_down(worker, "its data link is stalled");
    if (worker->up && longer_than(now_ms, worker->data_alive_ms, WORKER_DATA_ECHO_MS))
        worker_down(worker, "nothing reaches it by its data link");
    if (worker_suspect(worker, NULL))
        worker_call_ready(worker); /* what waits for it may have waited long enough */
    if (longer_than(now_ms, worker->hello_ms, HELLO_AGAIN_MS)) {
        if (worker->control_up && (!worker->welcome_control || worker->refused_name))
            send_hello(worker, false);
        if (worker->data_up && !worker->welcome_data)
            send_hello(worker, true);
    }
}

static bool wants_channel(const struct worker *worker)
{
    return !worker->control || (!worker->data && worker->data_endpoint[0]);
}

/* New ones, and those that could not be created before. */
static void create_channels(struct worker *worker, uint64_t now_ms)
{
    enum status st = worker->control ? STATUS_OK : worker_connect(worker);
    if (st == STATUS_OK && wants_channel(worker))
        st = connect_data(worker);
    if (st == STATUS_OK)
        return;
    worker->connect_ms = now_ms + CONNECT_AGAIN_MS;
    if (worker_pool_may_log(worker->pool))
        LOG_WARN("worker %s: no connection to it, tried again in a second: %s", worker_label(worker), status_detail());
}

void worker_link_turn(struct worker *worker, uint64_t now_ms)
{
    probe_if_due(worker, now_ms);
    if (worker->next_endpoint[0]) {
        worker_disconnect(worker, true);
        snprintf(worker->endpoint, sizeof worker->endpoint, "%s", worker->next_endpoint);
        worker->next_endpoint[0] = 0;
    }
    if (worker->data_renew) {
        worker->data_renew = false;
        worker_down(worker, "its data endpoint changed");
        worker_disconnect(worker, false);
    }
    if (wants_channel(worker) && now_ms >= worker->connect_ms)
        create_channels(worker, now_ms);
}

/* ---- what others ask ---- */

bool worker_up(const struct worker *worker)
{
    return worker->up;
}

bool worker_connected(const struct worker *worker)
{
    return worker->up && worker->control_up && worker->welcome_control;
}

bool worker_draining(const struct worker *worker)
{
    return worker->up && (worker->goaway || worker->life == WIRE_LIFE_DRAINING ||
                          worker->life == WIRE_LIFE_SAFE_TO_DELETE || worker->life == WIRE_LIFE_GONE);
}

bool worker_suspect(const struct worker *worker, uint64_t *for_ms)
{
    uint64_t now = worker_now_ms(worker), since = now;
    bool silent = worker->up && longer_than(now, worker->alive_ms, WORKER_SUSPECT_MS);
    bool dropped = worker->up && worker->link_dropped;
    if (silent && worker->suspect_ms)
        since = worker->suspect_ms;
    if (dropped && worker->dropped_ms < since)
        since = worker->dropped_ms;
    if (for_ms)
        *for_ms = silent || dropped ? now - since : 0;
    return silent || dropped;
}

/* Ready, as far as its links and its own word go. */
bool worker_could_work(const struct worker *worker)
{
    return worker->up && links_whole(worker) && worker->life == WIRE_LIFE_READY && !worker->goaway &&
           !longer_than(worker_now_ms(worker), worker->alive_ms, WORKER_SUSPECT_MS);
}
