/* What is there when nothing had to be evicted, from the rules at the head of kv_cache.h alone: a model of paths and blocks that knows
 * tokens and positions, but no hash index, claims or records of the cache. After each operation every block of the cache must be one of
 * the model's, every block of the model in the cache, with a local page exactly where a rule names it; and random prompts must match
 * just as far as those pages allow.
 *
 * One thing is looked up instead of predicted, because no rule decides it: where a path ends inside a block that several kept blocks begin
 * with, which of them takes its end. */
#include "common/hash.h"
#include "tests/unit/worker/kv_world.h"
#include "worker/engine/kv/kv_state.h"

#if defined(__SANITIZE_ADDRESS__)
enum { OPERATIONS = 400 };
#else
enum { OPERATIONS = 1200 };
#endif
enum { TALKS = 5, OPEN = 4, PATHS_MAX = 64, BLOCKS_MAX = 4096, REPLY = 90, BLOCK = 64 };

struct path {                                /* kept, or open */
    uint32_t ids[WORLD_TOKENS], tokens;
    uint64_t hash[WORLD_TOKENS + 1];         /* of the root and the tokens before */
    uint64_t end;                            /* kept: the hash of its last block, whose tokens may be more than its own */
    uint32_t points[2 + KV_SNAPSHOTS_MAX], point_count;
};

struct block {
    uint64_t hash, parent;                   /* of all tokens up to its end; up to its beginning */
    uint32_t ids[BLOCK], count, index;
    bool local;
};

struct model {
    struct world world;
    uint64_t rng;
    struct world_request talks[TALKS], requests[OPEN];
    struct path open[OPEN], kept[PATHS_MAX];
    uint32_t kept_count;
    struct block blocks[BLOCKS_MAX];
    uint32_t block_count;
    uint64_t opened, branched, absorbed, inside, snapshots, healed, tombstones;   /* how much of each there was */
};

static struct { uint64_t branched, absorbed, inside, snapshots, healed, tombstones; } seen; /* in all shapes */

/* ---- the rules ---- */

/* Whether block b holds one of the last `span` tokens before `end`. */
static bool reaches(uint32_t b, uint32_t end, uint32_t span)
{
    return b * BLOCK < end && b * BLOCK + BLOCK - 1 + span >= end;
}

static bool claims(const struct world_shape *shape, const struct path *path, uint32_t b)
{
    if (b * BLOCK < shape->sinks || reaches(b, path->tokens, shape->window + shape->rewind))
        return true;
    for (uint32_t p = 0; p < path->point_count; p++)
        if (reaches(b, path->points[p], shape->window))
            return true;
    return false;
}

static struct block *block_of(struct model *model, uint64_t hash)
{
    for (uint32_t i = 0; i < model->block_count; i++)
        if (model->blocks[i].hash == hash)
            return &model->blocks[i];
    return NULL;
}

static bool whole(struct model *model, const struct path *path, uint32_t known, uint32_t point)
{
    for (uint32_t b = 0; b < known; b++)
        if (reaches(b, point, model->world.shape.window) && !block_of(model, path->hash[BLOCK * (b + 1)])->local)
            return false;
    return true;
}

/* The resume points of a path as if it had `tokens` tokens, of which the first `known` blocks are there or not, the others will be. */
static void choose(struct model *model, struct path *path, uint32_t known, uint32_t tokens, const struct world_request *request)
{
    const struct world_shape *shape = &model->world.shape;
    const uint32_t prompt = request->count;
    bool prompt_kept = false;
    path->point_count = 0;
    if (!shape->local)
        return;
    if (prompt <= tokens && whole(model, path, known, prompt)) {
        path->points[path->point_count++] = prompt;
        prompt_kept = true;
    }
    if (request->end_count > 0 && request->ends[0] <= tokens && whole(model, path, known, request->ends[0]))
        path->points[path->point_count++] = request->ends[0];
    uint64_t nearest = shape->rewind > BLOCK ? shape->rewind : BLOCK;
    for (uint32_t span = 0; span < shape->snapshots; span++, nearest *= 4)
        for (uint32_t e = 1; e < request->end_count; e++) { /* the furthest first */
            const uint32_t at = request->ends[e];
            if (at > tokens || tokens - at < nearest || tokens - at >= 4 * nearest || (prompt_kept && at == prompt) ||
                !whole(model, path, known, at))
                continue;
            path->points[path->point_count++] = at;
            break;
        }
}

static bool passes(const struct path *path, const struct block *block)
{
    const uint32_t end = block->index * BLOCK + block->count;
    return path->end == block->hash || (block->count == BLOCK && end <= path->tokens && path->hash[end] == block->hash);
}

/* Blocks that no path passes go, and local pages that none claims. */
static void tidy(struct model *model)
{
    const struct world_shape *shape = &model->world.shape;
    for (uint32_t i = 0; i < model->block_count;) {
        struct block *block = &model->blocks[i];
        bool needed = false, claimed = false;
        for (uint32_t p = 0; p < model->kept_count + OPEN; p++) {
            const struct path *path = p < OPEN ? &model->open[p] : &model->kept[p - OPEN];
            if (path->tokens == 0 || !passes(path, block))
                continue;
            needed = true;
            claimed |= claims(shape, path, block->index);
        }
        block->local &= claimed || !shape->local;
        if (needed)
            i++;
        else
            *block = model->blocks[--model->block_count];
    }
}

static bool begins(const struct block *block, uint64_t parent, const uint32_t *ids, uint32_t count)
{
    return block->parent == parent && block->local && block->count >= count && memcmp(block->ids, ids, count * sizeof *ids) == 0;
}

/* Group 0 of [0, p), group 1 of [p - W + 1, p) and of the sinks; inside a block, the block to be gone on with. */
static bool may_resume(struct model *model, const struct path *path, uint32_t p)
{
    const struct world_shape *shape = &model->world.shape;
    const uint32_t part = p % BLOCK;
    for (uint32_t b = 0; b < p / BLOCK; b++) {
        const struct block *block = block_of(model, path->hash[BLOCK * (b + 1)]);
        if (block == NULL || (!block->local && (b * BLOCK < shape->sinks || reaches(b, p, shape->window - 1))))
            return false;
    }
    for (uint32_t i = 0; part > 0 && i < model->block_count; i++)
        if (begins(&model->blocks[i], path->hash[p - part], path->ids + p - part, part))
            return true;
    return part == 0;
}

static uint32_t longest_match(struct model *model, const struct path *path, uint32_t limit)
{
    uint32_t there = 0; /* whole blocks, with or without local pages */
    while ((there + 1) * BLOCK <= limit && block_of(model, path->hash[(there + 1) * BLOCK]) != NULL)
        there++;
    uint32_t p = (there + 1) * BLOCK - 1 < limit ? (there + 1) * BLOCK - 1 : limit;
    while (!may_resume(model, path, p))
        p--;
    return p;
}

/* ---- the cache must be the same ---- */

static uint64_t real_hash(const struct kv_cache *cache, uint32_t at)
{
    const struct kv_node *node = kv_node(cache, at);
    if (node->parent == 0)
        return hash_fast(node->ids, KV_CACHE_ROOT_BYTES, 0);
    uint64_t hash = real_hash(cache, node->parent);
    for (uint32_t i = 0; i < node->count; i++)
        hash = hash_mix(hash, node->ids[i]);
    return hash;
}

static void compare_nodes(struct model *model)
{
    const struct kv_cache *cache = model->world.cache;
    const struct world_shape *shape = &model->world.shape;
    uint32_t nodes = 0;
    for (uint32_t at = 1; at <= cache->tree.touched; at++) {
        const struct kv_node *node = kv_node(cache, at);
        if (node->parent == 0)
            continue;
        const struct block *block = block_of(model, real_hash(cache, at));
        nodes++;
        if (block == NULL || block->count != node->count)
            fail_msg("block %u with %u tokens is kept; no rule asks for it", node->block, node->count);
        assert_int_equal(node->page[DEVICE][0] != 0, shape->global);
        if (shape->local && block->local != kv_node_has_local(node))
            fail_msg("block %u with %u tokens: a local page %s", node->block, node->count,
                     block->local ? "is missing" : "that no rule names");
        model->tombstones += shape->local && !block->local;
    }
    assert_int_equal(nodes, model->block_count);
    assert_int_equal(cache->record_count, model->kept_count);
}

/* ---- operations, on both ---- */

static void set_tokens(struct path *path, const struct world_request *request)
{
    memcpy(path->ids, request->ids, sizeof path->ids);
    path->hash[0] = hash_fast(request->root, KV_CACHE_ROOT_BYTES, 0);
    for (uint32_t i = 0; i < WORLD_TOKENS; i++)
        path->hash[i + 1] = hash_mix(path->hash[i], path->ids[i]);
}

static void open_one(struct model *model, uint32_t slot, const struct world_request *talk)
{
    struct world_request *request = &model->requests[slot];
    struct path *path = &model->open[slot];
    *request = *talk;
    for (uint32_t n = rng_below(&model->rng, 4) > 0 ? rng_below(&model->rng, REPLY) : 0; n > 0 && request->total < model->world.shape.context; n--)
        request->ids[request->total++] = 1 + rng_below(&model->rng, 2);
    *path = (struct path){0};
    set_tokens(path, request);
    const uint32_t expected = longest_match(model, path, request->count - 1);
    assert_ok(world_open(&model->world, request));
    if (kv_sequence_matched(request->sequence) != expected)
        fail_msg("matched %u of %u tokens, the rules promise %u", kv_sequence_matched(request->sequence), request->count, expected);
    path->tokens = expected;
    choose(model, path, expected / BLOCK, request->count + model->world.shape.rewind, request);
    assert_true(kv_sequence_ready(request->sequence));
    world_verify(&model->world, request);
    model->opened++;
}

static void add_block(struct model *model, const struct path *path, uint32_t index, uint32_t count)
{
    const uint32_t start = index * BLOCK;
    struct block *block = block_of(model, path->hash[start + count]);
    if (block == NULL) {
        assert_true(model->block_count < BLOCKS_MAX);
        block = &model->blocks[model->block_count++];
        *block = (struct block){.hash = path->hash[start + count], .parent = path->hash[start], .count = count, .index = index};
        memcpy(block->ids, path->ids + start, count * sizeof *block->ids);
    } else {
        model->healed += !block->local;
    }
    block->local = true;
}

static void compute(struct model *model, uint32_t slot, uint32_t count)
{
    struct world_request *request = &model->requests[slot];
    struct path *path = &model->open[slot];
    const uint32_t to = path->tokens + count < request->total ? path->tokens + count : request->total;
    assert_ok(world_compute(&model->world, request, to, model->world.shape.chunk));
    for (uint32_t b = path->tokens / BLOCK; b < to / BLOCK; b++)
        add_block(model, path, b, BLOCK);
    path->tokens = to;
    tidy(model);
}

static void absorb(struct model *model, const struct path *longer)
{
    for (uint32_t k = 0; k < model->kept_count;) {
        struct path *path = &model->kept[k];
        const struct block *end = block_of(model, path->end);
        const uint32_t end_tokens = end->index * BLOCK + end->count;
        const bool beginning = path->tokens <= longer->tokens && path->hash[path->tokens] == longer->hash[path->tokens];
        if (path != longer && beginning &&
            (path->end == longer->end || (end_tokens <= longer->tokens && longer->hash[end_tokens] == path->end))) {
            const bool last = longer == &model->kept[--model->kept_count];
            *path = model->kept[model->kept_count];
            longer = last ? path : longer;
            model->absorbed++;
        } else {
            k++;
        }
    }
}

/* The block that takes the end of a path. */
static uint64_t find_end(struct model *model, const struct path *path)
{
    const struct kv_cache *cache = model->world.cache;
    const uint32_t part = path->tokens % BLOCK, start = path->tokens - part;
    const uint32_t newest = cache->lists[model->world.shape.local ? KV_RECORD_WHOLE : KV_RECORD_BARE].newest;
    const uint64_t looked_up = real_hash(cache, cache->records[newest].node);
    bool any = false, among = false;
    if (part == 0)
        return path->hash[path->tokens];
    for (uint32_t i = 0; i < model->block_count; i++)
        if (begins(&model->blocks[i], path->hash[start], path->ids + start, part)) {
            any = true;
            among |= model->blocks[i].hash == looked_up;
        }
    if (!any) {
        add_block(model, path, start / BLOCK, part);
        return path->hash[path->tokens];
    }
    assert_true(among);
    model->inside += looked_up != path->hash[path->tokens];
    return looked_up;
}

static void end_one(struct model *model, uint32_t slot, bool keep)
{
    struct world_request *request = &model->requests[slot];
    struct path *path = &model->open[slot];
    if (keep && path->tokens > 0) {
        assert_true(model->kept_count < PATHS_MAX);
        struct path *kept = &model->kept[model->kept_count];
        *kept = *path;
        choose(model, kept, path->tokens / BLOCK, path->tokens, request);
        model->snapshots += kept->point_count > 2;
        world_keep(&model->world, request);
        kept->end = find_end(model, kept);
        model->kept_count++;
        absorb(model, kept);
    } else {
        kv_cache_drop(model->world.cache, &request->sequence);
    }
    path->tokens = 0;
}

static void branch(struct model *model, uint32_t from, uint32_t to)
{
    struct world_request *request = &model->requests[to];
    struct path *path = &model->open[to];
    struct kv_sequence *twin = NULL;
    if (model->open[from].tokens == 0)
        return;
    assert_ok(kv_cache_branch(model->world.cache, model->requests[from].sequence, &twin));
    *request = model->requests[from];
    request->sequence = twin;
    *path = model->open[from];
    uint32_t first = path->tokens > request->count ? path->tokens : request->count;
    for (; first < request->total; first++)
        request->ids[first] = 1 + rng_below(&model->rng, 500);
    set_tokens(path, request);
    choose(model, path, path->tokens / BLOCK, request->count + model->world.shape.rewind, request);
    world_verify(&model->world, request);
    model->branched++;
}

/* ---- what users do ---- */

static void cut(struct world_request *talk, uint32_t ends)
{
    talk->end_count = ends;
    talk->count = talk->total = talk->ends[ends - 1];
}

static void say_more(struct model *model, struct world_request *talk)
{
    const uint32_t room = model->world.shape.context - REPLY - talk->count, what = rng_below(&model->rng, 8);
    uint32_t count = 1 + rng_below(&model->rng, what == 0 ? 200 : 40);
    if (what == 1)
        count = BLOCK - talk->count % BLOCK; /* to the end of a block */
    if (what == 2 && model->world.shape.rewind > 0)
        count = model->world.shape.rewind;   /* the message before it ends on the border of a span */
    world_add_message(talk, count < room ? count : room, what < 5 ? 2 : 1000, &model->rng);
}

static void start_over(struct model *model, struct world_request *talk)
{
    *talk = (struct world_request){0};
    memset(talk->root, (int)rng_below(&model->rng, 2), sizeof talk->root);
    uint64_t persona = rng_below(&model->rng, 3);
    world_add_message(talk, 30 + 53 * (uint32_t)persona, 1000, &persona);
    say_more(model, talk);
}

static void change_talk(struct model *model, struct world_request *talk)
{
    const uint32_t what = rng_below(&model->rng, 20);
    if (what == 0 || talk->count + REPLY + 8 >= model->world.shape.context) {
        start_over(model, talk);
    } else if (what < 3 && talk->end_count > 2) {
        cut(talk, 1 + rng_below(&model->rng, talk->end_count - 1));
        say_more(model, talk);
    } else if (what < 5) {                       /* another's, so that both go on from there */
        *talk = model->talks[rng_below(&model->rng, TALKS)];
    } else if (what == 5) {                      /* a word changed, all else as it was */
        talk->ids[rng_below(&model->rng, talk->count)] ^= 1;
    } else if (what > 8) {
        say_more(model, talk);
    } /* else the same again: another reply */
}

/* Beginnings of what was said, with a word changed, matched and compared; nothing is opened. */
static void try_prompts(struct model *model)
{
    static struct world_request request;
    static struct path path;
    for (uint32_t n = 0; n < 2; n++) {
        if (model->kept_count > 0 && rng_below(&model->rng, 2) == 0) {
            const struct path *kept = &model->kept[rng_below(&model->rng, model->kept_count)];
            request = model->talks[0];
            request.count = kept->tokens;
            memcpy(request.ids, kept->ids, sizeof request.ids);
            if (kept->hash[0] != hash_fast(request.root, KV_CACHE_ROOT_BYTES, 0))
                memset(request.root, 1 - request.root[0], sizeof request.root); /* the other of the two */
        } else {
            request = model->talks[rng_below(&model->rng, TALKS)];
        }
        request.count = 1 + rng_below(&model->rng, request.count);
        request.end_count = 0;
        if (rng_below(&model->rng, 2) == 0)
            request.ids[rng_below(&model->rng, request.count)] ^= 1;
        set_tokens(&path, &request);
        const struct kv_prompt prompt = world_prompt(&request);
        const uint32_t expected = longest_match(model, &path, request.count - 1);
        const uint32_t found = kv_cache_match(model->world.cache, &prompt);
        if (found != expected)
            fail_msg("a match of %u tokens of %u, the rules promise %u", found, request.count, expected);
    }
}

static void operate(struct model *model)
{
    const uint32_t slot = rng_below(&model->rng, OPEN), what = rng_below(&model->rng, 100), other = rng_below(&model->rng, OPEN);
    struct world_request *request = &model->requests[slot];
    if (request->sequence == NULL) {
        struct world_request *talk = &model->talks[rng_below(&model->rng, TALKS)];
        change_talk(model, talk);
        open_one(model, slot, talk);
    } else if (what < 4) {
        end_one(model, slot, false);
    } else if (what < 10) {
        end_one(model, slot, true); /* in the middle of it */
    } else if (what < 14 && model->requests[other].sequence == NULL) {
        branch(model, slot, other);
    } else {
        compute(model, slot, 1 + rng_below(&model->rng, model->world.shape.chunk));
        if (model->open[slot].tokens == request->total) {
            struct world_request *talk = &model->talks[rng_below(&model->rng, TALKS)];
            const bool read = request->total > request->count && rng_below(&model->rng, 3) > 0;
            if (read) { /* the user goes on from the reply */
                *talk = *request;
                talk->sequence = NULL;
                talk->ends[talk->end_count++] = talk->count = talk->total;
            }
            end_one(model, slot, true);
        }
    }
    if (model->kept_count + OPEN >= PATHS_MAX) {
        kv_cache_forget(model->world.cache);
        model->kept_count = 0;
    }
    tidy(model);
}

static void run(const struct world_shape *shape)
{
    static struct model model;
    memset(&model, 0, sizeof model);
    world_create(&model.world, shape);
    model.rng = test_seed(shape->window * 1000u + shape->rewind * 31 + shape->snapshots + shape->sinks);
    for (uint32_t t = 0; t < TALKS; t++)
        start_over(&model, &model.talks[t]);
    for (uint32_t operation = 0; operation < OPERATIONS; operation++) {
        operate(&model);
        compare_nodes(&model);
        try_prompts(&model);
        if (operation % 50 == 0)
            world_check(&model.world);
    }
    for (uint32_t slot = 0; slot < OPEN; slot++)
        if (model.requests[slot].sequence != NULL) {
            end_one(&model, slot, true);
            tidy(&model); /* before the next: its points are chosen by the pages that are left */
            compare_nodes(&model);
        }
    struct kv_cache_counts counts;
    kv_cache_counts(model.world.cache, &counts);
    assert_int_equal(counts.evicted_snapshots + counts.evicted_rewinds + counts.evicted_leaves, 0);
    world_destroy(&model.world);
    print_message("W %u, R %u, %u snapshots: %llu opened, %llu branched, %llu absorbed, %llu ends inside blocks, %llu paths with snapshots, "
                  "%llu blocks healed, %llu tombstones seen\n",
                  shape->window, shape->rewind, shape->snapshots, (unsigned long long)model.opened, (unsigned long long)model.branched,
                  (unsigned long long)model.absorbed, (unsigned long long)model.inside, (unsigned long long)model.snapshots,
                  (unsigned long long)model.healed, (unsigned long long)model.tombstones);
    assert_true(model.opened > OPERATIONS / 20);
    seen.branched += model.branched;
    seen.absorbed += model.absorbed;
    seen.inside += model.inside;
    seen.snapshots += model.snapshots;
    seen.healed += model.healed;
    seen.tombstones += model.tombstones;
}

static const struct world_shape ample = {.global = true,
                                         .local = true,
                                         .window = 100,
                                         .rewind = 70,
                                         .snapshots = 3,
                                         .context = 1000,
                                         .chunk = 150,
                                         .open_max = OPEN,
                                         .device_bytes = 8 << 20};

static void pages_are_those_the_rules_name(void **state)
{
    (void)state;
    struct world_shape shape = ample;
    run(&shape);
    shape.window = 128; /* whole pages */
    shape.rewind = 64;
    shape.snapshots = 8;
    run(&shape);
    shape.window = 64;
    shape.rewind = 200;
    shape.snapshots = 1;
    shape.chunk = 40;
    run(&shape);
}

static void without_r_or_snapshots(void **state)
{
    (void)state;
    struct world_shape shape = ample;
    shape.rewind = 0;
    run(&shape);
    shape.snapshots = 0;
    run(&shape);
    shape.window = 1;
    run(&shape);
    shape.window = 700; /* more than most conversations */
    run(&shape);
}

static void with_sinks(void **state)
{
    (void)state;
    struct world_shape shape = ample;
    shape.sinks = 5;
    run(&shape);
    shape.sinks = 70;
    shape.rewind = 0;
    run(&shape);
}

static void with_one_group(void **state)
{
    (void)state;
    struct world_shape shape = ample;
    shape.global = false;
    run(&shape);
    shape = ample;
    shape.local = false;
    run(&shape);
}

static void all_of_it_happened(void **state)
{
    (void)state;
    assert_true(seen.branched > 0 && seen.absorbed > 0 && seen.inside > 0);
    assert_true(seen.snapshots > 0 && seen.healed > 0 && seen.tombstones > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_are_those_the_rules_name),
        cmocka_unit_test(without_r_or_snapshots),
        cmocka_unit_test(with_sinks),
        cmocka_unit_test(with_one_group),
        cmocka_unit_test(all_of_it_happened),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
