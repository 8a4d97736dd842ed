/* Tests of worker/eval/corpus.c with the tokenizer of the model in the tree. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "worker/engine/model/model_config.h"
#include "worker/engine/text/prompt.h"
#include "worker/engine/engine.h"
#include "worker/engine/text/tokenizer.h"
#include "worker/eval/corpus.h"

static struct model_config config;
static struct tokenizer *tokenizer;
static char path[64];

static int set_up(void **state)
{
    (void)state;
    char dir[1024], file[1100];
    const char *root = getenv("ROOST_SOURCE_DIR");
    snprintf(dir, sizeof dir, "%s/deploy/models/folio", root != NULL ? root : ".");
    snprintf(file, sizeof file, "%s/tokenizer.model", dir);
    if (model_config_load(dir, &config) != STATUS_OK)
        return -1;
    const struct tokenizer_config wanted = { .vocab_size = config.vocab_size, .bos_id = config.bos_id, .turn_id = config.turn_id,
                                             .text_id = config.text_id, .end_ids = config.end_ids, .end_id_count = config.end_id_count };
    snprintf(path, sizeof path, "/tmp/roost-corpus-XXXXXX");
    const int file_descriptor = mkstemp(path);
    if (file_descriptor < 0)
        return -1;
    (void)close(file_descriptor);
    return tokenizer_open(file, &wanted, &tokenizer) == STATUS_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    tokenizer_close(&tokenizer);
    return unlink(path);
}

static void write_file(const void *bytes, size_t size)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

static enum status load_text(const char *text, uint32_t window, uint64_t tokens_max, struct corpus *out)
{
    const struct corpus_limits limits = { .window = window, .tokens_max = tokens_max };
    write_file(text, strlen(text));
    return corpus_load_text(path, tokenizer, &config, &limits, out);
}

static enum status load_conversations(const char *text, uint32_t window, uint64_t tokens_max, struct corpus *out)
{
    const struct corpus_limits limits = { .window = window, .tokens_max = tokens_max };
    write_file(text, strlen(text));
    return corpus_load_conversations(path, tokenizer, &config, &limits, out);
}

static const char words[] = "Now, my co-mates and brothers in exile, hath not old custom made this life more sweet than that of painted pomp?";

/* The windows without their <bos>, put together, are the ids; all but the last are full. */
static void check_windows(const struct corpus *corpus, uint32_t window, const uint32_t *ids, size_t count)
{
    size_t at = 0;
    for (uint32_t i = 0; i < corpus->window_count; i++) {
        const struct corpus_window *w = &corpus->windows[i];
        assert_int_equal(w->ids[0], config.bos_id);
        if (i + 1 < corpus->window_count)
            assert_int_equal(w->count, window);
        assert_in_range(w->count, 2, window);
        assert_true(at + w->count - 1 <= count);
        assert_memory_equal(w->ids + 1, ids + at, (w->count - 1) * sizeof *ids);
        at += w->count - 1;
    }
    assert_int_equal(at, count);
    assert_int_equal(corpus->tokens, count);
}

static void test_text_windows(void **state)
{
    (void)state;
    uint32_t ids[256];
    size_t count;
    struct corpus corpus;
    assert_int_equal(tokenizer_encode(tokenizer, words, strlen(words), ids, 256, &count), STATUS_OK);
    assert_in_range(count, 20, 60);
    const uint32_t windows[] = { 2, 3, 8, (uint32_t)count, (uint32_t)count + 1, (uint32_t)count + 2, 1000 };
    for (size_t i = 0; i < sizeof windows / sizeof windows[0]; i++) {
        assert_int_equal(load_text(words, windows[i], 0, &corpus), STATUS_OK);
        check_windows(&corpus, windows[i], ids, count);
        corpus_free(&corpus);
    }
    for (uint64_t tokens = 1; tokens < count; tokens += 3) {
        assert_int_equal(load_text(words, 8, tokens, &corpus), STATUS_OK);
        check_windows(&corpus, 8, ids, tokens);
        corpus_free(&corpus);
    }
}

static void test_conversation_is_the_template_s(void **state)
{
    (void)state;
    static const char line[] = "{\"messages\": [{\"role\": \"system\", \"name\": \"SCENE\", \"text\": \"A wood.\"}, "
                               "{\"role\": \"user\", \"text\": \"Who's there?\"}]}\n";
    const struct engine_message messages[] = {
        { .role = ENGINE_ROLE_SYSTEM, .name = "SCENE", .name_size = 5, .text = "A wood.", .text_size = 7 },
        { .role = ENGINE_ROLE_USER, .name = "", .name_size = 0, .text = "Who's there?", .text_size = 12 },
    };
    const struct prompt_source source = { .messages = messages, .message_count = 2, .reply_name = "" };
    struct prompt prompt = { 0 };
    struct corpus corpus;
    assert_int_equal(prompt_build(tokenizer, &config, &source, 1000, &prompt), STATUS_OK);
    const uint32_t count = prompt.ends[1];
    assert_int_equal(prompt.ids[count - 1], config.end_ids[0]);
    assert_int_equal(load_conversations(line, 100, 0, &corpus), STATUS_OK);
    assert_int_equal(corpus.window_count, 1);
    check_windows(&corpus, 100, prompt.ids + 1, count - 1);
    corpus_free(&corpus);
    assert_int_equal(load_conversations(line, 6, 0, &corpus), STATUS_OK);
    check_windows(&corpus, 6, prompt.ids + 1, count - 1);
    corpus_free(&corpus);
    prompt_free(&prompt);
}

static void test_conversations_stand_alone(void **state)
{
    (void)state;
    struct corpus corpus;
    assert_int_equal(load_conversations("{\"messages\":[{\"role\":\"user\",\"text\":\"Ho!\"}]}\n\n"
                                        "{\"messages\":[{\"role\":\"assistant\",\"text\":\"Ho!\"}]}", 100, 0, &corpus), STATUS_OK);
    assert_int_equal(corpus.window_count, 2);
    assert_int_equal(corpus.windows[0].ids[0], config.bos_id);
    assert_int_equal(corpus.windows[1].ids[0], config.bos_id);
    corpus_free(&corpus);
}

static void expect_refused(const char *text, const char *detail)
{
    struct corpus corpus;
    assert_int_equal(load_conversations(text, 100, 0, &corpus), STATUS_INVALID);
    if (strstr(status_detail(), detail) == NULL)
        fail_msg("'%s' does not say '%s'", status_detail(), detail);
}

static void test_bad_input(void **state)
{
    (void)state;
    struct corpus corpus;
    const struct corpus_limits limits = { .window = 100 };
    assert_int_equal(load_text("", 100, 0, &corpus), STATUS_INVALID);
    assert_non_null(strstr(status_detail(), "no text"));
    assert_int_equal(load_text("caf\xc3", 100, 0, &corpus), STATUS_INVALID);
    assert_non_null(strstr(status_detail(), "UTF-8"));
    assert_non_null(strstr(status_detail(), path));
    assert_int_equal(corpus_load_text("/nonexistent/text", tokenizer, &config, &limits, &corpus), STATUS_NOT_FOUND);
    expect_refused("", "no text");
    expect_refused("\n\n", "no text");
    expect_refused("{\"messages\":[{\"role\":\"user\",\"text\":\"Ho!\"}]}\nHo!", "line 2: not JSON");
    expect_refused("[]", "line 1");
    expect_refused("{\"messages\": []}", "no list");
    expect_refused("{\"messages\": [3]}", "\"role\" and \"text\"");
    expect_refused("{\"messages\": [{\"role\": \"user\"}]}", "\"role\" and \"text\"");
    expect_refused("{\"messages\": [{\"role\": \"ghost\", \"text\": \"Mark me.\"}]}", "user, assistant or system");
    expect_refused("{\"messages\": [{\"role\": \"user\", \"text\": \"a\", \"words\": 1}]}", "nothing else");
    expect_refused("{\"messages\": [{\"role\": \"user\", \"text\": \"a\\u0000b\"}]}", "line 1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_windows), cmocka_unit_test(test_conversation_is_the_template_s),
        cmocka_unit_test(test_conversations_stand_alone), cmocka_unit_test(test_bad_input),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
