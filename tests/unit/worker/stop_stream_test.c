#include "tests/unit/worker/unit.h"
#include "common/utf8.h"
#include "worker/engine/text/stop_stream.h"

struct outcome {
    char text[4096];
    size_t size;
    uint32_t tokens;
    bool stopped;
};

static void take(struct outcome *o, const struct stop_release *release)
{
    memcpy(o->text + o->size, release->text, release->text_size);
    o->size += release->text_size;
    o->tokens += release->tokens;
    o->stopped = release->stopped;
}

static void strings_of(const char *const *texts, unsigned count, struct stop_strings *out)
{
    size_t sizes[STOP_STRINGS_MAX];
    for (unsigned i = 0; i < count; i++)
        sizes[i] = strlen(texts[i]);
    assert_ok(stop_strings_check(texts, sizes, count, out));
}

/* Where the text stops by the definition: the first completion, of those the earliest start; size if never. */
static size_t stop_at(const struct stop_strings *strings, const char *text, size_t size)
{
    for (size_t end = 1; end <= size; end++) {
        size_t start = SIZE_MAX;
        for (unsigned k = 0; k < strings->count; k++)
            if (strings->size[k] <= end && memcmp(text + end - strings->size[k], strings->text[k], strings->size[k]) == 0 &&
                end - strings->size[k] < start)
                start = end - strings->size[k];
        if (start != SIZE_MAX)
            return start;
    }
    return SIZE_MAX;
}

/* The latest position at or below `size` such that no stop string can begin before it and be incomplete. */
static size_t safe_until(const struct stop_strings *strings, const char *text, size_t size)
{
    for (size_t start = 0; start < size; start++)
        for (unsigned k = 0; k < strings->count; k++)
            if (size - start < strings->size[k] && memcmp(text + start, strings->text[k], size - start) == 0)
                return start;
    return size;
}

/* Feeds the text cut at ends (ascending, the last is the text's size; equal ones are tokens without text), checking all promises. */
static void run(const struct stop_strings *strings, const char *text, const size_t *ends, unsigned count, struct outcome *o)
{
    struct stop_stream *stream;
    struct stop_release release;
    size_t at = 0;
    *o = (struct outcome){0};
    assert_ok(stop_stream_create(strings, &stream));
    const size_t size = count > 0 ? ends[count - 1] : 0, stop = stop_at(strings, text, size);
    for (unsigned i = 0; i < count; i++) {
        assert_ok(stop_stream_push(stream, text + at, ends[i] - at, 1, &release));
        at = ends[i];
        take(o, &release);
        if (!o->stopped) { /* rule 1 */
            uint32_t tokens = 0;
            const size_t safe = safe_until(strings, text, at);
            while (tokens <= i && ends[tokens] <= safe)
                tokens++;
            assert_int_equal(o->tokens, tokens);
            assert_int_equal(o->size, tokens > 0 ? ends[tokens - 1] : 0);
        }
        assert_int_equal(o->stopped, stop != SIZE_MAX && stop_at(strings, text, at) != SIZE_MAX);
        if (o->stopped) {
            assert_ok(stop_stream_push(stream, "more", 4, 1, &release));
            assert_true(release.stopped && release.tokens == 0 && release.text_size == 0);
            break;
        }
    }
    stop_stream_finish(stream, &release);
    if (o->stopped)
        assert_true(release.tokens == 0 && release.text_size == 0);
    take(o, &release);
    uint32_t tokens = 0; /* rules 2 and 3 */
    const size_t wanted = stop == SIZE_MAX ? size : stop;
    while (tokens < count && ends[tokens] <= wanted)
        tokens++;
    if (o->size != wanted || memcmp(o->text, text, wanted) != 0)
        fail_msg("\"%s\" gave \"%.*s\", wanted %zu bytes", text, (int)o->size, o->text, wanted);
    if (stop == SIZE_MAX || !o->stopped)
        assert_int_equal(o->tokens, tokens);
    else /* tokens without text behind the stop's start come only if they were made before it */
        assert_true(o->tokens <= tokens);
    stop_stream_destroy(&stream);
    stop_stream_destroy(&stream); /* NULL is accepted */
}

static void table(void **state)
{
    (void)state;
    static const struct {
        const char *stops[3];
        unsigned count;
        const char *tokens[8];
        const char *text; /* released */
        uint32_t released;
        bool stopped;
    } cases[] = {
        {{"END"}, 1, {"a", "EN", "D", "b"}, "a", 1, true},
        {{"END"}, 1, {"a", "EN", "d", "b"}, "aENdb", 4, false},
        {{"END"}, 1, {"a", "EEEN", "D"}, "aEE", 1, true}, /* the token straddles: its text comes, it does not */
        {{"world"}, 1, {"hello wor", "ld!"}, "hello ", 0, true},
        {{"aab"}, 1, {"a", "a", "a", "b"}, "a", 1, true}, /* a start inside a start */
        {{"abab", "b"}, 2, {"abab"}, "a", 0, true},       /* earliest completion */
        {{"c", "abc", "bc"}, 3, {"x", "ab", "c"}, "x", 1, true}, /* at the same byte: earliest start */
        {{"abcd", "bc"}, 2, {"a", "b", "c", "d"}, "a", 1, true}, /* "bc" is complete first */
        {{"\n\n"}, 1, {"a\n", "", "\nb"}, "a", 0, true},
        {{"\n\n"}, 1, {"a", "\n", "", "b"}, "a\nb", 4, false},
        {{"x"}, 1, {"", "", "x"}, "", 2, true},
        {{"\xC3\xA9t\xC3\xA9"}, 1, {"l'", "\xC3\xA9", "t\xC3\xA9 "}, "l'", 1, true},
        {{NULL}, 0, {"a", "b"}, "ab", 2, false},
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        struct stop_strings strings;
        struct stop_stream *stream;
        struct stop_release release;
        struct outcome o = {0};
        strings_of(cases[c].stops, cases[c].count, &strings);
        assert_ok(stop_stream_create(&strings, &stream));
        for (unsigned i = 0; i < 8 && cases[c].tokens[i] != NULL && !o.stopped; i++) {
            assert_ok(stop_stream_push(stream, cases[c].tokens[i], strlen(cases[c].tokens[i]), 1, &release));
            take(&o, &release);
        }
        if (!o.stopped) {
            stop_stream_finish(stream, &release);
            take(&o, &release);
        }
        if (o.size != strlen(cases[c].text) || memcmp(o.text, cases[c].text, o.size) != 0 || o.tokens != cases[c].released ||
            o.stopped != cases[c].stopped)
            fail_msg("case %zu: \"%.*s\", %u tokens, stopped %d", c, (int)o.size, o.text, o.tokens, o.stopped);
        stop_stream_destroy(&stream);
    }
}

/* Small alphabets make overlaps of every kind; every split must end with the same text. */
static void any_split_gives_the_same_text(void **state)
{
    (void)state;
    static const char *const letters[] = {"a", "b", "\xC3\xA9"};
    uint64_t rng = test_seed(12);
    unsigned stopped = 0;
    for (int round = 0; round < 30000; round++) {
        char texts[4][32] = {{0}}, text[128] = "";
        const char *views[4] = {texts[0], texts[1], texts[2], texts[3]};
        size_t starts[64], ends[96];
        struct stop_strings strings;
        const unsigned count = rng_below(&rng, 5), alphabet = 1 + rng_below(&rng, 3);
        for (unsigned k = 0; k < count; k++)
            for (uint32_t n = 1 + rng_below(&rng, 7); n > 0; n--)
                strcat(texts[k], letters[rng_below(&rng, alphabet)]);
        strings_of(views, count, &strings);
        const unsigned characters = rng_below(&rng, 40);
        for (unsigned i = 0; i < characters; i++) {
            strcat(text, letters[rng_below(&rng, alphabet)]);
            starts[i] = strlen(text);
        }
        for (int split = 0; split < 4; split++) {
            unsigned tokens = 0;
            struct outcome o;
            for (unsigned i = 0; i < characters; i++) {
                if (split == 0 || i + 1 == characters || rng_below(&rng, 3) == 0)
                    ends[tokens++] = starts[i];
                if (split > 1 && tokens > 0 && rng_below(&rng, 8) == 0) {
                    ends[tokens] = ends[tokens - 1]; /* without text */
                    tokens++;
                }
            }
            run(&strings, text, ends, tokens, &o);
            stopped += o.stopped;
        }
    }
    assert_true(stopped > 1000);
}

static void tokens_may_come_in_groups(void **state)
{
    (void)state;
    struct stop_strings strings;
    struct stop_stream *stream;
    struct stop_release release;
    strings_of((const char *[]){"stop"}, 1, &strings);
    assert_ok(stop_stream_create(&strings, &stream));
    assert_ok(stop_stream_push(stream, "\xE2\x82\xAC", 3, 3, &release)); /* three byte tokens of one character */
    assert_int_equal(release.tokens, 3);
    assert_ok(stop_stream_push(stream, "st", 2, 2, &release));
    assert_int_equal(release.tokens + release.text_size, 0);
    assert_ok(stop_stream_push(stream, "", 0, 1, &release)); /* held as well */
    assert_int_equal(release.tokens + release.text_size, 0);
    assert_ok(stop_stream_push(stream, "ay", 2, 1, &release));
    assert_int_equal(release.tokens, 4);
    assert_int_equal(release.text_size, 4);
    stop_stream_destroy(&stream);
}

static void long_texts_are_held_no_longer_than_needed(void **state)
{
    (void)state;
    char stop[STOP_STRING_BYTES_MAX], *large = malloc(24576);
    struct stop_strings strings;
    struct stop_stream *stream;
    struct stop_release release;
    size_t out = 0, in = 0;
    memset(stop, 'a', sizeof stop);
    memset(large, 'a', 24576);
    stop[sizeof stop - 1] = 'b';
    const char *view = stop;
    assert_ok(stop_strings_check(&view, (const size_t[]){sizeof stop}, 1, &strings));
    assert_ok(stop_stream_create(&strings, &stream));
    for (int i = 0; i < 200; i++) {
        const size_t size = i % 3 == 0 ? 24576 : 10;
        assert_ok(stop_stream_push(stream, large, size, 1, &release));
        in += size;
        out += release.text_size;
        assert_true(in - out <= 24576 + STOP_STRING_BYTES_MAX);
    }
    assert_ok(stop_stream_push(stream, "b", 1, 1, &release));
    assert_true(release.stopped);
    assert_int_equal(in - out - release.text_size, sizeof stop - 1);
    stop_stream_destroy(&stream);
    free(large);
}

static void bad_stop_strings_are_refused(void **state)
{
    (void)state;
    struct stop_strings strings;
    char large[STOP_STRING_BYTES_MAX + 1];
    memset(large, 'x', sizeof large);
    const char *texts[STOP_STRINGS_MAX + 1] = {"ok", large};
    size_t sizes[STOP_STRINGS_MAX + 1] = {2, sizeof large};
    assert_int_equal(stop_strings_check(texts, sizes, 2, &strings), STATUS_INVALID);
    assert_non_null(strstr(status_detail(), "stop string 1"));
    sizes[1]--;
    assert_ok(stop_strings_check(texts, sizes, 2, &strings));
    sizes[0] = 0;
    assert_int_equal(stop_strings_check(texts, sizes, 2, &strings), STATUS_INVALID);
    texts[0] = "\xC3";
    sizes[0] = 1;
    assert_int_equal(stop_strings_check(texts, sizes, 2, &strings), STATUS_INVALID);
    texts[0] = "a\0";
    sizes[0] = 2;
    assert_int_equal(stop_strings_check(texts, sizes, 2, &strings), STATUS_INVALID);
    for (unsigned i = 0; i <= STOP_STRINGS_MAX; i++) {
        texts[i] = "ok";
        sizes[i] = 2;
    }
    assert_int_equal(stop_strings_check(texts, sizes, STOP_STRINGS_MAX + 1, &strings), STATUS_INVALID);
    assert_ok(stop_strings_check(texts, sizes, STOP_STRINGS_MAX, &strings));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table),
        cmocka_unit_test(any_split_gives_the_same_text),
        cmocka_unit_test(tokens_may_come_in_groups),
        cmocka_unit_test(long_texts_are_held_no_longer_than_needed),
        cmocka_unit_test(bad_stop_strings_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
