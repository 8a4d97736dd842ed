/* bench-cache - prefix match among many kept conversations: kv_cache_match of a prompt of 4,000 tokens over a tree of 100,000
 * conversations of 16 personas, one core. Cold: another conversation each time, far out of every cache; warm: the same one again.
 * The limits are measured beside it: comparing as many tokens laid out in a row, from cold and from warm memory, without any search;
 * and hashing the prompt block by block beside that, which an index by hash alone would add. Each draw has a prompt of its own.
 *
 * Pages are 64 bytes and nothing is computed: only the tree is real. Nodes share the persona's blocks as real ones do. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "common/hash.h"
#include "tests/bench/bench.h"
#include "tests/bench/null_backend.h"
#include "worker/engine/kv/kv_cache.h"

enum { PAGE = 64, PERSONA = 512, PERSONAS = 16, TURN = 600, FIELD = 11 };

static uint32_t conversations = 100000, tokens = 4000;

/* ---- conversations ---- */

static uint32_t token(uint64_t seed, uint32_t position)
{
    return (uint32_t)(hash_mix(seed, position) % 32000);
}

/* The persona, then turns of its own; the last `fresh` tokens are not in the tree. */
static void write_prompt(uint32_t *ids, uint32_t conversation, uint32_t count, uint32_t known)
{
    for (uint32_t i = 0; i < count; i++)
        ids[i] = token(i < PERSONA ? conversation % PERSONAS : i < known ? 1000u + conversation : 7u, i);
}

static enum status extend(struct kv_cache *cache, const uint8_t *root, uint32_t *ids, uint32_t conversation, uint32_t to)
{
    struct kv_sequence *sequence = NULL;
    const uint32_t ends[2] = {PERSONA, to};
    const struct kv_prompt prompt = {.root = root, .ids = ids, .count = to, .ends = ends, .end_count = 2};
    write_prompt(ids, conversation, to, to);
    enum status st = kv_cache_open(cache, &prompt, &sequence);
    while (st == STATUS_OK && kv_sequence_tokens(sequence) < to) {
        const uint32_t at = kv_sequence_tokens(sequence), count = to - at < 1024 ? to - at : 1024;
        st = kv_cache_reserve(cache, sequence, at + count);
        if (st == STATUS_OK)
            kv_cache_append(cache, sequence, ids + at, count);
    }
    kv_cache_keep(cache, &sequence, to, NULL);
    return st;
}

/* Turn by turn over all of them, so that a conversation's nodes lie as far apart as they do after days of service. */
static enum status fill(struct kv_cache *cache, const uint8_t *root)
{
    uint32_t *ids = malloc(tokens * sizeof *ids);
    enum status st = ids != NULL ? STATUS_OK : STATUS_FAIL(STATUS_NO_MEMORY, "no memory");
    for (uint32_t to = PERSONA + TURN; st == STATUS_OK; to = to + TURN < tokens ? to + TURN : tokens) {
        for (uint32_t c = 0; st == STATUS_OK && c < conversations; c++) {
            if (c % 1000 == 0)
                bench_progress("%u tokens, conversation %u", to, c);
            st = extend(cache, root, ids, c, to);
        }
        if (to == tokens)
            break;
    }
    free(ids);
    return st;
}

/* ---- measuring ---- */

static double now_us(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return 1e6 * (double)time.tv_sec + 1e-3 * (double)time.tv_nsec;
}

struct figure { double median, low, high; };

static struct figure figure_of(double *values, uint32_t count)
{
    return (struct figure){bench_quantile(values, count, 0.5), bench_quantile(values, count, 0.1), bench_quantile(values, count, 0.9)};
}

static volatile uint64_t sink;

/* One prompt at a time, written just before (so the prompt is warm, as it is in the engine), matched `repeats` times. */
static struct figure measure_match(const struct kv_cache *cache, const uint8_t *root, uint32_t *ids, uint32_t samples, uint32_t repeats,
                                   bool *right)
{
    double *values = calloc(samples, sizeof *values);
    for (uint32_t s = 0; values != NULL && s < samples; s++) {
        const uint32_t known = tokens - 40;
        write_prompt(ids, (uint32_t)(hash_mix(17, s) % conversations), tokens + 60, known);
        const struct kv_prompt prompt = {.root = root, .ids = ids, .count = tokens + 60};
        if (repeats > 1)
            sink += kv_cache_match(cache, &prompt);
        const double start = now_us();
        uint32_t matched = 0;
        for (uint32_t r = 0; r < repeats; r++)
            matched = kv_cache_match(cache, &prompt);
        values[s] = (now_us() - start) / repeats;
        *right = *right && matched == known;
    }
    const struct figure figure = figure_of(values, samples);
    free(values);
    return figure;
}

/* The same number of tokens compared in a row, elsewhere in the field each time: the least that "checked by comparing tokens" costs.
 * The prompt is made like the field, not read from it. */
static struct figure measure_compare(const uint32_t *field, uint64_t field_tokens, uint32_t *ids, uint32_t samples, uint32_t repeats,
                                     bool hash, bool *right)
{
    const size_t bytes = tokens * sizeof *ids;
    double *values = calloc(samples, sizeof *values);
    for (uint32_t s = 0; values != NULL && s < samples; s++) {
        const uint64_t first = hash_mix(23, s) % (field_tokens - tokens) / 64 * 64;
        const uint32_t *at = field + first;
        for (uint32_t i = 0; i < tokens; i++)
            ids[i] = token(FIELD, (uint32_t)first + i);
        if (repeats > 1)
            sink += (uint64_t)memcmp(at, ids, bytes);
        const double start = now_us();
        for (uint32_t r = 0; r < repeats; r++) {
            for (size_t b = 0; hash && b < bytes; b += 256)
                sink += hash_fast(ids + b / 4, 256, 0);
            *right = *right && memcmp(at, ids, bytes) == 0;
        }
        values[s] = (now_us() - start) / repeats;
    }
    const struct figure figure = figure_of(values, samples);
    free(values);
    return figure;
}

static void print(const char *name, struct figure figure, FILE *json, const char *key)
{
    printf("%-44s %8.2f %8.2f %8.2f\n", name, figure.median, figure.low, figure.high);
    fprintf(json, ",\"%s_us\":%.3f,\"%s_us_p10\":%.3f,\"%s_us_p90\":%.3f", key, figure.median, key, figure.low, key, figure.high);
}

int main(int argc, char **argv)
{
    static const struct bench_options options = {.name = "bench-cache", .usage = "[--conversations N] [--tokens N]"};
    const struct bench_flag flags[] = {{"--conversations", &conversations, 1, 1000000}, {"--tokens", &tokens, 1024, 65536}, {0}};
    static const uint8_t root[KV_CACHE_ROOT_BYTES] = {1};
    (void)bench_arguments(&options, argc, argv, flags);
    const uint64_t pages = (uint64_t)conversations * (tokens / 64 + 1) + 4096;
    const struct kv_cache_config config = {.ops = &null_backend_ops,
                                           .backend = (struct backend *)&options, /* never looked at */
                                           .groups = {{.page_bytes = PAGE}, {.page_bytes = PAGE, .window = 1024}},
                                           .device_bytes = 2 * pages * PAGE,
                                           .sequence_tokens_max = tokens + 64,
                                           .open_max = 4,
                                           .chunk_tokens_max = 1024,
                                           .rewind_tokens = 1024,
                                           .snapshots_max = 8};
    struct kv_cache *cache = NULL;
    struct kv_cache_counts counts;
    const uint64_t field_tokens = UINT64_C(128) << 20;
    uint32_t *field = malloc(field_tokens * sizeof *field);
    uint32_t *ids = malloc((tokens + 64) * sizeof *ids);
    enum status st = field != NULL && ids != NULL ? kv_cache_create(&config, &cache) : STATUS_FAIL(STATUS_NO_MEMORY, "no memory");
    if (st == STATUS_OK)
        st = fill(cache, root);
    if (st != STATUS_OK) {
        fprintf(stderr, "bench-cache: %s\n", status_detail());
        return 1;
    }
    bool right = true;
    for (uint64_t i = 0; i < field_tokens; i++)
        field[i] = token(FIELD, (uint32_t)i);
    kv_cache_counts(cache, &counts);
    printf("%u conversations of %u tokens, %llu nodes, %.2f GB, one thread, ", conversations, tokens, (unsigned long long)counts.nodes,
           1e-9 * (double)counts.metadata_bytes);
    bench_print_processor(stdout);
    printf("\n%-44s %8s %8s %8s\n", "microseconds", "median", "p10", "p90");
    char *text = NULL;
    size_t size;
    FILE *json = open_memstream(&text, &size);
    print("match, cold", measure_match(cache, root, ids, 5000, 1, &right), json, "cold");
    print("match, warm", measure_match(cache, root, ids, 500, 20, &right), json, "warm");
    print("limit: compare the tokens in a row, cold", measure_compare(field, field_tokens, ids, 5000, 1, false, &right), json, "limit_cold");
    print("limit: compare the tokens in a row, warm", measure_compare(field, field_tokens, ids, 500, 20, false, &right), json, "limit_warm");
    print("compare and hash in a row, cold", measure_compare(field, field_tokens, ids, 5000, 1, true, &right), json, "hash_cold");
    print("compare and hash in a row, warm", measure_compare(field, field_tokens, ids, 500, 20, true, &right), json, "hash_warm");
    fclose(json);
    if (!right)
        fprintf(stderr, "bench-cache: a match was not what it must be\n");
    bench_json_begin(stdout, &options, argc, argv);
    printf(",\"conversations\":%u,\"tokens\":%u,\"nodes\":%llu,\"metadata_bytes\":%llu%s}\n", conversations, tokens,
           (unsigned long long)counts.nodes, (unsigned long long)counts.metadata_bytes, text);
    free(text);
    free(ids);
    free(field);
    kv_cache_destroy(&cache);
    return right ? 0 : 1;
}
