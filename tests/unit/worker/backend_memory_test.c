/* What backends do beside computing: the thread pool, arenas and copies. */
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include "backend_fixture.h"
#include "unit.h"
#include "worker/engine/backend/host_memory.h"
#include "worker/engine/backend/thread_pool.h"

enum { INDICES = 1000 };

struct tally {
    atomic_uint count[INDICES];
    atomic_uint busy[BACKEND_THREADS_MAX];
    atomic_uint twice;                 /* two calls at one time with one thread number, or a number too high */
    uint32_t threads;
    bool slow;                         /* threads other than the caller take long: it has to wait for them */
};

static void count_up(void *context, uint32_t index, uint32_t thread)
{
    struct tally *tally = context;
    if (thread >= tally->threads)
        atomic_fetch_add(&tally->twice, 1);
    if (atomic_fetch_add(&tally->busy[thread], 1) != 0)
        atomic_fetch_add(&tally->twice, 1);
    if (tally->slow && thread != 0)
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    for (volatile unsigned i = 0; i < 100;)
        i = i + 1;
    atomic_fetch_add(&tally->count[index], 1);
    atomic_fetch_sub(&tally->busy[thread], 1);
}

static void pools_work_through_every_index_once(void **state)
{
    (void)state;
    static const uint32_t threads[] = {1, 2, 3, 8};
    static struct tally tally;
    for (unsigned t = 0; t < sizeof threads / sizeof *threads; t++) {
        struct thread_pool *pool = NULL;
        assert_ok(thread_pool_create(threads[t], &pool));
        for (unsigned round = 0; round < 300; round++) {
            uint32_t count = round % 5 == 0 ? round : (round * 37) % INDICES;
            memset(&tally, 0, sizeof tally);
            tally.threads = threads[t];
            tally.slow = round % 10 == 7;
            thread_pool_run(pool, count, count_up, &tally);
            for (uint32_t i = 0; i < INDICES; i++)
                assert_int_equal(atomic_load(&tally.count[i]), i < count ? 1 : 0);
            assert_int_equal(atomic_load(&tally.twice), 0);
        }
        thread_pool_destroy(&pool);
        assert_null(pool);
        thread_pool_destroy(&pool);
    }
}

static void note_thread(void *context, uint32_t index, uint32_t thread)
{
    (void)index;
    atomic_uint *seen = context;
    atomic_fetch_or(seen, 1u << thread);
    for (volatile unsigned i = 0; i < 200000;)
        i = i + 1;
}

static void pools_use_their_threads(void **state)
{
    (void)state;
    struct thread_pool *pool = NULL;
    atomic_uint seen = 0;
    assert_ok(thread_pool_create(3, &pool));
    for (unsigned round = 0; round < 200 && atomic_load(&seen) != 7; round++)
        thread_pool_run(pool, 64, note_thread, &seen);
    assert_int_equal(atomic_load(&seen), 7);
    thread_pool_destroy(&pool);
}

static void arenas_are_zeroed_and_aligned(void **state)
{
    (void)state;
    static const struct backend_ops *const all[] = {&backend_cpu_ops, &backend_float_ops};
    struct random_model shape = random_model_small();
    struct model *model = model_make(&shape);
    for (unsigned b = 0; b < 2; b++) {
        struct backend *backend = backend_make(all[b], model, NULL, (struct backend_config){.rows_max = 4, .threads = 1});
        for (unsigned tier = 0; tier < BACKEND_TIERS; tier++) {
            void *one = NULL, *huge = NULL, *wrong = NULL;
            assert_ok(all[b]->arena_create(backend, (enum backend_tier)tier, 64 * 1000, &one));
            assert_int_equal((uintptr_t)one % 64, 0);
            for (unsigned i = 0; i < 64 * 1000; i++)
                assert_int_equal(((char *)one)[i], 0);
            memset(one, 1, 64 * 1000);
            assert_ok(all[b]->arena_create(backend, (enum backend_tier)tier, (size_t)1 << 30, &huge));    /* nothing of it is touched */
            ((char *)huge)[((size_t)1 << 30) - 1] = 1;
            assert_int_equal(all[b]->arena_create(backend, (enum backend_tier)tier, (size_t)1 << 60, &wrong), STATUS_NO_MEMORY);
            assert_int_equal(all[b]->arena_create(backend, (enum backend_tier)tier, SIZE_MAX - 63, &wrong), STATUS_LIMIT);
            assert_null(wrong);
            all[b]->arena_destroy(backend, (enum backend_tier)tier, &one);
            all[b]->arena_destroy(backend, (enum backend_tier)tier, &huge);
            assert_null(one);
            all[b]->arena_destroy(backend, (enum backend_tier)tier, &one);
        }
        all[b]->destroy(&backend);
        assert_null(backend);
        all[b]->destroy(&backend);
    }
    model_destroy(&model);
}

/* Every ticket that is done has its bytes, and so have all before it; more copies than the queue is deep. */
static void copies_end_in_order(void **state)
{
    (void)state;
    static const struct backend_ops *const all[] = {&backend_cpu_ops, &backend_float_ops};
    enum { COPIES = 3000, BYTES = 8192 };
    struct random_model shape = random_model_small();
    struct model *model = model_make(&shape);
    for (unsigned b = 0; b < 2; b++) {
        const struct backend_ops *ops = all[b];
        struct backend *backend = backend_make(ops, model, NULL, (struct backend_config){.rows_max = 4, .threads = 1});
        void *device = NULL, *host = NULL;
        assert_ok(ops->arena_create(backend, BACKEND_TIER_DEVICE, (size_t)COPIES * BYTES, &device));
        assert_ok(ops->arena_create(backend, BACKEND_TIER_HOST, (size_t)COPIES * BYTES, &host));
        for (uint32_t i = 0; i < COPIES; i++)
            memset((char *)device + (size_t)i * BYTES, (int)(1 + i % 255), BYTES);
        for (uint32_t i = 0; i < COPIES; i++)
            assert_int_equal(ops->copy_start(backend, (char *)host + (size_t)i * BYTES, (char *)device + (size_t)i * BYTES, BYTES), i + 1);
        assert_false(ops->copy_done(backend, COPIES + 1));
        for (uint32_t i = 0; i < COPIES; i++)
            if (ops->copy_done(backend, i + 1))
                assert_int_equal(((char *)host)[(size_t)(i + 1) * BYTES - 1], (char)(1 + i % 255));
        ops->copy_wait(backend, COPIES / 2);
        assert_true(ops->copy_done(backend, COPIES / 2));
        assert_memory_equal(host, device, (size_t)COPIES / 2 * BYTES);
        ops->copy_wait(backend, COPIES);
        assert_memory_equal(host, device, (size_t)COPIES * BYTES);

        /* One page over the same place again and again: the last wins; destroying finishes what is under way. */
        uint64_t ticket = 0;
        for (uint32_t i = 0; i < 500; i++)
            ticket = ops->copy_start(backend, host, (char *)device + (size_t)i * BYTES, BYTES);
        assert_int_equal(ticket, COPIES + 500);
        ops->destroy(&backend);
        assert_memory_equal(host, (char *)device + (size_t)499 * BYTES, BYTES);
        host_arena_destroy(&device);
        host_arena_destroy(&host);
    }
    model_destroy(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pools_work_through_every_index_once),
        cmocka_unit_test(pools_use_their_threads),
        cmocka_unit_test(arenas_are_zeroed_and_aligned),
        cmocka_unit_test(copies_end_in_order),
    };
    return unit_run(tests, NULL, NULL);
}
