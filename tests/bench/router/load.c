#include "tests/bench/router/load.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "tests/bench/bench.h"

#define SAMPLES_MAX 400000u
#define SAMPLE_EVERY 16u         /* of rows: a clock is read for each sample */

uint64_t load_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint32_t load_random(struct load *load, uint32_t below) /* splitmix64 (Steele, Lea and Flood 2014) */
{
    uint64_t z = load->rng += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ z >> 31) % below);
}

static double cpu_seconds(int pid)
{
    clockid_t clock;
    struct timespec t = {0};
    if (clock_getcpuclockid(pid, &clock) == 0)
        clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void sample(double *values, uint32_t *count, double value)
{
    if (*count < SAMPLES_MAX)
        values[(*count)++] = value;
}

void load_at_worker(struct load *load, struct stream *stream, unsigned worker)
{
    struct load_worker *at = &load->workers[worker];
    stream->worker = (uint16_t)worker;
    stream->at_worker = true;
    stream->next = at->streams;
    at->streams = stream;
    at->count++;
    if (load->measuring)
        sample(load->request_us, &load->request_count, (double)(load_now_ns() - stream->asked_ns) * 1e-3);
}

void load_row_sent(struct load *load, struct stream *stream)
{
    if (stream->sent % SAMPLE_EVERY == 0)
        stream->row_ns = load_now_ns();
    stream->sent++;
    load->workers[stream->worker].outstanding++;
}

void load_row_received(struct load *load, struct stream *stream, unsigned tokens)
{
    if (load->measuring && stream->received % SAMPLE_EVERY == 0)
        sample(load->token_us, &load->token_count, (double)(load_now_ns() - stream->row_ns) * 1e-3);
    stream->received += tokens;
    load->workers[stream->worker].outstanding -= tokens;
    load->tokens += tokens;
}

void load_left_worker(struct load *load, struct stream *stream)
{
    struct load_worker *at = &load->workers[stream->worker];
    struct stream **link = &at->streams;
    if (!stream->at_worker)
        return;
    while (*link != stream)
        link = &(*link)->next;
    *link = stream->next;
    at->count--;
    stream->at_worker = false;
}

void load_ended(struct load *load, struct stream *stream, bool well)
{
    if (!well || stream->received != load->config.tokens)
        load->errors++;
    else
        load->requests++;
    load_left_worker(load, stream);
    load->workers[stream->worker].outstanding -= well ? 0 : stream->sent - stream->received;
    stream->open = false;
    load->open_count--;
}

static void ask(struct load *load, const struct load_subject *subject, struct stream *stream)
{
    stream->open = true;
    stream->sent = stream->received = 0;
    stream->asked_ns = load_now_ns();
    load->open_count++;
    subject->ask(load, subject->subject, stream);
}

/* Steps that are due, by window or by clock. */
static void step_workers(struct load *load, const struct load_subject *subject, uint64_t now)
{
    for (unsigned i = 0; i < load->config.workers; i++) {
        struct load_worker *worker = &load->workers[i];
        if (worker->count == 0)
            continue;
        if (load->config.rate > 0) {
            if (now < worker->step_ns)
                continue;
            worker->step_ns = (now - worker->step_ns > 100000000u ? now : worker->step_ns) + load->config.step_us * 1000u;
        } else if (worker->outstanding >= (uint64_t)LOAD_STEPS_AHEAD * worker->count) {
            continue;
        }
        subject->step(load, subject->subject, i);
    }
}

struct turn { /* of the loop */
    uint64_t now, last, next_ask_ns;
    unsigned next_stream;
};

static void take_turn(struct load *load, const struct load_subject *subject, struct turn *turn)
{
    turn->last = turn->now;
    turn->now = load_now_ns();
    if (load->measuring && turn->last)
        sample(load->lag_us, &load->lag_count, (double)(turn->now - turn->last) * 1e-3);
    subject->poll(load, subject->subject);
    const double rate = load->config.rate;
    for (unsigned tries = 0; tries < load->config.streams && load->open_count < load->config.streams; tries++) {
        if (rate > 0 && turn->now < turn->next_ask_ns)
            break;
        struct stream *stream = &load->streams[turn->next_stream++ % load->config.streams];
        if (stream->open)
            continue;
        ask(load, subject, stream);
        if (rate > 0) {
            turn->next_ask_ns += (uint64_t)(1e9 / rate);
            if (turn->now > turn->next_ask_ns + 1000000000u)
                turn->next_ask_ns = turn->now; /* a second behind: the rate cannot be kept, which the result shows */
        }
    }
    step_workers(load, subject, turn->now);
}

static void quantiles(double *values, uint32_t count, double out[3])
{
    out[0] = bench_quantile(values, count, 0.5);
    out[1] = bench_quantile(values, count, 0.99);
    out[2] = count ? values[count - 1] : 0;
}

static void load_destroy(struct load *load)
{
    free(load->streams);
    free(load->request_us);
    free(load->token_us);
    free(load->lag_us);
    free(load);
}

static enum status load_create(const struct load_config *config, struct load **out)
{
    struct load *load = calloc(1, sizeof *load);
    if (!load)
        return STATUS_FAIL(STATUS_NO_MEMORY, "the load generator");
    load->config = *config;
    load->rng = config->seed;
    load->streams = calloc(config->streams, sizeof *load->streams);
    load->request_us = malloc(SAMPLES_MAX * sizeof(double));
    load->token_us = malloc(SAMPLES_MAX * sizeof(double));
    load->lag_us = malloc(SAMPLES_MAX * sizeof(double));
    *out = load;
    if (!load->streams || !load->request_us || !load->token_us || !load->lag_us) {
        load_destroy(load);
        return STATUS_FAIL(STATUS_NO_MEMORY, "the load generator");
    }
    for (unsigned i = 0; i < config->streams; i++) {
        load->streams[i].number = i + 1;
        load->streams[i].session = (uint8_t)(i % config->sessions);
    }
    return STATUS_OK;
}

enum status load_run(const struct load_config *config, struct load_subject *subject, double warm_seconds,
                     double seconds, struct load_result *out)
{
    struct load *load = NULL;
    TRY(load_create(config, &load));
    enum status st = subject->start(load, subject);
    if (st != STATUS_OK) {
        subject->stop(load, subject->subject);
        load_destroy(load);
        return st;
    }
    const uint64_t start = load_now_ns();
    struct turn turn = {.now = start, .next_ask_ns = start};
    while (turn.now < start + (uint64_t)(warm_seconds * 1e9))
        take_turn(load, subject, &turn);
    const uint64_t begun = load_now_ns(), requests = load->requests, tokens = load->tokens;
    const double cpu = cpu_seconds(subject->pid);
    load->measuring = true;
    /* Closed loop: at least as many as are open at a time, for they began together. */
    const uint64_t enough = config->rate > 0 ? 0 : requests + config->streams;
    const uint64_t end = begun + (uint64_t)(seconds * 1e9), last = begun + (uint64_t)(seconds * 1e10);
    while (turn.now < end || (load->requests < enough && turn.now < last))
        take_turn(load, subject, &turn);
    *out = (struct load_result){
        .seconds = (double)(load_now_ns() - begun) * 1e-9,
        .cpu_seconds = cpu_seconds(subject->pid) - cpu,
        .requests = load->requests - requests,
        .tokens = load->tokens - tokens,
        .errors = load->errors,
    };
    quantiles(load->request_us, load->request_count, out->request_us);
    quantiles(load->token_us, load->token_count, out->token_us);
    out->lag_us = bench_quantile(load->lag_us, load->lag_count, 0.99);
    subject->stop(load, subject->subject);
    load_destroy(load);
    return STATUS_OK;
}
