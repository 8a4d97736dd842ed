/* The known answer over the CPU backend: what a sealed model directory accepts and refuses at start. */
#include "tests/unit/worker/unit.h"
#include <jansson.h>
#include "common/hash.h"
#include "tests/unit/worker/engine_fixture.h"
#include "worker/engine/backend/backend.h"
#include "worker/engine/model/model.h"

static enum status create_for_real(void)
{
    struct engine *engine = NULL;
    const struct engine_config config = {
        .model_dir = fixture_model_dir(), .kv_bytes = 64 << 20, .chunk_tokens = 16, .queue_requests_max = 1};
    const enum status st = engine_create(&config, &engine);
    assert_true((st == STATUS_OK) == (engine != NULL));
    engine_destroy(&engine);
    return st;
}

static void write_answer(const char *text)
{
    char path[600];
    snprintf(path, sizeof path, "%s/known_answer.json", fixture_model_dir());
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* The digest, computed here token by token. */
static void check_digest(json_t *answer)
{
    struct model *model = NULL;
    struct backend *backend = NULL;
    struct hash_stream *hash = NULL;
    uint8_t digest[HASH_DIGEST_BYTES];
    char hex[HASH_HEX_SIZE(HASH_DIGEST_BYTES)];
    const json_t *lists[2] = {json_object_get(answer, "prompt_ids"), json_object_get(answer, "reply_ids")};
    assert_ok(model_load(fixture_model_dir(), &model));
    const struct backend_config config = {.rows_max = 1, .threads = 1};
    assert_ok(backend_cpu_ops.create(model, &config, &backend));
    assert_ok(hash_stream_create(NULL, 0, &hash));
    void *pages[BACKEND_GROUPS_MAX][2] = {{NULL}};
    for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++)
        for (int i = 0; i < 2 && backend_cpu_ops.page_bytes(backend, group) > 0; i++)
            pages[group][i] = aligned_alloc(64, backend_cpu_ops.page_bytes(backend, group));
    float *logits = calloc(4096, sizeof *logits);
    for (uint32_t i = 0; i < 64 + 8 - 1; i++) {
        const uint32_t id = (uint32_t)json_integer_value(json_array_get(lists[i >= 64], i % 64));
        const struct backend_run run = {
            .tokens = &id, .count = 1, .start = i, .pages = {pages[0], pages[1]}, .logits = logits, .logit_rows = 1};
        const struct backend_batch batch = {.runs = &run, .run_count = 1};
        assert_ok(backend_cpu_ops.forward(backend, &batch, NULL));
        if (i >= 63)
            hash_stream_update(hash, logits, 4096 * sizeof *logits);
    }
    hash_stream_final(hash, digest);
    hash_hex(digest, sizeof digest, hex);
    assert_string_equal(hex, json_string_value(json_object_get(answer, "logits_digest")));
    hash_stream_destroy(&hash);
    free(logits);
    for (uint32_t group = 0; group < BACKEND_GROUPS_MAX; group++)
        for (int i = 0; i < 2; i++)
            free(pages[group][i]);
    backend_cpu_ops.destroy(&backend);
    model_destroy(&model);
}

static void a_wrong_known_answer_is_refused(void **state)
{
    (void)state;
    char path[600];
    snprintf(path, sizeof path, "%s/known_answer.json", fixture_model_dir());
    assert_ok(create_for_real()); /* absent: allowed */
    assert_ok(engine_seal(fixture_model_dir()));
    assert_ok(create_for_real());
    json_error_t error;
    json_t *good = json_load_file(path, 0, &error);
    assert_non_null(good);
    assert_int_equal(json_array_size(json_object_get(good, "prompt_ids")), 64);
    assert_int_equal(json_array_size(json_object_get(good, "reply_ids")), 8);
    check_digest(good);

    json_t *bad = json_deep_copy(good);
    json_t *replies = json_object_get(bad, "reply_ids");
    json_array_set_new(replies, 7, json_integer((json_integer_value(json_array_get(replies, 7)) + 1) % 4096));
    json_dump_file(bad, path, 0);
    assert_int_equal(create_for_real(), STATUS_CORRUPT);
    assert_non_null(strstr(status_detail(), "known answer (the reply ids differ)"));
    json_decref(bad);

    bad = json_deep_copy(good);
    char digest[65];
    snprintf(digest, sizeof digest, "%s", json_string_value(json_object_get(bad, "logits_digest")));
    digest[0] = digest[0] == '0' ? '1' : '0';
    json_object_set_new(bad, "logits_digest", json_string(digest));
    json_dump_file(bad, path, 0);
    assert_int_equal(create_for_real(), STATUS_CORRUPT);
    assert_non_null(strstr(status_detail(), "(the logits differ)"));
    json_decref(bad);

    bad = json_deep_copy(good); /* another prompt: another answer */
    json_array_set_new(json_object_get(bad, "prompt_ids"), 5, json_integer(77));
    json_dump_file(bad, path, 0);
    assert_int_equal(create_for_real(), STATUS_CORRUPT);
    json_decref(bad);

    static const char *const invalid[] = {
        "",
        "{",
        "[]",
        "{}",
        "{\"prompt_ids\": [], \"reply_ids\": [1], \"logits_digest\": \"\"}",
        "{\"prompt_ids\": [4096], \"reply_ids\": [1], \"logits_digest\": "
        "\"0000000000000000000000000000000000000000000000000000000000000000\"}",
        "{\"prompt_ids\": [-1], \"reply_ids\": [1], \"logits_digest\": "
        "\"0000000000000000000000000000000000000000000000000000000000000000\"}",
        "{\"prompt_ids\": [1], \"reply_ids\": [1.5], \"logits_digest\": "
        "\"0000000000000000000000000000000000000000000000000000000000000000\"}",
        "{\"prompt_ids\": [1], \"reply_ids\": \"x\", \"logits_digest\": "
        "\"0000000000000000000000000000000000000000000000000000000000000000\"}",
        "{\"prompt_ids\": [1], \"reply_ids\": [1], \"logits_digest\": \"00\"}",
        "{\"prompt_ids\": [1], \"reply_ids\": [1], \"logits_digest\": 7}",
    };
    for (size_t i = 0; i < sizeof invalid / sizeof invalid[0]; i++) {
        write_answer(invalid[i]);
        assert_int_equal(create_for_real(), STATUS_INVALID);
    }
    assert_ok(engine_seal(fixture_model_dir())); /* sealing again replaces it */
    assert_ok(create_for_real());
    json_t *again = json_load_file(path, 0, &error);
    assert_true(json_equal(good, again));
    json_decref(again);
    json_decref(good);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_wrong_known_answer_is_refused),
    };
    return cmocka_run_group_tests(tests, fixture_setup, fixture_teardown);
}
