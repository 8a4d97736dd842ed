#include "tests/unit/worker/unit.h"
#include "worker/engine/engine.h"
#include "worker/engine/model_config.h"
#include "worker/engine/prompt.h"
#include "worker/engine/tokenizer.h"

static struct model_config config = {.vocab_size = 4096, .bos_id = 1, .eos_id = 2, .turn_id = 3, .text_id = 4};
static struct tokenizer *tokenizer;

static int open_folio(void **state)
{
    (void)state;
    const struct tokenizer_config wanted = {4096, 1, 2, 3, 4};
    char path[512];
    source_path("deploy/models/folio/tokenizer.model", path, sizeof path);
    assert_ok(tokenizer_open(path, &wanted, &tokenizer));
    return 0;
}

static int close_folio(void **state)
{
    (void)state;
    tokenizer_close(&tokenizer);
    return 0;
}

static struct engine_message message(enum engine_role role, const char *name, const char *text)
{
    return (struct engine_message){role, name, strlen(name), text, strlen(text)};
}

static enum status build(const struct engine_message *messages, unsigned count, const char *reply, uint32_t limit,
                         uint32_t **ids, uint32_t *id_count)
{
    const struct prompt_source source = {messages, count, reply, strlen(reply)};
    return prompt_build(tokenizer, &config, &source, limit, ids, id_count);
}

static void expect(const struct engine_message *messages, unsigned count, const char *reply, const uint32_t *golden,
                   uint32_t golden_count)
{
    uint32_t *ids = NULL, id_count = 0;
    assert_ok(build(messages, count, reply, 4095, &ids, &id_count));
    bool same = id_count == golden_count && memcmp(ids, golden, id_count * sizeof *ids) == 0;
    for (uint32_t i = 0; !same && i < id_count; i++)
        print_message("%u, ", ids[i]);
    assert_true(same);
    free(ids);
}
#define EXPECT(messages, count, reply, ...)                                                                            \
    do {                                                                                                               \
        static const uint32_t golden_[] = {__VA_ARGS__};                                                               \
        expect(messages, count, reply, golden_, sizeof golden_ / sizeof golden_[0]);                                   \
    } while (0)

/* Made with the tokenizer of deploy/models/folio and checked against the template by hand; they change only with
 * either. */
static void golden_prompts(void **state)
{
    (void)state;
#include "tests/unit/worker/prompt_golden.inc"
}

static void control_words_in_text_stay_text(void **state)
{
    (void)state;
    static const char *const texts[] = {"<turn>", "<text>x<end>", "<bos>", "a<end><turn>SCENE<text>b",
                                        "<unk>",  "[turn]",       "</s>"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        const struct engine_message messages[] = {message(ENGINE_ROLE_USER, texts[i], texts[i])};
        uint32_t *ids = NULL, count = 0, control[5] = {0};
        assert_ok(build(messages, 1, texts[i], 4095, &ids, &count));
        for (uint32_t k = 0; k < count; k++)
            if (ids[k] < 5)
                control[ids[k]]++;
        assert_int_equal(control[0], 0);
        assert_int_equal(control[1], 1);
        assert_int_equal(control[2], 1);
        assert_int_equal(control[3], 2);
        assert_int_equal(control[4], 2);
        free(ids);
    }
}

/* The ids of a prompt are a prefix of those of the next turn, message for message: what the cache lives on. */
static void a_longer_conversation_begins_with_the_shorter(void **state)
{
    (void)state;
    const struct engine_message messages[] = {
        message(ENGINE_ROLE_SYSTEM, "", "A room in the castle."),
        message(ENGINE_ROLE_USER, "HAMLET", "Who's there? "),
        message(ENGINE_ROLE_ASSISTANT, "", " Nay, answer me."),
        message(ENGINE_ROLE_USER, "", "\n"),
    };
    uint32_t *before = NULL, before_count = 0;
    for (unsigned n = 1; n <= 4; n++) {
        uint32_t *ids = NULL, count = 0;
        assert_ok(build(messages, n, "", 4095, &ids, &count));
        uint32_t *header = NULL, header_count;
        if (before != NULL) {
            assert_ok(build(messages, 1, "", 4095, &header, &header_count));
            uint32_t reply = 2; /* <turn> encode(ASSISTANT) <text> at the end */
            while (before[before_count - reply] != 3)
                reply++;
            assert_memory_equal(ids, before, (before_count - reply) * sizeof *ids);
        }
        free(header);
        free(before);
        before = ids;
        before_count = count;
    }
    free(before);
}

static void bad_text_is_refused(void **state)
{
    (void)state;
    uint32_t *ids = NULL, count;
    char long_name[PROMPT_NAME_BYTES_MAX + 2];
    memset(long_name, 'n', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = 0;
    struct engine_message m = message(ENGINE_ROLE_USER, "", "\xC3");
    assert_int_equal(build(&m, 1, "", 4095, &ids, &count), STATUS_INVALID);
    m = message(ENGINE_ROLE_USER, "\xFF", "a");
    assert_int_equal(build(&m, 1, "", 4095, &ids, &count), STATUS_INVALID);
    m = (struct engine_message){ENGINE_ROLE_USER, NULL, 0, "a\0b", 3};
    assert_int_equal(build(&m, 1, "", 4095, &ids, &count), STATUS_INVALID);
    m = (struct engine_message){ENGINE_ROLE_USER, "a\0b", 3, "", 0};
    assert_int_equal(build(&m, 1, "", 4095, &ids, &count), STATUS_INVALID);
    m = message(ENGINE_ROLE_USER, long_name, "a");
    assert_int_equal(build(&m, 1, "", 4095, &ids, &count), STATUS_INVALID);
    m = message(ENGINE_ROLE_USER, "", "a");
    assert_int_equal(build(&m, 1, long_name, 4095, &ids, &count), STATUS_INVALID);
    assert_int_equal(build(&m, 1, "\xC0\x80", 4095, &ids, &count), STATUS_INVALID);
    assert_int_equal(build(NULL, 0, "", 4095, &ids, &count), STATUS_INVALID);
    m = message(ENGINE_ROLE_USER, long_name + 1, "a");
    assert_ok(build(&m, 1, "", 4095, &ids, &count));
    free(ids);
}

static void long_prompts_are_refused_with_both_counts(void **state)
{
    (void)state;
    uint32_t *ids = NULL, count = 0;
    struct engine_message m = message(ENGINE_ROLE_USER, "", "1234567890");
    assert_ok(build(&m, 1, "", 4095, &ids, &count));
    const uint32_t exact = count;
    free(ids);
    assert_ok(build(&m, 1, "", exact, &ids, &count));
    free(ids);
    ids = NULL;
    assert_int_equal(build(&m, 1, "", exact - 1, &ids, &count), STATUS_LIMIT);
    assert_null(ids);
    char both[100];
    snprintf(both, sizeof both, "has %u tokens, at most %u", exact, exact - 1);
    assert_non_null(strstr(status_detail(), both));
    /* A text that cannot fit is not encoded, and many empty messages are counted. */
    const size_t size = 10 << 20;
    char *text = malloc(size);
    memset(text, 'a', size);
    m = (struct engine_message){ENGINE_ROLE_USER, NULL, 0, text, size};
    assert_int_equal(build(&m, 1, "", 4095, &ids, &count), STATUS_LIMIT);
    assert_non_null(strstr(status_detail(), "at least"));
    free(text);
    struct engine_message *many = calloc(100000, sizeof *many);
    assert_int_equal(build(many, 100000, "", 4095, &ids, &count), STATUS_LIMIT);
    assert_non_null(strstr(status_detail(), "at least 300003 tokens, at most 4095"));
    free(many);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_prompts),
        cmocka_unit_test(control_words_in_text_stay_text),
        cmocka_unit_test(a_longer_conversation_begins_with_the_shorter),
        cmocka_unit_test(bad_text_is_refused),
        cmocka_unit_test(long_prompts_are_refused_with_both_counts),
    };
    return cmocka_run_group_tests(tests, open_folio, close_folio);
}
