#include "tests/bench/router/subjects.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#define BATCH 256u /* messages from one side before the other is looked at */
#define PEER_BYTES 5u

static volatile sig_atomic_t stopped;

static void on_signal(int number)
{
    (void)number;
    stopped = 1;
}

static void *bind_router(void *context, int port)
{
    const int none = 0;
    char endpoint[64];
    void *socket = zmq_socket(context, ZMQ_ROUTER);
    zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof none);
    zmq_setsockopt(socket, ZMQ_SNDHWM, &none, sizeof none);
    zmq_setsockopt(socket, ZMQ_RCVHWM, &none, sizeof none);
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%d", port);
    if (zmq_bind(socket, endpoint) != 0)
        exit(1);
    return socket;
}

struct peers {
    uint8_t ids[LOAD_WORKERS_MAX][PEER_BYTES];
    unsigned count, next;
};

/* The rest of a message whose first part has been read. */
static void pass_rest(void *from, void *to)
{
    for (bool more = true; more;) {
        zmq_msg_t part;
        zmq_msg_init(&part);
        zmq_msg_recv(&part, from, 0);
        more = zmq_msg_more(&part);
        if (zmq_msg_send(&part, to, more ? ZMQ_SNDMORE : 0) < 0)
            zmq_msg_close(&part);
    }
}

/* [client][HEAD][BODY] -> [worker][client][HEAD][BODY] */
static bool from_client(void *clients, void *workers, struct peers *peers)
{
    zmq_msg_t client;
    zmq_msg_init(&client);
    if (peers->count == 0 || zmq_msg_recv(&client, clients, ZMQ_DONTWAIT) < 0)
        return false;
    zmq_send(workers, peers->ids[peers->next++ % peers->count], PEER_BYTES, ZMQ_SNDMORE);
    zmq_msg_send(&client, workers, ZMQ_SNDMORE);
    pass_rest(clients, workers);
    return true;
}

/* [worker][client][TOKENS] -> [client][TOKENS]; [worker][] is a worker that has come. */
static bool from_worker(void *clients, void *workers, struct peers *peers)
{
    zmq_msg_t worker, client;
    zmq_msg_init(&worker);
    if (zmq_msg_recv(&worker, workers, ZMQ_DONTWAIT) < 0)
        return false;
    zmq_msg_init(&client);
    zmq_msg_recv(&client, workers, 0);
    if (!zmq_msg_more(&client)) {
        if (peers->count < LOAD_WORKERS_MAX)
            memcpy(peers->ids[peers->count++], zmq_msg_data(&worker), PEER_BYTES);
        zmq_msg_close(&client);
    } else {
        zmq_msg_send(&client, clients, ZMQ_SNDMORE);
        pass_rest(workers, clients);
    }
    zmq_msg_close(&worker);
    return true;
}

int forward_run(int client_port, int worker_port)
{
    static struct peers peers;
    void *context = zmq_ctx_new();
    signal(SIGTERM, on_signal);
    void *clients = bind_router(context, client_port), *workers = bind_router(context, worker_port);
    while (!stopped) {
        zmq_pollitem_t items[2] = {{.socket = clients, .events = ZMQ_POLLIN}, {.socket = workers, .events = ZMQ_POLLIN}};
        if (zmq_poll(items, 2, 100) < 0)
            break;
        for (unsigned i = 0; i < BATCH && from_client(clients, workers, &peers); i++)
            ;
        for (unsigned i = 0; i < BATCH && from_worker(clients, workers, &peers); i++)
            ;
    }
    zmq_close(clients);
    zmq_close(workers);
    zmq_ctx_term(context);
    return 0;
}
