/* bench-w0.c - what the KV cache is worth on the standard workload W0 (docs/performance): long conversations, one turn after the
 * other, the same turns once with the cache and once with nothing to find in it (each turn under a tenant of its own).
 *
 * A turn sends the whole history (about 5,600 tokens) and draws 140. Of the turns 7% retry the last reply, 2% edit the last message of
 * the user, 1% edit one drawn from the last 30 messages. Conversations take turns, so that each finds the others' KV in between.
 * All steps of the engine are timed: the longest and the 99th percentile beside the limit that prefill is cut for.
 * Then the first token of one prompt of 8,192 tokens: cold, and after a turn that left all but a message of it in the cache. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "tests/bench/bench.h"
#include "worker/engine/engine.h"

#define HISTORY_TOKENS 5600u
#define MESSAGE_TOKENS 31u          /* 5,600 / 180 */
#define REPLY_TOKENS   140u
#define PREFIX_TOKENS  8192u
#define TURN_TOKENS    (MESSAGE_TOKENS + REPLY_TOKENS)
#define RECENT         30u          /* messages an edit reaches back */

struct message { uint32_t start, count; };

struct conversation {
    uint32_t *ids;                  /* owned: (capacity); the history, without the turn's own message */
    uint32_t count;
    struct message *messages;       /* owned */
    uint32_t message_count;
    uint32_t *seen;                 /* owned: the longest prompt and reply so far, what an ideal cache holds of it */
    uint32_t seen_count;
};

struct turn_result {
    uint64_t first_us, done_us;     /* from submit */
    uint32_t prompt, cached;
    uint32_t reply[REPLY_TOKENS];
    uint32_t reply_count;
    uint64_t started_us;
    bool ended, failed;
};

struct mode_result {
    uint64_t prompt_tokens, cached_tokens, ideal_tokens;
    double *first_ms, *turn_ms;     /* (turns) */
    uint32_t turns;
    uint64_t digest;                /* of all replies: must not depend on the cache */
};

#define STEP_MS_MAX 250u            /* the engine's default */
#define STEPS_MAX   (1u << 20)      /* that are timed */

static struct { double *ms; uint32_t count, over; } steps;

/* One step, timed if it did anything. */
static bool step(struct engine *engine, engine_event_fn *sink, void *user)
{
    const uint64_t started_us = clock_now_us();
    const bool worked = engine_step(engine, sink, user);
    const double ms = (double)(clock_now_us() - started_us) / 1e3;
    if (worked && steps.count < STEPS_MAX) {
        steps.ms[steps.count++] = ms;
        steps.over += ms > STEP_MS_MAX;
    }
    return worked;
}

static uint64_t random_state;

static uint32_t random_below(uint32_t bound)
{
    random_state += 0x9E3779B97F4A7C15u;
    uint64_t z = random_state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)(((z ^ (z >> 31)) >> 32) * bound >> 32);
}

static void random_ids(uint32_t *ids, uint32_t count, uint32_t vocab)
{
    for (uint32_t i = 0; i < count; i++)
        ids[i] = 300 + random_below(vocab - 300);      /* beyond control and byte pieces */
}

static void on_event(void *user, const struct engine_event *event)
{
    struct turn_result *result = user;
    const uint64_t now = clock_now_us();
    switch (event->kind) {
    case ENGINE_TOKENS:
        if (result->reply_count == 0)
            result->first_us = now - result->started_us;
        for (unsigned i = 0; i < event->count && result->reply_count < REPLY_TOKENS; i++)
            result->reply[result->reply_count++] = event->ids[i];
        break;
    case ENGINE_DONE:
        result->prompt = event->prompt_tokens;
        result->cached = event->cached_tokens;
        result->done_us = now - result->started_us;
        result->ended = true;
        break;
    case ENGINE_FAILED:
        fprintf(stderr, "bench-w0: a turn failed: %s\n", event->detail);
        result->ended = result->failed = true;
        break;
    default:
        break;
    }
}

/* One turn alone in the engine; idle work of the turn before is not counted. */
static enum status run_turn(struct engine *engine, const char *tenant, const uint32_t *ids, uint32_t count, uint32_t reply_tokens,
                            struct turn_result *result)
{
    static uint64_t job;
    while (step(engine, on_event, result))
        ;
    *result = (struct turn_result){.started_us = clock_now_us()};
    const struct engine_request request = {
        .job = ++job,
        .tenant = tenant,
        .tenant_size = strlen(tenant),
        .prompt_ids = ids,
        .prompt_id_count = count,
        .sampling = {.temperature = 1.0f, .tokens_min = reply_tokens},
        .seed = 7,
        .seed_given = true,
        .tokens_max = reply_tokens,
    };
    TRY(engine_submit(engine, &request, NULL));
    while (!result->ended)
        step(engine, on_event, result);
    return result->failed ? STATUS_FAIL(STATUS_INTERNAL, "a turn failed") : STATUS_OK;
}

static void say(struct conversation *talk, const uint32_t *ids, uint32_t count)
{
    memcpy(talk->ids + talk->count, ids, count * sizeof *ids);
    talk->messages[talk->message_count++] = (struct message){talk->count, count};
    talk->count += count;
}

static enum status begin(struct conversation *talk, uint32_t turns, uint32_t vocab)
{
    const uint32_t capacity = HISTORY_TOKENS + (turns + 2) * TURN_TOKENS;
    uint32_t message[MESSAGE_TOKENS];
    talk->ids = calloc(capacity, sizeof *talk->ids);
    talk->seen = calloc(capacity, sizeof *talk->seen);
    talk->messages = calloc(capacity / MESSAGE_TOKENS + 2, sizeof *talk->messages);
    if (talk->ids == NULL || talk->seen == NULL || talk->messages == NULL)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a conversation");
    const uint32_t start = HISTORY_TOKENS - turns / 2 * TURN_TOKENS;    /* 5,600 on average */
    while (talk->count + MESSAGE_TOKENS <= start) {
        random_ids(message, MESSAGE_TOKENS, vocab);
        say(talk, message, MESSAGE_TOKENS);
    }
    return STATUS_OK;
}

/* What the user does before this turn: goes on, retries, edits. Leaves the prompt as the history. */
static void change_history(struct conversation *talk, const struct turn_result *last, bool first, uint32_t vocab)
{
    uint32_t message[MESSAGE_TOKENS];
    const uint32_t draw = random_below(100);
    if (!first && draw < 7)
        return;                                                         /* the reply is not taken: the same prompt again */
    if (!first && draw < 9) {                                           /* another wording of the last message */
        random_ids(talk->ids + talk->messages[talk->message_count - 1].start, MESSAGE_TOKENS, vocab);
        return;
    }
    if (!first && draw < 10) {
        const struct message *edited = &talk->messages[talk->message_count - 1 - random_below(RECENT)];
        random_ids(talk->ids + edited->start, edited->count, vocab);
        return;
    }
    if (!first)
        say(talk, last->reply, last->reply_count);
    random_ids(message, MESSAGE_TOKENS, vocab);
    say(talk, message, MESSAGE_TOKENS);
}

static uint32_t common_prefix(const uint32_t *a, uint32_t a_count, const uint32_t *b, uint32_t b_count)
{
    uint32_t i = 0;
    while (i < a_count && i < b_count && a[i] == b[i])
        i++;
    return i;
}

static enum status run_mode(struct engine *engine, bool cached, uint32_t conversations, uint32_t turns, uint32_t vocab,
                            struct mode_result *out)
{
    struct conversation *talks = calloc(conversations, sizeof *talks);
    struct turn_result *last = calloc(conversations, sizeof *last);
    out->first_ms = calloc((size_t)conversations * turns, sizeof(double));
    out->turn_ms = calloc((size_t)conversations * turns, sizeof(double));
    enum status st = talks && last && out->first_ms && out->turn_ms ? STATUS_OK : STATUS_NO_MEMORY;
    random_state = 1;
    for (uint32_t c = 0; st == STATUS_OK && c < conversations; c++)
        st = begin(&talks[c], turns, vocab);
    for (uint32_t turn = 0; st == STATUS_OK && turn <= turns; turn++)
        for (uint32_t c = 0; st == STATUS_OK && c < conversations; c++) {
            struct conversation *talk = &talks[c];
            char tenant[32] = "w0";
            if (!cached)
                snprintf(tenant, sizeof tenant, "w0-%u-%u", c, turn);
            change_history(talk, &last[c], turn == 0, vocab);
            const uint32_t ideal = common_prefix(talk->ids, talk->count - 1, talk->seen, talk->seen_count);
            st = run_turn(engine, tenant, talk->ids, talk->count, REPLY_TOKENS, &last[c]);
            if (st != STATUS_OK)
                break;
            if (ideal < talk->count - 1 || talk->count > talk->seen_count) {
                memcpy(talk->seen, talk->ids, talk->count * sizeof *talk->ids);
                memcpy(talk->seen + talk->count, last[c].reply, last[c].reply_count * sizeof *talk->ids);
                talk->seen_count = talk->count + last[c].reply_count;
            }
            for (uint32_t i = 0; i < last[c].reply_count; i++)
                out->digest = (out->digest ^ last[c].reply[i]) * 0x100000001b3u;
            if (turn == 0)
                continue;                                               /* everyone's first turn is cold: not counted */
            out->prompt_tokens += last[c].prompt;
            out->cached_tokens += last[c].cached;
            out->ideal_tokens += ideal;
            out->first_ms[out->turns] = (double)last[c].first_us / 1e3;
            out->turn_ms[out->turns++] = (double)last[c].done_us / 1e3;
            bench_progress("%s: turn %u of %u", cached ? "cache" : "no cache", out->turns, conversations * turns);
        }
    for (uint32_t c = 0; talks && c < conversations; c++)
        free(talks[c].ids), free(talks[c].seen), free(talks[c].messages);
    free(talks), free(last);
    return st;
}

struct prefix_result { double hit_ms, miss_ms; uint32_t hit_computed; };

static enum status run_prefix(struct engine *engine, uint32_t vocab, unsigned repeats, struct prefix_result *out)
{
    double hit[16], miss[16];
    uint32_t *ids = calloc(PREFIX_TOKENS + MESSAGE_TOKENS, sizeof *ids);
    struct turn_result result;
    enum status st = ids ? STATUS_OK : STATUS_NO_MEMORY;
    for (unsigned i = 0; st == STATUS_OK && i < repeats; i++) {
        char tenant[32];
        snprintf(tenant, sizeof tenant, "prefix-%u", i);
        random_ids(ids, PREFIX_TOKENS + MESSAGE_TOKENS, vocab);
        st = run_turn(engine, tenant, ids, PREFIX_TOKENS, 1, &result);  /* nothing of it is there */
        miss[i] = (double)result.first_us / 1e3;
        if (st == STATUS_OK)
            st = run_turn(engine, tenant, ids, PREFIX_TOKENS + MESSAGE_TOKENS, 1, &result);
        hit[i] = (double)result.first_us / 1e3;
        out->hit_computed = result.prompt - result.cached;
    }
    out->hit_ms = bench_median(hit, repeats);
    out->miss_ms = bench_median(miss, repeats);
    free(ids);
    return st;
}

static void print_mode(const char *name, struct mode_result *mode)
{
    printf("%-9s %8u %10.1f %8.4f %8.4f %12.1f %12.1f %12.1f\n", name, mode->turns,
           (double)(mode->prompt_tokens - mode->cached_tokens) / mode->turns, (double)mode->cached_tokens / (double)mode->prompt_tokens,
           (double)mode->ideal_tokens / (double)mode->prompt_tokens, bench_median(mode->first_ms, mode->turns),
           bench_quantile(mode->first_ms, mode->turns, 0.9), bench_median(mode->turn_ms, mode->turns));
}

int main(int argc, char **argv)
{
    struct bench_options options = {.name = "bench-w0", .usage = "MODEL_DIR [--conversations N] [--turns N] [--threads N]"};
    uint32_t conversations = 4, turns = 10, threads = 1;
    const struct bench_flag flags[] = {{"--conversations", &conversations, 1, 64}, {"--turns", &turns, 1, 100}, {"--threads", &threads, 1, 64}, {0}};
    const char *dir = bench_arguments(&options, argc, argv, flags);
    const struct engine_config config = {
        .model_dir = dir,
        .kv_bytes = 2048ull << 20,
        .chunk_tokens = 512,
        .sequences_max = 4,
        .queue_requests_max = 8,
        .rewind_tokens = UINT32_MAX,
        .snapshots_max = UINT32_MAX,
        .threads = threads,
    };
    struct engine *engine = NULL;
    struct mode_result on = {0}, off = {0};
    struct prefix_result prefix = {0};
    steps.ms = calloc(STEPS_MAX, sizeof *steps.ms);
    enum status st = steps.ms != NULL ? engine_create(&config, &engine) : STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the times");
    uint32_t vocab = 0;
    if (st == STATUS_OK)
        st = bench_vocabulary(dir, &vocab);
    if (st == STATUS_OK)
        st = run_mode(engine, true, conversations, turns, vocab, &on);
    if (st == STATUS_OK) {
        engine_forget_cache(engine);
        st = run_mode(engine, false, conversations, turns, vocab, &off);
    }
    if (st == STATUS_OK) {
        engine_forget_cache(engine);
        st = run_prefix(engine, vocab, 3, &prefix);
    }
    if (st == STATUS_OK && on.digest != off.digest)
        st = STATUS_FAIL(STATUS_CORRUPT, "the replies with and without the cache differ");
    if (st != STATUS_OK) {
        fprintf(stderr, "bench-w0: %s\n", status_detail());
    } else {
        printf("%s, %u conversations, %u turns each of about %u prompt and %u reply tokens, %u thread(s), ", engine_info(engine)->model_name,
               conversations, turns, HISTORY_TOKENS, REPLY_TOKENS, threads);
        bench_print_processor(stdout);
        printf("\n%-9s %8s %10s %8s %8s %12s %12s %12s\n", "", "turns", "computed", "cached", "ideal", "first ms p50", "first ms p90", "turn ms p50");
        print_mode("cache", &on);
        print_mode("no cache", &off);
        printf("the same replies both times; cached share against an ideal cache %.4f; first token with / without %.3f, whole turn %.3f\n",
               (double)on.cached_tokens / (double)on.ideal_tokens, bench_median(on.first_ms, on.turns) / bench_median(off.first_ms, off.turns),
               bench_median(on.turn_ms, on.turns) / bench_median(off.turn_ms, off.turns));
        printf("prompt of %u tokens: first token %.1f ms on a miss, %.1f ms on a hit (%u tokens computed): %.4f\n", PREFIX_TOKENS,
               prefix.miss_ms, prefix.hit_ms, prefix.hit_computed, prefix.hit_ms / prefix.miss_ms);
        const double step_longest = bench_quantile(steps.ms, steps.count, 1), step_p99 = bench_quantile(steps.ms, steps.count, 0.99);
        printf("%u steps: the longest %.1f ms, p99 %.1f ms, %u above %u ms\n", steps.count, step_longest, step_p99, steps.over, STEP_MS_MAX);
        bench_json_begin(stdout, &options, argc, argv);
        printf(",\"turns\":%u,\"prompt_tokens\":%llu,\"cached_tokens\":%llu,\"ideal_tokens\":%llu,\"first_ms_cache\":%.3f,\"first_ms_no_cache\":%.3f,"
               "\"turn_ms_cache\":%.3f,\"turn_ms_no_cache\":%.3f,\"first_ms_cache_p90\":%.3f,\"prefix_hit_ms\":%.3f,\"prefix_miss_ms\":%.3f,\"prefix_hit_over_miss\":%.5f,\"step_ms_longest\":%.1f,\"step_ms_p99\":%.1f,\"steps\":%u,\"steps_over\":%u}\n",
               on.turns, (unsigned long long)on.prompt_tokens, (unsigned long long)on.cached_tokens, (unsigned long long)on.ideal_tokens,
               bench_median(on.first_ms, on.turns), bench_median(off.first_ms, off.turns), bench_median(on.turn_ms, on.turns),
               bench_median(off.turn_ms, off.turns), bench_quantile(on.first_ms, on.turns, 0.9), prefix.hit_ms, prefix.miss_ms,
               prefix.hit_ms / prefix.miss_ms, step_longest, step_p99, steps.count, steps.over);
    }
    engine_destroy(&engine);
    free(on.first_ms), free(on.turn_ms), free(off.first_ms), free(off.turn_ms), free(steps.ms);
    return st == STATUS_OK ? 0 : 1;
}
