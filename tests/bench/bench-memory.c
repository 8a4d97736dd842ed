/* bench-memory - how many conversations of the standard workload (180 messages, 5,600 prompt tokens, 140 reply tokens) a tier of 16 GB
 * keeps whole, for a shape like the one the reference describes for 13B: 48 layers, 8 of them global, sharing KV by 2 (4 global and 20
 * local producers), one KV head, head dimension 128, window 1,024, int8 with a float32 scale a token and head.
 *
 * A conversation grows as in life: a turn's prompt is opened, what it does not find is counted, the reply follows, all is kept, and the
 * next prompt is two messages longer. So the resume points are those that 90 turns leave (whose windows were still there when they were
 * chosen), not those of one long prompt. Conversations are added until the first thing would be evicted. The pages are reserved address
 * space that nothing touches. Beside what each takes stands what it is for: the global pages, the last W + R tokens of the local ones, the
 * windows of older resume points; kv_cache_formula, for a conversation alone that came in one go; and the same depth with 8
 * KV heads in bf16, every layer with its own KV of every token. Rows: less R, fewer snapshots, and 16 personas that all share. */
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "tests/bench/bench.h"
#include "tests/bench/null_backend.h"
#include "worker/engine/kv/kv_cache.h"

enum {
    LAYERS = 48, GLOBAL_PRODUCERS = 4, LOCAL_PRODUCERS = 20, HEAD_DIM = 128, WINDOW = 1024, CHUNK = 256,
    MESSAGES = 180, PROMPT = 5600, REPLY = 140, TOKENS = PROMPT + REPLY, PERSONA = 512, PERSONAS = 16,
    PRODUCER_PAGE = BACKEND_PAGE_TOKENS * (2 * HEAD_DIM + 2 * (int)sizeof(float)) /* one KV head, K and V, their scales */
};

struct variant { const char *name; uint32_t rewind, snapshots; bool at_once, shared; };

struct outcome {
    uint32_t held;
    double each, global, recent, points; /* bytes a conversation: all; group 0; of group 1 the last W + R tokens, and the rest */
    double formula, metadata;
};

/* A message's tokens are its own; those of a persona that is shared are the persona's. */
static void write_tokens(uint32_t conversation, const struct variant *variant, uint32_t *ids, uint32_t *ends)
{
    const uint32_t persona = variant->shared ? PERSONA : PROMPT / MESSAGES;
    for (uint32_t i = 0; i < TOKENS; i++)
        ids[i] = (uint32_t)(hash_mix(variant->shared && i < persona ? conversation % PERSONAS : PERSONAS + conversation, i) % 32000);
    for (uint32_t m = 0; m < MESSAGES; m++)
        ends[m] = persona + (PROMPT - persona) * m / (MESSAGES - 1);
}

static enum status turn(struct kv_cache *cache, const uint32_t *ids, const uint32_t *ends, uint32_t messages)
{
    static const uint8_t root[KV_CACHE_ROOT_BYTES] = {1};
    struct kv_sequence *sequence = NULL;
    const struct kv_prompt prompt = {.root = root, .ids = ids, .count = ends[messages - 1], .ends = ends, .end_count = messages};
    const uint32_t to = messages < MESSAGES ? ends[messages] : TOKENS; /* the reply is the next message */
    TRY(kv_cache_open(cache, &prompt, &sequence));
    enum status st = STATUS_OK;
    while (st == STATUS_OK && kv_sequence_tokens(sequence) < to) {
        const uint32_t at = kv_sequence_tokens(sequence), count = to - at < CHUNK ? to - at : CHUNK;
        st = kv_cache_reserve(cache, sequence, at + count);
        if (st == STATUS_OK)
            kv_cache_append(cache, sequence, ids + at, count);
    }
    kv_cache_keep(cache, &sequence, prompt.count, NULL);
    return st;
}

static enum status converse(struct kv_cache *cache, uint32_t conversation, const struct variant *variant, uint32_t *ends)
{
    static uint32_t ids[TOKENS];
    write_tokens(conversation, variant, ids, ends);
    for (uint32_t messages = variant->at_once ? MESSAGES : 2; messages <= MESSAGES; messages += 2)
        TRY(turn(cache, ids, ends, messages));
    return STATUS_OK;
}

static enum status measure(const struct variant *variant, uint32_t gigabytes, struct outcome *out)
{
    static uint32_t ends[MESSAGES];
    const struct kv_cache_config config = {
        .ops = &null_backend_ops,
        .backend = (struct backend *)ends, /* never looked at */
        .groups = {{.page_bytes = GLOBAL_PRODUCERS * PRODUCER_PAGE}, {.page_bytes = LOCAL_PRODUCERS * PRODUCER_PAGE, .window = WINDOW}},
        .device_bytes = (uint64_t)gigabytes * 1000000000u,
        .sequence_tokens_max = 8192,
        .open_max = 4,
        .chunk_tokens_max = CHUNK,
        .rewind_tokens = variant->rewind,
        .snapshots_max = variant->snapshots,
    };
    struct kv_cache *cache = NULL;
    struct kv_cache_counts full = {0}, counts = {0};
    uint64_t recent[BACKEND_GROUPS_MAX], by_group[BACKEND_GROUPS_MAX];
    enum status st;
    TRY(kv_cache_create(&config, &cache));
    for (out->held = 0;; out->held++) {
        bench_progress("R %u, %u snapshots, conversation %u", variant->rewind, variant->snapshots, out->held);
        st = converse(cache, out->held, variant, ends);
        kv_cache_counts(cache, &counts);
        if (st != STATUS_OK || counts.evicted_snapshots + counts.evicted_rewinds + counts.evicted_leaves > 0)
            break;
        full = counts;
    }
    bench_progress("%s", "");
    kv_cache_destroy(&cache);
    if (st == STATUS_OK && out->held == 0)
        st = STATUS_FAIL(STATUS_LIMIT, "%u GB do not hold one conversation", gigabytes);
    if (st != STATUS_OK)
        return st;
    (void)kv_cache_formula(&config, TOKENS, NULL, 0, recent);
    out->formula = (double)kv_cache_formula(&config, TOKENS, ends, MESSAGES, by_group);
    out->each = (double)(full.tiers[0].total - full.tiers[0].free) / out->held;
    out->global = (double)(full.pages[0][0] * config.groups[0].page_bytes) / out->held;
    out->recent = (double)recent[1];
    out->points = out->each - out->global - out->recent;
    out->metadata = (double)full.metadata_bytes / out->held;
    return STATUS_OK;
}

int main(int argc, char **argv)
{
    static const struct bench_options options = {.name = "bench-memory", .usage = "[--gigabytes N] [--rewind N] [--snapshots N]"};
    uint32_t gigabytes = 16, rewind = 1024, snapshots = 8;
    const struct bench_flag flags[] = {
        {"--gigabytes", &gigabytes, 1, 1024}, {"--rewind", &rewind, 0, 8192}, {"--snapshots", &snapshots, 0, 8}, {0}};
    (void)bench_arguments(&options, argc, argv, flags);
    const struct variant variants[] = {
        {"as in life", rewind, snapshots, false, false},
        {"in one go", rewind, snapshots, true, false},
        {"shared personas", rewind, snapshots, false, true},
        {"2 snapshots", rewind, 2, false, false},
        {"no snapshots", rewind, 0, false, false},
        {"R 256, 2 snapshots", 256, 2, false, false},
        {"R 256, 1 snapshot", 256, 1, false, false},
        {"R 256, no snapshots", 256, 0, false, false},
        {"R 256, none, shared personas", 256, 0, false, true},
    };
    const double gqa_elements = 2.0 * LAYERS * 8 * HEAD_DIM * TOKENS, gqa_bytes = 2 * gqa_elements;
    const double element_share = 2.0 * HEAD_DIM * BACKEND_PAGE_TOKENS / PRODUCER_PAGE; /* scales are no elements */
    char *text = NULL;
    size_t size;
    FILE *json = open_memstream(&text, &size);
    struct outcome first = {0};
    printf("%u GB, conversations of %d messages, %d + %d tokens, W %d, R %u, up to %u snapshots\n", gigabytes, MESSAGES, PROMPT, REPLY, WINDOW,
           rewind, snapshots);
    printf("the same depth, GQA-8, bf16, no sharing, no window: %.0f MB a conversation\n", 1e-6 * gqa_bytes);
    printf("%-28s %6s %8s %8s %8s %8s %8s %9s %9s\n", "MB a conversation", "kept", "all", "global", "W + R", "points", "formula", "bytes x",
           "elements x");
    for (uint32_t v = 0; v < sizeof variants / sizeof *variants; v++) {
        struct outcome outcome = {0};
        if (measure(&variants[v], gigabytes, &outcome) != STATUS_OK) {
            fprintf(stderr, "bench-memory: %s\n", status_detail());
            return 1;
        }
        const double bytes_ratio = gqa_bytes / outcome.each, elements_ratio = gqa_elements / (outcome.each * element_share);
        printf("%-28s %6u %8.2f %8.2f %8.2f %8.2f %8.2f %9.1f %9.1f\n", variants[v].name, outcome.held, 1e-6 * outcome.each,
               1e-6 * outcome.global, 1e-6 * outcome.recent, 1e-6 * outcome.points, 1e-6 * outcome.formula, bytes_ratio, elements_ratio);
        fprintf(json,
                "%s{\"name\":\"%s\",\"rewind\":%u,\"snapshots\":%u,\"conversations\":%u,\"bytes_each\":%.0f,\"global_bytes\":%.0f,"
                "\"recent_bytes\":%.0f,\"points_bytes\":%.0f,\"formula_bytes\":%.0f,\"bytes_ratio\":%.2f,\"elements_ratio\":%.2f}",
                v > 0 ? "," : "", variants[v].name, variants[v].rewind, variants[v].snapshots, outcome.held, outcome.each, outcome.global,
                outcome.recent, outcome.points, outcome.formula, bytes_ratio, elements_ratio);
        if (v == 0)
            first = outcome;
    }
    fclose(json);
    printf("nodes and tables a conversation: %.0f bytes\n", first.metadata);
    bench_json_begin(stdout, &options, argc, argv);
    printf(",\"gigabytes\":%u,\"conversations\":%u,\"bytes_each\":%.0f,\"formula_bytes\":%.0f,\"metadata_bytes_each\":%.0f,"
           "\"gqa8_bf16_bytes\":%.0f,\"elements_ratio\":%.2f,\"bytes_ratio\":%.2f,\"spread\":0,\"variants\":[%s]}\n",
           gigabytes, first.held, first.each, first.formula, first.metadata, gqa_bytes, gqa_elements / (first.each * element_share),
           gqa_bytes / first.each, text);
    free(text);
    return 0;
}
