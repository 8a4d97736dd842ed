/* model_figures_test.c - the figures of `roost model describe` against numbers worked out by hand. */
#include "tests/unit/worker/unit.h"
#include <math.h>
#include "deploy/roost/model_figures.h"

/* 48 layers, each sixth global, one KV head of 128, neighbours of a type share KV by 2: 4 global and 20 local producers. */
static void example(struct model_config *config)
{
    uint32_t count[2] = { 0 }, producer[2] = { 0 };
    memset(config, 0, sizeof *config);
    config->layer_count = 48;
    config->head_count = 40;
    for (uint32_t i = 0; i < 48; i++) {
        const enum model_layer_type type = i % 6 == 5 ? MODEL_LAYER_GLOBAL : MODEL_LAYER_LOCAL;
        if (count[type]++ % 2 == 0) {
            producer[type] = i;
            config->producer_count[type]++;
        }
        config->layer_types[i] = type;
        config->kv_producer[i] = (uint16_t)producer[type];
    }
    config->attention[MODEL_LAYER_GLOBAL] = (struct model_attention){ .kv_head_count = 1, .head_dim = 128 };
    config->attention[MODEL_LAYER_LOCAL] = (struct model_attention){ .kv_head_count = 1, .head_dim = 128, .window = 1024 };
}

static void near(double have, double want)
{
    if (fabs(have - want) > want * 1e-9)
        fail_msg("%.12g, want %.12g", have, want);
}

static void test_example(void **state)
{
    (void)state;
    struct model_config config;
    struct kv_figures kv;
    example(&config);
    assert_int_equal(config.producer_count[MODEL_LAYER_GLOBAL], 4);
    assert_int_equal(config.producer_count[MODEL_LAYER_LOCAL], 20);

    kv_figures(&config, 4096, &kv);
    assert_int_equal(kv.plain_elements, 48ull * 2 * 8 * 128 * 4096);
    assert_int_equal(kv.elements, 2ull * 128 * (4 * 4096 + 20 * 1024));
    assert_int_equal(kv.bytes, 2ull * 132 * (4 * 4096 + 20 * 1024));
    near(kv.heads, 8);
    near(kv.horizon, 8.0 / 3);                       /* 1 / (1/6 + 5/6 * 1/4) */
    near(kv.sharing, 2);
    near(kv.int8, 2 * 128 / 132.0);
    near(kv.heads * kv.horizon * kv.sharing, 128 / 3.0);                      /* 42.7: "43x at 4k" */

    kv_figures(&config, 5740, &kv);
    assert_int_equal((int)lrint(kv.heads * kv.horizon * kv.sharing), 51);     /* "51x at 5.7k" */
    assert_int_equal(kv.elements, 1024ull * 5740 + 5120ull * 1024);           /* 10.6 MiB in int8 without scales */
    kv_figures(&config, 8192, &kv);
    assert_int_equal((int)lrint(kv.heads * kv.horizon * kv.sharing), 59);     /* "59x at 8k" */
    kv_figures(&config, 512, &kv);
    near(kv.horizon, 1);                             /* the window is not reached */

    assert_int_equal(kv_token_bytes(&config, 0), 24 * 2 * 132);
    assert_int_equal(kv_token_bytes(&config, 1), 4 * 2 * 132);
}

static void test_pages(void **state)
{
    (void)state;
    struct model_config config;
    size_t bytes[BACKEND_GROUPS_MAX];
    example(&config);
    kv_page_bytes(&config, bytes);
    assert_int_equal(bytes[MODEL_LAYER_GLOBAL], 4 * 2 * 64 * (128 + 4));
    assert_int_equal(bytes[MODEL_LAYER_LOCAL], 20 * 2 * 64 * (128 + 4));
    config.producer_count[MODEL_LAYER_LOCAL] = 0;
    kv_page_bytes(&config, bytes);
    assert_int_equal(bytes[MODEL_LAYER_LOCAL], 0);
}

/* Two head sizes and GQA: nothing but the plain formula. */
static void test_unlike_heads(void **state)
{
    (void)state;
    struct model_config config;
    struct kv_figures kv;
    memset(&config, 0, sizeof config);
    config.layer_count = 2;
    config.layer_types[0] = MODEL_LAYER_LOCAL;
    config.kv_producer[1] = 1;
    config.producer_count[0] = config.producer_count[1] = 1;
    config.attention[MODEL_LAYER_LOCAL] = (struct model_attention){ .kv_head_count = 2, .head_dim = 256, .window = 512 };
    config.attention[MODEL_LAYER_GLOBAL] = (struct model_attention){ .kv_head_count = 2, .head_dim = 512 };
    config.layer_types[1] = MODEL_LAYER_GLOBAL;
    kv_figures(&config, 1024, &kv);
    assert_int_equal(kv.plain_elements, 2ull * 8 * (256 + 512) * 1024);
    assert_int_equal(kv.elements, 4ull * 256 * 512 + 4ull * 512 * 1024);
    assert_int_equal(kv.bytes, 4ull * 260 * 512 + 4ull * 516 * 1024);
    near(kv.heads, 4);
    near(kv.sharing, 1);
    near(kv.horizon, 768 / 640.0);
}

static void test_parts(void **state)
{
    (void)state;
    assert_int_equal(model_part_of("model.embed_tokens.weight"), MODEL_PART_EMBEDDING);
    assert_int_equal(model_part_of("model.embed_tokens_per_layer.weight"), MODEL_PART_PER_LAYER);
    assert_int_equal(model_part_of("model.layers.0.self_attn.q_proj.weight"), MODEL_PART_ATTENTION);
    assert_int_equal(model_part_of("model.layers.0.self_attn.q_norm.weight"), MODEL_PART_NORMS);
    assert_int_equal(model_part_of("model.layers.0.mlp.down_proj.weight"), MODEL_PART_MLP);
    assert_int_equal(model_part_of("model.layers.0.per_layer_input_gate.weight"), MODEL_PART_PER_LAYER);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_example), cmocka_unit_test(test_pages), cmocka_unit_test(test_unlike_heads),
                                        cmocka_unit_test(test_parts) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
