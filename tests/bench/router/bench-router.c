/* bench-router - what a router costs: roost-router beside a bare ZeroMQ forwarder of the same frames, and HAProxy with consistent hashing, in one run.
 * The load generator has one core, the subject another one; what counts is the subject's CPU time, so that a busy generator does not flatter it. */
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "tests/bench/bench.h"
#include "tests/bench/router/process.h"
#include "tests/bench/router/subjects.h"

#define LOAD_CORE 1
#define SUBJECT_CORE 0
#define ROUNDS_MAX 9u
#define STEP_US 10000u /* open loop: 100 tokens a second and stream */

enum subject { ROUTER, ROUTER_REDIS, FORWARDER, HAPROXY, SUBJECTS };
static const char *const subject_names[SUBJECTS] = {"roost-router", "roost-router, Redis", "bare forwarder", "haproxy"};

static const struct scenario {
    const char *name;
    unsigned workers, sessions, streams, tokens;
    uint32_t body_bytes;
    bool subjects[SUBJECTS];
} scenarios[] = {
    {"1 KB, 8 workers, 1 session", 8, 1, 256, 140, 1024, {true, true, true, true}},
    {"1 KB, 8 workers, 1 session, 1 token", 8, 1, 256, 1, 1024, {true, true, true, true}},
    {"1 KB, 200 workers, 1 session", 200, 1, 3200, 140, 1024, {true, true, true, true}},
    {"1 KB, 8 workers, 32 sessions", 8, 32, 256, 140, 1024, {true, false, true, false}},
    {"38 KB, 8 workers, 32 sessions", 8, 32, 256, 140, 38 * 1024, {true, false, true, true}},
    {"500 KB, 8 workers, 32 sessions", 8, 32, 64, 140, 500 * 1024, {true, false, true, true}},
};
enum { SCENARIOS = sizeof scenarios / sizeof scenarios[0] };

struct row {
    double rate, cpu_us, share;  /* requests a second, CPU of one, busy share of the core; medians of the rounds */
    double spread;               /* of cpu_us: largest less smallest, over the median */
    struct load_result last;
};

struct bench {
    const char *router, *self, *haproxy;
    int redis_port, redis_pid;
    uint32_t rounds, seconds, seed, only; /* only: one scenario, counted from 1, and no latency; 0: all */
};

static enum status measure(const struct bench *bench, enum subject kind, const struct load_config *config, struct load_result *out)
{
    const struct roost_options roost = {.program = kind == FORWARDER ? bench->self : bench->router,
                                        .forwarder = kind == FORWARDER,
                                        .redis_port = kind == ROUTER_REDIS ? bench->redis_port : 0,
                                        .core = SUBJECT_CORE};
    const struct http_options http = {.program = bench->haproxy, .core = SUBJECT_CORE};
    struct load_subject subject = kind == HAPROXY ? subject_http(&http) : subject_roost(&roost);
    return load_run(config, &subject, 1, bench->seconds, out);
}

static struct load_config config_of(const struct bench *bench, const struct scenario *scenario)
{
    return (struct load_config){.workers = scenario->workers,
                                .sessions = scenario->sessions,
                                .streams = scenario->streams,
                                .tokens = scenario->tokens,
                                .conversations = 10000,
                                .body_bytes = scenario->body_bytes,
                                .seed = bench->seed};
}

static bool missing(const struct bench *bench, enum subject kind)
{
    return (kind == HAPROXY && !bench->haproxy) || (kind == ROUTER_REDIS && bench->redis_port == 0);
}

static enum status measure_row(const struct bench *bench, enum subject kind, const struct scenario *scenario, struct row *row)
{
    double rates[ROUNDS_MAX], cpus[ROUNDS_MAX], shares[ROUNDS_MAX];
    for (uint32_t round = 0; round < bench->rounds; round++) {
        const struct load_config config = config_of(bench, scenario);
        struct load_result *result = &row->last;
        bench_progress("%s: %s, round %u", scenario->name, subject_names[kind], round + 1);
        TRY(measure(bench, kind, &config, result));
        if (result->errors > 0 || result->requests == 0)
            return STATUS_FAIL(STATUS_IO, "%s, %s: %llu requests, %llu failed", scenario->name, subject_names[kind],
                               (unsigned long long)result->requests, (unsigned long long)result->errors);
        rates[round] = (double)result->requests / result->seconds;
        cpus[round] = result->cpu_seconds * 1e6 / (double)result->requests;
        shares[round] = result->cpu_seconds / result->seconds;
    }
    row->rate = bench_median(rates, bench->rounds);
    row->cpu_us = bench_median(cpus, bench->rounds);
    row->spread = (cpus[bench->rounds - 1] - cpus[0]) / row->cpu_us;
    row->share = bench_median(shares, bench->rounds);
    return STATUS_OK;
}

static void print_row(const char *name, const struct row *row, double peer_cpu_us)
{
    printf("  %-22s %8.0f /s   %9.1f us CPU a request   %8.0f a second and core   busy %3.0f%%   spread %4.1f%%", name, row->rate,
           row->cpu_us, 1e6 / row->cpu_us, 100 * row->share, 100 * row->spread);
    if (peer_cpu_us > 0)
        printf("   %.2f of the forwarder", peer_cpu_us / row->cpu_us);
    printf("\n");
}

static enum status throughput(const struct bench *bench, struct row rows[SCENARIOS][SUBJECTS])
{
    for (unsigned i = 0; i < SCENARIOS; i++) {
        if (bench->only && bench->only != i + 1)
            continue;
        for (unsigned kind = 0; kind < SUBJECTS; kind++)
            if (scenarios[i].subjects[kind] && !missing(bench, kind))
                TRY(measure_row(bench, kind, &scenarios[i], &rows[i][kind]));
        printf("%s, %u streams, %u tokens each\n", scenarios[i].name, scenarios[i].streams, scenarios[i].tokens);
        for (unsigned kind = 0; kind < SUBJECTS; kind++)
            if (rows[i][kind].rate > 0)
                print_row(subject_names[kind], &rows[i][kind], kind == FORWARDER ? 0 : rows[i][FORWARDER].cpu_us);
    }
    return STATUS_OK;
}

/* Half of what the router did in the first scenario, for all. Steps are 10 ms apart. */
static enum status latency(const struct bench *bench, double rate, struct load_result results[SUBJECTS])
{
    printf("half load: %.0f requests a second, 1 KB, 8 workers, steps of %u ms; us: median, p99, largest\n", rate, STEP_US / 1000);
    for (unsigned kind = 0; kind < SUBJECTS; kind++) {
        if (missing(bench, kind))
            continue;
        struct load_config config = config_of(bench, &scenarios[0]);
        config.rate = rate;
        config.step_us = STEP_US;
        config.streams = (unsigned)(rate * (config.tokens + 20) * STEP_US * 1e-6) + 64; /* a reply takes 1.4 s; a seventh to spare */
        if (config.streams > LOAD_STREAMS_MAX / 2)
            config.streams = LOAD_STREAMS_MAX / 2;
        bench_progress("half load: %s", subject_names[kind]);
        TRY(measure(bench, kind, &config, &results[kind]));
        const struct load_result *r = &results[kind];
        printf("  %-22s %6.0f /s   request %6.0f %6.0f %7.0f   token %6.0f %6.0f %7.0f   a turn of the generator, p99 %5.0f\n",
               subject_names[kind], (double)r->requests / r->seconds, r->request_us[0], r->request_us[1], r->request_us[2],
               r->token_us[0], r->token_us[1], r->token_us[2], r->lag_us);
    }
    return STATUS_OK;
}

static void print_json(const struct bench_options *options, int argc, char **argv, struct row rows[SCENARIOS][SUBJECTS],
                       const struct load_result results[SUBJECTS])
{
    bench_json_begin(stdout, options, argc, argv);
    printf(", \"throughput\": [");
    for (unsigned i = 0, n = 0; i < SCENARIOS; i++)
        for (unsigned kind = 0; kind < SUBJECTS; kind++)
            if (rows[i][kind].rate > 0)
                printf("%s{\"scenario\": \"%s\", \"subject\": \"%s\", \"requests_per_second\": %.0f, \"cpu_us_per_request\": %.2f, "
                       "\"of_forwarder\": %.3f, \"spread\": %.3f}",
                       n++ ? ", " : "", scenarios[i].name, subject_names[kind], rows[i][kind].rate, rows[i][kind].cpu_us,
                       rows[i][FORWARDER].cpu_us / rows[i][kind].cpu_us, rows[i][kind].spread);
    printf("], \"half_load\": [");
    for (unsigned kind = 0, n = 0; kind < SUBJECTS; kind++)
        if (results[kind].seconds > 0)
            printf("%s{\"subject\": \"%s\", \"requests_per_second\": %.0f, \"request_us\": [%.0f, %.0f], \"token_us\": [%.0f, %.0f], "
                   "\"generator_turn_us\": %.0f}",
                   n++ ? ", " : "", subject_names[kind], (double)results[kind].requests / results[kind].seconds,
                   results[kind].request_us[0], results[kind].request_us[1], results[kind].token_us[0], results[kind].token_us[1],
                   results[kind].lag_us);
    printf("]}\n");
}

static enum status start_redis(struct bench *bench)
{
    char port[16];
    if (system("command -v redis-server >/dev/null") != 0) {
        printf("redis-server is not here: without it\n");
        return STATUS_OK;
    }
    bench->redis_port = process_free_port();
    snprintf(port, sizeof port, "%d", bench->redis_port);
    const char *const argv[] = {"redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", NULL};
    TRY(process_start(argv, LOAD_CORE, &bench->redis_pid));
    return process_wait_port(bench->redis_port, 5000);
}

static enum status run(struct bench *bench, const struct bench_options *options, int argc, char **argv)
{
    static struct row rows[SCENARIOS][SUBJECTS];
    static struct load_result results[SUBJECTS];
    bench->haproxy = system("command -v haproxy >/dev/null") == 0 ? "haproxy" : NULL;
    if (!bench->haproxy)
        printf("haproxy is not here (deploy/install-packages bench): without it\n");
    TRY(start_redis(bench));
    bench_print_processor(stdout);
    printf("\n");
    TRY(throughput(bench, rows));
    for (unsigned kind = 0; kind < SUBJECTS && !bench->only; kind++)
        if (rows[0][kind].rate > 0)
            printf("%-22s CPU of a request without tokens %.1f us, of a token %.2f us\n", subject_names[kind],
                   rows[1][kind].cpu_us - (rows[0][kind].cpu_us - rows[1][kind].cpu_us) / 139,
                   (rows[0][kind].cpu_us - rows[1][kind].cpu_us) / 139);
    if (!bench->only)
        printf("500 KB against 1 KB: router %.1f us more, forwarder %.1f us more\n", rows[5][ROUTER].cpu_us - rows[3][ROUTER].cpu_us,
               rows[5][FORWARDER].cpu_us - rows[3][FORWARDER].cpu_us);
    if (!bench->only)
        TRY(latency(bench, rows[0][ROUTER].rate / 2, results));
    print_json(options, argc, argv, rows, results);
    return STATUS_OK;
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "--forward") == 0)
        return forward_run(atoi(argv[2]), atoi(argv[3]));
    static const struct bench_options options = {"bench-router", "ROUTER [--rounds N] [--seconds N] [--seed N] [--scenario N]   (ROUTER: build/dev/bin/roost-router)"};
    struct bench bench = {.self = "/proc/self/exe", .rounds = 3, .seconds = 4, .seed = 1};
    const struct bench_flag flags[] = {
        {"--rounds", &bench.rounds, 1, ROUNDS_MAX}, {"--seconds", &bench.seconds, 1, 60}, {"--seed", &bench.seed, 0, UINT32_MAX},
        {"--scenario", &bench.only, 1, SCENARIOS}, {NULL, NULL, 0, 0}};
    bench.router = bench_arguments(&options, argc, argv, flags);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) { /* 200 workers take some 4,000; 3,200 streams through a proxy 13,000 */
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    process_pin_self(LOAD_CORE);
    const enum status st = run(&bench, &options, argc, argv);
    process_stop(&bench.redis_pid);
    if (st != STATUS_OK)
        fprintf(stderr, "bench-router: %s\n", status_detail());
    return st == STATUS_OK ? 0 : 1;
}
