/* The tree over tokens alone, against a list of its nodes that is searched from end to end: two kinds of tokens, so that siblings begin
 * alike, and hashes of one bit, so that nearly all of them collide. */
#include "tests/unit/worker/unit.h"
#include "worker/engine/kv/kv_tree.h"

enum { CAPACITY = 400, DEPTH = 6 };

struct known { bool there, live; uint32_t parent, count, ids[KV_BLOCK]; };

struct forest {
    struct kv_tree tree;
    uint64_t rng;
    struct known known[CAPACITY + 1];        /* by node */
    uint32_t nodes[CAPACITY], count;
};

static void forest_create(struct forest *forest, uint64_t hash_mask, bool local, uint64_t seed)
{
    memset(forest, 0, sizeof *forest);
    forest->rng = test_seed(seed);
    assert_ok(kv_tree_create(&forest->tree, CAPACITY, hash_mask, local));
    for (uint8_t r = 0; r < 2; r++) {
        uint8_t name[32];
        memset(name, 5 + r, sizeof name);
        const uint32_t at = kv_tree_add_root(&forest->tree, name);
        assert_int_equal(kv_tree_root(&forest->tree, name), at);
        forest->known[at].there = true;
        forest->nodes[forest->count++] = at;
    }
}

/* Mostly a long beginning in common, then one of two tokens each. */
static uint32_t draw_tokens(struct forest *forest, uint32_t *ids)
{
    const uint32_t same = rng_below(&forest->rng, KV_BLOCK + 8);
    const uint32_t count = rng_below(&forest->rng, 2) ? KV_BLOCK : 1 + rng_below(&forest->rng, KV_BLOCK);
    for (uint32_t i = 0; i < KV_BLOCK; i++)
        ids[i] = i < same ? 1 : 1 + rng_below(&forest->rng, 2);
    return count;
}

static uint32_t common(const uint32_t *a, uint32_t a_count, const uint32_t *b, uint32_t b_count)
{
    uint32_t same = 0;
    while (same < a_count && same < b_count && a[same] == b[same])
        same++;
    return same;
}

static uint32_t find(const struct forest *forest, uint32_t parent, const uint32_t *ids, uint32_t count)
{
    for (uint32_t n = 0; n < forest->count; n++) {
        const struct known *known = &forest->known[forest->nodes[n]];
        if (known->parent == parent && known->parent != 0 && known->count == count && common(known->ids, count, ids, count) == count)
            return forest->nodes[n];
    }
    return 0;
}

static uint32_t most_in_common(const struct forest *forest, uint32_t parent, const uint32_t *ids, uint32_t count)
{
    uint32_t most = 0;
    for (uint32_t n = 0; n < forest->count; n++) {
        const struct known *known = &forest->known[forest->nodes[n]];
        const uint32_t same = known->parent == parent && known->live ? common(known->ids, known->count, ids, count) : 0;
        most = same > most ? same : most;
    }
    return most;
}

static void set_live(struct forest *forest, uint32_t at, bool live)
{
    kv_tree_node(&forest->tree, at)->page[0][1] = live; /* "live" is: with a local page */
    kv_tree_set_live(&forest->tree, at, live);
    forest->known[at].live = live;
}

static void search(struct forest *forest, uint32_t parent, const uint32_t *ids, uint32_t count)
{
    uint32_t same;
    assert_int_equal(kv_tree_find(&forest->tree, parent, ids, count), find(forest, parent, ids, count));
    const uint32_t best = kv_tree_best(&forest->tree, parent, ids, count, &same);
    assert_int_equal(same, most_in_common(forest, parent, ids, count));
    assert_int_equal(best != 0, same > 0);
    if (best != 0) {
        assert_true(forest->known[best].live && forest->known[best].parent == parent);
        assert_int_equal(common(forest->known[best].ids, forest->known[best].count, ids, count), same);
    }
}

static void walk(struct forest *forest)
{
    uint32_t ids[DEPTH * KV_BLOCK], path[DEPTH], at = forest->nodes[rng_below(&forest->rng, 2)];
    const uint32_t root = at, count = 1 + rng_below(&forest->rng, DEPTH * KV_BLOCK);
    for (uint32_t b = 0; b < DEPTH; b++) { /* along nodes that are there, as far as one is drawn */
        (void)draw_tokens(forest, ids + b * KV_BLOCK);
        for (uint32_t tries = 0; tries < 20; tries++) {
            const uint32_t next = forest->nodes[rng_below(&forest->rng, forest->count)];
            if (forest->known[next].parent == at && at != 0 && forest->known[next].count == KV_BLOCK)
                memcpy(ids + b * KV_BLOCK, forest->known[next].ids, sizeof forest->known[next].ids);
        }
        at = at != 0 ? find(forest, at, ids + b * KV_BLOCK, KV_BLOCK) : 0;
    }
    const uint32_t blocks = kv_tree_walk(&forest->tree, root, ids, count, path);
    at = root;
    for (uint32_t b = 0; b < count / KV_BLOCK; b++) {
        at = find(forest, at, ids + b * KV_BLOCK, KV_BLOCK);
        assert_int_equal(b < blocks ? path[b] : 0, at);
        if (at == 0)
            break;
    }
}

static uint32_t depth(const struct forest *forest, uint32_t at)
{
    return forest->known[at].parent == 0 ? 0 : 1 + depth(forest, forest->known[at].parent);
}

static void add(struct forest *forest)
{
    uint32_t ids[KV_BLOCK], parent;
    do {
        parent = forest->nodes[rng_below(&forest->rng, forest->count)];
    } while (depth(forest, parent) == DEPTH || (forest->known[parent].parent != 0 && forest->known[parent].count < KV_BLOCK));
    const uint32_t count = draw_tokens(forest, ids);
    search(forest, parent, ids, count);
    if (find(forest, parent, ids, count) != 0)
        return;
    const uint32_t at = kv_tree_add(&forest->tree, parent, ids, count);
    assert_int_equal(at == 0, forest->count == CAPACITY);
    if (at == 0)
        return;
    assert_false(forest->known[at].there);
    forest->known[at] = (struct known){.there = true, .live = !forest->tree.local, .parent = parent, .count = count};
    memcpy(forest->known[at].ids, ids, count * sizeof *ids);
    forest->nodes[forest->count++] = at;
    if (forest->tree.local && rng_below(&forest->rng, 3) > 0)
        set_live(forest, at, true);
}

static void take_away(struct forest *forest, uint32_t n)
{
    const uint32_t at = forest->nodes[n];
    if (forest->known[at].parent == 0 || kv_tree_node(&forest->tree, at)->child_count > 0)
        return;
    if (forest->tree.local)
        set_live(forest, at, false);
    kv_tree_remove(&forest->tree, at);
    forest->known[at] = (struct known){0};
    forest->nodes[n] = forest->nodes[--forest->count];
}

static void run(uint64_t hash_mask, bool local, uint64_t seed)
{
    static struct forest forest;
    uint32_t fullest = 0;
    forest_create(&forest, hash_mask, local, seed);
    for (int operation = 0; operation < 20000; operation++) {
        const uint32_t what = rng_below(&forest.rng, 100), n = rng_below(&forest.rng, forest.count);
        const bool grow = operation / 2000 % 2 == 0;
        if (what < (grow ? 60u : 30u))
            add(&forest);
        else if (what < 75)
            take_away(&forest, n);
        else if (what < 85)
            walk(&forest);
        else if (local && forest.known[forest.nodes[n]].parent != 0)
            set_live(&forest, forest.nodes[n], !forest.known[forest.nodes[n]].live);
        if (operation % 100 == 0)
            assert_ok(kv_tree_check(&forest.tree));
        assert_int_equal(forest.tree.node_count, forest.count - 2);
        fullest = forest.count > fullest ? forest.count : fullest;
    }
    assert_int_equal(fullest, CAPACITY);
    while (forest.count > 2)
        for (uint32_t n = forest.count; n-- > 2;)
            take_away(&forest, n);
    assert_ok(kv_tree_check(&forest.tree));
    assert_int_equal(forest.tree.node_count + forest.tree.tombstones, 0);
    kv_tree_destroy(&forest.tree);
}

static void nodes_are_found_by_their_tokens(void **state)
{
    (void)state;
    run(UINT64_MAX, true, 1);
    run(UINT64_MAX, false, 2);
}

static void collisions_change_nothing(void **state)
{
    (void)state;
    run(1, true, 3);
    run(UINT64_C(1) << 63, false, 4); /* one bucket */
}

/* Siblings in ascending order are the worst case of a search tree without balance. */
static void many_siblings_stay_in_balance(void **state)
{
    (void)state;
    enum { SIBLINGS = 20000 };
    static const uint8_t name[32] = {1};
    struct kv_tree tree;
    uint32_t ids[KV_BLOCK] = {0}, same;
    assert_ok(kv_tree_create(&tree, SIBLINGS + 1, UINT64_MAX, false));
    const uint32_t root = kv_tree_add_root(&tree, name);
    for (uint32_t s = 0; s < SIBLINGS; s++) {
        ids[40] = s * 2;
        assert_int_not_equal(kv_tree_add(&tree, root, ids, KV_BLOCK), 0);
    }
    assert_ok(kv_tree_check(&tree)); /* depth too */
    for (uint32_t s = 0; s < SIBLINGS; s++) {
        ids[40] = s * 2;
        assert_int_equal(kv_tree_best(&tree, root, ids, KV_BLOCK, &same), kv_tree_find(&tree, root, ids, KV_BLOCK));
        assert_int_equal(same, KV_BLOCK);
        ids[40]++;
        assert_int_not_equal(kv_tree_best(&tree, root, ids, KV_BLOCK, &same), 0);
        assert_int_equal(same, 40);
    }
    kv_tree_destroy(&tree);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nodes_are_found_by_their_tokens),
        cmocka_unit_test(collisions_change_nothing),
        cmocka_unit_test(many_siblings_stay_in_balance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
