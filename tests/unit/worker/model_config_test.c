/* config.json: what is accepted, and every way of being refused, by status and by a word of the reason. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include "worker/engine/model/model_config.h"

/* A good configuration in pieces, so that a case can replace one key. */
static const struct key {
    const char *name, *value;
} keys_[] = {
    {"architectures", "[\"RoostForCausalLM\"]"},
    {"model_type", "\"roost\""},
    {"name", "\"test\""},
    {"vocab_size", "512"},
    {"hidden_size", "96"},
    {"intermediate_size", "160"},
    {"num_hidden_layers", "4"},
    {"num_attention_heads", "4"},
    {"num_key_value_heads", "1"},
    {"head_dim", "32"},
    {"hidden_activation", "\"silu\""},
    {"max_position_embeddings", "2048"},
    {"rms_norm_eps", "1e-06"},
    {"rope_theta", "100000.0"},
    {"rope_local_base_freq", "10000"},
    {"sliding_window", "24"},
    {"layer_types", "[\"sliding_attention\",\"full_attention\",\"sliding_attention\",\"full_attention\"]"},
    {"kv_producer", "[0,1,0,1]"},
    {"tie_word_embeddings", "true"},
    {"attention_scale", "0.125"},
    {"bos_token_id", "1"},
    {"eos_token_id", "2"},
    {"turn_token_id", "3"},
    {"text_token_id", "4"},
    {"chat_template", "\"speaker\""},
};
#define KEY_COUNT (sizeof keys_ / sizeof *keys_)

/* The good configuration with key set to value: NULL leaves the key out; a new key is added. */
static char *config_text(const char *key, const char *value)
{
    static char text[1 << 14];
    size_t at = 0;
    bool placed = !key;
    at += (size_t)snprintf(text, sizeof text, "{");
    for (size_t i = 0; i < KEY_COUNT; i++) {
        const char *use = keys_[i].value;
        if (key && strcmp(key, keys_[i].name) == 0) {
            use = value;
            placed = true;
        }
        if (use)
            at += (size_t)snprintf(text + at, sizeof text - at, "%s\"%s\":%s", at > 1 ? "," : "", keys_[i].name, use);
    }
    if (!placed)
        at += (size_t)snprintf(text + at, sizeof text - at, ",\"%s\":%s", key, value);
    snprintf(text + at, sizeof text - at, "}");
    return text;
}

static enum status parse(const char *text, struct model_config *config)
{
    return model_config_parse("/models/folder", text, strlen(text), config);
}

static void good_configuration_is_read(void **state)
{
    (void)state;
    struct model_config config;
    if (parse(config_text(NULL, NULL), &config) != STATUS_OK)
        fail_msg("%s", status_detail());
    assert_string_equal(config.name, "test");
    assert_int_equal(config.vocab_size, 512);
    assert_int_equal(config.layer_count, 4);
    assert_string_equal(config.family, "roost");
    assert_int_equal(config.attention[MODEL_LAYER_LOCAL].window, 24);
    assert_int_equal(config.attention[MODEL_LAYER_GLOBAL].window, 0);
    assert_int_equal(config.producer_count[MODEL_LAYER_LOCAL], 1);
    assert_int_equal(config.producer_count[MODEL_LAYER_GLOBAL], 1);
    assert_int_equal(config.last_producer, 1);
    assert_int_equal(config.producer_slot[1], 0);        /* the first of its own group */
    assert_int_equal(config.kv_producer[3], 1);
    assert_int_equal(config.layer_types[0], MODEL_LAYER_LOCAL);
    assert_int_equal(config.layer_types[1], MODEL_LAYER_GLOBAL);
    assert_true(config.attention_scale == 0.125f);
    assert_true(config.attention[MODEL_LAYER_LOCAL].rope_base == 10000.0 && config.attention[MODEL_LAYER_GLOBAL].rope_base == 100000.0);
    for (unsigned type = 0; type < MODEL_LAYER_TYPES; type++) {
        assert_int_equal(config.attention[type].head_dim, 32);
        assert_int_equal(config.attention[type].kv_head_count, 1);
        assert_int_equal(config.attention[type].rope_pairs, 16);
        assert_true(config.attention[type].rope_scale == 1.0);
    }
    assert_int_equal(config.intermediate_size[3], 160);
    assert_true(config.embedding_scale == 1.0f && config.logit_cap == 0.0f);
    assert_false(config.v_norm || config.sandwich_norm);
    assert_int_equal(config.per_layer_input, 0);
    assert_int_equal(config.chat_template, MODEL_TEMPLATE_SPEAKER);
    assert_int_equal(config.end_id_count, 1);
    assert_int_equal(config.end_ids[0], 2);
    assert_true(config.norm_epsilon == 1e-6f);
    assert_true(config.qk_norm);
    assert_int_equal(config.text_id, 4);
}

static void defaults_are_filled_in(void **state)
{
    (void)state;
    struct model_config config;
    assert_int_equal(parse(config_text("attention_scale", NULL), &config), STATUS_OK);
    assert_true(config.attention_scale == (float)(1.0 / __builtin_sqrt(32.0)));
    assert_int_equal(parse(config_text("kv_producer", NULL), &config), STATUS_OK);
    assert_int_equal(config.producer_count[MODEL_LAYER_LOCAL], 2);
    assert_int_equal(config.producer_count[MODEL_LAYER_GLOBAL], 2);
    assert_int_equal(config.producer_slot[3], 1);
    assert_int_equal(config.last_producer, 3);
    assert_int_equal(parse(config_text("qk_norm", "false"), &config), STATUS_OK);
    assert_false(config.qk_norm);
    assert_int_equal(parse(config_text("hidden_activation", "\"gelu_pytorch_tanh\""), &config), STATUS_OK);
    assert_int_equal(config.activation, MODEL_ACTIVATION_GELU_TANH);
    assert_int_equal(parse(config_text("torch_dtype", "\"float32\""), &config), STATUS_OK);
    assert_int_equal(parse(config_text("name", NULL), &config), STATUS_OK);
}

/* Every option of the Gemma families, one after the other on the same base. */
static void options_are_read(void **state)
{
    (void)state;
    struct model_config c;
    const struct model_attention *local = &c.attention[MODEL_LAYER_LOCAL], *global = &c.attention[MODEL_LAYER_GLOBAL];
#define READ(key, value, condition) \
    do { \
        if (parse(config_text(key, value), &c) != STATUS_OK) \
            fail_msg("%s: %s", key, status_detail()); \
        assert_true(condition); \
    } while (0)
    READ("family", "\"gemma4\"", strcmp(c.family, "gemma4") == 0);
    READ("intermediate_size", "[160,320,160,320]", c.intermediate_size[1] == 320 && c.intermediate_size[2] == 160);
    READ("global_head_dim", "64", global->head_dim == 64 && local->head_dim == 32 && global->rope_pairs == 32);
    READ("global_num_key_value_heads", "2", global->kv_head_count == 2 && local->kv_head_count == 1);
    READ("rope_global_scale", "8.0", global->rope_scale == 8.0 && local->rope_scale == 1.0);
    READ("rope_local_scale", "2", local->rope_scale == 2.0);
    READ("rope_global_pairs", "4", global->rope_pairs == 4 && local->rope_pairs == 16);
    READ("rope_local_pairs", "16", local->rope_pairs == 16);
    READ("attention_sinks", "4", local->sinks == 4 && global->sinks == 0);
    READ("embedding_scale", "25.298221281347036", c.embedding_scale == 25.298221281347036f);
    READ("final_logit_softcapping", "30.0", c.logit_cap == 30.0f);
    READ("final_logit_softcapping", "0", c.logit_cap == 0.0f);
    READ("v_norm", "true", c.v_norm);
    READ("norm_placement", "\"sandwich\"", c.sandwich_norm);
    READ("hidden_size_per_layer_input", "256", c.per_layer_input == 256);
    READ("chat_template", "\"gemma4\"", c.chat_template == MODEL_TEMPLATE_GEMMA4);
    READ("eos_token_id", "[2,7,9]", c.end_id_count == 3 && c.end_ids[2] == 9);
#undef READ
    /* A token that closes a turn may end a reply, too; not in the template "speaker", where it ends a name. */
    char *text = strdup(config_text("eos_token_id", "[2,4]"));
    assert_int_equal(parse(text, &c), STATUS_INVALID);
    memcpy(strstr(text, "\"speaker\""), "\"gemma\"  ", 9);
    assert_int_equal(parse(text, &c), STATUS_OK);
    assert_int_equal(c.end_ids[1], c.text_id);
    free(text);
}

static const struct refusal {
    const char *key, *value;
    enum status status;
    const char *word;             /* of the detail */
} refusals_[] = {
    {"architectures", "[\"Gemma3ForCausalLM\"]", STATUS_UNSUPPORTED, "Gemma3ForCausalLM"},
    {"architectures", "[]", STATUS_INVALID, "architectures"},
    {"architectures", "\"RoostForCausalLM\"", STATUS_INVALID, "architectures"},
    {"architectures", NULL, STATUS_INVALID, "architectures"},
    {"model_type", "\"gemma\"", STATUS_UNSUPPORTED, "gemma"},
    {"model_type", "7", STATUS_INVALID, "model_type"},
    {"name", "\"\"", STATUS_INVALID, "name"},
    {"name", "\"a b\"", STATUS_INVALID, "name"},
    {"name", "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"", STATUS_INVALID, "name"},
    {"name", "[]", STATUS_INVALID, "name"},
    {"vocab_size", NULL, STATUS_INVALID, "vocab_size"},
    {"vocab_size", "10000000", STATUS_INVALID, "vocab_size"},
    {"vocab_size", "0", STATUS_INVALID, "vocab_size"},
    {"vocab_size", "-1", STATUS_INVALID, "vocab_size"},
    {"vocab_size", "512.0", STATUS_INVALID, "vocab_size"},
    {"vocab_size", "\"512\"", STATUS_INVALID, "vocab_size"},
    {"vocab_size", "18446744073709551616", STATUS_INVALID, "integer"},
    {"vocab_size", "4294967808", STATUS_INVALID, "vocab_size"},
    {"hidden_size", "65537", STATUS_INVALID, "hidden_size"},
    {"hidden_size", "null", STATUS_INVALID, "hidden_size"},
    {"intermediate_size", "true", STATUS_INVALID, "intermediate_size"},
    {"num_hidden_layers", "257", STATUS_INVALID, "num_hidden_layers"},
    {"num_hidden_layers", "0", STATUS_INVALID, "num_hidden_layers"},
    {"num_hidden_layers", "5", STATUS_INVALID, "layer_types"},
    {"num_attention_heads", "257", STATUS_INVALID, "num_attention_heads"},
    {"num_key_value_heads", "3", STATUS_INVALID, "num_key_value_heads 3"},
    {"num_key_value_heads", "0", STATUS_INVALID, "num_key_value_heads"},
    {"head_dim", "33", STATUS_INVALID, "odd"},
    {"head_dim", "514", STATUS_INVALID, "head_dim"},
    {"max_position_embeddings", "1048577", STATUS_INVALID, "max_position_embeddings"},
    {"hidden_activation", "\"relu\"", STATUS_UNSUPPORTED, "relu"},
    {"hidden_activation", "1", STATUS_INVALID, "hidden_activation"},
    {"rms_norm_eps", "0", STATUS_INVALID, "rms_norm_eps"},
    {"rms_norm_eps", NULL, STATUS_INVALID, "rms_norm_eps"},
    {"rms_norm_eps", "\"1e-6\"", STATUS_INVALID, "rms_norm_eps"},
    {"rope_theta", "1", STATUS_INVALID, "rope_theta"},
    {"rope_theta", "1e13", STATUS_INVALID, "rope_theta"},
    {"rope_theta", "1e999", STATUS_INVALID, "config.json"},
    {"rope_local_base_freq", "-5", STATUS_INVALID, "rope_local_base_freq"},
    {"attention_scale", "0", STATUS_INVALID, "attention_scale"},
    {"attention_scale", "NaN", STATUS_INVALID, "config.json"},
    {"sliding_window", "0", STATUS_INVALID, "sliding_window"},
    {"sliding_window", NULL, STATUS_INVALID, "sliding_window"},
    {"layer_types", "[\"sliding_attention\"]", STATUS_INVALID, "layer_types"},
    {"layer_types", "[1,2,3,4]", STATUS_INVALID, "layer_types"},
    {"layer_types", "{}", STATUS_INVALID, "layer_types"},
    {"layer_types", "[\"full_attention\",\"full_attention\",\"linear_attention\",\"full_attention\"]", STATUS_UNSUPPORTED, "linear_attention"},
    {"kv_producer", "[0,1,2,4]", STATUS_INVALID, "kv_producer[3]"},
    {"kv_producer", "[1,1,2,3]", STATUS_INVALID, "kv_producer[0]"},
    {"kv_producer", "[0,1,0,0]", STATUS_INVALID, "other layer type"},
    {"kv_producer", "[0,1,0,2]", STATUS_INVALID, "produces no K and V"},
    {"kv_producer", "[0,1,-2,1]", STATUS_INVALID, "kv_producer[2]"},
    {"kv_producer", "[0,1,0]", STATUS_INVALID, "kv_producer"},
    {"kv_producer", "[0,1,0,\"1\"]", STATUS_INVALID, "kv_producer[3]"},
    {"tie_word_embeddings", "false", STATUS_UNSUPPORTED, "tie_word_embeddings"},
    {"tie_word_embeddings", "1", STATUS_INVALID, "tie_word_embeddings"},
    {"chat_template", "\"chatml\"", STATUS_UNSUPPORTED, "chatml"},
    {"chat_template", NULL, STATUS_INVALID, "chat_template"},
    {"bos_token_id", "512", STATUS_INVALID, "bos_token_id"},
    {"eos_token_id", "-1", STATUS_INVALID, "eos_token_id"},
    {"turn_token_id", "[3]", STATUS_INVALID, "turn_token_id"},
    {"text_token_id", "1", STATUS_INVALID, "two control tokens"},
    {"qk_norm", "1", STATUS_INVALID, "qk_norm"},
    {"attn_logit_softcapping", "50.0", STATUS_UNSUPPORTED, "attn_logit_softcapping"},
    {"family", "\"llama\"", STATUS_UNSUPPORTED, "llama"},
    {"family", "4", STATUS_INVALID, "family"},
    {"intermediate_size", "[160,160,160]", STATUS_INVALID, "intermediate_size"},
    {"intermediate_size", "[160,160,160,0]", STATUS_INVALID, "intermediate_size"},
    {"intermediate_size", "[160,160,160,65537]", STATUS_INVALID, "intermediate_size"},
    {"intermediate_size", "[160,160,160,\"1\"]", STATUS_INVALID, "intermediate_size"},
    {"intermediate_size", NULL, STATUS_INVALID, "intermediate_size"},
    {"global_head_dim", "63", STATUS_INVALID, "global_head_dim 63 is odd"},
    {"global_head_dim", "514", STATUS_INVALID, "global_head_dim"},
    {"global_num_key_value_heads", "3", STATUS_INVALID, "global_num_key_value_heads"},
    {"rope_global_scale", "0.5", STATUS_INVALID, "rope_global_scale"},
    {"rope_local_scale", "0", STATUS_INVALID, "rope_local_scale"},
    {"rope_local_scale", "1e7", STATUS_INVALID, "rope_local_scale"},
    {"rope_global_pairs", "17", STATUS_INVALID, "rope_global_pairs"},
    {"rope_local_pairs", "0", STATUS_INVALID, "rope_local_pairs"},
    {"attention_sinks", "-1", STATUS_INVALID, "attention_sinks"},
    {"attention_sinks", "1025", STATUS_INVALID, "attention_sinks"},
    {"embedding_scale", "0", STATUS_INVALID, "embedding_scale"},
    {"embedding_scale", "\"sqrt\"", STATUS_INVALID, "embedding_scale"},
    {"final_logit_softcapping", "-30", STATUS_INVALID, "final_logit_softcapping"},
    {"final_logit_softcapping", "null", STATUS_INVALID, "final_logit_softcapping"},
    {"v_norm", "\"yes\"", STATUS_INVALID, "v_norm"},
    {"norm_placement", "\"post\"", STATUS_UNSUPPORTED, "post"},
    {"norm_placement", "true", STATUS_INVALID, "norm_placement"},
    {"hidden_size_per_layer_input", "65537", STATUS_INVALID, "hidden_size_per_layer_input"},
    {"hidden_size_per_layer_input", "1.5", STATUS_INVALID, "hidden_size_per_layer_input"},
    {"eos_token_id", "[]", STATUS_INVALID, "eos_token_id"},
    {"eos_token_id", "[5,6,7,8,9,10,11,12,13]", STATUS_INVALID, "eos_token_id"},
    {"eos_token_id", "[5,5]", STATUS_INVALID, "two control tokens"},
    {"eos_token_id", "[5,512]", STATUS_INVALID, "eos_token_id"},
    {"eos_token_id", "[3]", STATUS_INVALID, "two control tokens"},
    {"attention_k_eq_v", "true", STATUS_UNSUPPORTED, "attention_k_eq_v"},
    {"num_experts", "8", STATUS_UNSUPPORTED, "num_experts"},
    {"hidden_size\":96,\"hidden_size", "96", STATUS_INVALID, "duplicate"},
};

static void bad_values_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals_ / sizeof *refusals_; i++) {
        const struct refusal *refusal = &refusals_[i];
        struct model_config config, before;
        memset(&config, 0x5a, sizeof config);
        before = config;
        enum status st = parse(config_text(refusal->key, refusal->value), &config);
        if (st != refusal->status || !strstr(status_detail(), refusal->word))
            fail_msg("%s = %s: %s, %s", refusal->key, refusal->value ? refusal->value : "(absent)", status_name(st), status_detail());
        assert_memory_equal(&config, &before, sizeof config);      /* untouched on failure */
    }
}

/* What is wrong only together. */
static void impossible_combinations_are_refused(void **state)
{
    (void)state;
    struct model_config config;
    static const struct {
        const char *from, *to, *word;
    } cases[] = {
        {"\"attention_scale\":0.125", "\"global_head_dim\":64", "attention_scale is missing"},
        {"\"layer_types\":[\"sliding_attention\",\"full_attention\",\"sliding_attention\",\"full_attention\"],\"kv_producer\":[0,1,0,1]",
         "\"attention_sinks\":4,\"layer_types\":[\"full_attention\",\"full_attention\",\"full_attention\",\"full_attention\"]",
         "attention_sinks 4"},
        {"\"num_attention_heads\":4,\"num_key_value_heads\":1,\"head_dim\":32",
         "\"num_attention_heads\":256,\"num_key_value_heads\":1,\"head_dim\":32,\"global_head_dim\":512", "times global_head_dim 512 is over"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *text = config_text(NULL, NULL), *at = strstr(text, cases[i].from);
        char changed[1 << 14];
        assert_non_null(at);
        snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - text), text, cases[i].to, at + strlen(cases[i].from));
        if (parse(changed, &config) != STATUS_INVALID || !strstr(status_detail(), cases[i].word))
            fail_msg("%s: %s", cases[i].to, status_detail());
    }
}

static void bad_text_is_refused(void **state)
{
    (void)state;
    static const char *const texts[] = {"", "{", "[]", "null", "{}", "\"x\"", "{\"a\":1}x", "{'a':1}", "{\"a\":\"\\ud800\"}", "\xff\xfe"};
    struct model_config config;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        assert_int_equal(parse(texts[i], &config), STATUS_INVALID);
    assert_int_equal(model_config_parse("/x", "{\"a\":\0}", 7, &config), STATUS_INVALID);
    size_t depth = 200000;
    char *deep = malloc(depth + 1);
    memset(deep, '[', depth);
    deep[depth] = '\0';
    assert_int_equal(parse(deep, &config), STATUS_INVALID);
    for (size_t i = 0; i + 5 <= depth; i += 5)
        memcpy(deep + i, "{\"a\":", 5);
    assert_int_equal(parse(deep, &config), STATUS_INVALID);
    free(deep);
}

static void every_truncation_is_refused(void **state)
{
    (void)state;
    char *text = strdup(config_text(NULL, NULL));
    struct model_config config;
    for (size_t size = 0; size < strlen(text); size++)
        assert_int_equal(model_config_parse("/x", text, size, &config), STATUS_INVALID);
    free(text);
}

static void bad_files_are_refused(void **state)
{
    (void)state;
    char dir[] = "/tmp/roost-config-XXXXXX", path[256], other[256];
    struct model_config config;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/config.json", dir);
    snprintf(other, sizeof other, "%s/other", dir);
    assert_int_equal(model_config_load(dir, &config), STATUS_NOT_FOUND);

    FILE *file = fopen(other, "w");
    fputs(config_text(NULL, NULL), file);
    fclose(file);
    assert_int_equal(symlink(other, path), 0);
    assert_int_equal(model_config_load(dir, &config), STATUS_INVALID);
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(model_config_load(dir, &config), STATUS_INVALID);
    unlink(path);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(model_config_load(dir, &config), STATUS_INVALID);
    rmdir(path);
    file = fopen(path, "w");
    assert_int_equal(fclose(file), 0);
    assert_int_equal(truncate(path, MODEL_CONFIG_BYTES_MAX + 1), 0);
    assert_int_equal(model_config_load(dir, &config), STATUS_LIMIT);
    unlink(path);
    assert_int_equal(rename(other, path), 0);
    assert_int_equal(model_config_load(dir, &config), STATUS_OK);
    unlink(path);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_configuration_is_read),
        cmocka_unit_test(defaults_are_filled_in),
        cmocka_unit_test(options_are_read),
        cmocka_unit_test(bad_values_are_refused),
        cmocka_unit_test(impossible_combinations_are_refused),
        cmocka_unit_test(bad_text_is_refused),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(bad_files_are_refused),
    };
    return cmocka_run_group_tests_name("model_config", tests, NULL, NULL);
}
