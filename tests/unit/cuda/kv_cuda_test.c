/* Conversations over the KV cache on the CUDA backend, more than its device tier holds: prefixes found again and copied, pages sent to the host and
 * back while others compute. Every turn's logits are those of the CPU backend, which has computed the same tokens in plain pages. */
#include "both.h"
#include "worker/engine/kv/kv_cache.h"

enum { TALKS = 5, TURN = 37, TURNS = 4 };

struct world {
    struct model *model;
    struct backend *cpu, *cuda;
    struct kv_cache *cache;
    uint32_t followed;         /* turns that were computed while their pages came */
    struct session plain[TALKS];
    uint32_t tokens[TALKS][ROWS_MAX];
    uint32_t lengths[TALKS];
};

static void world_open(struct world *world, const struct random_model *shape)
{
    struct kv_cache_config config = {.ops = cuda_, .host_bytes = 4 << 20, .sequence_tokens_max = ROWS_MAX, .open_max = 2, .chunk_tokens_max = ROWS_MAX,
                                     .rewind_tokens = 16};
    world->model = model_make_with(shape, RANDOM_RECIPE_MIXED);
    world->cpu = backend_make(cpu_, world->model, NULL, CONFIG(false)), world->cuda = backend_make(cuda_, world->model, NULL, CONFIG(false));
    config.backend = world->cuda;
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++) {
        const struct model_attention *attention = &world->model->config.attention[group];
        config.groups[group] = (struct kv_group_config){.page_bytes = cuda_->page_bytes(world->cuda, group),
                                                        .window = group == MODEL_LAYER_LOCAL ? attention->window : 0, .sinks = attention->sinks};
        config.device_bytes += config.groups[group].page_bytes * 8;
    }
    assert_ok(kv_cache_create(&config, &world->cache));
    kv_cache_load_by_layers(world->cache, true);
    for (unsigned i = 0; i < TALKS; i++) {
        tokens_fill(world->model, i, world->tokens[i], ROWS_MAX);
        memcpy(world->tokens[i], world->tokens[0], TURN / 2 * sizeof(uint32_t));     /* all begin alike */
        session_open(&world->plain[i], cpu_, world->model, world->cpu, world->tokens[i]);
    }
}

static void world_close(struct world *world)
{
    for (unsigned i = 0; i < TALKS; i++)
        session_close(&world->plain[i]);
    assert_ok(kv_cache_check(world->cache));
    kv_cache_destroy(&world->cache);
    cpu_->destroy(&world->cpu), cuda_->destroy(&world->cuda);
    model_destroy(&world->model);
}

/* TURN more tokens of a conversation; how many of those before were found. */
static uint32_t turn(struct world *world, unsigned i)
{
    static const uint8_t root[32] = {7};
    const uint32_t end = world->lengths[i] + TURN;
    const struct kv_prompt prompt = {.root = root, .ids = world->tokens[i], .count = end};
    struct kv_sequence *sequence = NULL;
    float *want = logits_new(world->model, 1), *got = logits_new(world->model, 1);
    struct both words = {.model = world->model};
    const bool behind = world->lengths[i] / TURN % 2 == 1;
    forward(&world->plain[i], world->lengths[i], TURN, want, 1);
    assert_ok(kv_cache_open(world->cache, &prompt, &sequence));
    while (!kv_sequence_ready(sequence) && (kv_sequence_after(sequence) == 0 || !behind))
        (void)kv_cache_poll(world->cache);
    world->followed += !kv_sequence_ready(sequence);
    const uint32_t start = kv_sequence_tokens(sequence);
    assert_ok(kv_cache_reserve(world->cache, sequence, end));
    struct backend_run run = {.tokens = world->tokens[i] + start, .count = end - start, .start = start, .logits = got, .logit_rows = 1,
                              .after = kv_sequence_after(sequence)};
    for (unsigned group = 0; group < BACKEND_GROUPS_MAX; group++)
        run.pages[group] = world->model->config.producer_count[group] ? kv_sequence_pages(sequence, group) : NULL;
    if (cuda_->forward(world->cuda, &(struct backend_batch){.runs = &run, .run_count = 1}, NULL) != STATUS_OK)
        fail_msg("%s", status_detail());
    check_logits(&words, want, got, 1, "a turn");
    kv_cache_append(world->cache, sequence, run.tokens, run.count);
    kv_cache_keep(world->cache, &sequence, end, NULL);
    (void)kv_cache_poll(world->cache);
    free(want), free(got);
    world->lengths[i] = end;
    return start;
}

static void conversations_on_two_tiers(const struct random_model *shape)
{
    struct world *world = calloc(1, sizeof *world);
    uint32_t found = 0;
    struct kv_cache_counts counts;
    assert_non_null(world);
    world_open(world, shape);
    for (unsigned t = 0; t < TURNS; t++)
        for (unsigned i = 0; i < TALKS; i++)
            found += turn(world, i);
    kv_cache_counts(world->cache, &counts);
    printf("%s: %u tokens found, %llu pages to the host, %llu back, %u turns computed behind them\n", shape->name, found,
           (unsigned long long)counts.demoted, (unsigned long long)counts.promoted, world->followed);
    assert_true(found > TURN * TALKS && counts.demoted > 0 && counts.promoted > 0 && world->followed > 0);
    world_close(world);
    free(world);
}

static void conversations_agree(void **state)
{
    (void)state;
    const struct random_model shapes[] = {random_model_small(), random_model_gemma4()};
    for (unsigned s = 0; s < 2; s++)
        conversations_on_two_tiers(&shapes[s]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(conversations_agree)};
    return unit_run(tests, NULL, NULL);
}
