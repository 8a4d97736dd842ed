/* The parallel backend against the plain CPU one: the same logits, bit for bit, whatever the number of ranks and wherever conversations
 * live; copies between the tiers and prefixes on other ranks; and what happens when a rank dies or stands still. Followers are this
 * program again. Built twice: over CPU ranks, and with PARALLEL_PLUGIN (a path) over those of a plugin, whose device is emulated and slow. */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>
#include "backend_fixture.h"
#include "common/clock.h"
#include "common/log.h"
#include "unit.h"
#include "worker/engine/backend/backend_load.h"
#include "worker/engine/backend/backend_parallel.h"
#include "worker/engine/backend/backend_plugin.h"
#include "worker/engine/backend/parallel_group.h"
#include "worker/engine/backend/rank.h"

#define SEQUENCES 5u
#define TOKENS    330u
#define ROWS_MAX  256u
#define SANITIZED_STEP_MS 20000u

#ifdef PARALLEL_PLUGIN
#define EMULATED 1
#else
#define EMULATED 0
#define PARALLEL_PLUGIN NULL
#endif
static const struct backend_plugin *plugin;       /* NULL: ranks are the CPU's */
static struct rank_ops rank_0;                    /* what rank 0 calls: theirs, until a test has it fail */

static const struct log_config quiet = {.program = "parallel_test", .level = LOG_LEVEL_WARN, .fd = 2};

struct world {
    char dir[RANDOM_MODEL_PATH_MAX];
    struct model *model;
    struct backend *plain, *parallel;
    struct parallel_group *group;
    uint32_t ranks;
    uint32_t tokens[SEQUENCES][TOKENS];
    struct place {                                /* of one sequence, here and there */
        void *memory[BACKEND_GROUPS_MAX];
        void *pages[BACKEND_GROUPS_MAX][PAGES_MAX];
    } places[2][SEQUENCES];
};

static atomic_int deaths;

static void on_death(void *user)
{
    (void)user;
    deaths++;
}

static void make_place(struct world *world, struct place *place, const struct backend_ops *ops, struct backend *backend, uint32_t home)
{
    for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++) {
        const size_t bytes = ops->page_bytes(backend, group), pages = (TOKENS + 63) / 64;
        if (bytes == 0)
            continue;
        if (ops->arena_create_at)
            assert_ok(ops->arena_create_at(backend, home, pages * bytes, &place->memory[group]));
        else
            assert_ok(ops->arena_create(backend, BACKEND_TIER_DEVICE, pages * bytes, &place->memory[group]));
        for (uint32_t i = 0; i < pages; i++)
            place->pages[group][i] = (uint8_t *)place->memory[group] + i * bytes;
    }
    (void)world;
}

static void world_open(struct world *world, const struct random_model *shape, uint32_t ranks, bool full_depth, uint32_t step_ms)
{
    static const uint32_t homes[SEQUENCES] = {1, 3, 0, 1, 2};
    memset(world, 0, sizeof *world);
    world->ranks = ranks;
    assert_ok(random_model_create(shape, world->dir));
    assert_ok(model_load(world->dir, &world->model));
    rank_0 = plugin != NULL ? *plugin->ranks : rank_cpu_ops;
    const struct parallel_group_config config = {.size = ranks, .model_dir = world->dir, .step_ms_min = step_ms, .on_death = on_death,
                                                 .ranks = &rank_0, .plugin = PARALLEL_PLUGIN};
    assert_ok(parallel_group_start(&config, &world->group));
    struct backend_config backend = {.rows_max = ROWS_MAX, .threads = 1, .full_depth = full_depth};
    assert_ok(backend_cpu_ops.create(world->model, &backend, &world->plain));
    backend.group = world->group;
    assert_ok(backend_parallel_ops.create(world->model, &backend, &world->parallel));
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        tokens_fill(world->model, i, world->tokens[i], TOKENS);
        make_place(world, &world->places[0][i], &backend_cpu_ops, world->plain, 0);
        make_place(world, &world->places[1][i], &backend_parallel_ops, world->parallel, homes[i] % ranks);
    }
}

static void world_close(struct world *world)
{
    for (uint32_t i = 0; i < SEQUENCES; i++)
        for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++) {
            backend_cpu_ops.arena_destroy(world->plain, BACKEND_TIER_DEVICE, &world->places[0][i].memory[group]);
            backend_parallel_ops.arena_destroy(world->parallel, BACKEND_TIER_DEVICE, &world->places[1][i].memory[group]);
        }
    backend_parallel_ops.destroy(&world->parallel);
    backend_cpu_ops.destroy(&world->plain);
    parallel_group_stop(&world->group);
    model_destroy(&world->model);
    random_model_remove(world->dir);
}

struct part { uint32_t sequence, start, count, rows; };

static enum status run_on(struct world *world, uint32_t which, const struct part *parts, uint32_t count, float *logits, uint32_t *failed)
{
    struct backend_run runs[SEQUENCES];
    const struct backend_ops *ops = which ? &backend_parallel_ops : &backend_cpu_ops;
    for (uint32_t i = 0; i < count; i++) {
        runs[i] = (struct backend_run){.tokens = world->tokens[parts[i].sequence] + parts[i].start, .count = parts[i].count,
                                       .start = parts[i].start, .logits = logits, .logit_rows = parts[i].rows};
        for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++)
            if (world->model->config.producer_count[group])
                runs[i].pages[group] = world->places[which][parts[i].sequence].pages[group];
        logits += parts[i].rows * (size_t)world->model->config.vocab_size;
    }
    const struct backend_batch batch = {.runs = runs, .run_count = count};
    return ops->forward(which ? world->parallel : world->plain, &batch, failed);
}

static void both(struct world *world, const struct part *parts, uint32_t count)
{
    uint32_t rows = 0;
    for (uint32_t i = 0; i < count; i++)
        rows += parts[i].rows;
    const size_t bytes = rows * (size_t)world->model->config.vocab_size * sizeof(float);
    float *plain = calloc(1, bytes + 1), *parallel = malloc(bytes + 1);
    memset(parallel, 0xa5, bytes + 1);
    assert_ok(run_on(world, 0, parts, count, plain, NULL));
    assert_ok(run_on(world, 1, parts, count, parallel, NULL));
    if (memcmp(plain, parallel, bytes) != 0)
        fail_msg("%s, %u ranks: other logits", world->model->config.name, world->ranks);
    free(plain);
    free(parallel);
}

/* Prompts in chunks, alone and together, decodes among them, batches without logits at all (every row leaves early), evaluation rows, and
 * positions far behind every window of the models. */
static void mixes(struct world *world)
{
    both(world, (const struct part[]){{0, 0, 70, 1}}, 1);
    both(world, (const struct part[]){{1, 0, 60, 0}, {2, 0, 100, 0}}, 2);
    both(world, (const struct part[]){{0, 70, 1, 1}, {1, 60, 5, 1}, {2, 100, 130, 1}, {3, 0, 33, 3}, {4, 0, 1, 1}}, 5);
    for (uint32_t i = 0; i < 3; i++)
        both(world, (const struct part[]){{4, 1 + i, 1, 1}, {0, 71 + i, 1, 1}, {2, 230 + i, 1, 1}, {1, 65 + i, 1, 1}}, 4);
    both(world, (const struct part[]){{2, 233, 90, 90}, {0, 74, 130, 0}}, 2);
    both(world, (const struct part[]){{0, 204, 126, 1}, {3, 33, 100, 0}}, 2);
    both(world, (const struct part[]){{3, 133, 1, 1}}, 1);
}

/* The same kinds in fewer rows. */
static void few_mixes(struct world *world)
{
    both(world, (const struct part[]){{0, 0, 70, 1}}, 1);
    both(world, (const struct part[]){{1, 0, 20, 0}, {2, 0, 40, 0}}, 2);
    both(world, (const struct part[]){{0, 70, 1, 1}, {1, 20, 5, 1}, {2, 40, 30, 1}, {3, 0, 23, 3}, {4, 0, 1, 1}}, 5);
    for (uint32_t i = 0; i < 2; i++)
        both(world, (const struct part[]){{4, 1 + i, 1, 1}, {0, 71 + i, 1, 1}, {2, 70 + i, 1, 1}, {1, 25 + i, 1, 1}}, 4);
    both(world, (const struct part[]){{3, 23, 1, 1}}, 1);
}

static void test_same_bits(void **state)
{
    const uint32_t ranks = *(const uint32_t *)*state;
    const struct random_model *shape;
    for (unsigned i = 0; (shape = random_model_at(i)); i++) {
        struct random_model mixed = *shape;
        struct world world;
        mixed.recipe = RANDOM_RECIPE_MIXED;
        if (EMULATED && i % 4 != ranks % 4 % 3) /* 1 rank: the second and the sixth, 2: the third, 4: the first and the fifth */
            continue;
        world_open(&world, &mixed, ranks, false, SANITIZED_STEP_MS);
        (EMULATED ? few_mixes : mixes)(&world);
        struct backend_parallel_counts counts;
        backend_parallel_counts(world.parallel, &counts);
        if (counts.step_rows > 0)
            printf("%-8s %u ranks: %llu rows in %llu steps: %llu bytes a row gathered by rank 0 in %llu calls, %llu bytes a step told\n",
                   shape->name, ranks, (unsigned long long)counts.step_rows, (unsigned long long)counts.steps,
                   (unsigned long long)(counts.collective_bytes / counts.step_rows), (unsigned long long)counts.collective_calls,
                   (unsigned long long)(counts.control_bytes / counts.steps));
        assert_true(ranks == 1 || counts.collective_bytes > 0);
        world_close(&world);
    }
    assert_int_equal(deaths, 0);
}

static void test_full_depth(void **state)
{
    (void)state;
    struct random_model shape = random_model_gemma4();
    struct world world;
    world_open(&world, &shape, 2, true, SANITIZED_STEP_MS);
    (EMULATED ? few_mixes : mixes)(&world);
    world_close(&world);
}

/* A page of another rank goes to the host tier and back into another place; a prefix is taken of it. */
static void test_copies(void **state)
{
    (void)state;
    const struct random_model shape = random_model_small();
    const struct backend_ops *ops = &backend_parallel_ops;
    struct world world;
    world_open(&world, &shape, 2, false, SANITIZED_STEP_MS);
    both(&world, (const struct part[]){{0, 0, 130, 1}, {1, 0, 64, 1}}, 2);   /* both at home on rank 1 */
    uint64_t last = 0;
    void *host[BACKEND_GROUPS_MAX] = {0}, *spare[BACKEND_GROUPS_MAX] = {0};
    for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++) {
        const size_t bytes = ops->page_bytes(world.parallel, group);
        struct place *place = &world.places[1][0];
        assert_ok(ops->arena_create(world.parallel, BACKEND_TIER_HOST, 3 * bytes, &host[group]));
        assert_ok(ops->arena_create_at(world.parallel, 1, 3 * bytes, &spare[group]));
        for (uint32_t i = 0; i < 3; i++) {
            uint8_t *there = (uint8_t *)host[group] + i * bytes, *back = (uint8_t *)spare[group] + i * bytes;
            const uint64_t out = ops->copy_start(world.parallel, there, place->pages[group][i], bytes);
            ops->copy_wait(world.parallel, out);
            assert_true(ops->copy_done(world.parallel, out));
            last = ops->copy_start(world.parallel, back, there, bytes);
            place->pages[group][i] = back;
            assert_true(last > out);
        }
        assert_memory_not_equal(host[group], (uint8_t *)host[group] + bytes, bytes);   /* something has come */
    }
    ops->copy_wait(world.parallel, last);
    both(&world, (const struct part[]){{0, 130, 20, 1}}, 1);
    /* Sequence 3 (rank 1 as well) begins with what 0 says for 40 tokens; on the plain backend by computing. */
    memcpy(world.tokens[3], world.tokens[0], 40 * sizeof(uint32_t));
    assert_ok(run_on(&world, 0, (const struct part[]){{3, 0, 40, 0}}, 1, NULL, NULL));
    for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++)
        ops->page_copy_prefix(world.parallel, group, world.places[1][3].pages[group][0], world.places[1][0].pages[group][0], 40);
    both(&world, (const struct part[]){{3, 40, 50, 1}}, 1);
    for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++) {
        ops->arena_destroy(world.parallel, BACKEND_TIER_HOST, &host[group]);
        ops->arena_destroy(world.parallel, BACKEND_TIER_DEVICE, &spare[group]);
        assert_null(host[group]);
    }
    world_close(&world);
}

/* More copies than a ring holds, told to a rank that stands still at first. */
static void test_many_copies(void **state)
{
    (void)state;
    enum { COPIES = 1500, BYTES = 64 };
    const struct random_model shape = random_model_small();
    const struct backend_ops *ops = &backend_parallel_ops;
    struct world world;
    void *from = NULL, *there = NULL, *back = NULL;
    world_open(&world, &shape, 2, false, SANITIZED_STEP_MS);
    assert_ok(ops->arena_create(world.parallel, BACKEND_TIER_HOST, COPIES * BYTES, &from));
    assert_ok(ops->arena_create(world.parallel, BACKEND_TIER_HOST, COPIES * BYTES, &back));
    assert_ok(ops->arena_create_at(world.parallel, 1, COPIES * BYTES, &there));
    for (uint32_t i = 0; i < COPIES * BYTES; i++)
        ((uint8_t *)from)[i] = (uint8_t)(i / BYTES * 7 + i / 2048);
    const uint64_t first = ops->copy_start(world.parallel, there, from, COPIES * BYTES);
    ops->copy_wait(world.parallel, first);
    const pid_t follower = parallel_group_pid(world.group, 1);
    assert_int_equal(kill(follower, SIGSTOP), 0);
    const pid_t waker = fork();
    if (waker == 0) {
        usleep(200000);
        kill(follower, SIGCONT);
        _exit(0);
    }
    uint64_t last = 0;
    for (uint32_t i = 0; i < COPIES; i++)
        last = ops->copy_start(world.parallel, (uint8_t *)back + i * BYTES, (uint8_t *)there + i * BYTES, BYTES);
    assert_int_equal(last, first + COPIES);
    ops->copy_wait(world.parallel, last);
    assert_memory_equal(back, from, COPIES * BYTES);
    assert_int_equal(waitpid(waker, NULL, 0), waker);
    world_close(&world);
}

/* A NaN that only the rank of that conversation can see: a scale in a page of its own, read back by attention. */
static void test_bad_run_is_named(void **state)
{
    (void)state;
    const struct random_model shape = random_model_small();
    struct world world;
    uint32_t failed = UINT32_MAX;
    float *logits;
    world_open(&world, &shape, 2, false, SANITIZED_STEP_MS);
    logits = logits_new(world.model, 3);
    const struct part before[] = {{0, 0, 65, 1}, {1, 0, 30, 1}, {2, 0, 30, 1}}, after[] = {{0, 65, 1, 1}, {2, 30, 1, 1}, {1, 30, 1, 1}};
    const size_t bytes = backend_parallel_ops.page_bytes(world.parallel, 0);
    uint8_t *nan_page;
    assert_ok(run_on(&world, 1, before, 3, logits, NULL));
    assert_ok(backend_parallel_ops.arena_create(world.parallel, BACKEND_TIER_HOST, bytes, (void **)&nan_page));
    memset(nan_page, 0xff, bytes);
    backend_parallel_ops.copy_wait(world.parallel,
                                   backend_parallel_ops.copy_start(world.parallel, world.places[1][0].pages[0][0], nan_page, bytes));
    assert_int_equal(run_on(&world, 1, after, 3, logits, &failed), STATUS_CORRUPT);
    assert_int_equal(failed, 0);
    /* The group goes on. */
    assert_ok(run_on(&world, 1, (const struct part[]){{2, 30, 1, 1}, {1, 30, 1, 1}}, 2, logits, NULL));
    free(logits);
    world_close(&world);
}

/* Infinities in the part of Q that rank 0 makes reach the homes of the rows alone: that of run 1, which tells the others. */
static void test_own_rows_are_told(void **state)
{
    (void)state;
    const struct random_model shape = random_model_small();
    struct world world;
    uint32_t failed = UINT32_MAX;
    world_open(&world, &shape, 2, false, SANITIZED_STEP_MS);
    float *logits = logits_new(world.model, 2);
    struct model_matrix *matrix = &world.model->layers[world.model->config.layer_count - 1].q_proj;
    const float *scale = matrix->scale;
    float *huge = malloc(matrix->rows * sizeof *huge);
    for (uint32_t i = 0; i < matrix->rows; i++)
        huge[i] = 0x1p127f;
    const struct part both_homes[] = {{0, 0, 3, 1}, {2, 0, 3, 1}}, other[] = {{0, 3, 1, 1}};
    assert_ok(run_on(&world, 1, both_homes, 2, logits, NULL));
    matrix->scale = huge;                         /* here; followers have their own mapping */
    assert_int_equal(run_on(&world, 1, other, 1, logits, &failed), STATUS_CORRUPT);
    assert_int_equal(failed, 0);
    assert_non_null(strstr(status_detail(), "in Q, K, V"));
    matrix->scale = scale;
    assert_ok(run_on(&world, 1, other, 1, logits, NULL));
    free(huge);
    free(logits);
    world_close(&world);
}

/* Kilobytes of the model file that a process has mapped in, and of the whole. */
static void weights_in(pid_t pid, unsigned long *in, unsigned long *whole)
{
    char path[64], line[512];
    bool here = false;
    snprintf(path, sizeof path, "/proc/%d/smaps", (int)pid);
    FILE *smaps = fopen(path, "r");
    assert_non_null(smaps);
    *in = *whole = 0;
    while (fgets(line, sizeof line, smaps)) {
        unsigned long kilobytes;
        if (strchr(line, '-') != NULL && strchr(line, '-') < strchr(line, ' '))
            here = strstr(line, "model.safetensors") != NULL;
        else if (here && sscanf(line, "Size: %lu kB", &kilobytes) == 1)
            *whole += kilobytes;
        else if (here && sscanf(line, "Rss: %lu kB", &kilobytes) == 1)
            *in += kilobytes;
    }
    fclose(smaps);
}

/* A follower's memory has the slices that it computes with, not the file that it has checked. */
static void test_ranks_hold_their_slices(void **state)
{
    (void)state;
    struct random_model shape = random_model_small();
    struct world world;
    unsigned long in, whole;
    shape.hidden_size = 1024;
    shape.intermediate_size = 4096;
    shape.layers = "LG";
    shape.kv_producer = NULL;
    world_open(&world, &shape, 2, false, SANITIZED_STEP_MS);
    both(&world, (const struct part[]){{0, 0, 20, 1}, {2, 0, 5, 1}}, 2);
    weights_in(parallel_group_pid(world.group, 1), &in, &whole);
    printf("rank 1 of 2 holds %lu of %lu kB of weights\n", in, whole);
    assert_true(whole > 20000 && in > whole * 4 / 10 && in < whole * 6 / 10);
    world_close(&world);
}

/* ---- one failure unit ---- */

static void lose_a_rank(int signal_number, uint64_t *took_ms, enum status *st)
{
    const struct random_model shape = random_model_small();
    struct world world;
    float *logits;
    world_open(&world, &shape, 4, false, 2000);
    logits = logits_new(world.model, 1);
    const pid_t pid = parallel_group_pid(world.group, 2);
    for (uint32_t i = 0; i < 12; i++)             /* the first steps have more time */
        assert_ok(run_on(&world, 1, (const struct part[]){{0, i, 1, 1}}, 1, logits, NULL));
    deaths = 0;
    assert_int_equal(kill(pid, signal_number), 0);
    const uint64_t started_ms = clock_now_ms();
    *st = STATUS_OK;
    for (uint32_t i = 12; i < TOKENS && *st == STATUS_OK; i++)
        *st = run_on(&world, 1, (const struct part[]){{0, i, 1, 1}}, 1, logits, NULL);
    *took_ms = clock_now_ms() - started_ms;
    printf("signal %d: %s after %llu ms: %s\n", signal_number, status_name(*st), (unsigned long long)*took_ms, status_detail());
    assert_int_equal(parallel_group_status(world.group), STATUS_CLOSED);
    /* And whatever else is asked of it ends as well. */
    assert_int_equal(run_on(&world, 1, (const struct part[]){{1, 0, 1, 1}}, 1, logits, NULL), STATUS_CLOSED);
    backend_parallel_ops.page_copy_prefix(world.parallel, 0, world.places[1][1].pages[0][0], world.places[1][3].pages[0][0], 3);
    free(logits);
    while (signal_number == SIGKILL && deaths == 0 && clock_now_ms() - started_ms < 5000)
        usleep(1000);                             /* another rank may have seen it first */
    const pid_t pids[] = {parallel_group_pid(world.group, 1), pid, parallel_group_pid(world.group, 3)};
    world_close(&world);
    for (uint32_t i = 0; i < 3; i++)
        assert_true(kill(pids[i], 0) != 0 && errno == ESRCH);     /* none stays behind, stopped or not */
}

static void test_killed_rank(void **state)
{
    (void)state;
    uint64_t took_ms;
    enum status st;
    lose_a_rank(SIGKILL, &took_ms, &st);
    assert_int_equal(st, STATUS_CLOSED);
    assert_true(took_ms < 1900);                  /* seen, not waited for */
    assert_int_equal(deaths, 1);
}

static void test_stopped_rank(void **state)
{
    (void)state;
    uint64_t took_ms;
    enum status st;
    lose_a_rank(SIGSTOP, &took_ms, &st);
    assert_int_equal(st, STATUS_CLOSED);
    assert_true(took_ms >= 1900);
}

static void test_idle_death_is_told(void **state)
{
    (void)state;
    const struct random_model shape = random_model_small();
    struct world world;
    world_open(&world, &shape, 2, false, 2000);
    deaths = 0;
    assert_int_equal(kill(parallel_group_pid(world.group, 1), SIGKILL), 0);
    const uint64_t started_ms = clock_now_ms();
    while (deaths == 0 && clock_now_ms() - started_ms < 5000)
        usleep(1000);
    assert_int_equal(deaths, 1);
    world_close(&world);
}

static enum status forward_without_room(struct backend *backend, const struct backend_batch *batch, const uint32_t *homes,
                                        uint64_t deadline_ms, uint32_t *failed_run)
{
    (void)backend, (void)batch, (void)homes, (void)deadline_ms, (void)failed_run;
    return STATUS_FAIL(STATUS_NO_MEMORY, "no room for the tables");
}

/* The others have begun the pass and wait for rank 0: they end at once, and all are told its words. */
static void test_rank_0_fails(void **state)
{
    (void)state;
    const struct random_model shape = random_model_small();
    struct world world;
    world_open(&world, &shape, 2, false, SANITIZED_STEP_MS);
    float *logits = logits_new(world.model, 1);
    assert_ok(run_on(&world, 1, (const struct part[]){{0, 0, 3, 1}}, 1, logits, NULL));
    rank_0.forward_rank = forward_without_room;
    deaths = 0;
    const uint64_t started_ms = clock_now_ms();
    assert_int_equal(run_on(&world, 1, (const struct part[]){{0, 3, 1, 1}}, 1, logits, NULL), STATUS_CLOSED);
    assert_non_null(strstr(status_detail(), "rank 0: no room for the tables"));
    while (deaths == 0 && clock_now_ms() - started_ms < 5000)
        usleep(1000);
    assert_int_equal(deaths, 1);                  /* long before the deadline of the step */
    free(logits);
    world_close(&world);
}

static void test_other_model_is_refused(void **state)
{
    (void)state;
    const struct random_model shape = random_model_small(), other = random_model_gqa();
    char dir[RANDOM_MODEL_PATH_MAX], other_dir[RANDOM_MODEL_PATH_MAX];
    struct model *model = NULL;
    struct parallel_group *group = NULL;
    struct backend *backend = NULL;
    assert_ok(random_model_create(&shape, dir));
    assert_ok(random_model_create(&other, other_dir));
    assert_ok(model_load(dir, &model));
    assert_ok(parallel_group_start(&(struct parallel_group_config){.size = 2, .model_dir = other_dir, .plugin = PARALLEL_PLUGIN,
                                                                  .ranks = plugin != NULL ? plugin->ranks : NULL}, &group));
    const struct backend_config config = {.rows_max = 8, .threads = 1, .group = group};
    assert_int_equal(backend_parallel_ops.create(model, &config, &backend), STATUS_CLOSED);
    assert_non_null(strstr(status_detail(), "is not the model that rank 0 has read"));
    parallel_group_stop(&group);
    model_destroy(&model);
    random_model_remove(dir);
    random_model_remove(other_dir);
}

int main(int argc, char **argv)
{
    static uint32_t one = 1, two = 2, four = 4;
    if (argc == 2 && parallel_group_argument(argv[1]))
        return parallel_follower_main(argv[1], &quiet);
    if (EMULATED && (setenv("ROOST_EMULATION_DEVICES", "4", 1) != 0 || backend_load(PARALLEL_PLUGIN, &plugin) != STATUS_OK)) {
        fprintf(stderr, "%s\n", status_detail());
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_same_bits, &one),
        cmocka_unit_test_prestate(test_same_bits, &two),
        cmocka_unit_test_prestate(test_same_bits, &four),
        cmocka_unit_test(test_full_depth),
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_many_copies),
        cmocka_unit_test(test_bad_run_is_named),
        cmocka_unit_test(test_killed_rank),
        cmocka_unit_test(test_stopped_rank),
        cmocka_unit_test(test_idle_death_is_told),
        cmocka_unit_test(test_rank_0_fails),
        cmocka_unit_test(test_other_model_is_refused),
    };
    const struct CMUnitTest of_the_cpu[] = {                      /* they look into the weights as they are mapped */
        cmocka_unit_test(test_own_rows_are_told),
        cmocka_unit_test(test_ranks_hold_their_slices),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return failed != 0 || EMULATED ? failed : cmocka_run_group_tests(of_the_cpu, NULL, NULL);
}
