/* KV over several homes: where conversations are put, how even that is, what one home's pressure does to the others. Pages hold
 * nothing here; that they are found again is kv_cache's business. */
#include "unit.h"
#include "worker/engine/kv/kv_homes.h"

#define HOMES         4u
#define CONVERSATIONS 60u
#define TOKENS_MAX    4096u
#define CHUNK         256u
#define PERSONA       600u

static uint32_t home_count;
static uint32_t arenas_at[HOMES];

static enum status make_arena(struct backend *backend, enum backend_tier tier, size_t bytes, void **base)
{
    (void)backend, (void)tier;
    *base = calloc(1, bytes);
    arenas_at[0] += tier == BACKEND_TIER_DEVICE;
    return STATUS_OK;
}

static enum status make_arena_at(struct backend *backend, uint32_t home, size_t bytes, void **base)
{
    arenas_at[0]--;
    arenas_at[home]++;
    return make_arena(backend, BACKEND_TIER_DEVICE, bytes, base);
}

static void free_arena(struct backend *backend, enum backend_tier tier, void **base)
{
    (void)backend, (void)tier;
    free(*base);
    *base = NULL;
}

static uint32_t count_homes(const struct backend *backend)
{
    (void)backend;
    return home_count;
}

static void copy_prefix(struct backend *backend, uint32_t group, void *dst, const void *src, uint32_t tokens)
{
    (void)backend, (void)group, (void)dst, (void)src, (void)tokens;
}

static uint64_t copy_start(struct backend *backend, void *dst, const void *src, size_t bytes)
{
    static uint64_t ticket;
    (void)backend;
    memcpy(dst, src, bytes);
    return ++ticket;
}

static bool copy_done(struct backend *backend, uint64_t ticket)
{
    (void)backend, (void)ticket;
    return true;
}

static void copy_wait(struct backend *backend, uint64_t ticket)
{
    (void)backend, (void)ticket;
}

static const struct backend_ops ops = {
    .name = "none", .bits = "none", .page_copy_prefix = copy_prefix, .arena_create = make_arena, .arena_destroy = free_arena,
                                       .copy_start = copy_start, .copy_done = copy_done, .copy_wait = copy_wait, .homes = count_homes,
                                       .arena_create_at = make_arena_at};

static struct kv_homes *make(uint32_t count, uint64_t device_bytes, uint64_t host_bytes)
{
    const struct kv_cache_config config = {
        .ops = &ops, .backend = (struct backend *)&home_count,
        .groups = {{.page_bytes = 1024}, {.page_bytes = 2048, .window = 128}},
        .device_bytes = device_bytes, .host_bytes = host_bytes, .sequence_tokens_max = TOKENS_MAX, .open_max = 64, .chunk_tokens_max = CHUNK,
        .rewind_tokens = 64, .snapshots_max = 2};
    struct kv_homes *homes = NULL;
    home_count = count;
    memset(arenas_at, 0, sizeof arenas_at);
    assert_ok(kv_homes_create(&config, &homes));
    assert_int_equal(kv_homes_count(homes), count);
    return homes;
}

/* ---- conversations ---- */

struct conversation {
    uint32_t ids[TOKENS_MAX], count;
    struct kv_cache *last;                /* where it was */
    const struct conversation *name;      /* whose name it bears; NULL: its own */
};

static const uint8_t root[KV_CACHE_ROOT_BYTES] = {7};

static void say(struct conversation *talk, uint64_t salt, uint32_t count)
{
    uint64_t rng = salt;
    for (uint32_t i = 0; i < count && talk->count < TOKENS_MAX; i++)
        talk->ids[talk->count++] = rng_below(&rng, 50000);
}

/* With a persona, its end is the first message's. */
static struct kv_prompt prompt_of(const struct conversation *talk)
{
    static const uint32_t ends[] = {PERSONA};
    return (struct kv_prompt){.root = root, .ids = talk->ids, .count = talk->count, .ends = ends, .end_count = talk->count > PERSONA};
}

static enum status begin_turn(struct kv_homes *homes, const struct conversation *talk, struct kv_sequence **sequence)
{
    const struct kv_prompt prompt = prompt_of(talk);
    return kv_homes_open(homes, &prompt, sequence);
}

/* The whole prompt is computed and kept; how much of it was there. */
static uint32_t turn(struct kv_homes *homes, struct conversation *talk)
{
    struct kv_sequence *sequence = NULL;
    uint8_t name[KV_CACHE_LABEL_BYTES] = {0};
    const struct conversation *named = talk->name != NULL ? talk->name : talk;
    memcpy(name, &named, sizeof named);
    assert_ok(begin_turn(homes, talk, &sequence));
    struct kv_cache *cache = kv_sequence_cache(sequence);
    while (!kv_sequence_ready(sequence))
        (void)kv_homes_poll(homes);
    const uint32_t matched = kv_sequence_matched(sequence);
    for (uint32_t at = matched; at < talk->count;) {
        const uint32_t count = talk->count - at < CHUNK ? talk->count - at : CHUNK;
        assert_ok(kv_cache_reserve(cache, sequence, at + count));
        kv_cache_append(cache, sequence, talk->ids + at, count);
        at += count;
    }
    talk->last = cache;
    kv_homes_keep(homes, &sequence, talk->count, name);
    for (uint32_t home = 0; home < kv_homes_count(homes); home++)         /* one path has the name, wherever it was before */
        assert_int_equal(kv_cache_labelled(kv_homes_cache(homes, home), name), kv_homes_cache(homes, home) == cache);
    assert_true(kv_homes_labelled(homes, name));
    return matched;
}

static uint64_t bytes_in(const struct kv_cache *cache)
{
    struct kv_cache_counts counts;
    kv_cache_counts(cache, &counts);
    return counts.tiers[BACKEND_TIER_DEVICE].total - counts.tiers[BACKEND_TIER_DEVICE].free;
}

struct spread { uint64_t sum, largest; };

static struct spread spread_of(const struct kv_homes *homes)
{
    struct spread spread = {0};
    struct kv_cache_counts counts;
    for (uint32_t home = 0; home < kv_homes_count(homes); home++) {
        const uint64_t bytes = bytes_in(kv_homes_cache(homes, home));
        spread.sum += bytes;
        spread.largest = bytes > spread.largest ? bytes : spread.largest;
    }
    kv_homes_counts(homes, &counts);
    assert_int_equal(counts.tiers[BACKEND_TIER_DEVICE].total - counts.tiers[BACKEND_TIER_DEVICE].free, spread.sum);
    assert_ok(kv_homes_check(homes));
    return spread;
}

/* The largest, with windows of its points and its last page. */
static uint64_t one_conversation(const struct kv_homes *homes, const struct conversation *talks)
{
    uint64_t most = 0;
    for (uint32_t c = 0; c < CONVERSATIONS; c++) {
        const uint64_t bytes = kv_cache_prompt_bytes(kv_homes_cache(homes, 0), talks[c].count) + 3 * 4 * 2048 + 3072;
        most = bytes > most ? bytes : most;
    }
    return most;
}

static void show(const char *what, struct spread one, struct spread many, uint64_t conversation)
{
    printf("%s: one home %llu bytes; %u homes %llu, the largest %llu = 1/%u + %lld; a conversation at most %llu\n", what,
           (unsigned long long)one.sum, HOMES, (unsigned long long)many.sum, (unsigned long long)many.largest, HOMES,
           (long long)(many.largest - many.sum / HOMES), (unsigned long long)conversation);
}

static void test_conversations_are_spread(void **state)
{
    (void)state;
    const uint64_t seed = 11;
    uint64_t rng = seed;
    struct conversation *talks = calloc(CONVERSATIONS, sizeof *talks);
    struct kv_homes *many = make(HOMES, 64 << 20, 0);
    for (uint32_t home = 0; home < HOMES; home++)
        assert_int_equal(arenas_at[home], 1);
    struct kv_homes *one = make(1, 64 << 20, 0);
    for (uint32_t c = 0; c < CONVERSATIONS; c++) {
        say(&talks[c], 1000 + c, 20 + rng_below(&rng, rng_below(&rng, 8) == 0 ? 3000 : 300));
        assert_int_equal(turn(one, &talks[c]), 0);
        assert_int_equal(turn(many, &talks[c]), 0);
        const struct spread here = spread_of(many);
        assert_true(here.largest <= here.sum / HOMES + one_conversation(many, talks));
    }
    assert_int_equal(spread_of(one).sum, spread_of(many).sum);        /* KV as for one */
    show("first turns", spread_of(one), spread_of(many), one_conversation(many, talks));
    /* They go on, some far more than others; each is found where it was unless its home holds too much. */
    uint32_t moved = 0, turns = 600;
    for (uint32_t t = 0; t < turns; t++) {
        struct conversation *talk = &talks[rng_below(&rng, 1 + rng_below(&rng, CONVERSATIONS))];
        const uint32_t before = talk->count;
        if (before > TOKENS_MAX - 100)
            continue;
        say(talk, 5000 + t, 10 + rng_below(&rng, 80));
        assert_int_equal(turn(one, talk), before);
        moved += turn(many, talk) != before;
        const struct spread here = spread_of(many);
        assert_true(here.largest <= here.sum / HOMES + one_conversation(many, talks));
    }
    show("later turns", spread_of(one), spread_of(many), one_conversation(many, talks));
    assert_true(spread_of(many).sum <= spread_of(one).sum + spread_of(one).sum / 100);   /* those that moved are not kept twice */
    printf("%u of %u turns began anew in another home\n", moved, turns);
    assert_true(moved <= turns / 20);
    kv_homes_destroy(&one);
    kv_homes_destroy(&many);
    free(talks);
}

static void test_persona_is_followed_and_copied(void **state)
{
    (void)state;
    uint64_t rng = 5;
    struct conversation *talks = calloc(CONVERSATIONS, sizeof *talks);
    struct kv_homes *many = make(HOMES, 64 << 20, 0), *one = make(1, 64 << 20, 0);
    uint32_t followed = 0;
    for (uint32_t c = 0; c < CONVERSATIONS; c++) {
        say(&talks[c], 1, PERSONA);
        say(&talks[c], 1000 + c, 20 + rng_below(&rng, 300));
        (void)turn(one, &talks[c]);
        followed += turn(many, &talks[c]) >= PERSONA;
    }
    const struct spread alone = spread_of(one), here = spread_of(many);
    const uint64_t persona = kv_cache_prompt_bytes(kv_homes_cache(many, 0), PERSONA) + 4 * 3072;
    show("a persona", alone, here, one_conversation(many, talks));
    printf("%u of %u found the persona\n", followed, CONVERSATIONS);
    assert_int_equal(followed, CONVERSATIONS - HOMES);                /* computed once in each home */
    assert_true(here.sum > alone.sum && here.sum <= alone.sum + (HOMES - 1) * persona);
    assert_true(here.largest <= here.sum / HOMES + one_conversation(many, talks));
    kv_homes_destroy(&one);
    kv_homes_destroy(&many);
    free(talks);
}

/* Full homes: what goes on goes on where it lies, and what is new does not wait for a home that open sequences hold. */
static void test_full_homes(void **state)
{
    (void)state;
    struct conversation *talks = calloc(CONVERSATIONS, sizeof *talks);
    struct kv_homes *homes = make(2, 2 << 20, 1 << 19);
    for (uint32_t c = 0; c < CONVERSATIONS; c++) {
        say(&talks[c], 2000 + c, 1500);
        (void)turn(homes, &talks[c]);
        for (uint32_t recent = c > 3 ? c - 3 : 0; recent <= c; recent++) {
            const uint32_t before = talks[recent].count;
            const struct kv_cache *where = talks[recent].last;
            say(&talks[recent], 3000 + c, 40);
            assert_int_equal(turn(homes, &talks[recent]), before);
            assert_ptr_equal(talks[recent].last, where);
        }
        assert_ok(kv_homes_check(homes));
    }
    struct kv_cache_counts counts;
    kv_homes_counts(homes, &counts);
    assert_true(counts.evicted_leaves > 0 && counts.demoted > 0);
    /* Sequences that stay open take the homes in turn, as far as both have room. */
    struct kv_sequence *open[64];
    uint32_t opened[2] = {0};
    for (uint32_t i = 0; i < 12; i++) {
        struct conversation *talk = &talks[i];
        talk->count = 0;
        say(talk, 9000 + i, 2000);
        assert_ok(begin_turn(homes, talk, &open[i]));
        struct kv_cache *cache = kv_sequence_cache(open[i]);
        for (uint32_t at = 0; at < talk->count; at += CHUNK) {
            const uint32_t count = talk->count - at < CHUNK ? talk->count - at : CHUNK;
            assert_ok(kv_cache_reserve(cache, open[i], at + count));
            kv_cache_append(cache, open[i], talk->ids + at, count);
        }
        opened[cache == kv_homes_cache(homes, 1)]++;
    }
    assert_int_equal(opened[0], 6);
    assert_int_equal(opened[1], 6);
    for (uint32_t i = 0; i < 12; i++)
        kv_cache_drop(kv_sequence_cache(open[i]), &open[i]);
    assert_ok(kv_homes_check(homes));
    kv_homes_forget(homes);
    assert_int_equal(spread_of(homes).sum, 0);
    kv_homes_destroy(&homes);
    free(talks);
}

/* Sequences that come together, before any has computed: what they will take counts. */
static void test_opened_together(void **state)
{
    (void)state;
    struct conversation *talks = calloc(8, sizeof *talks);
    struct kv_sequence *open[8];
    struct kv_homes *homes = make(HOMES, 64 << 20, 0);
    uint32_t opened[HOMES] = {0};
    for (uint32_t i = 0; i < 8; i++) {
        say(&talks[i], i, 1000);
        assert_ok(begin_turn(homes, &talks[i], &open[i]));
        for (uint32_t home = 0; home < HOMES; home++)
            opened[home] += kv_sequence_cache(open[i]) == kv_homes_cache(homes, home);
    }
    for (uint32_t home = 0; home < HOMES; home++)
        assert_int_equal(opened[home], 2);
    for (uint32_t i = 0; i < 8; i++)
        kv_cache_drop(kv_sequence_cache(open[i]), &open[i]);
    kv_homes_destroy(&homes);
    free(talks);
}

static void test_each_home_holds_a_conversation(void **state)
{
    (void)state;
    const struct kv_cache_config config = {
        .ops = &ops, .backend = (struct backend *)&home_count, .groups = {{.page_bytes = 1024}},
        .device_bytes = 100 * 1024, .sequence_tokens_max = TOKENS_MAX, .open_max = 4, .chunk_tokens_max = CHUNK};
    struct kv_homes *homes = NULL;
    home_count = 1;
    assert_ok(kv_homes_create(&config, &homes));
    kv_homes_destroy(&homes);
    home_count = 2;
    assert_int_equal(kv_homes_create(&config, &homes), STATUS_LIMIT);
    assert_non_null(strstr(status_detail(), "of 2 ranks"));
}

/* The client has written the conversation anew: nothing of it matches, and it goes to the emptier home. */
static void test_rewritten_conversation(void **state)
{
    (void)state;
    static struct conversation before, after;
    struct kv_homes *homes = make(2, 64 << 20, 0);
    after.name = &before;
    say(&before, 1, 500);
    say(&after, 2, 500);
    (void)turn(homes, &before);
    (void)turn(homes, &after);           /* looks that one path has the name */
    assert_ptr_not_equal(before.last, after.last);
    kv_homes_destroy(&homes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conversations_are_spread),
        cmocka_unit_test(test_persona_is_followed_and_copied),
        cmocka_unit_test(test_full_homes),
        cmocka_unit_test(test_opened_together),
        cmocka_unit_test(test_each_home_holds_a_conversation),
        cmocka_unit_test(test_rewritten_conversation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
