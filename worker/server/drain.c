/* drain.c - the two ways to stop taking requests. I/O thread only.
 *
 *   to leave (SIGTERM: server_drain)   DRAINING --all answered--> flushing --all seen--> GONE
 *                                         +------------ deadline, FLUSH_MS_MAX ----------^
 *   to stay (DRAIN, operators:         READY --> DRAINING --all answered, or deadline--> SAFE_TO_DELETE
 *            server_drain_stay)          ^-----------+---- server_drain_cancel -----------+
 *
 * Leaving can begin while it stays, and is not taken back. What still runs at the deadline of the second is not ended:
 * its routers continue it elsewhere when this process ends. Routers that asked are told with every lease. */
#include "worker/server/server_internal.h"
#include <stdio.h>
#include "common/log.h"
#include "common/loop.h"

#define FLUSH_MS_MAX 1000u /* how long to wait for routers to have seen everything */

/* Requests that wait for something from us: those that run, also without a router, and ends not sent to one that is
 * there. */
static unsigned unanswered(const struct server *server)
{
    unsigned count = 0;
    for (const struct session *session = server->sessions; session; session = session->hh.next) {
        if (!session->expired_ms) {
            count += session->stream_count - session->told_count;
            continue;
        }
        for (const struct stream *stream = session->streams; stream; stream = stream->next)
            count += stream->open;
    }
    return count;
}

void drain_report(struct server *server, struct session *session)
{
    struct wire_message message = {.kind = WIRE_DRAIN_STATUS};
    if (!session->drain_asked)
        return;
    message.drain_status = (struct wire_drain_status){.worker = wire_span_str(server->name),
                                                      .state = server->state,
                                                      .streams = unanswered(server),
                                                      .abandoned = server->abandoned};
    for (const struct session *other = server->sessions; other; other = other->hh.next)
        message.drain_status.bytes_left += session_unsent_bytes(other);
    (void)session_send(server, session, LINK_CONTROL, &message); /* the next one says it again */
}

static void report_all(struct server *server)
{
    struct session *session, *next;
    HASH_ITER(hh, server->sessions, session, next)
    drain_report(server, session);
}

static void become_safe(struct server *server)
{
    loop_timer_destroy(&server->drain_timer);
    server->abandoned = server_stream_count(server);
    LOG_INFO("drained: this worker may be deleted, %u streams would be continued elsewhere", server->abandoned);
    server_set_state(server, WIRE_LIFE_SAFE_TO_DELETE, STATUS_OK);
    report_all(server);
}

static void on_drain_timer(void *user)
{
    struct server *server = user;
    loop_timer_destroy(&server->drain_timer);
    if (!server->leaving) {
        become_safe(server);
        return;
    }
    unsigned abandoned = server_stream_count(server);
    if (abandoned)
        LOG_WARN("drain deadline: %u streams are abandoned", abandoned);
    server_gone(server, STATUS_OK);
}

static void start_timer(struct server *server, uint32_t delay_ms)
{
    loop_timer_destroy(&server->drain_timer);
    if (loop_timer_create(server->config.loop, delay_ms, false, on_drain_timer, server, &server->drain_timer) ==
        STATUS_OK)
        return;
    if (server->leaving)
        server_gone(server, STATUS_OK);
    else
        LOG_WARN("%s: this drain has no deadline", status_detail());
}

static void begin(struct server *server, uint32_t deadline_ms)
{
    struct wire_message message = {.kind = WIRE_GOAWAY};
    struct session *session, *next;
    LOG_INFO("draining: %u streams are open", server_stream_count(server));
    server_set_state(server, WIRE_LIFE_DRAINING, STATUS_OK);
    message.goaway.session = wire_span_of(server->incarnation, sizeof server->incarnation);
    message.goaway.deadline_ms = deadline_ms;
    message.goaway.detail = wire_span_str("this worker is draining");
    HASH_ITER(hh, server->sessions, session, next)
    {
        (void)session_send(server, session, LINK_CONTROL, &message);
        server_send_leases(server, session);
    }
    start_timer(server, deadline_ms);
}

void server_drain(struct server *server)
{
    if (server->leaving || server->gone)
        return;
    server->leaving = true;
    begin(server, server->config.drain_deadline_ms);
}

void server_drain_stay(struct server *server, uint32_t deadline_ms)
{
    if (server->leaving || server->gone || server->state == WIRE_LIFE_SAFE_TO_DELETE)
        return;
    begin(server, deadline_ms ? deadline_ms : server->config.drain_deadline_ms);
}

void server_drain_cancel(struct server *server)
{
    if (server->leaving || server->gone ||
        (server->state != WIRE_LIFE_DRAINING && server->state != WIRE_LIFE_SAFE_TO_DELETE))
        return;
    loop_timer_destroy(&server->drain_timer);
    server->abandoned = 0;
    LOG_INFO("the drain is taken back");
    server_set_state(server, server->info ? WIRE_LIFE_READY : WIRE_LIFE_STARTING, STATUS_OK);
    server_welcome_all(server); /* undoes the GOAWAY */
}

void drain_on_request(struct server *server, const struct channel_peer *peer, const struct wire_drain *drain)
{
    char detail[160];
    struct session *session = session_of_peer(server, LINK_CONTROL, peer), *next;
    if (!session) {
        server_send_error(server, LINK_CONTROL, peer, WIRE_ERROR_INVALID, "unknown session: say HELLO first");
        return;
    }
    if (!wire_span_equal(drain->worker, wire_span_str(server->name))) {
        snprintf(detail, sizeof detail, "drain.worker: this worker is %s", server->name);
        server_send_error(server, LINK_CONTROL, peer, WIRE_ERROR_INVALID, detail);
        return;
    }
    session->drain_asked = true;
    if (!drain->cancel) {
        server_drain_stay(server, drain->deadline_ms);
        drain_report(server, session);
        return;
    }
    server_drain_cancel(server);
    report_all(server);
    if (server->leaving)
        return;
    HASH_ITER(hh, server->sessions, session, next)
    session->drain_asked = false;
}

/* All answered: one more lease to each router. When its echo comes back on the data connection, so has everything
 * before it (messages keep their order), and nothing is cut off by closing the sockets. */
static void start_flushing(struct server *server)
{
    struct session *session, *next;
    server->flushing = true;
    HASH_ITER(hh, server->sessions, session, next)
    {
        server_send_leases(server, session);
        session->flush_number = session->links[LINK_DATA].number_out;
    }
    start_timer(server, FLUSH_MS_MAX);
}

static bool all_seen(const struct server *server)
{
    for (const struct session *session = server->sessions; session; session = session->hh.next) {
        const struct session_link *data = &session->links[LINK_DATA];
        if (data->bound && data->echo_in < session->flush_number)
            return false;
    }
    return true;
}

void drain_step(struct server *server)
{
    if (server->state != WIRE_LIFE_DRAINING || server->gone)
        return;
    if (server->flushing) {
        if (all_seen(server))
            server_gone(server, STATUS_OK);
    } else if (unanswered(server) == 0) {
        if (server->leaving)
            start_flushing(server);
        else
            become_safe(server);
    }
}
