#include "tests/unit/worker/unit.h"
#include "worker/engine/engine.h"
#include "worker/engine/model/model_config.h"
#include "worker/engine/text/prompt.h"
#include "worker/engine/text/tokenizer.h"

static struct model_config config = {
    .vocab_size = 4096, .bos_id = 1, .end_ids = {2}, .end_id_count = 1, .turn_id = 3, .text_id = 4, .context_tokens_max = 4096};
static struct tokenizer *tokenizer;

static int open_folio(void **state)
{
    (void)state;
    const struct tokenizer_config wanted = {4096, 1, 3, 4, config.end_ids, 1};
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
    const struct prompt_source source = {messages, count, reply, strlen(reply), false};
    struct prompt prompt = {0};
    const enum status st = prompt_build(tokenizer, &config, &source, limit, &prompt);
    if (st == STATUS_OK) {
        assert_int_equal(prompt.end_count, count);
        assert_int_equal(prompt.dropped, 0);
        *ids = prompt.ids;
        *id_count = prompt.count;
        prompt.ids = NULL;
    }
    prompt_free(&prompt);
    return st;
}

static void expect(const struct engine_message *messages, unsigned count, const char *reply, const uint32_t *golden,
                   uint32_t golden_count)
{
    uint32_t *ids = NULL, id_count = 0;
    assert_ok(build(messages, count, reply, 4095, &ids, &id_count));
    const bool same = id_count == golden_count && memcmp(ids, golden, id_count * sizeof *ids) == 0;
    for (uint32_t i = 0; !same && i < id_count; i++)
        print_message("%u%s", ids[i], i + 1 == id_count ? ");\n" : i % 20 == 19 ? ",\n" : ", ");
    if (getenv("ROOST_GOLDEN_WRITE") == NULL)
        assert_true(same);
    free(ids);
}
#define EXPECT(messages, count, reply, ...)                                                                            \
    do {                                                                                                               \
        static const uint32_t golden_[] = {__VA_ARGS__};                                                               \
        expect(messages, count, reply, golden_, sizeof golden_ / sizeof golden_[0]);                                   \
    } while (0)

/* The ids of the shipped tokenizer: they change with it, or with the template. `ROOST_GOLDEN_WRITE=1 ROOST_SOURCE_DIR=$PWD
 * build/dev/tests/prompt_test` prints those that differ, in order; the trainer's tests compare the file with what the trainer makes
 * of the same messages. */
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

/* ---- Gemma's templates, put together by hand ---- */

static uint32_t expected[4096];
static size_t expected_count;

static void put_id(uint32_t id)
{
    expected[expected_count++] = id;
}

static void put_text(const char *text)
{
    size_t count;
    assert_ok(tokenizer_encode(tokenizer, text, strlen(text), expected + expected_count, 4096 - expected_count, &count));
    expected_count += count;
}

static void expect_built(const struct engine_message *messages, unsigned count, const char *reply)
{
    uint32_t *ids = NULL, id_count = 0;
    assert_ok(build(messages, count, reply, 4095, &ids, &id_count));
    assert_int_equal(id_count, expected_count);
    assert_memory_equal(ids, expected, id_count * sizeof *ids);
    free(ids);
}

static void gemma_turns(void **state)
{
    (void)state;
    const struct engine_message messages[] = {
        message(ENGINE_ROLE_SYSTEM, "", "Be kind. "),   message(ENGINE_ROLE_SYSTEM, "SCENE", "A castle."),
        message(ENGINE_ROLE_USER, "", " Who's there?\n"), message(ENGINE_ROLE_ASSISTANT, "ASSISTANT", "Nay."),
        message(ENGINE_ROLE_USER, "HAMLET", " Long live. "), message(ENGINE_ROLE_ASSISTANT, "GHOST", ""),
        message(ENGINE_ROLE_SYSTEM, "", "Night."),       message(ENGINE_ROLE_ASSISTANT, "", "<end>"),
    };
    for (int four = 0; four < 2; four++) {
        config.chat_template = four ? MODEL_TEMPLATE_GEMMA4 : MODEL_TEMPLATE_GEMMA;
        expected_count = 0;
        put_id(1);
        put_id(3);
        put_text(four ? "system\n" : "user\n");
        put_text("Be kind.");
        if (four) {
            put_id(4);
            put_text("\n");
            put_id(3);
            put_text("system\n");
        } else {
            put_text("\n\n");
        }
        put_text("A castle.");
        if (four) {
            put_id(4);
            put_text("\n");
            put_id(3);
            put_text("user\n");
        } else {
            put_text("\n\n");
        }
        put_text("Who's there?");
        put_id(4);
        put_text("\n");
        put_id(3);
        put_text("model\n");
        put_text("Nay.");
        put_id(4);
        put_text("\n");
        put_id(3);
        put_text("user\n");
        put_text("HAMLET:");
        put_text(" Long live.");
        put_id(4);
        put_text("\n");
        put_id(3);
        put_text("model\n");
        put_text("GHOST:");
        put_id(4);
        put_text("\n");
        put_id(3);
        put_text(four ? "system\n" : "user\n"); /* no user message behind it: a turn of its own */
        put_text("Night.");
        put_id(4);
        put_text("\n");
        put_id(3);
        put_text("model\n");
        put_text("<end>");
        put_id(4);
        put_text("\n");
        put_id(3);
        put_text("model\n");
        const size_t unnamed = expected_count;
        expect_built(messages, 8, "");
        expect_built(messages, 8, "ASSISTANT");
        expected_count = unnamed;
        put_text("GHOST:");
        expect_built(messages, 8, "GHOST");
    }
    config.chat_template = MODEL_TEMPLATE_SPEAKER;
}

/* ---- extension ---- */

static void random_text(uint64_t *rng, char *out)
{
    static const char *const parts[] = {"the", " ", "\n", "\n\n", "Hamlet", ", ", "<end>", "<turn>", "\xC3\xA9", "\xE2\x96\x81", "a", "  ", "\t", ":", "user\n", "NAME:"};
    out[0] = '\0';
    for (uint32_t n = rng_below(rng, 12); n > 0; n--)
        strcat(out, parts[rng_below(rng, 16)]);
}

/* prompt_extend gives what prompt_build begins with for the conversation with the reply appended. */
static void an_extended_prompt_begins_the_next(void **state)
{
    (void)state;
    static const char *const names[] = {"", "", "USER", "ASSISTANT", "SCENE", "HAMLET", "model", "a: b"};
    uint64_t rng = test_seed(61);
    for (int round = 0; round < 9000; round++) {
        char texts[9][128];
        struct engine_message messages[10];
        struct prompt before, extended, next;
        const unsigned count = 1 + rng_below(&rng, 8);
        const char *reply_name = names[rng_below(&rng, 8)];
        config.chat_template = (enum model_template)(round % 3);
        for (unsigned i = 0; i < count; i++) {
            random_text(&rng, texts[i]);
            messages[i] = message((enum engine_role)rng_below(&rng, 3), names[rng_below(&rng, 8)], texts[i]);
        }
        random_text(&rng, texts[count]);
        messages[count] = message(ENGINE_ROLE_ASSISTANT, reply_name, texts[count]);
        struct prompt_source source = {messages, count, reply_name, strlen(reply_name), false};
        assert_ok(prompt_build(tokenizer, &config, &source, 4096, &before));
        assert_ok(prompt_extend(tokenizer, &config, before.ids, before.count, texts[count], strlen(texts[count]), 4096, &extended));
        source.message_count++;
        source.reply_name_size = 0;
        assert_ok(prompt_build(tokenizer, &config, &source, 4096, &next));
        assert_int_equal(extended.end_count, 1);
        assert_int_equal(extended.ends[0], extended.count);
        assert_int_equal(next.ends[next.end_count - 1], extended.count);
        assert_memory_equal(next.ids, extended.ids, extended.count * sizeof *next.ids);
        assert_memory_equal(before.ids, extended.ids, before.count * sizeof *next.ids);
        for (uint32_t i = 1; i < next.end_count; i++)
            assert_true(next.ends[i] > next.ends[i - 1] || config.chat_template == MODEL_TEMPLATE_GEMMA);
        prompt_free(&next);
        struct prompt limited = {0};
        assert_int_equal(prompt_extend(tokenizer, &config, before.ids, before.count, texts[count], strlen(texts[count]),
                                       extended.count - 1, &limited), STATUS_LIMIT);
        assert_null(limited.ids);
        prompt_free(&before);
        prompt_free(&extended);
    }
    config.chat_template = MODEL_TEMPLATE_SPEAKER;
    struct prompt out = {0};
    const uint32_t ids[] = {1, 100};
    assert_int_equal(prompt_extend(tokenizer, &config, ids, 2, "\xFF", 1, 100, &out), STATUS_INVALID);
    assert_int_equal(prompt_extend(tokenizer, &config, ids, 2, "a\0", 2, 100, &out), STATUS_INVALID);
    for (int t = 0; t < 3; t++) { /* ids that no template made */
        config.chat_template = (enum model_template)t;
        assert_ok(prompt_extend(tokenizer, &config, ids, 2, "x", 1, 100, &out));
        assert_true(out.count > 3 && out.ids[0] == 1 && out.ids[1] == 100);
        prompt_free(&out);
    }
    config.chat_template = MODEL_TEMPLATE_SPEAKER;
    prompt_free(&out); /* a zeroed one is accepted */
}

/* ---- truncation ---- */

static bool same_ids(const uint32_t *a, const uint32_t *b, size_t count)
{
    return memcmp(a, b, count * sizeof *a) == 0;
}

/* What is kept are the whole first turn and whole last messages; the cut is the one that prompt.h defines. */
static void truncation_drops_whole_messages(void **state)
{
    (void)state;
    uint64_t rng = test_seed(71);
    static char texts[40][300];
    unsigned truncated = 0;
    for (int round = 0; round < 3000; round++) {
        struct engine_message messages[40];
        struct prompt whole, cut = {0};
        const unsigned count = 1 + rng_below(&rng, 40);
        config.chat_template = (enum model_template)(round % 3);
        config.context_tokens_max = 100 + rng_below(&rng, 600);
        const uint32_t limit = config.context_tokens_max - rng_below(&rng, 50), step = PROMPT_TRUNCATE_STEP(config.context_tokens_max);
        for (unsigned i = 0; i < count; i++) {
            texts[i][0] = '\0';
            for (uint32_t n = rng_below(&rng, 30); n > 0; n--)
                strcat(texts[i], (const char *[]){"the ", "castle ", "x", "7"}[rng_below(&rng, 4)]);
            messages[i] = message((enum engine_role)rng_below(&rng, 3), "", texts[i]);
        }
        struct prompt_source source = {messages, count, "", 0, false};
        assert_ok(prompt_build(tokenizer, &config, &source, 1 << 20, &whole));
        source.truncate = true;
        const enum status st = prompt_build(tokenizer, &config, &source, limit, &cut);
        if (st != STATUS_OK) {
            assert_int_equal(st, STATUS_LIMIT);
            assert_true(whole.count > limit);
            prompt_free(&whole);
            continue;
        }
        assert_true(cut.count <= limit);
        assert_int_equal(cut.end_count + cut.dropped, count);
        assert_int_equal(cut.dropped == 0, whole.count <= limit);
        const uint32_t gone = whole.count - cut.count;
        if (cut.dropped > 0) {
            unsigned first = 1, system = 0; /* the messages of the first turn */
            while (config.chat_template == MODEL_TEMPLATE_GEMMA && system + 1 < count && messages[system].role == ENGINE_ROLE_SYSTEM)
                system++;
            if (system > 0 && messages[system].role == ENGINE_ROLE_USER)
                first = system + 1;
            assert_true(first < cut.end_count);
            for (unsigned i = first; i < cut.end_count; i++)
                assert_int_equal(cut.ends[i] + gone, whole.ends[i + cut.dropped]);
            assert_true(same_ids(cut.ids, whole.ids, cut.ends[first - 1]));
            assert_true(same_ids(cut.ids + cut.ends[first - 1], whole.ids + cut.ends[first - 1] + gone, cut.count - cut.ends[first - 1]));
            assert_int_equal(cut.ids[cut.ends[first - 1]], config.turn_id); /* a turn starts behind the cut, */
            assert_true(cut.ids[cut.ends[first - 1] - 1] != config.turn_id); /* and one ends before it */
            /* least: without the last step of messages it did not fit */
            const uint32_t steps = (whole.count - limit + step - 1) / step; /* the least multiple that could do */
            assert_true(gone >= whole.count - limit);
            const unsigned last_dropped = first + cut.dropped - 1;
            const uint32_t before_last = whole.ends[last_dropped - 1] - whole.ends[first - 1];
            if (config.chat_template == MODEL_TEMPLATE_SPEAKER)
                assert_true(before_last < steps * step);
            truncated++;
        }
        prompt_free(&whole);
        prompt_free(&cut);
    }
    assert_true(truncated > 1000);
    config.chat_template = MODEL_TEMPLATE_SPEAKER;
    config.context_tokens_max = 4096;
    struct prompt out = {0};
    const struct engine_message two[] = {message(ENGINE_ROLE_SYSTEM, "", "one two three four"), message(ENGINE_ROLE_USER, "", "five six")};
    const struct prompt_source source = {two, 2, "", 0, true};
    assert_int_equal(prompt_build(tokenizer, &config, &source, 12, &out), STATUS_LIMIT);
    assert_non_null(strstr(status_detail(), "the first and the last message alone"));
}

/* A conversation that grows at the context's cap: the cut moves rarely, and nearly all of each prompt is that of the turn before. An
 * exchange of a tokens and a step of T keep about 1 - a / T of the prompts' tokens, less the share that a moved cut makes new. */
static void a_growing_conversation_is_cut_rarely(void **state)
{
    (void)state;
    enum { TURNS = 400, CONTEXT = 4096 };
    static struct engine_message messages[2 * TURNS + 1];
    static char text[400];
    struct prompt before = {0};
    uint64_t cached = 0, total = 0, moved = 0, at_cap = 0;
    uint32_t exchange = 0;
    while (strlen(text) < 100)
        strcat(text, "the castle and the king, ");
    config.context_tokens_max = CONTEXT;
    messages[0] = message(ENGINE_ROLE_SYSTEM, "", text);
    unsigned dropped = 0;
    for (unsigned turn = 0; turn < TURNS; turn++) {
        const unsigned count = 2 * turn + 2;
        messages[count - 1] = message(ENGINE_ROLE_USER, "", text);
        messages[count] = message(ENGINE_ROLE_ASSISTANT, "", text);
        const struct prompt_source source = {messages, count, "", 0, true};
        struct prompt prompt;
        assert_ok(prompt_build(tokenizer, &config, &source, CONTEXT - 256, &prompt));
        if (prompt.dropped > 0) {
            uint32_t same = 0;
            while (same < before.count && same < prompt.count && before.ids[same] == prompt.ids[same])
                same++;
            /* All texts are equal, so ids agree past a moved cut; by position only the first message stays. */
            if (prompt.dropped != dropped) {
                moved++;
                same = prompt.ends[0];
            }
            cached += same;
            total += prompt.count;
            at_cap++;
        } else if (turn > 0) {
            exchange = prompt.count - before.count;
        }
        dropped = prompt.dropped;
        prompt_free(&before);
        before = prompt;
    }
    prompt_free(&before);
    const double share = (double)cached / (double)total, step = PROMPT_TRUNCATE_STEP(CONTEXT);
    print_message("context %u, step %.0f, exchange %u tokens: the cut moved %llu times in %llu turns; %.1f%% cached (1 - a / T = %.1f%%)\n",
                  CONTEXT, step, exchange, (unsigned long long)moved, (unsigned long long)at_cap, 100 * share,
                  100 * (1 - exchange / step));
    assert_true((double)moved <= (double)at_cap * exchange / step + 1);
    assert_true(share > 1 - 2 * exchange / step - 0.01);
    config.context_tokens_max = 4096;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_prompts),
        cmocka_unit_test(control_words_in_text_stay_text),
        cmocka_unit_test(a_longer_conversation_begins_with_the_shorter),
        cmocka_unit_test(bad_text_is_refused),
        cmocka_unit_test(long_prompts_are_refused_with_both_counts),
        cmocka_unit_test(gemma_turns),
        cmocka_unit_test(an_extended_prompt_begins_the_next),
        cmocka_unit_test(truncation_drops_whole_messages),
        cmocka_unit_test(a_growing_conversation_is_cut_rarely),
    };
    return cmocka_run_group_tests(tests, open_folio, close_folio);
}
