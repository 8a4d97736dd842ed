/* bench-memory - how many conversations of the standard workload (180 messages, 5,600 prompt tokens, 140 reply tokens) a tier of 16 GB
 * keeps whole, for a shape like the one the reference describes for 13B: 48 layers, 8 of them global, sharing KV by 2 (4 global and 20
 * local producers), one KV head, head dimension 128, window 1,024, int8 with a float32 scale a token and head.
 *
 * Each conversation is opened, its tokens counted and kept as the engine does it, turn by turn at the end, until the first thing would be
 * evicted; the pages are reserved address space that nothing touches. Beside the bytes each takes stand the formula (kv_cache_formula)
 * and the same depth with 8 KV heads in bf16, every layer with its own KV of every token. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "common/hash.h"
#include "tests/bench/bench.h"
#include "worker/engine/kv/kv_cache.h"

enum {
    LAYERS = 48, GLOBAL_PRODUCERS = 4, LOCAL_PRODUCERS = 20, HEAD_DIM = 128, WINDOW = 1024, REWIND = 1024, SNAPSHOTS = 8,
    MESSAGES = 180, PROMPT = 5600, REPLY = 140, TOKENS = PROMPT + REPLY
};

static enum status arena_create(struct backend *backend, enum backend_tier tier, size_t bytes, void **base)
{
    (void)backend;
    (void)tier;
    *base = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return *base != MAP_FAILED ? STATUS_OK : STATUS_FAIL(STATUS_NO_MEMORY, "no address space for %zu bytes", bytes);
}

static void arena_destroy(struct backend *backend, enum backend_tier tier, void **base)
{
    (void)backend;
    (void)tier;
    *base = NULL; /* the program ends */
}

static void page_copy_prefix(struct backend *backend, uint32_t group, void *dst, const void *src, uint32_t count)
{
    (void)backend;
    (void)group;
    (void)dst;
    (void)src;
    (void)count;
}

static const struct backend_ops nothing_ops = {
    .name = "nothing", .page_copy_prefix = page_copy_prefix, .arena_create = arena_create, .arena_destroy = arena_destroy};

static enum status converse(struct kv_cache *cache, uint32_t conversation, uint32_t *ids, uint32_t *ends)
{
    static const uint8_t root[KV_CACHE_ROOT_BYTES] = {1};
    struct kv_sequence *sequence = NULL;
    for (uint32_t i = 0; i < TOKENS; i++)
        ids[i] = (uint32_t)(hash_mix(conversation, i) % 32000);
    for (uint32_t m = 0; m < MESSAGES; m++)
        ends[m] = (uint32_t)((uint64_t)PROMPT * (m + 1) / MESSAGES);
    const struct kv_prompt prompt = {.root = root, .ids = ids, .count = PROMPT, .ends = ends, .end_count = MESSAGES};
    TRY(kv_cache_open(cache, &prompt, &sequence));
    enum status st = STATUS_OK;
    while (st == STATUS_OK && kv_sequence_tokens(sequence) < TOKENS) {
        const uint32_t at = kv_sequence_tokens(sequence), count = TOKENS - at < 256 ? TOKENS - at : 256;
        st = kv_cache_reserve(cache, sequence, at + count);
        if (st == STATUS_OK)
            kv_cache_append(cache, sequence, ids + at, count);
    }
    kv_cache_keep(cache, &sequence, PROMPT);
    return st;
}

int main(int argc, char **argv)
{
    static const struct bench_options options = {.name = "bench-memory", .usage = "[--gigabytes N]"};
    uint32_t gigabytes = 16, held = 0;
    const struct bench_flag flags[] = {{"--gigabytes", &gigabytes, 1, 1024}, {0}};
    static uint32_t ids[TOKENS], ends[MESSAGES];
    (void)bench_arguments(&options, argc, argv, flags);
    const size_t producer_page = BACKEND_PAGE_TOKENS * (2 * HEAD_DIM + 2 * sizeof(float)); /* one KV head, K and V */
    const struct kv_cache_config config = {
        .ops = &nothing_ops,
        .backend = (struct backend *)&gigabytes, /* never looked at */
        .groups = {{.page_bytes = GLOBAL_PRODUCERS * producer_page}, {.page_bytes = LOCAL_PRODUCERS * producer_page, .window = WINDOW}},
        .device_bytes = (uint64_t)gigabytes * 1000000000u,
        .sequence_tokens_max = 8192,
        .open_max = 4,
        .chunk_tokens_max = 256,
        .rewind_tokens = REWIND,
        .snapshots_max = SNAPSHOTS,
    };
    struct kv_cache *cache = NULL;
    struct kv_cache_counts counts, full;
    enum status st = kv_cache_create(&config, &cache);
    if (st == STATUS_OK)
        kv_cache_counts(cache, &full);
    for (; st == STATUS_OK; held++) {
        st = converse(cache, held, ids, ends);
        kv_cache_counts(cache, &counts);
        if (counts.evicted_snapshots + counts.evicted_rewinds + counts.evicted_leaves > 0)
            break;
        full = counts;
    }
    if (st != STATUS_OK) {
        fprintf(stderr, "bench-memory: %s\n", status_detail());
        return 1;
    }
    uint64_t by_group[BACKEND_GROUPS_MAX];
    const double formula = (double)kv_cache_formula(&config, TOKENS, ends, MESSAGES, by_group);
    const double each = (double)(full.tiers[0].total - full.tiers[0].free) / held, metadata = (double)full.metadata_bytes / held;
    const double gqa_elements = 2.0 * LAYERS * 8 * HEAD_DIM * TOKENS, gqa_bytes = 2 * gqa_elements;
    const double elements = formula * (2 * HEAD_DIM) / (2 * HEAD_DIM + 2 * sizeof(float)); /* scales are no elements */
    printf("%u GB, conversations of %d messages, %d + %d tokens, R %d, up to %d snapshots\n", gigabytes, MESSAGES, PROMPT, REPLY, REWIND,
           SNAPSHOTS);
    printf("%-52s %14u\n", "conversations kept whole", held);
    printf("%-52s %14.0f\n", "bytes each, measured", each);
    printf("%-52s %14.0f  (global %llu, local %llu)\n", "bytes each, formula", formula, (unsigned long long)by_group[0],
           (unsigned long long)by_group[1]);
    printf("%-52s %14.0f\n", "nodes and tables each", metadata);
    printf("%-52s %14.0f\n", "the same depth, GQA-8, bf16, no sharing, no window", gqa_bytes);
    printf("%-52s %14.1f\n", "smaller by, elements", gqa_elements / elements);
    printf("%-52s %14.1f\n", "smaller by, bytes", gqa_bytes / each);
    bench_json_begin(stdout, &options, argc, argv);
    printf(",\"gigabytes\":%u,\"conversations\":%u,\"bytes_each\":%.0f,\"formula_bytes\":%.0f,\"metadata_bytes_each\":%.0f,"
           "\"gqa8_bf16_bytes\":%.0f,\"elements_ratio\":%.2f,\"bytes_ratio\":%.2f,\"spread\":0}\n",
           gigabytes, held, each, formula, metadata, gqa_bytes, gqa_elements / elements, gqa_bytes / each);
    kv_cache_destroy(&cache);
    return 0;
}
