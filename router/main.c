/* main.c - roost-router: settings, start, signals, the ready file, the end. */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>
#include "common/channel.h"
#include "common/config.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/operator_port.h"
#include "common/probe.h"
#include "common/redis_sentinel.h"
#include "common/redis_settings.h"
#include "proto/wire.h"
#include "router/admin.h"
#include "router/frontend.h"
#include "router/router.h"
#include "router/worker_pool.h"

/* Two links to each worker, of a socket and two for its monitor; 64 for the rest. ZeroMQ's own limit is 1,023. */
enum { SOCKETS_MAX = 6 * WORKER_POOL_MAX + 64 };

/* Between busy turns: a fifth of the 1 ms that may be added to a request; 400 saves no more (docs/performance/router.md). */
enum { PACE_US = 200 };

enum { /* of open files: check_descriptors */
       WORKER_DESCRIPTORS = 8,
       CLIENT_DESCRIPTORS = 2,
       WORKERS_EXPECTED = 16,
       CLIENTS_EXPECTED = 64,
};

#define FIELD(member) offsetof(struct router_settings, member)

/* clang-format off */
static const struct config_field fields[] = {
    {.key = "name", .type = CONFIG_STRING, .offset = FIELD(name), .default_value = "router", .max = WIRE_NAME_MAX,
     .help = "how this router calls itself to clients, workers and in the ready file"},
    {.key = "listen_control", .type = CONFIG_STRING, .offset = FIELD(listen_control), .default_value = "tcp://127.0.0.1:7400",
     .max = 255, .help = "endpoint for the control connections of clients; port * takes a free one"},
    {.key = "listen_data", .type = CONFIG_STRING, .offset = FIELD(listen_data), .default_value = "tcp://127.0.0.1:7401",
     .max = 255, .help = "endpoint for their data connections"},
    {.key = "allow_remote", .type = CONFIG_BOOL, .offset = FIELD(allow_remote), .default_value = "false",
     .help = "allow endpoints that other hosts can reach; there are no keys yet, so whoever reaches them is trusted"},
    {.key = "listen_operator", .type = CONFIG_STRING, .offset = FIELD(listen_operator), .max = 63,
     .help = "IP:PORT of the HTTP port for operators: health, metrics, workers, draining; port 0 takes a free one; empty: none"},
    {.key = "workers", .type = CONFIG_LIST, .offset = FIELD(workers), .max = WORKER_POOL_MAX,
     .help = "control endpoints of workers that are used whether Redis lists them or not"},
    {.key = "placement", .type = CONFIG_STRING, .offset = FIELD(placement), .default_value = "redis", .choices = "redis|memory",
     .help = "where it is recorded which worker holds a conversation; memory is for a single router"},
    {.key = "redis_address", .type = CONFIG_STRING, .offset = FIELD(redis_address), .default_value = "127.0.0.1:6379", .max = 255,
     .help = "numeric IP:PORT, [IP]:PORT or the path of a unix socket"},
    {.key = "redis_sentinels", .type = CONFIG_LIST, .offset = FIELD(redis_sentinels), .max = REDIS_SENTINELS_MAX,
     .help = "numeric addresses of Redis Sentinels; they are asked where the master is, and redis_address is not looked at"},
    {.key = "redis_sentinel_master", .type = CONFIG_STRING, .offset = FIELD(redis_sentinel_master), .max = 128,
     .help = "the name by which the sentinels know the master"},
    {.key = "redis_tls", .type = CONFIG_BOOL, .offset = FIELD(redis_tls), .default_value = "false",
     .help = "speak TLS to Redis; needs a build with a Redis library that has it, otherwise a TLS proxy on this host"},
    {.key = "redis_user", .type = CONFIG_STRING, .offset = FIELD(redis_user), .max = 128, .help = "user name for Redis; empty: none"},
    {.key = "redis_password_file", .type = CONFIG_STRING, .offset = FIELD(redis_password_file),
     .help = "file with the password for Redis in its first line, readable by its owner alone; empty: none"},
    {.key = "redis_database", .type = CONFIG_UINT, .offset = FIELD(redis_database), .default_value = "0", .max = 65535,
     .help = "number of the Redis database"},
    {.key = "placement_salt", .type = CONFIG_STRING, .offset = FIELD(placement_salt), .max = 256,
     .help = "hides tenants and conversations in Redis; routers that share placements need the same one"},
    {.key = "lease_ms", .type = CONFIG_UINT, .offset = FIELD(lease_ms), .default_value = "200", .min = 20, .max = 500,
     .help = "ms between leases to workers; shorter notices a one-way link sooner and costs messages"},
    {.key = "client_lease_ms", .type = CONFIG_UINT, .offset = FIELD(client_lease_ms), .default_value = "1000", .min = 50,
     .max = 60000, .help = "ms between leases to clients"},
    {.key = "client_lease_expiry_ms", .type = CONFIG_UINT, .offset = FIELD(client_lease_expiry_ms), .default_value = "5000",
     .min = 100, .max = 600000, .help = "ms of silence after which a client's requests are cancelled"},
    {.key = "new_choices", .type = CONFIG_UINT, .offset = FIELD(new_choices), .default_value = "3", .min = 1, .max = 16,
     .help = "a new conversation goes to the least loaded of this many workers: more balances better, fewer keeps routers "
             "without Redis closer together"},
    {.key = "decision_log", .type = CONFIG_STRING, .offset = FIELD(decision_log), .max = 4096,
     .help = "file that a line of JSON is appended to for each decision, with what was known; empty: none"},
    {.key = "decision_sample", .type = CONFIG_UINT, .offset = FIELD(decision_sample), .default_value = "1", .min = 1,
     .max = 1000000, .help = "one in so many decisions is written there"},
    {.key = "in_flight_max", .type = CONFIG_UINT, .offset = FIELD(in_flight_max), .default_value = "8192", .min = 1, .max = 1000000,
     .help = "requests in flight; more are refused with a hint to wait"},
    {.key = "in_flight_bytes_max", .type = CONFIG_UINT, .offset = FIELD(in_flight_bytes_max), .default_value = "268435456",
     .min = 1048576, .max = UINT64_C(1) << 40, .help = "bytes of requests kept until their end, to send them to another worker"},
    {.key = "log_level", .type = CONFIG_STRING, .offset = FIELD(log_level), .default_value = "info",
     .choices = "debug|info|warn|error", .help = "the lowest level that is logged"},
    {.key = "log_format", .type = CONFIG_STRING, .offset = FIELD(log_format), .default_value = "text", .choices = "text|json",
     .help = "one line per event, for people or as JSON"},
    {.key = "ready_file", .type = CONFIG_STRING, .offset = FIELD(ready_file),
     .help = "file that is written once the router serves, with its endpoints as JSON, and removed at a clean exit"},
    {.key = "drain_deadline_ms", .type = CONFIG_UINT, .offset = FIELD(drain_deadline_ms), .default_value = "30000", .max = 3600000,
     .help = "ms that running requests may take after SIGTERM"},
};
/* clang-format on */

/* ---- checks ---- */

static bool is_loopback(const char *endpoint)
{
    if (strncmp(endpoint, "ipc://", 6) == 0)
        return true;
    if (strncmp(endpoint, "tcp://", 6) != 0)
        return false;
    const char *host = endpoint + 6, *end = strrchr(host, ':');
    char text[64];
    size_t size = end ? (size_t)(end - host) : 0;
    if (size == 0 || size >= sizeof text)
        return false;
    memcpy(text, host, size);
    text[size] = 0;
    struct in_addr v4;
    return strcmp(text, "[::1]") == 0 || (inet_pton(AF_INET, text, &v4) == 1 && ntohl(v4.s_addr) >> 24 == 127);
}

static enum status check_listen(const struct router_settings *settings, const char *key, const char *endpoint)
{
    if (strncmp(endpoint, "tcp://", 6) != 0 && strncmp(endpoint, "ipc://", 6) != 0)
        return STATUS_FAIL(STATUS_INVALID, "%s: '%s' is neither tcp:// nor ipc://", key, endpoint);
    if (!settings->allow_remote && !is_loopback(endpoint))
        return STATUS_FAIL(
            STATUS_INVALID,
            "%s: %s can be reached from other hosts and there are no keys yet: use tcp://127.0.0.1:PORT, "
            "or set allow_remote: true where the network is trusted",
            key, endpoint);
    return STATUS_OK;
}

static enum status check(const void *user)
{
    const struct router_settings *settings = user;
    if (!wire_name_valid(wire_span_str(settings->name)))
        return STATUS_FAIL(STATUS_INVALID, "name: use 1 to %d of A-Z a-z 0-9 . _ : -", WIRE_NAME_MAX);
    TRY(check_listen(settings, "listen_control", settings->listen_control));
    TRY(check_listen(settings, "listen_data", settings->listen_data));
    if (settings->listen_operator[0] &&
        operator_address_check(settings->listen_operator, settings->allow_remote) != STATUS_OK) {
        char why[256];
        snprintf(why, sizeof why, "%s", status_detail());
        return STATUS_FAIL(STATUS_INVALID, "listen_operator: %s", why);
    }
    if (settings->client_lease_expiry_ms < 2 * settings->client_lease_ms)
        return STATUS_FAIL(STATUS_INVALID, "client_lease_expiry_ms: must be at least twice client_lease_ms");
    struct redis_settings redis = {.address = settings->redis_address,
                                   .sentinels = (const char *const *)settings->redis_sentinels.items,
                                   .sentinel_count = (unsigned)settings->redis_sentinels.count,
                                   .sentinel_master = settings->redis_sentinel_master,
                                   .tls = settings->redis_tls};
    if (strcmp(settings->placement, "redis") == 0) {
        TRY(redis_settings_check(&redis));
        if (!redis_settings_given(&redis))
            return STATUS_FAIL(STATUS_INVALID, "redis_address: needed with placement: redis");
    }
    if (strcmp(settings->placement, "memory") == 0 && settings->workers.count == 0)
        return STATUS_FAIL(STATUS_INVALID,
                           "workers: needed with placement: memory, for there is no directory to find them in");
    return STATUS_OK;
}

struct program {
    struct router_settings *settings;
    struct loop *loop;
    struct router *router;
    struct admin *admin; /* NULL: no operator port */
    struct loop_timer *drain_timer;
    bool draining;
};

/* ---- the ready file ---- */

/* By rename, so that who reads it sees all of it. Names and endpoints have no character that JSON would escape. */
static enum status write_ready_file(const struct program *program)
{
    const struct router_settings *settings = program->settings;
    if (!settings->ready_file || !settings->ready_file[0])
        return STATUS_OK;
    char path[4200];
    snprintf(path, sizeof path, "%s.%d", settings->ready_file, (int)getpid());
    FILE *file = fopen(path, "we");
    bool good = file != NULL;
    if (good) {
        good =
            fprintf(file, "{\"name\": \"%s\", \"pid\": %d, \"control\": \"%s\", \"data\": \"%s\"", settings->name,
                    (int)getpid(), router_control_endpoint(program->router), router_data_endpoint(program->router)) > 0;
        if (program->admin)
            good = good && fprintf(file, ", \"operator\": \"%s\"", admin_address(program->admin)) > 0;
        good = good && fputs("}\n", file) >= 0;
        good = fclose(file) == 0 && good;
        good = good && rename(path, settings->ready_file) == 0;
    }
    if (!good) {
        enum status st = STATUS_FAIL(STATUS_IO, "ready_file: %s: %s", settings->ready_file, strerror(errno));
        unlink(path);
        return st;
    }
    return STATUS_OK;
}

/* ---- running ---- */

static void on_drained(void *user)
{
    struct program *program = user;
    LOG_INFO("drained");
    loop_stop(program->loop);
}

static void on_drain_deadline(void *user)
{
    struct program *program = user;
    LOG_WARN("the drain deadline has passed: %u requests are abandoned", router_in_flight(program->router));
    loop_stop(program->loop);
}

static void on_signal(int number, void *user)
{
    struct program *program = user;
    if (program->draining) {
        LOG_WARN("second signal: %u requests are abandoned", router_in_flight(program->router));
        loop_stop(program->loop);
        return;
    }
    program->draining = true;
    uint32_t deadline_ms = (uint32_t)program->settings->drain_deadline_ms;
    LOG_INFO("%s: draining %u requests within %" PRIu32 " ms", strsignal(number), router_in_flight(program->router),
             deadline_ms);
    if (loop_timer_create(program->loop, deadline_ms, false, on_drain_deadline, program, &program->drain_timer) !=
        STATUS_OK)
        loop_stop(program->loop);
    router_drain(program->router, deadline_ms, on_drained, program);
}

/* 8 descriptors for each worker: two links of a connection, a mailbox, and a monitor with two mailboxes; 2 for each
 * client. Less than a small fleet takes is an error. */
static enum status check_descriptors(const struct router_settings *settings)
{
    unsigned workers = settings->workers.count > WORKERS_EXPECTED ? settings->workers.count : WORKERS_EXPECTED;
    return channel_check_descriptors(workers * WORKER_DESCRIPTORS + CLIENTS_EXPECTED * CLIENT_DESCRIPTORS);
}

/* Less than all that could come is only said. */
static void say_descriptors(void)
{
    unsigned most = WORKER_POOL_MAX * WORKER_DESCRIPTORS + FRONTEND_SESSIONS_MAX * CLIENT_DESCRIPTORS;
    unsigned left = channel_descriptors_left();
    unsigned workers = left / (2 * WORKER_DESCRIPTORS), clients = left / (2 * CLIENT_DESCRIPTORS);
    if (left < most)
        LOG_WARN("the limit on open files leaves %u descriptors, as for %u workers (%d each) and %u clients (%d each); "
                 "all that this router could serve, %d and %d, take %u: raise it (LimitNOFILE= in the unit file, or "
                 "ulimit -n) before the fleet grows there",
                 left, workers, WORKER_DESCRIPTORS, clients, CLIENT_DESCRIPTORS, WORKER_POOL_MAX, FRONTEND_SESSIONS_MAX,
                 most);
}

static enum status serve(struct program *program, void *zmq_context, const char *redis_password)
{
    struct router_settings *settings = program->settings;
    TRY(loop_create(&program->loop));
    loop_set_pace(program->loop, PACE_US);
    TRY(loop_on_signal(program->loop, SIGTERM, on_signal, program));
    TRY(loop_on_signal(program->loop, SIGINT, on_signal, program));
    TRY(router_create(program->loop, zmq_context, settings, redis_password[0] ? redis_password : NULL,
                      &program->router));
    if (settings->listen_operator[0]) {
        struct admin_config admin = {.loop = program->loop,
                                     .router = program->router,
                                     .settings = settings,
                                     .address = settings->listen_operator};
        TRY(admin_create(&admin, &program->admin));
        LOG_INFO("operators: http://%s", admin_address(program->admin));
    }
    TRY(write_ready_file(program));
    LOG_INFO("%s %s serves clients at %s and %s, placement in %s", settings->name, ROOST_VERSION,
             router_control_endpoint(program->router), router_data_endpoint(program->router), settings->placement);
    say_descriptors();
    enum status st = loop_run(program->loop);
    if (settings->ready_file && settings->ready_file[0])
        (void)unlink(settings->ready_file);
    return st;
}

static int run(struct router_settings *settings)
{
    struct program program = {.settings = settings};
    struct log_config log = {.program = "router", .fd = 2};
    char redis_password[REDIS_PASSWORD_MAX];
    void *zmq_context = NULL;
    enum status st = log_level_parse(settings->log_level, &log.level);
    if (st == STATUS_OK)
        st = log_format_parse(settings->log_format, &log.format);
    if (st == STATUS_OK) {
        log_setup(&log);
        st = hash_setup();
    }
    if (st == STATUS_OK)
        st = probe_init();
    if (st == STATUS_OK)
        st = check_descriptors(settings);
    if (st == STATUS_OK)
        st = redis_settings_password(settings->redis_password_file, redis_password);
    if (st == STATUS_OK &&
        (!(zmq_context = zmq_ctx_new()) || zmq_ctx_set(zmq_context, ZMQ_MAX_SOCKETS, SOCKETS_MAX) != 0))
        st = STATUS_FAIL(STATUS_NO_MEMORY, "a ZeroMQ context");
    if (st == STATUS_OK)
        st = serve(&program, zmq_context, redis_password);
    if (st != STATUS_OK)
        LOG_ERROR("%s", status_detail());
    router_destroy(&program.router);
    admin_destroy(&program.admin); /* the router's connection to Redis has answered what it asked */
    loop_timer_destroy(&program.drain_timer);
    if (program.loop)
        loop_destroy(&program.loop);
    if (zmq_context)
        zmq_ctx_term(zmq_context);
    return st == STATUS_OK ? 0 : 1;
}

int main(int argc, char **argv)
{
    static const struct config_program program = {.name = "roost-router",
                                                  .summary = "Sends each conversation to the worker that holds it.",
                                                  .fields = fields,
                                                  .field_count = sizeof fields / sizeof fields[0],
                                                  .settings_size = sizeof(struct router_settings),
                                                  .check = check};
    struct router_settings settings;
    signal(SIGPIPE, SIG_IGN);
    switch (config_load(&program, argc, argv, &settings)) {
    case CONFIG_EXIT_OK: config_free(&program, &settings); return 0;
    case CONFIG_EXIT_BAD: config_free(&program, &settings); return 2;
    case CONFIG_RUN: break;
    }
    int code = run(&settings);
    config_free(&program, &settings);
    return code;
}
