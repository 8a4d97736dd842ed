/* load.h - the load generator of bench-router: plays clients and workers against one process in between, in one thread that never sleeps.
 *
 *   CLIENTS sessions --HEAD BODY--> subject --> WORKERS; each worker step releases one token of each of its streams, in one TOKENS frame,
 *   back through the subject; DONE after `tokens` tokens; then the session asks again.
 *
 * Subjects: a roost router (the whole protocol), a bare forwarder (the same frames, forwarder.h), an HTTP proxy (http.h).
 * Closed loop: `streams` requests are open all the time, and a worker takes its next step when at most two of its steps are under way: what the
 * subject can do is then what comes out. Open loop: requests start at a rate, and steps are `step_us` apart. */
#ifndef ROOST_TESTS_BENCH_ROUTER_LOAD_H
#define ROOST_TESTS_BENCH_ROUTER_LOAD_H
#include <stdbool.h>
#include <stdint.h>
#include "common/status.h"

#define LOAD_WORKERS_MAX 256u
#define LOAD_STREAMS_MAX 8192u
#define LOAD_STEPS_AHEAD 2u

struct load_config {
    unsigned workers, sessions, streams, tokens;
    unsigned conversations;          /* drawn from so many */
    uint32_t body_bytes;
    double rate;                     /* requests a second; 0: closed loop */
    uint32_t step_us;                /* open loop */
    uint64_t seed;
};

struct load_result {
    double seconds, cpu_seconds;     /* cpu: of the subject */
    uint64_t requests, tokens;       /* that ended, and that came, within these seconds */
    double request_us[3], token_us[3];   /* median, p99, largest: HEAD sent to HEAD received; row sent to row received */
    double lag_us;                   /* p99 of a turn of this loop: what a latency can be off by */
    uint64_t errors;                 /* requests that ended otherwise */
};

/* What stands between; callbacks of one subject kind. All of one thread. */
struct load;

struct stream {
    uint32_t number;                 /* at the client */
    uint32_t sent, received;         /* tokens: by the worker, at the client */
    uint32_t worker_stream;          /* as the worker was told */
    uint16_t worker;
    uint8_t session;
    bool open, at_worker;
    uint64_t asked_ns;
    uint64_t row_ns;                 /* when the row that is sampled was sent */
    uint8_t peer[8];                 /* the connection that its worker got it by */
    uint32_t attempt_client, attempt_router;
    uint8_t request_id[16];          /* begins with its index */
    struct stream *next;             /* of its worker */
};

struct load_subject {
    enum status (*start)(struct load *load, struct load_subject *self);  /* process and connections; returns when all are ready */
    void (*ask)(struct load *load, void *subject, struct stream *stream);
    bool (*poll)(struct load *load, void *subject);                      /* reads all that came; true: something did */
    void (*step)(struct load *load, void *subject, unsigned worker);     /* one token of each stream of the worker that is due */
    void (*stop)(struct load *load, void *subject);
    void *subject;
    int pid;                                                             /* of its process, once started: its CPU time is read */
};

struct load_worker {
    struct stream *streams;
    unsigned count;
    uint64_t outstanding;            /* rows under way */
    uint64_t step_ns;                /* open loop: the next one */
};

struct load {
    struct load_config config;
    struct stream *streams;          /* (config.streams) */
    struct load_worker workers[LOAD_WORKERS_MAX];
    uint64_t rng;
    bool measuring;
    uint64_t requests, tokens, errors;
    unsigned open_count;
    double *request_us, *token_us, *lag_us;      /* samples */
    uint32_t request_count, token_count, lag_count;
};

/* Starts the subject, runs for warm_seconds, then measures for seconds. */
enum status load_run(const struct load_config *config, struct load_subject *subject, double warm_seconds, double seconds,
                     struct load_result *out);

/* ---- what subjects call ---- */
uint64_t load_now_ns(void);
uint32_t load_random(struct load *load, uint32_t below);
void load_at_worker(struct load *load, struct stream *stream, unsigned worker);      /* its request has arrived there */
void load_row_sent(struct load *load, struct stream *stream);                        /* one token */
void load_row_received(struct load *load, struct stream *stream, unsigned tokens);
void load_ended(struct load *load, struct stream *stream, bool well);                /* its terminal has arrived */
void load_left_worker(struct load *load, struct stream *stream);                     /* the worker has sent its terminal */

#endif
