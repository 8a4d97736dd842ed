/* convert_refusal_test.c - what cannot be converted is refused by name, and leaves nothing behind. */
#include "tests/unit/worker/unit.h"
#include <errno.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <fcntl.h>
#include <unistd.h>
#include "tests/unit/convert/checkpoint_fixture.h"
#include "worker/convert/convert.h"

static char scratch[256];
static struct fixture fixture;

static int setup(void **state)
{
    (void)state;
    fixture_scratch(scratch);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    fixture_free(&fixture);
    fixture_remove(scratch);
    return 0;
}

static bool exists(const char *name)
{
    char path[512];
    struct stat info;
    snprintf(path, sizeof path, "%s/%s", scratch, name);
    return lstat(path, &info) == 0;
}

static enum status run_options(struct convert_options options)
{
    char destination[512];
    snprintf(destination, sizeof destination, "%s/out", scratch);
    options.source = options.source ? options.source : fixture.dir;
    options.destination = destination;
    options.threads = 2;
    return convert(&options);
}

static void expect(enum status want, const char *words, enum status st)
{
    if (st != want || !strstr(status_detail(), words))
        fail_msg("want %s with \"%s\", got %s: %s", status_name(want), words, status_name(st), st == STATUS_OK ? "" : status_detail());
    assert_false(exists("out"));
    assert_false(exists("out.partial"));
}

static void expect_convert(enum status want, const char *words)
{
    expect(want, words, run_options((struct convert_options){ .format = MODEL_FORMAT_INT8, .no_tokenizer = true }));
}

/* ---- configurations ---- */

static void test_configurations(void **state)
{
    (void)state;
    static const struct {
        bool gemma4;
        const char *from, *to;
        enum status status;
        const char *words;
    } cases[] = {
        { false, "Gemma3ForCausalLM", "LlamaForCausalLM", STATUS_UNSUPPORTED, "architecture LlamaForCausalLM" },
        { false, "Gemma3ForCausalLM", "SiglipVisionModel", STATUS_UNSUPPORTED, "architecture SiglipVisionModel" },
        { false, "\"attn_logit_softcapping\": null", "\"attn_logit_softcapping\": 50.0", STATUS_UNSUPPORTED, "attn_logit_softcapping" },
        { false, "gelu_pytorch_tanh", "relu2", STATUS_UNSUPPORTED, "hidden_activation \"relu2\"" },
        { false, "\"linear\"", "\"yarn\"", STATUS_UNSUPPORTED, "rope_type \"yarn\"" },
        { false, "\"torch_dtype\"", "\"use_bidirectional_attention\": true, \"torch_dtype\"", STATUS_UNSUPPORTED,
          "use_bidirectional_attention" },
        { false, "\"torch_dtype\"", "\"attention_bias\": true, \"torch_dtype\"", STATUS_UNSUPPORTED, "attention_bias" },
        { false, "\"torch_dtype\"", "\"quantization_config\": {\"bits\": 4}, \"torch_dtype\"", STATUS_UNSUPPORTED, "quantization_config" },
        { false, "\"torch_dtype\"", "\"clamp_activations\": 5, \"torch_dtype\"", STATUS_UNSUPPORTED, "clamp_activations is not known" },
        { false, "\"head_dim\": 16", "\"head_dim\": 15", STATUS_UNSUPPORTED, "head_dim 15" },
        { false, "\"num_key_value_heads\": 1", "\"num_key_value_heads\": 3", STATUS_INVALID, "not a multiple of num_key_value_heads 3" },
        { false, "\"hidden_size\": 64", "\"hidden_size\": \"64\"", STATUS_INVALID, "hidden_size: want an integer" },
        { false, "\"hidden_size\": 64", "\"hidden_size\": 65537", STATUS_UNSUPPORTED, "hidden_size is 65537" },
        { false, "\"num_hidden_layers\": 6", "\"num_hidden_layers\": 0", STATUS_UNSUPPORTED, "num_hidden_layers 0" },
        { false, "\"num_hidden_layers\": 6", "\"num_hidden_layers\": 7", STATUS_INVALID, "model.layers.6.input_layernorm.weight is missing" },
        { false, "\"num_hidden_layers\": 6", "\"num_hidden_layers\": 5", STATUS_UNSUPPORTED, "model.layers.5." },
        { false, "\"torch_dtype\"", "\"tie_word_embeddings\": false, \"torch_dtype\"", STATUS_INVALID, "lm_head.weight is missing" },
        { false, "\"eos_token_id\": [1, 106]", "\"eos_token_id\": [1, 320]", STATUS_INVALID, "eos_token_id" },
        { false, "{\"architectures\"", "{\"architectures\": 1, \"architectures\"", STATUS_INVALID, "line 1" },
        { false, "\"max_position", "max_position", STATUS_INVALID, "config.json: line" },
        { true, "\"enable_moe_block\": false", "\"enable_moe_block\": true", STATUS_UNSUPPORTED, "enable_moe_block" },
        { true, "\"attention_k_eq_v\": false", "\"attention_k_eq_v\": true", STATUS_UNSUPPORTED, "attention_k_eq_v" },
        { true, "\"use_bidirectional_attention\": null", "\"use_bidirectional_attention\": \"all\"", STATUS_UNSUPPORTED,
          "use_bidirectional_attention" },
        { true, "\"default\"", "\"llama3\"", STATUS_UNSUPPORTED, "rope_type \"llama3\"" },
        { true, "\"rope_type\": \"proportional\"", "\"rope_type\": \"default\"", STATUS_UNSUPPORTED, "partial_rotary_factor" },
        { true, "\"num_kv_shared_layers\": 4", "\"num_kv_shared_layers\": 10", STATUS_INVALID, "num_kv_shared_layers 10" },
        { true, "\"num_kv_shared_layers\": 4", "\"num_kv_shared_layers\": 6", STATUS_INVALID, "no earlier layer of its type" },
        { true, "\"vocab_size_per_layer_input\": 320", "\"vocab_size_per_layer_input\": 300", STATUS_UNSUPPORTED,
          "vocab_size_per_layer_input" },
        { true, "\"sliding_attention\"", "\"linear_attention\"", STATUS_UNSUPPORTED, "layer_types[0] \"linear_attention\"" },
        { true, "\"global_head_dim\": 32", "\"global_head_dim\": 64", STATUS_INVALID, "model.layers.4.self_attn.q_proj.weight has shape" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (cases[i].gemma4)
            fixture_gemma4(&fixture, scratch, "BF16", false);
        else
            fixture_gemma3(&fixture, scratch, "BF16", false);
        fixture_edit(&fixture, cases[i].from, cases[i].to);
        fixture_write(&fixture, 1);
        expect_convert(cases[i].status, cases[i].words);
        fixture_remove(fixture.dir);
        fixture_free(&fixture);
    }
}

static void test_known_key_can_be_ignored(void **state)
{
    (void)state;
    fixture_gemma3(&fixture, scratch, "F32", false);
    fixture_edit(&fixture, "\"torch_dtype\"", "\"clamp_activations\": 5, \"torch_dtype\"");
    fixture_write(&fixture, 1);
    assert_ok(run_options((struct convert_options){ .no_tokenizer = true, .ignored_keys = { "clamp_activations" }, .ignored_key_count = 1 }));
}

/* ---- tensors ---- */

static void test_tensors(void **state)
{
    (void)state;
    struct fixture_tensor *tensor;
    fixture_gemma3(&fixture, scratch, "BF16", false);
    fixture_add(&fixture, "BF16", 4, 4, "model.layers.0.self_attn.rotor.weight");
    fixture_write(&fixture, 1);
    expect_convert(STATUS_UNSUPPORTED, "model.layers.0.self_attn.rotor.weight has no place");
    fixture_drop(&fixture, "model.layers.0.self_attn.rotor.weight");

    fixture_drop(&fixture, "model.layers.3.mlp.up_proj.weight");
    fixture_write(&fixture, 1);
    expect_convert(STATUS_INVALID, "model.layers.3.mlp.up_proj.weight is missing");
    fixture_add(&fixture, "BF16", 64, 128, "model.layers.3.mlp.up_proj.weight");
    fixture_write(&fixture, 1);
    expect_convert(STATUS_INVALID, "model.layers.3.mlp.up_proj.weight has shape (64, 128), the configuration wants (128, 64)");
    fixture_drop(&fixture, "model.layers.3.mlp.up_proj.weight");
    fixture_add(&fixture, "F8_E4M3", 128, 64, "model.layers.3.mlp.up_proj.weight");
    fixture_write(&fixture, 1);
    expect_convert(STATUS_UNSUPPORTED, "model.layers.3.mlp.up_proj.weight is F8_E4M3");
    fixture_drop(&fixture, "model.layers.3.mlp.up_proj.weight");
    tensor = fixture_add(&fixture, "BF16", 128, 64, "model.layers.3.mlp.up_proj.weight");
    const float inf_bits = 3.0e38f * 10;
    tensor->values[70] = inf_bits;
    fixture_write(&fixture, 1);
    expect_convert(STATUS_INVALID, "model.layers.3.mlp.up_proj.weight: row 1 has a NaN or infinity");
    tensor->values[70] = 0;

    tensor = fixture_add(&fixture, "BF16", 320, 64, "lm_head.weight");
    fixture_write(&fixture, 1);
    expect_convert(STATUS_UNSUPPORTED, "lm_head.weight differs from the embedding");
    memcpy(tensor->values, fixture_find(&fixture, "model.embed_tokens.weight")->values, 320 * 64 * sizeof(float));
    fixture_write(&fixture, 1);
    assert_ok(run_options((struct convert_options){ .no_tokenizer = true }));
}

/* ---- files ---- */

static void cut_file(const char *name, off_t size)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", fixture.dir, name);
    assert_int_equal(truncate(path, size), 0);
}

static void test_damaged_weights(void **state)
{
    (void)state;
    static const struct { off_t size; const char *words; } cuts[] = {
        { 0, "too short" }, { 7, "too short" }, { 9, "too short" }, { 100, "header of" }, { 5000, "header of" }, { 40000, "truncated" },
    };
    fixture_gemma3(&fixture, scratch, "F32", false);
    for (unsigned i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        fixture_write(&fixture, 1);
        cut_file("model.safetensors", cuts[i].size);
        expect_convert(STATUS_INVALID, cuts[i].words);
    }
    /* Any byte of the header changed: an error or, in a name that is not read, none; never a crash. */
    char path[512];
    uint64_t seed = test_seed(11);
    snprintf(path, sizeof path, "%s/model.safetensors", fixture.dir);
    for (unsigned i = 0; i < 200; i++) {
        fixture_write(&fixture, 1);
        FILE *file = fopen(path, "r+b");
        assert_non_null(file);
        fseek(file, (long)rng_below(&seed, 4000), SEEK_SET);
        fputc((int)rng_below(&seed, 256), file);
        fclose(file);
        char destination[512];
        if (run_options((struct convert_options){ .no_tokenizer = true }) != STATUS_OK) {
            assert_false(exists("out"));
            assert_false(exists("out.partial"));
        }
        snprintf(destination, sizeof destination, "%s/out", scratch);
        fixture_remove(destination);
    }
}

static void test_shards(void **state)
{
    (void)state;
    fixture_gemma3(&fixture, scratch, "F32", false);
    fixture_write(&fixture, 2);
    fixture_write_text(fixture.dir, "model.safetensors.index.json", "{\"weight_map\": {\"a\": \"../model-0.safetensors\"}}");
    expect_convert(STATUS_INVALID, "want the name of a file in this directory");
    fixture_write_text(fixture.dir, "model.safetensors.index.json", "{\"weight_map\": {\"a\": \"model-0.safetensors\"}}");
    expect_convert(STATUS_INVALID, "tensor a is in no file");
    fixture_write_text(fixture.dir, "model.safetensors.index.json", "{\"weight_map\": {\"a\": \"model-9.safetensors\"}}");
    expect_convert(STATUS_NOT_FOUND, "model-9.safetensors");
    fixture_write_text(fixture.dir, "model.safetensors.index.json", "{\"weight_map\": ");
    expect_convert(STATUS_INVALID, "model.safetensors.index.json: line 1");
    cut_file("config.json", 20);
    expect_convert(STATUS_INVALID, "config.json: line 1");
    assert_int_equal(fixture.count > 0, 1);
    char path[512];
    snprintf(path, sizeof path, "%s/config.json", fixture.dir);
    assert_int_equal(unlink(path), 0);
    expect_convert(STATUS_NOT_FOUND, "config.json");
}

static void test_tokenizers(void **state)
{
    (void)state;
    fixture_gemma3(&fixture, scratch, "F32", false);
    fixture_write(&fixture, 1);
    expect(STATUS_UNSUPPORTED, "tokenizer.model is missing", run_options((struct convert_options){ .format = MODEL_FORMAT_FLOAT }));
    fixture_write_text(fixture.dir, "tokenizer.model", "{\"version\": \"1.0\"}");
    expect(STATUS_UNSUPPORTED, "not a sentencepiece model", run_options((struct convert_options){ .format = MODEL_FORMAT_FLOAT }));
    fixture_write_text(fixture.dir, "tokenizer.model", "\x0a\x03\x0a\x01" "a");
    expect(STATUS_UNSUPPORTED, "tokenizer.model", run_options((struct convert_options){ .format = MODEL_FORMAT_FLOAT }));
}

/* ---- recipes ---- */

static void test_recipes(void **state)
{
    (void)state;
    static const struct { const char *text, *words; } cases[] = {
        { "{\"default\": \"int4\"}", "default: scheme \"int4\"" },
        { "{\"defaults\": \"wide\"}", "unknown key defaults" },
        { "{\"smooth\": 1}", "smooth: want true or false" },
        { "{\n\"default\": \"wide\",\n}", "line 3" },
        { "[]", "not a JSON object" },
        { "{\"tensors\": {}}", "tensors: want a list" },
        { "{\"tensors\": [{\"match\": \"*\", \"schema\": \"wide\"}]}", "tensors[0]: unknown key schema" },
        { "{\"tensors\": [{\"match\": \"*\", \"scheme\": \"wide\"}, {\"scheme\": \"wide\"}]}", "tensors[1]: match" },
        { "{\"tensors\": [{\"match\": \"*.midle_proj.weight\", \"scheme\": \"wide\"}]}", "*.midle_proj.weight" },
        { "{\"tensors\": [{\"match\": \"*\", \"scheme\": \"wide\"}, {\"match\": \"*.q_proj.weight\", \"scheme\": \"wide\"}]}", "tensors[1]" },
        { "{\"tensors\": [{\"match\": \"*.embed_tokens.weight\", \"scheme\": \"rotated\"}]}", "cannot be rotated" },
        { "{\"tensors\": [{\"match\": \"*.q_proj.weight\", \"scheme\": \"rotated\"}]}", "64 columns are not a multiple of 128" },
        { "{\"tensors\": [{\"match\": \"*.q_proj.weight\", \"scheme\": \"static\"}]}", "static needs the range of its input" },
        { "{\"tensors\": [{\"match\": \"*\", \"scheme\": \"static\", \"input_scale\": -1}]}", "input_scale: want" },
        { "{\"tensors\": [{\"match\": \"*\", \"scheme\": \"wide\", \"input_scale\": 1}]}", "belongs to scheme static" },
    };
    char path[512];
    fixture_gemma3(&fixture, scratch, "BF16", false);
    fixture_write(&fixture, 1);
    snprintf(path, sizeof path, "%s/recipe.json", scratch);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fixture_write_text(scratch, "recipe.json", cases[i].text);
        expect(STATUS_INVALID, cases[i].words, run_options((struct convert_options){ .recipe_path = path, .no_tokenizer = true }));
    }
    expect(STATUS_INVALID, "static needs the range", run_options((struct convert_options){ .scheme = "static", .no_tokenizer = true }));
    expect(STATUS_INVALID, "--scheme: scheme \"best\"", run_options((struct convert_options){ .scheme = "best", .no_tokenizer = true }));
}

/* ---- leaving nothing ---- */

static void test_stopped(void **state)
{
    (void)state;
    const volatile sig_atomic_t stop = 1;
    fixture_gemma3(&fixture, scratch, "BF16", false);
    fixture_write(&fixture, 1);
    expect(STATUS_CANCELLED, "stopped", run_options((struct convert_options){ .no_tokenizer = true, .stop = &stop }));
}

static void test_destination(void **state)
{
    (void)state;
    char path[512];
    fixture_gemma3(&fixture, scratch, "BF16", false);
    fixture_write(&fixture, 1);
    snprintf(path, sizeof path, "%s/out.partial", scratch);       /* what a killed run leaves */
    assert_int_equal(mkdir(path, 0777), 0);
    fixture_write_text(path, "model.safetensors", "half");
    fixture_write_text(path, "leftover", "half");
    int fd = open(path, O_RDONLY | O_DIRECTORY);
    assert_int_equal(flock(fd, LOCK_EX), 0);                      /* and what a running one holds */
    assert_int_equal(run_options((struct convert_options){ .no_tokenizer = true }), STATUS_EXISTS);
    assert_true(exists("out.partial/leftover"));
    close(fd);
    assert_ok(run_options((struct convert_options){ .no_tokenizer = true }));
    assert_true(exists("out/config.json"));
    assert_false(exists("out/leftover"));
    assert_false(exists("out.partial"));

    assert_int_equal(run_options((struct convert_options){ .no_tokenizer = true }), STATUS_EXISTS);   /* never over an existing one */
    assert_non_null(strstr(status_detail(), "exists already"));
    assert_true(exists("out/config.json"));
    assert_false(exists("out.partial"));
}

int main(void)
{
#define CASE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(test_configurations), CASE(test_known_key_can_be_ignored), CASE(test_tensors), CASE(test_damaged_weights), CASE(test_shards),
        CASE(test_tokenizers), CASE(test_recipes), CASE(test_stopped), CASE(test_destination),
    };
    return unit_run(tests, NULL, NULL);
}
