/* Users at random against the cache: turns, edits, retries, branches, cancels, preemption, in memories that are too small. What is
 * compared is in kv_world.h; and what was kept under a name can be resumed to its end until it is said to be gone. */
#include "tests/unit/worker/kv_world.h"

#if defined(__SANITIZE_ADDRESS__)
enum { OPERATIONS = 100000 };
#else
enum { OPERATIONS = 1000000 };
#endif
enum { TALKS = 10, REQUESTS_MAX = 8, REPLY = 96, NAMES = 12 };

struct promise {                                 /* of a name */
    struct world_request path;                   /* what was kept under it last, and a token more */
    bool kept, host;
};

struct crowd {
    struct world world;
    uint64_t rng;
    struct world_request talks[TALKS];           /* what users have said and read so far; a prompt without reply */
    struct world_request requests[REQUESTS_MAX];
    int talk_of[REQUESTS_MAX];
    bool suspended[REQUESTS_MAX];
    struct promise promises[NAMES];
    uint64_t gone, went, came;                   /* fates told */
    uint64_t operations, opened, again, matched, suspends, resumed_whole, resumed_short, forced;
};

static uint32_t drawn(struct crowd *crowd, uint32_t below)
{
    return rng_below(&crowd->rng, below);
}

/* Messages of a few kinds of tokens, so that strangers often begin alike; now and then long ones. */
static void say_more(struct crowd *crowd, struct world_request *talk)
{
    const uint32_t room = crowd->world.shape.context - REPLY - talk->count;
    uint32_t count = 1 + drawn(crowd, drawn(crowd, 4) == 0 ? 150 : 40);
    if (count > room)
        count = room;
    if (drawn(crowd, 3) > 0) { /* one of a few standard sentences */
        uint64_t sentence = 1000 + drawn(crowd, 6);
        world_add_message(talk, count, 1000, &sentence);
    } else {
        world_add_message(talk, count, 2, &crowd->rng);
    }
}

static void start_over(struct crowd *crowd, struct world_request *talk)
{
    *talk = (struct world_request){0};
    memset(talk->root, (int)drawn(crowd, 3), sizeof talk->root);
    uint64_t persona = 7 + drawn(crowd, 3);
    world_add_message(talk, 20 + (uint32_t)persona * 17, 1000, &persona);
    say_more(crowd, talk);
}

static void cut(struct world_request *talk, uint32_t ends)
{
    talk->end_count = ends;
    talk->count = talk->total = talk->ends[ends - 1];
}

static void change_talk(struct crowd *crowd, struct world_request *talk)
{
    const uint32_t what = drawn(crowd, 20);
    if (what == 0 || talk->count + REPLY + 8 >= crowd->world.shape.context) {
        start_over(crowd, talk);
    } else if (what < 3 && talk->end_count > 2) { /* back, and something else */
        cut(talk, 1 + drawn(crowd, talk->end_count - 1));
        say_more(crowd, talk);
    } else if (what < 5 && talk->end_count > 1) { /* the last message again */
        cut(talk, talk->end_count - 1);
        say_more(crowd, talk);
    } else if (what == 5) { /* somebody takes up another's conversation */
        *talk = crowd->talks[drawn(crowd, TALKS)];
    } else if (what > 7) {
        say_more(crowd, talk);
    } /* else the same again */
}

static void on_fate(void *user, const uint8_t *label, enum kv_fate fate)
{
    struct crowd *crowd = user;
    struct promise *promise = &crowd->promises[label[0]];
    assert_true(promise->kept);
    promise->kept = fate != KV_FATE_GONE;
    if (fate != KV_FATE_GONE)
        assert_int_equal(promise->host, fate == KV_FATE_DEVICE);
    promise->host = fate == KV_FATE_HOST;
    *(fate == KV_FATE_GONE ? &crowd->gone : fate == KV_FATE_HOST ? &crowd->went : &crowd->came) += 1;
}

static void check_promises(const struct crowd *crowd)
{
    for (int n = 0; n < NAMES; n++) {
        const struct world_request *path = &crowd->promises[n].path;
        const uint8_t name[KV_CACHE_LABEL_BYTES] = {(uint8_t)n};
        assert_int_equal(kv_cache_labelled(crowd->world.cache, name), crowd->promises[n].kept);
        if (crowd->promises[n].kept && path->count <= crowd->world.shape.context)
            assert_int_equal(world_match(&crowd->world, path, path->count - 1), path->count - 1);
    }
}

/* As an engine does: under a name if it is somebody's turn and ended well. */
static void keep_path(struct crowd *crowd, struct world_request *request)
{
    const uint32_t n = drawn(crowd, NAMES + NAMES / 2), tokens = kv_sequence_tokens(request->sequence);
    const uint8_t name[KV_CACHE_LABEL_BYTES] = {(uint8_t)n};
    struct promise promise = {.path = *request, .kept = true};
    promise.path.count = promise.path.total = tokens + 1;
    if (tokens < WORLD_TOKENS)
        promise.path.ids[tokens] = 5000;
    if (n < NAMES) {
        request->label = name;
        crowd->promises[n].kept = true;
        crowd->promises[n].host = false;
    }
    world_keep(&crowd->world, request);
    request->label = NULL;
    if (n >= NAMES)
        return;
    promise.kept = kv_cache_labelled(crowd->world.cache, name); /* not if there was nothing to keep */
    promise.host = crowd->promises[n].host;
    crowd->promises[n] = promise;
}

static int some_request(struct crowd *crowd, bool open)
{
    const uint32_t from = drawn(crowd, crowd->world.shape.open_max);
    for (uint32_t i = 0; i < crowd->world.shape.open_max; i++) {
        const uint32_t r = (from + i) % crowd->world.shape.open_max;
        if ((crowd->requests[r].sequence != NULL) == open)
            return (int)r;
    }
    return -1;
}

static void open_one(struct crowd *crowd)
{
    const int r = some_request(crowd, false), t = (int)drawn(crowd, TALKS);
    if (r < 0)
        return;
    struct world_request *request = &crowd->requests[r];
    change_talk(crowd, &crowd->talks[t]);
    *request = crowd->talks[t];
    uint64_t reply = drawn(crowd, 4);
    for (uint32_t n = 1 + drawn(crowd, REPLY - 1); n > 0 && request->total < crowd->world.shape.context; n--)
        request->ids[request->total++] = 1 + rng_below(&reply, 500);
    crowd->talk_of[r] = t;
    crowd->suspended[r] = false;
    const enum status st = world_open(&crowd->world, request);
    if (st != STATUS_OK) {
        assert_int_equal(st, STATUS_AGAIN);
        assert_null(request->sequence);
        crowd->again++;
        return;
    }
    crowd->opened++;
    crowd->matched += kv_sequence_matched(request->sequence);
}

static uint32_t active(const struct crowd *crowd)
{
    uint32_t count = 0;
    for (int r = 0; r < REQUESTS_MAX; r++)
        count += crowd->requests[r].sequence != NULL && !crowd->suspended[r];
    return count;
}

static void suspend(struct crowd *crowd, int r)
{
    crowd->suspends++;
    kv_cache_suspend(crowd->world.cache, crowd->requests[r].sequence);
    crowd->suspended[r] = true;
    assert_false(kv_sequence_ready(crowd->requests[r].sequence));
}

static void resume(struct crowd *crowd, int r)
{
    struct world_request *request = &crowd->requests[r];
    const uint32_t before = kv_sequence_tokens(request->sequence);
    const uint32_t expected = world_match(&crowd->world, request, before);
    const bool alone = active(crowd) == 0;
    const enum status st = kv_cache_resume(crowd->world.cache, request->sequence);
    if (st != STATUS_OK) {
        assert_int_equal(st, STATUS_AGAIN);
        assert_false(alone);
        return;
    }
    crowd->suspended[r] = false;
    const uint32_t tokens = kv_sequence_tokens(request->sequence);
    assert_true(tokens == expected || (crowd->world.shape.tight && tokens < expected));
    crowd->resumed_whole += tokens == before;
    crowd->resumed_short += tokens < before;
}

static void end(struct crowd *crowd, int r, bool keep)
{
    struct world_request *request = &crowd->requests[r];
    struct world_request *talk = &crowd->talks[crowd->talk_of[r]];
    const uint32_t tokens = kv_sequence_tokens(request->sequence);
    if (!keep) {
        kv_cache_drop(crowd->world.cache, &request->sequence);
        return;
    }
    keep_path(crowd, request);
    if (tokens <= request->count || drawn(crowd, 8) == 0)
        return;
    *talk = *request; /* the user reads the reply */
    talk->count = talk->total = tokens;
    talk->ends[talk->end_count++] = tokens;
}

/* A step of one sequence; the engine preempts others when it must. */
static void step(struct crowd *crowd, int r)
{
    struct world_request *request = &crowd->requests[r];
    const bool ready = kv_sequence_ready(request->sequence);
    if (!ready && (kv_sequence_after(request->sequence) == 0 || drawn(crowd, 4) == 0))
        return;
    if (ready)
        world_verify(&crowd->world, request);
    const uint32_t tokens = kv_sequence_tokens(request->sequence), chunk = 1 + drawn(crowd, crowd->world.shape.chunk);
    const uint32_t to = tokens + chunk < request->total ? tokens + chunk : request->total;
    enum status st = world_compute(&crowd->world, request, to, chunk);
    while (st == STATUS_AGAIN) {
        int other = -1;
        for (int i = 0; i < REQUESTS_MAX; i++)
            if (i != r && crowd->requests[i].sequence != NULL && !crowd->suspended[i])
                other = i;
        assert_true(other >= 0); /* alone, there is always room */
        crowd->forced++;
        suspend(crowd, other);
        st = world_compute(&crowd->world, request, to, chunk);
    }
    assert_int_equal(st, STATUS_OK);
    assert_true(kv_sequence_ready(request->sequence));
    world_verify(&crowd->world, request);
    if (kv_sequence_tokens(request->sequence) == request->total)
        end(crowd, r, true);
}

static void branch(struct crowd *crowd, int r)
{
    const int other = some_request(crowd, false);
    if (other < 0 || !kv_sequence_ready(crowd->requests[r].sequence))
        return;
    struct kv_sequence *twin = NULL;
    const enum status st = kv_cache_branch(crowd->world.cache, crowd->requests[r].sequence, &twin);
    if (st != STATUS_OK) {
        assert_int_equal(st, STATUS_AGAIN);
        return;
    }
    crowd->requests[other] = crowd->requests[r];
    crowd->requests[other].sequence = twin;
    crowd->talk_of[other] = crowd->talk_of[r];
    crowd->suspended[other] = false;
    uint32_t from = kv_sequence_tokens(twin);
    for (from = from > crowd->requests[r].count ? from : crowd->requests[r].count; from < crowd->requests[other].total; from++)
        crowd->requests[other].ids[from] = 1 + drawn(crowd, 500);
    world_verify(&crowd->world, &crowd->requests[other]);
}

static void operate(struct crowd *crowd)
{
    const int r = some_request(crowd, true);
    const uint32_t what = drawn(crowd, 100);
    (void)kv_cache_poll(crowd->world.cache);
    if (crowd->world.shape.loads)
        kv_cache_load_by_layers(crowd->world.cache, drawn(crowd, 4) > 0);
    if (r < 0 || what < 22) {
        open_one(crowd);
    } else if (crowd->suspended[r]) {
        if (what < 95)
            resume(crowd, r);
        else
            end(crowd, r, what % 2 == 0);
    } else if (what < 84) {
        step(crowd, r);
    } else if (what < 88) {
        branch(crowd, r);
    } else if (what < 93) {
        suspend(crowd, r);
    } else if (what < 98) {
        end(crowd, r, what < 97);
    } else if (drawn(crowd, 100) == 0) {
        kv_cache_forget(crowd->world.cache);
    }
    struct kv_cache_counts counts;
    kv_cache_counts(crowd->world.cache, &counts);
    for (int t = 0; t < 2; t++) {
        const struct kv_tier_counts *tier = &counts.tiers[t];
        assert_int_equal(tier->total, t == 0 ? crowd->world.shape.device_bytes : crowd->world.shape.host_bytes);
        assert_int_equal(tier->free + tier->cached + tier->in_use + tier->in_copy, tier->total);
    }
}

static void run(const struct world_shape *shape, uint64_t operations)
{
    static struct crowd crowd;
    struct kv_cache_counts counts;
    memset(&crowd, 0, sizeof crowd);
    struct world_shape asking = *shape;
    asking.on_fate = on_fate;
    asking.fate_user = &crowd;
    world_create(&crowd.world, &asking);
    crowd.rng = test_seed(shape->device_bytes * 31 + shape->host_bytes + shape->window + shape->hash_mask);
    for (int t = 0; t < TALKS; t++)
        start_over(&crowd, &crowd.talks[t]);
    for (crowd.operations = 0; crowd.operations < operations; crowd.operations++) {
        operate(&crowd);
        if (crowd.operations % 97 == 0) {
            world_check(&crowd.world);
            check_promises(&crowd);
        }
    }
    kv_cache_counts(crowd.world.cache, &counts);
    assert_true(crowd.gone > 0 && (shape->host_bytes == 0 || shape->tight || (crowd.went > 0 && crowd.came > 0)));
    for (int r = 0; r < REQUESTS_MAX; r++)
        if (crowd.requests[r].sequence != NULL)
            end(&crowd, r, r % 2 == 0);
    world_destroy(&crowd.world);
    print_message("%llu operations: %llu opened (%llu later), %llu tokens each matched, %llu computed; %llu suspended (%llu forced), "
                  "%llu whole, %llu short; evicted %llu/%llu/%llu, demoted %llu, promoted %llu, moved %llu\n",
                  (unsigned long long)operations, (unsigned long long)crowd.opened, (unsigned long long)crowd.again,
                  (unsigned long long)(crowd.matched / (crowd.opened + 1)), (unsigned long long)crowd.world.tokens_computed,
                  (unsigned long long)crowd.suspends, (unsigned long long)crowd.forced, (unsigned long long)crowd.resumed_whole,
                  (unsigned long long)crowd.resumed_short, (unsigned long long)counts.evicted_snapshots,
                  (unsigned long long)counts.evicted_rewinds, (unsigned long long)counts.evicted_leaves,
                  (unsigned long long)counts.demoted, (unsigned long long)counts.promoted, (unsigned long long)counts.moved);
    assert_true(crowd.matched > 20 * crowd.opened);
    assert_true(counts.evicted_leaves > 0 && crowd.suspends > 0);
    if (shape->host_bytes > 0)
        assert_true(counts.demoted > 0 && counts.promoted > 0 && crowd.resumed_whole > 0);
    if (shape->global && shape->local)
        assert_true(counts.moved > 0 && counts.evicted_rewinds > 0 && (counts.evicted_snapshots > 0 || shape->rewind > 400));
}

static const struct world_shape both = {.global = true,
                                        .local = true,
                                        .window = 100,
                                        .rewind = 70,
                                        .snapshots = 3,
                                        .context = 640,
                                        .chunk = 90,
                                        .open_max = 6,
                                        .device_bytes = 60000,
                                        .host_bytes = 0,
                                        .late = 3};

static void without_a_host(void **state)
{
    (void)state;
    struct world_shape shape = both;
    run(&shape, OPERATIONS / 5);
    shape.device_bytes = 0;
    run(&shape, OPERATIONS / 20);
}

static void with_a_host(void **state)
{
    (void)state;
    struct world_shape shape = both;
    shape.host_bytes = 60000;
    run(&shape, OPERATIONS / 5);
    shape.device_bytes = 30000;
    shape.host_bytes = 100000;
    shape.late = 20;
    run(&shape, OPERATIONS / 4);
    shape.device_bytes = 0;
    shape.host_bytes = 9000; /* too small for one sequence */
    shape.tight = true;
    run(&shape, OPERATIONS / 20);
}

static void behind_loads(void **state)
{
    (void)state;
    struct world_shape shape = both;
    shape.loads = true;
    shape.device_bytes = 30000;
    shape.host_bytes = 100000;
    shape.late = 20;
    run(&shape, OPERATIONS / 4);
    assert_true(fake_backend.loads > 0 && fake_backend.followed > fake_backend.loads / 10);
    shape.sinks = 5;
    shape.open_max = 3;
    shape.late = 200;
    run(&shape, OPERATIONS / 10);
    shape.device_bytes = 0;
    shape.host_bytes = 9000;
    shape.tight = true;
    run(&shape, OPERATIONS / 20);
    shape = both;
    shape.loads = true;
    shape.global = false;
    shape.device_bytes = 25000;
    shape.host_bytes = 20000;
    run(&shape, OPERATIONS / 20);
}

static void one_group_only(void **state)
{
    (void)state;
    struct world_shape shape = both;
    shape.local = false;
    shape.device_bytes = 30000;
    shape.host_bytes = 20000;
    run(&shape, OPERATIONS / 20);
    shape = both;
    shape.global = false;
    shape.device_bytes = 25000;
    shape.host_bytes = 20000;
    run(&shape, OPERATIONS / 20);
}

static void sinks_and_collisions(void **state)
{
    (void)state;
    struct world_shape shape = both;
    shape.sinks = 5;
    shape.host_bytes = 60000;
    shape.hash_mask = 3;
    run(&shape, OPERATIONS / 20);
    shape.sinks = 70;
    shape.window = 64;
    shape.rewind = 0;
    shape.hash_mask = 0;
    run(&shape, OPERATIONS / 20);
    shape.window = 1;
    shape.rewind = 500;
    shape.sinks = 0;
    shape.late = 0;
    shape.open_max = 2;
    run(&shape, OPERATIONS / 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_host),
        cmocka_unit_test(with_a_host),
        cmocka_unit_test(behind_loads),
        cmocka_unit_test(one_group_only),
        cmocka_unit_test(sinks_and_collisions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
