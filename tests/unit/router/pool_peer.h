/* pool_peer.h - a worker as its pool sees it, for tests of the pool: real ZeroMQ sockets behind a TCP relay that can be
 * cut, closed or stopped in one direction, on the test's own loop. It says HELLO, WELCOME and leases as it is told;
 * what comes is written down. */
#ifndef ROOST_TESTS_POOL_PEER_H
#define ROOST_TESTS_POOL_PEER_H
#include <stdbool.h>
#include <stdint.h>
#include "common/channel.h"
#include "proto/wire.h"

#define POOL_PEER_GRANTS_MAX 65536

struct evconnlistener;
struct relay_link;
struct loop;

struct relay {
    struct loop *loop;
    struct evconnlistener *listener; /* NULL: closed */
    int port, target;                /* on 127.0.0.1 */
    bool swallow_up, swallow_down;   /* bytes towards the worker, from the worker, are lost */
    bool mute_accept;                /* connections are accepted and left alone, as a stopped process's kernel does */
    unsigned accepted;
    struct relay_link *links;
};

struct pool_peer {
    struct loop *loop;
    struct channel *control, *data;
    struct relay control_relay, data_relay;
    struct loop_timer *timer;
    char name[WIRE_NAME_MAX + 1];
    uint8_t incarnation[WIRE_ID_BYTES], numerics_id[32];
    bool has_numerics;
    uint32_t capabilities, window;
    enum wire_life life;
    struct wire_load load;
    bool deaf; /* echoes nothing new */
    struct channel_peer control_peer, data_peer;
    bool has_control_peer, has_data_peer;
    uint64_t number[2], heard[2];

    uint32_t hello_capabilities; /* of the router */
    unsigned hellos, leases, requests, cancels, attaches, drains, malformed;
    struct wire_attempt cancel_attempt;
    bool drain_cancel;
    uint64_t connection_bytes;
    unsigned grant_rows, grant_leases, frame_bytes_max; /* rows over all leases, leases with rows, the largest lease */
    uint64_t granted[POOL_PEER_GRANTS_MAX];             /* by stream */
};

void pool_peer_start(struct pool_peer *peer, struct loop *loop, void *zmq_context, const char *name);
void pool_peer_stop(struct pool_peer *peer);
/* The process is replaced by another one, behind the same relay. */
void pool_peer_restart(struct pool_peer *peer, void *zmq_context);
/* As kill -9: its sockets close, and its address refuses. */
void pool_peer_kill(struct pool_peer *peer);
void pool_peer_endpoint(const struct pool_peer *peer, char *out, size_t size);
void pool_peer_send(struct pool_peer *peer, bool data, const struct wire_message *message);
void pool_peer_lease(struct pool_peer *peer);              /* both, now */
void pool_peer_welcome(struct pool_peer *peer, bool data); /* again, with what it says now */

/* Connections end; new ones are accepted. */
void relay_cut(struct relay *relay);
void relay_close(struct relay *relay); /* refuses from now on */
void relay_open(struct relay *relay);

#endif
