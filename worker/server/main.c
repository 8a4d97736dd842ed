/* main.c - roost-worker: settings, signals, the order of starting and stopping. The I/O thread is this one.
 *
 *   settings -> log -> loop, backend opened, sockets bound (a port in use ends here) -> model loads on the engine thread, HELLO is
 * answered "starting" -> READY: known answer passed: ready file, directory entry -> SIGTERM: drain -> entry and file
 * removed -> exit 0 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <pthread.h>
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
#include "common/operator_port.h"
#include "common/probe.h"
#include "common/redis_link.h"
#include "common/redis_sentinel.h"
#include "common/redis_settings.h"
#include "proto/wire.h"
#include "worker/engine/backend/backend.h"
#include "worker/engine/backend/backend_load.h"
#include "worker/engine/backend/backend_plugin.h"
#include "worker/engine/backend/backend_simulate.h"
#include "worker/engine/backend/parallel_group.h"
#include "worker/server/conversations.h"
#include "worker/server/directory.h"
#include "worker/server/operator.h"
#include "worker/server/server.h"

#define CONNECTIONS_EXPECTED 256u  /* two for each of 128 routers */
#define CONNECTIONS_MAX      2048u /* of as many as the server keeps sessions of */
#define CHUNK_TOKENS_MAX     4096
#define THREADS_MAX          64 /* of the backend */
#define CUDA_PLUGIN          "libroost_cuda.so"
#define END_S                20 /* for the running step, and for what the threads give back */
#define THREADS_DEFAULT_MAX  16 /* beyond, memory is what a step of a small batch waits for */

struct settings {
    char *name, *listen_control, *listen_data, *listen_operator, *advertise, *model, *backend, *backend_plugin, *simulate;
    uint64_t kv_mebibytes, kv_host_mebibytes, rewind_tokens, snapshots_max;
    uint64_t chunk_tokens, batch_tokens, sequences_max, step_ms_max, threads, tp, tp_step_ms_min, queue_requests_max;
    char *redis_address, *redis_user, *redis_password_file, *redis_sentinel_master;
    struct config_list redis_sentinels;
    uint64_t redis_database;
    bool redis_tls;
    uint64_t lease_ms, orphan_ms, keep_finished_ms, keep_finished_mebibytes, drain_deadline_ms;
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
    {.key = FIELD(listen_operator),
     .type = CONFIG_STRING,
     .max = 63,
     .help = "IP:PORT of the HTTP port for operators: health, metrics, draining; port 0 takes a free one; empty: none"},
    {.key = FIELD(model), .type = CONFIG_STRING, .help = "model directory (required)"},
    {.key = FIELD(backend),
     .type = CONFIG_STRING,
     .default_value = "cpu",
     .choices = "cpu|cuda",
     .help = "what computes: the processor, or the first GPU that CUDA shows (CUDA_VISIBLE_DEVICES); same replies"},
    {.key = FIELD(backend_plugin),
     .type = CONFIG_STRING,
     .help = "shared library of the backend cuda; empty: " CUDA_PLUGIN " beside this program or in ../lib of there"},
    {.key = FIELD(simulate),
     .type = CONFIG_STRING,
     .help =
         "compute nothing, only take the time: fast or gpu, then overrides as in "
         "fast,step_us=2000,prefill_us=20,decode_us=50,"
         "context=8192,kv_tokens=65536,reply=200,seed=7,poison=4000; of model only config.json and tokenizer.model are "
         "read. For tests of many workers on one machine; empty: off"},
    {.key = FIELD(kv_mebibytes),
     .type = CONFIG_UINT,
     .default_value = "512",
     .min = 1,
     .max = 1u << 24,
     .help =
         "memory in MiB for the KV cache that computes (device tier); more keeps and runs more conversations. What a "
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
     .help =
         "tokens of each conversation's end in which any edit or retry resumes at once; more costs memory on models "
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
     .help = "threads that compute, of each rank; 0: one for each core that this process may use, at most 16, shared "
             "among the ranks"},
    {.key = FIELD(tp),
     .type = CONFIG_UINT,
     .default_value = "1",
     .min = 1,
     .max = BACKEND_RANKS_MAX,
     .help = "ranks of tensor parallelism: processes that compute one model together, each with a part of the weights and "
             "of the KV memory; this one starts and ends the others. Same replies; more memory bandwidth where each rank "
             "has its own"},
    {.key = FIELD(tp_step_ms_min),
     .type = CONFIG_UINT,
     .default_value = "2000",
     .min = 100,
     .max = 600000,
     .help = "ms: a rank that makes a step take longer than this, and than 4 times the longest of the last 64 of about as "
             "many tokens, ends the worker, so that others go on with its requests"},
    {.key = FIELD(queue_requests_max),
     .type = CONFIG_UINT,
     .default_value = "64",
     .min = 1,
     .max = 65536,
     .help = "requests that may wait; more are refused with a wait hint"},
    {.key = FIELD(redis_address),
     .type = CONFIG_STRING,
     .help =
         "host:port or socket path of Redis, numeric; empty, and no redis_sentinels: not registered in the directory"},
    {.key = FIELD(redis_sentinels),
     .type = CONFIG_LIST,
     .max = REDIS_SENTINELS_MAX,
     .help = "addresses of Redis Sentinels, numeric; they are asked where the master is, and redis_address is not "
             "looked at"},
    {.key = FIELD(redis_sentinel_master),
     .type = CONFIG_STRING,
     .max = 128,
     .help = "the name by which the sentinels know the master"},
    {.key = FIELD(redis_tls),
     .type = CONFIG_BOOL,
     .default_value = "false",
     .help = "speak TLS to Redis; needs a build with a Redis library that has it, otherwise a TLS proxy on this host"},
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
    {.key = FIELD(orphan_ms),
     .type = CONFIG_UINT,
     .default_value = "10000",
     .min = 1,
     .max = 600000,
     .help = "how long requests run on whose router was silent for 5 s, so that another router can take them over"},
    {.key = FIELD(keep_finished_ms),
     .type = CONFIG_UINT,
     .default_value = "60000",
     .min = 1,
     .max = 3600000,
     .help = "how long a finished reply is kept for a repeat of its request after the router has seen it"},
    {.key = FIELD(keep_finished_mebibytes),
     .type = CONFIG_UINT,
     .default_value = "64",
     .min = 1,
     .max = 1u << 20,
     .help = "memory in MiB for finished replies; over it the oldest go first"},
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

static bool uses_cuda(const struct settings *settings)
{
    return strcmp(settings->backend, "cuda") == 0;
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

static struct redis_settings redis_of(const struct settings *settings)
{
    return (struct redis_settings){.address = settings->redis_address,
                                   .sentinels = (const char *const *)settings->redis_sentinels.items,
                                   .sentinel_count = (unsigned)settings->redis_sentinels.count,
                                   .sentinel_master = settings->redis_sentinel_master,
                                   .tls = settings->redis_tls};
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
    if (given(settings->simulate)) {
        struct simulate_profile profile;
        TRY(simulate_profile_parse(settings->simulate, &profile));
    }
    if (uses_cuda(settings) && given(settings->simulate))
        return STATUS_FAIL(STATUS_INVALID, "simulate: nothing is computed, so backend: cuda cannot be kept: leave one of them out");
    if (settings->tp > 1 && given(settings->simulate))
        return STATUS_FAIL(STATUS_INVALID, "tp: %" PRIu64 " ranks cannot share what simulate does not compute: set it to 1",
                           settings->tp);
    if (settings->batch_tokens != 0 && settings->batch_tokens < settings->chunk_tokens)
        return STATUS_FAIL(STATUS_INVALID,
                           "batch_tokens: %" PRIu64 " is under chunk_tokens, %" PRIu64 ": raise it, or 0",
                           settings->batch_tokens, settings->chunk_tokens);
    TRY(check_endpoint("listen_control", settings->listen_control, settings->allow_remote));
    TRY(check_endpoint("listen_data", settings->listen_data, settings->allow_remote));
    if (given(settings->listen_operator) &&
        operator_address_check(settings->listen_operator, settings->allow_remote) != STATUS_OK) {
        char why[256];
        snprintf(why, sizeof why, "%s", status_detail());
        return STATUS_FAIL(STATUS_INVALID, "listen_operator: %s", why);
    }
    struct redis_settings redis = redis_of(settings);
    TRY(redis_settings_check(&redis));
    if (redis_settings_given(&redis) && !given(settings->advertise) && endpoint_is_wildcard(settings->listen_control))
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

/* Written beside and renamed, so that who waits for it never reads half of it. */
static enum status write_ready_file(const char *path, const char *name, const struct server *server,
                                    const struct operator* operator)
{
    char incarnation[HASH_HEX_SIZE(HASH_ID_BYTES)], *beside = NULL;
    enum status st = STATUS_OK;
    hash_hex(server_incarnation(server), HASH_ID_BYTES, incarnation);
    json_t *json =
        json_pack("{s:s, s:i, s:s, s:s, s:s}", "name", name, "pid", (int)getpid(), "control",
                  server_control_endpoint(server), "data", server_data_endpoint(server), "incarnation", incarnation);
    if (json && operator)
        (void)json_object_set_new(json, "operator", json_string(operator_address(operator)));
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
    struct simulate_profile profile; /* with the setting simulate */
    const struct backend_plugin *plugin; /* of the backend cuda; else NULL */
    char plugin_path[PATH_MAX];
    struct parallel_group *group;    /* with tp above 1 */
    struct loop *loop;
    void *zmq_context;
    struct redis_link *redis; /* NULL: none was asked for */
    struct conversations *conversations;
    struct server *server;
    struct operator* operator; /* NULL: no operator port */
    struct directory *directory;
    char password[REDIS_PASSWORD_MAX];
    uint8_t cache_id[16]; /* of this process; its cache does not outlive it */
    bool ready_written;
    bool signalled;
    int exit_code;
};

static void stop_loop(void *user)
{
    struct worker *worker = user;
    loop_stop(worker->loop);
}

static void note_failure(struct worker *worker)
{
    LOG_ERROR("%s", status_detail());
    worker->exit_code = 1;
}

static void fail(struct worker *worker)
{
    note_failure(worker);
    loop_stop(worker->loop);
}

static void say_rank_died(void *user)
{
    struct worker *worker = user;
    if (parallel_group_status(worker->group) != STATUS_OK)
        fail(worker);
}

/* In a thread of the group's. */
static void on_rank_death(void *user)
{
    struct worker *worker = user;
    if (loop_post(worker->loop, say_rank_died, worker) == STATUS_OK)
        return;
    worker->exit_code = 1; /* written by nobody else before the loop has ended */
    loop_stop(worker->loop);
}

/* What the memory for KV is worth, in conversations of this model. */
static void log_capacity(const struct worker *worker)
{
    const struct settings *settings = &worker->settings;
    const struct engine_info *info = server_engine_info(worker->server);
    if (given(settings->simulate)) {
        LOG_INFO("KV: simulated, %" PRIu64 " tokens: %" PRIu64 " conversations of %" PRIu32, info->kv_tokens_max,
                 info->kv_tokens_max / info->context_tokens_max, info->context_tokens_max);
        return;
    }
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
    if (worker->redis && !worker->directory) {
        struct directory_config config = {
            .loop = worker->loop,
            .link = worker->redis,
            .name = settings->name,
            .endpoint = given(settings->advertise) ? settings->advertise : server_control_endpoint(worker->server),
            .incarnation = server_incarnation(worker->server),
        };
        if (directory_create(&config, &worker->directory) != STATUS_OK) {
            fail(worker);
            return;
        }
    }
    if (worker->directory)
        directory_set_state(worker->directory, "ready");
    conversations_set_draining(worker->conversations, false);
    if (given(settings->ready_file)) {
        if (write_ready_file(settings->ready_file, settings->name, worker->server, worker->operator) != STATUS_OK) {
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
        conversations_set_draining(worker->conversations, true);
        break;
    case WIRE_LIFE_GONE:
        if (st != STATUS_OK)
            note_failure(worker);
        if (worker->directory)
            directory_leave(worker->directory, stop_loop, worker);
        else
            loop_stop(worker->loop);
        break;
    default: break;
    }
}

static void on_turn(void *user, const uint8_t *placement, uint64_t epoch, uint32_t tokens)
{
    struct worker *worker = user;
    conversations_note(worker->conversations, placement, epoch, tokens);
}

static void on_fate(void *user, const uint8_t *placement, enum engine_event_kind fate)
{
    struct worker *worker = user;
    if (fate == ENGINE_EVICTED)
        conversations_evicted(worker->conversations, placement);
    else
        conversations_moved(worker->conversations, placement, fate == ENGINE_DEMOTED);
}

static bool is_running(void *user, const uint8_t *key)
{
    const struct worker *worker = user;
    return server_has_placement(worker->server, key);
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
    count = (count > THREADS_DEFAULT_MAX ? THREADS_DEFAULT_MAX : count) / (int)settings->tp;
    return count < 1 ? 1 : (uint32_t)count;
}

static enum status load_plugin(struct worker *worker)
{
    const struct settings *settings = &worker->settings;
    if (!uses_cuda(settings))
        return STATUS_OK;
    if (given(settings->backend_plugin))
        snprintf(worker->plugin_path, sizeof worker->plugin_path, "%s", settings->backend_plugin);
    else
        TRY(backend_find(CUDA_PLUGIN, worker->plugin_path, sizeof worker->plugin_path));
    TRY(backend_load(worker->plugin_path, &worker->plugin));
    if (settings->tp > 1 && !worker->plugin->ranks)
        return STATUS_FAIL(STATUS_UNSUPPORTED, "tp: %" PRIu64 ", and %s cannot compute as several ranks: set it to 1", settings->tp,
                           worker->plugin_path);
    LOG_INFO("backend: %s, from %s", worker->plugin->ops->name, worker->plugin_path);
    return STATUS_OK;
}

/* Before there are other threads or sockets, by the thread that lives as long as the process. */
static enum status start_group(struct worker *worker)
{
    const struct settings *settings = &worker->settings;
    if (settings->tp == 1)
        return STATUS_OK;
    const struct parallel_group_config config = {.size = (uint32_t)settings->tp,
                                                 .model_dir = settings->model,
                                                 .ranks = worker->plugin ? worker->plugin->ranks : NULL,
                                                 .plugin = worker->plugin ? worker->plugin_path : NULL,
                                                 .step_ms_min = (uint32_t)settings->tp_step_ms_min,
                                                 .on_death = on_rank_death,
                                                 .user = worker};
    TRY(parallel_group_start(&config, &worker->group));
    for (uint32_t rank = 1; rank < config.size; rank++)
        LOG_INFO("rank %u of %u is process %d", rank, config.size, (int)parallel_group_pid(worker->group, rank));
    return STATUS_OK;
}

static enum status connect_redis(struct worker *worker)
{
    const struct settings *settings = &worker->settings;
    struct redis_settings redis = redis_of(settings);
    if (!redis_settings_given(&redis))
        return STATUS_OK;
    struct redis_link_config link = {.address = redis.address,
                                     .sentinels = redis.sentinels,
                                     .sentinel_count = redis.sentinel_count,
                                     .sentinel_master = redis.sentinel_master,
                                     .user = settings->redis_user,
                                     .password = worker->password,
                                     .database = (uint32_t)settings->redis_database};
    struct conversations_config conversations = {.loop = worker->loop,
                                                 .owner = settings->name,
                                                 .cache_id = worker->cache_id,
                                                 .running = is_running,
                                                 .user = worker};
    TRY(redis_link_create(worker->loop, &link, &worker->redis));
    conversations.link = worker->redis;
    return conversations_create(&conversations, &worker->conversations);
}

/* Descriptors, two for each router: less than a small fleet takes is an error at start, less than all that could come
 * is only said. */
static void say_descriptors(void)
{
    unsigned left = channel_descriptors_left();
    if (left < CONNECTIONS_MAX)
        LOG_WARN(
            "the limit on open files leaves room for %u routers (2 connections each), and %u may come, which take %u: "
            "raise it (LimitNOFILE= in the unit file, or ulimit -n) before the fleet grows there",
            left / 2, CONNECTIONS_MAX / 2, CONNECTIONS_MAX);
}

static enum status start(struct worker *worker)
{
    const struct settings *settings = &worker->settings;
    TRY(hash_setup());
    TRY(channel_check_descriptors(CONNECTIONS_EXPECTED));
    TRY(redis_settings_password(settings->redis_password_file, worker->password));
    TRY(loop_create(&worker->loop));
    TRY(load_plugin(worker));
    TRY(start_group(worker));
    worker->zmq_context = zmq_ctx_new();
    if (!worker->zmq_context)
        return STATUS_FAIL(STATUS_IO, "ZeroMQ cannot start: %s", zmq_strerror(errno));
    if (given(settings->simulate)) {
        TRY(simulate_profile_parse(settings->simulate, &worker->profile));
        LOG_WARN("simulate: %s: replies are made up, and take the time that the profile says", settings->simulate);
    }
    hash_random(worker->cache_id, sizeof worker->cache_id);
    TRY(connect_redis(worker));
    struct server_config config = {
        .loop = worker->loop,
        .zmq_context = worker->zmq_context,
        .name = settings->name,
        .cache_id = worker->cache_id,
        .listen_control = settings->listen_control,
        .listen_data = settings->listen_data,
        .engine = {.model_dir = settings->model,
                   .kv_bytes = settings->kv_mebibytes << 20,
                   .kv_host_bytes = settings->kv_host_mebibytes << 20,
                   .simulate = given(settings->simulate) ? &worker->profile : NULL,
                   .backend = worker->plugin && !worker->group ? worker->plugin->ops : NULL,
                   .group = worker->group,
                   .rewind_tokens = (uint32_t)settings->rewind_tokens,
                   .snapshots_max = (uint32_t)settings->snapshots_max,
                   .chunk_tokens = (uint32_t)settings->chunk_tokens,
                   .batch_tokens = (uint32_t)settings->batch_tokens,
                   .sequences_max = (uint32_t)settings->sequences_max,
                   .step_ms_max = (uint32_t)settings->step_ms_max,
                   .threads = threads_of(settings),
                   .queue_requests_max = (uint32_t)settings->queue_requests_max},
        .lease_ms = (uint32_t)settings->lease_ms,
        .orphan_ms = (uint32_t)settings->orphan_ms,
        .keep_finished_ms = (uint32_t)settings->keep_finished_ms,
        .keep_finished_bytes = settings->keep_finished_mebibytes << 20,
        .drain_deadline_ms = (uint32_t)settings->drain_deadline_ms,
        .on_state = on_state,
        .on_turn = on_turn,
        .on_fate = on_fate,
        .user = worker,
    };
    TRY(server_create(&config, &worker->server));
    if (given(settings->listen_operator)) {
        struct operator_config operators = {.loop = worker->loop,
                                            .server = worker->server,
                                            .redis = worker->redis,
                                            .conversations = worker->conversations,
                                            .simulated = given(settings->simulate),
                                            .address = settings->listen_operator};
        TRY(operator_create(&operators, &worker->operator));
        LOG_INFO("operators: http://%s", operator_address(worker->operator));
    }
    say_descriptors();
    TRY(loop_on_signal(worker->loop, SIGTERM, on_signal, worker));
    return loop_on_signal(worker->loop, SIGINT, on_signal, worker);
}

/* A device that answers no more keeps whoever waits for its step, and nothing takes a thread out of that. */
static void *end_at_last(void *unused)
{
    sleep(END_S);
    LOG_ERROR("the engine hangs, in a step or loading its model: ending without it after %d s", END_S);
    _exit(1);
    return unused;
}

static void end_in_time(void)
{
    pthread_t thread;
    const int rc = pthread_create(&thread, NULL, end_at_last, NULL);
    if (rc == 0)
        pthread_detach(thread);
    else
        LOG_WARN("an engine that hangs will not be noticed: no thread: %s", strerror(rc));
}

static void stop(struct worker *worker)
{
    remove_ready_file(worker);
    end_in_time();
    operator_destroy(&worker->operator);
    server_destroy(&worker->server);
    redis_link_destroy(&worker->redis); /* answers what directory and conversations have open */
    directory_destroy(&worker->directory);
    conversations_destroy(&worker->conversations);
    parallel_group_stop(&worker->group);
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
    const struct log_config follower_log = {.program = "worker", .level = LOG_LEVEL_INFO, .fd = STDERR_FILENO};
    if (argc == 2 && parallel_group_argument(argv[1]))
        return parallel_follower_main(argv[1], &follower_log);
    enum config_outcome outcome = config_load(&program, argc, argv, &worker.settings);
    if (outcome != CONFIG_RUN)
        return outcome == CONFIG_EXIT_OK ? 0 : 2;
    struct log_config log = {.program = "worker", .fd = STDERR_FILENO};
    (void)log_level_parse(worker.settings.log_level, &log.level); /* both are checked by their choices */
    (void)log_format_parse(worker.settings.log_format, &log.format);
    log_setup(&log);
    signal(SIGPIPE, SIG_IGN);
    if (probe_init() != STATUS_OK || start(&worker) != STATUS_OK || loop_run(worker.loop) != STATUS_OK) {
        LOG_ERROR("%s", status_detail());
        worker.exit_code = 1;
    }
    stop(&worker);
    return worker.exit_code;
}
