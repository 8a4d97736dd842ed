/* main.c - roost-worker: settings, signals, the order of starting and stopping. The I/O thread is this one.
 *
 *   settings -> log -> loop, sockets bound (a port in use ends here) -> model loads on the engine thread, HELLO is
 * answered "starting" -> READY: known answer passed: ready file, directory entry -> SIGTERM: drain -> entry and file
 * removed -> exit 0 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>
#include "common/channel.h"
#include "common/config.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/loop.h"
#include "proto/wire.h"
#include "worker/server/directory.h"
#include "worker/server/server.h"

#define CONNECTIONS_EXPECTED 256u /* two for each of 128 routers */
#define PASSWORD_MAX         512
#define CHUNK_TOKENS_MAX     4096
#define THREADS_MAX          64 /* of the backend */
#define THREADS_DEFAULT_MAX  16 /* beyond, memory is what a step of a small batch waits for */

struct settings {
    char *name, *listen_control, *listen_data, *advertise, *model;
    uint64_t kv_mebibytes, kv_host_mebibytes, rewind_tokens, snapshots_max;
    uint64_t chunk_tokens, batch_tokens, sequences_max, step_ms_max, threads, queue_requests_max;
    char *redis_address, *redis_user, *redis_password_file;
    uint64_t redis_database;
    uint64_t lease_ms, drain_deadline_ms;
    bool allow_remote;
    char *log_level, *log_format, *ready_file;
};

#define FIELD(member) #member, .offset = offsetof(struct settings, member)

static const struct config_field fields[] = {
    {.key = FIELD(name),
     .type = CONFIG_STRING,
     .max = WIRE_NAME_MAX,
     .help = "unique name of this worker, 1 to 64 of A-Z a-z 0-9 . _ : - (required); conversations are placed by it"},
    {.key = FIELD(listen_control),
     .type = CONFIG_STRING,
     .default_value = "tcp://127.0.0.1:7410",
     .help = "endpoint of the control connections; port * binds a free one"},
    {.key = FIELD(listen_data),
     .type = CONFIG_STRING,
     .default_value = "tcp://127.0.0.1:7411",
     .help = "endpoint of the data connections"},
    {.key = FIELD(advertise),
     .type = CONFIG_STRING,
     .help = "control endpoint that routers should use; empty: listen_control as bound"},
    {.key = FIELD(allow_remote),
     .type = CONFIG_BOOL,
     .default_value = "false",
     .help = "allow listening beyond loopback: anyone who reaches the port may use the worker, there are no keys yet"},
    {.key = FIELD(model), .type = CONFIG_STRING, .help = "model directory (required)"},
    {.key = FIELD(kv_mebibytes),
     .type = CONFIG_UINT,
     .default_value = "512",
     .min = 1,
     .max = 1u << 24,
     .help = "memory in MiB for the KV cache that computes (device tier); more keeps and runs more conversations. What a "
             "conversation takes: roost model describe"},
    {.key = FIELD(kv_host_mebibytes),
     .type = CONFIG_UINT,
     .default_value = "0",
     .max = 1u << 24,
     .help = "memory in MiB for KV that is set aside (host tier): conversations that rest, and requests that were "
             "interrupted; on a CPU it is the same memory, so 0: none"},
    {.key = FIELD(rewind_tokens),
     .type = CONFIG_UINT,
     .default_value = "1024",
     .max = 65536,
     .help = "tokens of each conversation's end in which any edit or retry resumes at once; more costs memory on models "
             "with a window"},
    {.key = FIELD(snapshots_max),
     .type = CONFIG_UINT,
     .default_value = "8",
     .max = 8,
     .help = "older message ends of each conversation at which an edit can resume; fewer save memory"},
    {.key = FIELD(chunk_tokens),
     .type = CONFIG_UINT,
     .default_value = "256",
     .min = 1,
     .max = CHUNK_TOKENS_MAX,
     .help = "prompt tokens of one request in a step, at most; more is faster, fewer act sooner on cancels"},
    {.key = FIELD(batch_tokens),
     .type = CONFIG_UINT,
     .default_value = "0",
     .max = 16384,
     .help = "tokens of a step over all requests, at least chunk_tokens; 0: chunk_tokens + sequences_max"},
    {.key = FIELD(sequences_max),
     .type = CONFIG_UINT,
     .default_value = "64",
     .min = 1,
     .max = 1024,
     .help = "replies that are made at a time (each choice of a request is one); more serve more people, each slower"},
    {.key = FIELD(step_ms_max),
     .type = CONFIG_UINT,
     .default_value = "250",
     .min = 1,
     .max = 10000,
     .help = "ms: prompts are cut so that a step stays under it; longer is faster, shorter acts sooner on cancels"},
    {.key = FIELD(threads),
     .type = CONFIG_UINT,
     .default_value = "0",
     .max = THREADS_MAX,
     .help = "threads that compute; 0: one for each core that this process may use, at most 16"},
    {.key = FIELD(queue_requests_max),
     .type = CONFIG_UINT,
     .default_value = "64",
     .min = 1,
     .max = 65536,
     .help = "requests that may wait; more are refused with a wait hint"},
    {.key = FIELD(redis_address),
     .type = CONFIG_STRING,
     .help = "host:port or socket path of Redis, numeric; empty: not registered in the directory"},
    {.key = FIELD(redis_user), .type = CONFIG_STRING, .help = "Redis user; empty: the default one"},
    {.key = FIELD(redis_password_file),
     .type = CONFIG_STRING,
     .help = "file with the Redis password, readable by its owner only"},
    {.key = FIELD(redis_database),
     .type = CONFIG_UINT,
     .default_value = "0",
     .max = 65535,
     .help = "Redis database number"},
    {.key = FIELD(lease_ms),
     .type = CONFIG_UINT,
     .default_value = "200",
     .min = 10,
     .max = 60000,
     .help = "interval of the leases to routers; shorter finds failures sooner"},
    {.key = FIELD(drain_deadline_ms),
     .type = CONFIG_UINT,
     .default_value = "30000",
     .min = 1,
     .max = 3600000,
     .help = "after SIGTERM, time for running requests to end"},
    {.key = FIELD(log_level),
     .type = CONFIG_STRING,
     .default_value = "info",
     .choices = "debug|info|warn|error",
     .help = "least severe lines to write"},
    {.key = FIELD(log_format),
     .type = CONFIG_STRING,
     .default_value = "text",
     .choices = "text|json",
     .help = "form of log lines"},
    {.key = FIELD(ready_file),
     .type = CONFIG_STRING,
     .help = "file written once serving, removed at exit; empty: none"},
};

static bool given(const char *text)
{
    return text && *text;
}

/* True for what only this host can reach. */
static bool endpoint_is_local(const char *endpoint)
{
    static const char *const prefixes[] = {"tcp://127.", "tcp://localhost:", "tcp://[::1]:", "ipc://", "inproc://"};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        if (strncmp(endpoint, prefixes[i], strlen(prefixes[i])) == 0)
            return true;
    return false;
}

static bool endpoint_is_wildcard(const char *endpoint)
{
    return strncmp(endpoint, "tcp://*", 7) == 0 || strncmp(endpoint, "tcp://0.0.0.0:", 14) == 0 ||
           strncmp(endpoint, "tcp://[::]:", 11) == 0;
}

static enum status check_endpoint(const char *key, const char *endpoint, bool allow_remote)
{
    if (!given(endpoint))
        return STATUS_FAIL(STATUS_INVALID, "%s: an endpoint is needed, as tcp://127.0.0.1:7410", key);
    if (strncmp(endpoint, "tcp://", 6) != 0 && strncmp(endpoint, "ipc://", 6) != 0)
        return STATUS_FAIL(STATUS_INVALID, "%s: %s is neither tcp:// nor ipc://", key, endpoint);
    if (!allow_remote && !endpoint_is_local(endpoint))
        return STATUS_FAIL(
            STATUS_INVALID,
            "%s: %s can be reached from other hosts and there are no keys yet: use a loopback address, or "
            "set allow_remote: true in a network you trust",
            key, endpoint);
    return STATUS_OK;
}

static enum status check_settings(const void *given_settings)
{
    const struct settings *settings = given_settings;
    if (!given(settings->name))
        return STATUS_FAIL(STATUS_INVALID, "name: missing, a worker needs a unique name (--name worker-a)");
    if (!wire_name_valid(wire_span_str(settings->name)))
        return STATUS_FAIL(STATUS_INVALID, "name: %s is not 1 to %u characters A-Z a-z 0-9 . _ : -", settings->name,
                           WIRE_NAME_MAX);
    if (!given(settings->model))
        return STATUS_FAIL(STATUS_INVALID, "model: missing, a model directory is needed (--model DIR)");
    if (settings->batch_tokens != 0 && settings->batch_tokens < settings->chunk_tokens)
        return STATUS_FAIL(STATUS_INVALID, "batch_tokens: %" PRIu64 " is under chunk_tokens, %" PRIu64 ": raise it, or 0",
                           settings->batch_tokens, settings->chunk_tokens);
    TRY(check_endpoint("listen_control", settings->listen_control, settings->allow_remote));
    TRY(check_endpoint("listen_data", settings->listen_data, settings->allow_remote));
    if (given(settings->redis_address) && !given(settings->advertise) && endpoint_is_wildcard(settings->listen_control))
        return STATUS_FAIL(STATUS_INVALID, "advertise: missing, %s is not an address that routers could use",
                           settings->listen_control);
    return STATUS_OK;
}

static const struct config_program program = {
    .name = "roost-worker",
    .summary = "Serves a language model and keeps the KV cache of each conversation.",
    .fields = fields,
    .field_count = sizeof fields / sizeof *fields,
    .settings_size = sizeof(struct settings),
    .check = check_settings,
};

/* ---- files ---- */

static enum status read_password(const char *path, char out[PASSWORD_MAX])
{
    struct stat info;
    out[0] = '\0';
    if (!given(path))
        return STATUS_OK;
    FILE *file = fopen(path, "re");
    if (!file)
        return STATUS_FAIL(STATUS_IO, "redis_password_file %s: %s", path, strerror(errno));
    enum status st = STATUS_OK;
    if (fstat(fileno(file), &info) != 0 || !S_ISREG(info.st_mode))
        st = STATUS_FAIL(STATUS_INVALID, "redis_password_file %s: not a regular file", path);
    else if (info.st_mode & (S_IROTH | S_IWOTH))
        st = STATUS_FAIL(STATUS_INVALID, "redis_password_file %s: everybody can read or write it: chmod 600", path);
    else if (!fgets(out, PASSWORD_MAX, file))
        st = STATUS_FAIL(STATUS_INVALID, "redis_password_file %s: empty", path);
    else
        out[strcspn(out, "\r\n")] = '\0';
    fclose(file);
    return st;
}

/* Written beside and renamed, so that who waits for it never reads half of it. */
static enum status write_ready_file(const char *path, const char *name, const struct server *server)
{
    char incarnation[HASH_HEX_SIZE(HASH_ID_BYTES)], *beside = NULL;
    enum status st = STATUS_OK;
    hash_hex(server_incarnation(server), HASH_ID_BYTES, incarnation);
    json_t *json =
        json_pack("{s:s, s:i, s:s, s:s, s:s}", "name", name, "pid", (int)getpid(), "control",
                  server_control_endpoint(server), "data", server_data_endpoint(server), "incarnation", incarnation);
    if (!json || asprintf(&beside, "%s.%d", path, (int)getpid()) < 0) {
        json_decref(json);
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the ready file");
    }
    if (json_dump_file(json, beside, JSON_COMPACT) != 0 || rename(beside, path) != 0) {
        st = STATUS_FAIL(STATUS_IO, "ready_file %s: %s", path, strerror(errno));
        unlink(beside);
    }
    json_decref(json);
    free(beside);
    return st;
}

/* ---- life ---- */

struct worker {
    struct settings settings;
    struct loop *loop;
    void *zmq_context;
    struct server *server;
    struct directory *directory;
    char password[PASSWORD_MAX];
    bool ready_written;
    bool signalled;
    int exit_code;
};

static void stop_loop(void *user)
{
    struct worker *worker = user;
    loop_stop(worker->loop);
}

static void fail(struct worker *worker)
{
    LOG_ERROR("%s", status_detail());
    worker->exit_code = 1;
    loop_stop(worker->loop);
}

/* What the memory for KV is worth, in conversations of this model. */
static void log_capacity(const struct worker *worker)
{
    const struct settings *settings = &worker->settings;
    const struct engine_info *info = server_engine_info(worker->server);
    LOG_INFO("KV: %" PRIu64 " MiB and %" PRIu64 " MiB of host memory keep %" PRIu64 " tokens: %" PRIu64
             " conversations of %" PRIu32 "; %" PRIu32 " bytes a token inside the window",
             settings->kv_mebibytes, settings->kv_host_mebibytes, info->kv_tokens_max,
             info->kv_tokens_max / info->context_tokens_max, info->context_tokens_max, info->kv_bytes_per_token);
}

static void on_ready(struct worker *worker)
{
    const struct settings *settings = &worker->settings;
    log_capacity(worker);
    LOG_INFO("ready: %s serves %s at %s and %s", settings->name, server_model_name(worker->server),
             server_control_endpoint(worker->server), server_data_endpoint(worker->server));
    if (given(settings->redis_address)) {
        struct directory_config config = {
            .loop = worker->loop,
            .redis_address = settings->redis_address,
            .redis_user = settings->redis_user,
            .redis_password = worker->password,
            .redis_database = (uint32_t)settings->redis_database,
            .name = settings->name,
            .endpoint = given(settings->advertise) ? settings->advertise : server_control_endpoint(worker->server),
            .incarnation = server_incarnation(worker->server),
        };
        if (directory_create(&config, &worker->directory) != STATUS_OK) {
            fail(worker);
            return;
        }
        directory_set_state(worker->directory, "ready");
    }
    if (given(settings->ready_file)) {
        if (write_ready_file(settings->ready_file, settings->name, worker->server) != STATUS_OK) {
            fail(worker);
            return;
        }
        worker->ready_written = true;
    }
}

static void on_state(void *user, enum wire_life state, enum status st)
{
    struct worker *worker = user;
    switch (state) {
    case WIRE_LIFE_READY: on_ready(worker); break;
    case WIRE_LIFE_DRAINING:
        if (worker->directory)
            directory_set_state(worker->directory, "draining");
        break;
    case WIRE_LIFE_GONE:
        if (st != STATUS_OK)
            fail(worker);
        else if (worker->directory)
            directory_leave(worker->directory, stop_loop, worker);
        else
            loop_stop(worker->loop);
        break;
    default: break;
    }
}

static void remove_ready_file(struct worker *worker)
{
    if (worker->ready_written)
        unlink(worker->settings.ready_file);
    worker->ready_written = false;
}

static void on_signal(int signal, void *user)
{
    struct worker *worker = user;
    if (worker->signalled) {
        LOG_WARN("second signal %d: ending at once, %u streams are abandoned", signal,
                 server_stream_count(worker->server));
        remove_ready_file(worker);
        _exit(1); /* also out of a model that is still being loaded */
    }
    worker->signalled = true;
    server_drain(worker->server);
}

static uint32_t threads_of(const struct settings *settings)
{
    cpu_set_t cores;
    if (settings->threads)
        return (uint32_t)settings->threads;
    int count = sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
    return count < 1 ? 1 : count > THREADS_DEFAULT_MAX ? THREADS_DEFAULT_MAX : (uint32_t)count;
}

static enum status start(struct worker *worker)
{
    const struct settings *settings = &worker->settings;
    TRY(hash_setup());
    TRY(channel_check_descriptors(CONNECTIONS_EXPECTED));
    TRY(read_password(settings->redis_password_file, worker->password));
    TRY(loop_create(&worker->loop));
    worker->zmq_context = zmq_ctx_new();
    if (!worker->zmq_context)
        return STATUS_FAIL(STATUS_IO, "ZeroMQ cannot start: %s", zmq_strerror(errno));
    struct server_config config = {
        .loop = worker->loop,
        .zmq_context = worker->zmq_context,
        .name = settings->name,
        .listen_control = settings->listen_control,
        .listen_data = settings->listen_data,
        .engine = {.model_dir = settings->model,
                   .kv_bytes = settings->kv_mebibytes << 20,
                   .kv_host_bytes = settings->kv_host_mebibytes << 20,
                   .rewind_tokens = (uint32_t)settings->rewind_tokens,
                   .snapshots_max = (uint32_t)settings->snapshots_max,
                   .chunk_tokens = (uint32_t)settings->chunk_tokens,
                   .batch_tokens = (uint32_t)settings->batch_tokens,
                   .sequences_max = (uint32_t)settings->sequences_max,
                   .step_ms_max = (uint32_t)settings->step_ms_max,
                   .threads = threads_of(settings),
                   .queue_requests_max = (uint32_t)settings->queue_requests_max},
        .lease_ms = (uint32_t)settings->lease_ms,
        .drain_deadline_ms = (uint32_t)settings->drain_deadline_ms,
        .on_state = on_state,
        .user = worker,
    };
    TRY(server_create(&config, &worker->server));
    TRY(loop_on_signal(worker->loop, SIGTERM, on_signal, worker));
    return loop_on_signal(worker->loop, SIGINT, on_signal, worker);
}

static void stop(struct worker *worker)
{
    remove_ready_file(worker);
    directory_destroy(&worker->directory);
    server_destroy(&worker->server);
    if (worker->loop)
        loop_destroy(&worker->loop);
    if (worker->zmq_context)
        zmq_ctx_term(worker->zmq_context);
    explicit_bzero(worker->password, sizeof worker->password);
    config_free(&program, &worker->settings);
}

int main(int argc, char **argv)
{
    struct worker worker = {.exit_code = 0};
    enum config_outcome outcome = config_load(&program, argc, argv, &worker.settings);
    if (outcome != CONFIG_RUN)
        return outcome == CONFIG_EXIT_OK ? 0 : 2;
    struct log_config log = {.program = "worker", .fd = STDERR_FILENO};
    (void)log_level_parse(worker.settings.log_level, &log.level); /* both are checked by their choices */
    (void)log_format_parse(worker.settings.log_format, &log.format);
    log_setup(&log);
    signal(SIGPIPE, SIG_IGN);
    if (start(&worker) != STATUS_OK || loop_run(worker.loop) != STATUS_OK) {
        LOG_ERROR("%s", status_detail());
        worker.exit_code = 1;
    }
    stop(&worker);
    return worker.exit_code;
}
