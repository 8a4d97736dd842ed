/* kv_world.c - looks inside the cache (kv_state.h) for the nodes only; the rest goes through kv_cache.h. */
#include "tests/unit/worker/kv_world.h"
#include "worker/engine/kv/kv_state.h"

static struct kv_cache_config config_of(const struct world *world)
{
    const struct world_shape *shape = &world->shape;
    return (struct kv_cache_config){
        .ops = shape->loads ? &fake_backend_loading_ops : &fake_backend_ops,
        .backend = world->backend,
        .groups = {{.page_bytes = fake_backend_ops.page_bytes(world->backend, 0)},
                   {.page_bytes = fake_backend_ops.page_bytes(world->backend, 1),
                    .window = shape->local ? shape->window : 0,
                    .sinks = shape->local ? shape->sinks : 0}},
        .device_bytes = shape->device_bytes,
        .host_bytes = shape->host_bytes,
        .sequence_tokens_max = shape->context,
        .open_max = shape->open_max,
        .chunk_tokens_max = shape->chunk,
        .rewind_tokens = shape->rewind,
        .snapshots_max = shape->snapshots,
        .on_fate = shape->on_fate,
        .fate_user = shape->fate_user,
        .hash_mask = shape->hash_mask,
    };
}

void world_create(struct world *world, const struct world_shape *shape)
{
    const struct backend_config backend_config = {.rows_max = WORLD_TOKENS, .threads = 1};
    *world = (struct world){.shape = *shape};
    fake_backend = (struct fake_backend_state){.late_polls_max = shape->late, .late_seed = test_seed(shape->device_bytes)};
    fake_backend.shape = (struct fake_backend_shape){
        .global = shape->global, .local = shape->local, .window = shape->window, .sinks = shape->sinks};
    assert_ok(fake_backend_ops.create(NULL, &backend_config, &world->backend));
    struct kv_cache_config config = config_of(world);
    if (shape->device_bytes == 0) { /* the refusal says how much it takes */
        config.device_bytes = 64;
        assert_int_equal(kv_cache_create(&config, &world->cache), STATUS_LIMIT);
        const char *give = strstr(status_detail(), "give it ");
        assert_non_null(give);
        config.device_bytes = world->shape.device_bytes = strtoull(give + 8, NULL, 10);
        config.device_bytes -= 64;
        assert_int_equal(kv_cache_create(&config, &world->cache), STATUS_LIMIT);
        config.device_bytes += 64;
    }
    assert_ok(kv_cache_create(&config, &world->cache));
    kv_cache_load_by_layers(world->cache, true);
}

void world_check(const struct world *world)
{
    assert_ok(kv_cache_check(world->cache));
}

void world_destroy(struct world *world)
{
    struct kv_cache_counts counts;
    while (kv_cache_poll(world->cache))
        ;
    world_check(world);
    kv_cache_forget(world->cache);
    while (kv_cache_poll(world->cache))
        ;
    world_check(world);
    kv_cache_counts(world->cache, &counts);
    if (counts.sequence_open + counts.sequence_suspended == 0) {
        assert_int_equal(counts.nodes + counts.leaves + counts.tombstones + counts.snapshots, 0);
        for (int t = 0; t < 2; t++) {
            assert_int_equal(counts.tiers[t].free, counts.tiers[t].total);
            assert_int_equal(counts.pages[t][0] + counts.pages[t][1], 0);
        }
    }
    kv_cache_destroy(&world->cache);
    assert_null(world->cache);
    fake_backend_ops.destroy(&world->backend);
}

struct kv_prompt world_prompt(const struct world_request *request)
{
    return (struct kv_prompt){.root = request->root,
                              .ids = request->ids,
                              .count = request->count,
                              .ends = request->ends,
                              .end_count = request->end_count};
}

/* ---- the match by brute force ---- */

static bool local_there(const struct world *world, uint32_t node)
{
    return !world->shape.local || kv_node_has_local(kv_node(world->cache, node));
}

/* Whether the path that ends with the first tokens of `node` may be resumed at p, which is inside it or at its end. */
static bool may_resume(const struct world *world, uint32_t node, uint32_t p)
{
    const struct world_shape *shape = &world->shape;
    for (uint32_t at = node; kv_node(world->cache, at)->parent != 0; at = kv_node(world->cache, at)->parent) {
        const uint32_t first = kv_node(world->cache, at)->block * 64, last = first + 63;   /* positions */
        const bool sink = first < shape->sinks, seen = last + shape->window > p && first < p;
        if ((sink || seen) && !local_there(world, at))
            return false;
        /* a page of group 0 is always there; kv_cache_check looks */
    }
    return true;
}

uint32_t world_match(const struct world *world, const struct world_request *request, uint32_t limit)
{
    const struct kv_tree *tree = &world->cache->tree;
    uint32_t best = 0;
    for (uint32_t n = 1; n <= tree->touched; n++) {
        const struct kv_node *node = &tree->nodes[n];
        if (node->parent == 0)
            continue;
        const uint32_t first = node->block * 64;
        if (first >= limit)
            continue;
        uint32_t same = 0;
        while (same < node->count && first + same < limit && node->ids[same] == request->ids[first + same])
            same++;
        if (same == 0 || first + same <= best)
            continue;
        uint32_t at = node->parent;
        bool path = true;
        for (; path && tree->nodes[at].parent != 0; at = tree->nodes[at].parent)
            path = memcmp(tree->nodes[at].ids, request->ids + 64 * tree->nodes[at].block, 256) == 0;
        if (!path || memcmp(tree->nodes[at].ids, request->root, 32) != 0)
            continue;
        for (uint32_t p = first + same; p > first && p > best; p--)
            if (may_resume(world, n, p))
                best = p;
    }
    return best;
}

/* ---- requests ---- */

void world_verify(const struct world *world, const struct world_request *request)
{
    const struct world_shape *shape = &world->shape;
    const uint32_t tokens = kv_sequence_tokens(request->sequence);
    uint64_t hash = 1;
    for (uint32_t i = 0; i < tokens; i++) {
        hash = fake_backend_hash(hash, request->ids[i]);
        for (uint32_t g = 0; g < 2; g++) {
            if (g == 0 ? !shape->global : !shape->local || (i + shape->window <= tokens && i >= shape->sinks))
                continue;
            void *const *pages = kv_sequence_pages(request->sequence, g);
            if (fake_backend_row(g, pages[i / 64], i % 64) != hash)
                fail_msg("group %u, position %u of %u: not its KV", g, i, tokens);
        }
    }
}

void world_settle(struct world *world, struct kv_sequence *sequence)
{
    for (int i = 0; !kv_sequence_ready(sequence); i++) {
        assert_true(i < 1000000);
        (void)kv_cache_poll(world->cache);
    }
}

enum status world_open(struct world *world, struct world_request *request)
{
    const struct kv_prompt prompt = world_prompt(request);
    const uint32_t expected = world_match(world, request, request->count - 1);
    const uint32_t found = kv_cache_match(world->cache, &prompt);
    if (found != expected)
        fail_msg("matched %u tokens of %u, the rules allow %u", found, request->count, expected);
    const enum status st = kv_cache_open(world->cache, &prompt, &request->sequence);
    if (st == STATUS_OK) {
        const uint32_t matched = kv_sequence_matched(request->sequence);
        assert_true(matched == expected || (world->shape.tight && matched < expected));
        assert_int_equal(kv_sequence_tokens(request->sequence), matched);
    }
    return st;
}

enum status world_compute(struct world *world, struct world_request *request, uint32_t tokens, uint32_t chunk)
{
    struct kv_sequence *sequence = request->sequence;
    while (kv_sequence_tokens(sequence) < tokens) {
        const uint32_t start = kv_sequence_tokens(sequence), count = tokens - start < chunk ? tokens - start : chunk;
        TRY(kv_cache_reserve(world->cache, sequence, start + count));
        const struct backend_run run = {.tokens = request->ids + start,
                                        .count = count,
                                        .start = start,
                                        .after = kv_sequence_after(sequence),
                                        .pages = {world->shape.global ? kv_sequence_pages(sequence, 0) : NULL,
                                                  world->shape.local ? kv_sequence_pages(sequence, 1) : NULL}};
        const struct backend_batch batch = {.runs = &run, .run_count = 1};
        assert_ok(fake_backend_ops.forward(world->backend, &batch, NULL));
        kv_cache_append(world->cache, sequence, request->ids + start, count);
        world->tokens_computed += count;
    }
    return STATUS_OK;
}

void world_keep(struct world *world, struct world_request *request)
{
    kv_cache_keep(world->cache, &request->sequence, request->count, request->label);
    assert_null(request->sequence);
}

uint32_t world_say(struct world *world, struct world_request *request)
{
    assert_ok(world_open(world, request));
    const uint32_t matched = kv_sequence_matched(request->sequence);
    world_settle(world, request->sequence);
    world_verify(world, request);
    assert_ok(world_compute(world, request, request->total, world->shape.chunk));
    world_verify(world, request);
    world_keep(world, request);
    return matched;
}

void world_add_message(struct world_request *request, uint32_t count, uint32_t kinds, uint64_t *rng)
{
    for (uint32_t i = 0; i < count && request->count < WORLD_TOKENS; i++)
        request->ids[request->count++] = 1 + rng_below(rng, kinds);
    request->ends[request->end_count++] = request->total = request->count;
}

uint64_t world_local_pages(const struct world *world)
{
    struct kv_cache_counts counts;
    kv_cache_counts(world->cache, &counts);
    return counts.pages[0][1] + counts.pages[1][1];
}
