#include "tests/unit/worker/unit.h"
#include "common/utf8.h"
#include "worker/engine/text/utf8_stream.h"

struct text {
    char bytes[1 << 16];
    size_t size;
    unsigned released;
};

/* Streams bytes cut at the set bits of cuts (bit i: a token ends before byte i + 1) and checks all promises. */
static void stream(const char *bytes, size_t size, uint32_t cuts, struct text *out)
{
    struct utf8_stream s = {0};
    char text[UTF8_STREAM_TEXT_MAX];
    size_t at = 0, text_size;
    unsigned tokens = 0;
    out->size = out->released = 0;
    while (at < size) {
        size_t end = at + 1;
        while (end < size && (cuts >> (end - 1) & 1) == 0)
            end++;
        out->released += utf8_stream_push(&s, bytes + at, end - at, text, &text_size);
        memcpy(out->bytes + out->size, text, text_size);
        out->size += text_size;
        assert_true(utf8_valid(out->bytes, out->size));
        tokens++;
        assert_int_equal(out->released + s.token_count, tokens);
        at = end;
    }
    out->released += utf8_stream_finish(&s, text, &text_size);
    memcpy(out->bytes + out->size, text, text_size);
    out->size += text_size;
    assert_int_equal(out->released, tokens);
}

#define FFFD "\xEF\xBF\xBD"

static const struct {
    const char *bytes;
    size_t size;
    const char *text;
} cases[] = {
    {"abc", 3, "abc"},
    {"a\xC3\xA9z", 4, "a\xC3\xA9z"},
    {"\xE2\x82\xAC\xF0\x9F\x99\x82!", 8, "\xE2\x82\xAC\xF0\x9F\x99\x82!"},
    {"\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x9A\x80", 11, "\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x9A\x80"},
    {"a\0b", 3, "a" FFFD "b"},
    {"\xFF\xFE", 2, FFFD FFFD},
    {"\xC0\xAF", 2, FFFD FFFD}, /* overlong: no subpart */
    {"\xE0\x80\x80", 3, FFFD FFFD FFFD},
    {"\xED\xA0\x80z", 4, FFFD FFFD FFFD "z"},     /* a surrogate */
    {"\xF4\x90\x80\x80", 4, FFFD FFFD FFFD FFFD}, /* above U+10FFFF */
    {"\xE2\x82z", 3, FFFD "z"},                   /* one maximal subpart */
    {"\xF0\x9F\x99z", 4, FFFD "z"},
    {"\xE2\x82\xE2\x82\xAC", 5, FFFD "\xE2\x82\xAC"},
    {"\xF0\x9F\x99", 3, FFFD}, /* cut at the end */
    {"a\xE2", 2, "a" FFFD},
    {"\x80\xBF", 2, FFFD FFFD},
    /* Unicode 15, table 3-11 */
    {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", 9, FFFD FFFD FFFD FFFD "A"},
    /* and table 3-8 */
    {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", 9, FFFD FFFD FFFD FFFD FFFD FFFD FFFD FFFD "A"},
};

static void every_split_gives_the_same_text(void **state)
{
    (void)state;
    struct text *out = malloc(sizeof *out);
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++)
        for (uint32_t cuts = 0; cuts < 1u << (cases[c].size - 1); cuts++) {
            /* A chain of more than UTF8_STREAM_TOKENS_MAX half tokens is cut; these texts are too short for one. */
            stream(cases[c].bytes, cases[c].size, cuts, out);
            assert_int_equal(out->size, strlen(cases[c].text));
            assert_memory_equal(out->bytes, cases[c].text, out->size);
        }
    free(out);
}

static void released_text_is_that_of_released_tokens(void **state)
{
    (void)state;
    struct utf8_stream s = {0};
    char text[UTF8_STREAM_TEXT_MAX];
    size_t size;
    assert_int_equal(utf8_stream_push(&s, "a", 1, text, &size), 1);
    assert_int_equal(size, 1);
    assert_int_equal(utf8_stream_push(&s, "\xE2", 1, text, &size), 0);
    assert_int_equal(size, 0);
    assert_int_equal(utf8_stream_push(&s, "\x82", 1, text, &size), 0);
    /* The character is complete inside this token, which ends in the middle of another: nothing may go yet. */
    assert_int_equal(utf8_stream_push(&s, "\xACx\xE2", 3, text, &size), 0);
    assert_int_equal(size, 0);
    assert_int_equal(utf8_stream_push(&s, "\x82\xAC", 2, text, &size), 4);
    assert_int_equal(size, 7);
    assert_memory_equal(text, "\xE2\x82\xACx\xE2\x82\xAC", 7);
    /* Lead bytes one after another: each releases the one before it. */
    assert_int_equal(utf8_stream_push(&s, "\xE2", 1, text, &size), 0);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(utf8_stream_push(&s, "\xE2", 1, text, &size), 1);
        assert_int_equal(size, 3);
    }
    assert_int_equal(utf8_stream_finish(&s, text, &size), 1);
    /* Empty tokens go at once, unless they stand behind a held one. */
    assert_int_equal(utf8_stream_push(&s, "", 0, text, &size), 1);
    assert_int_equal(utf8_stream_push(&s, "\xE2", 1, text, &size), 0);
    assert_int_equal(utf8_stream_push(&s, "", 0, text, &size), 0);
    assert_int_equal(utf8_stream_push(&s, "k", 1, text, &size), 3);
    assert_memory_equal(text, FFFD "k", size);
    assert_int_equal(utf8_stream_finish(&s, text, &size), 0);
    assert_int_equal(size, 0);
}

static void endless_half_characters_are_cut(void **state)
{
    (void)state;
    struct utf8_stream s = {0};
    char text[UTF8_STREAM_TEXT_MAX];
    size_t size;
    unsigned released = utf8_stream_push(&s, "\xE2", 1, text, &size), pushed = 1;
    for (; pushed < 1000; pushed++) {
        released += utf8_stream_push(&s, "\x82\xAC\xE2", 3, text, &size);
        assert_true(utf8_valid(text, size));
        assert_true(pushed + 1 - released < UTF8_STREAM_TOKENS_MAX);
    }
    released += utf8_stream_finish(&s, text, &size);
    assert_int_equal(released, pushed);
}

static void random_bytes_are_valid_text(void **state)
{
    (void)state;
    static const unsigned char often[] = {0x00, 'a',  0x7F, 0x80, 0xBF, 0xC2, 0xE0, 0xA0,
                                          0xE2, 0x82, 0xED, 0x9F, 0xF0, 0x90, 0xF4, 0x8F};
    uint64_t rng = test_seed(0);
    struct text *whole = malloc(sizeof *whole), *split = malloc(sizeof *split);
    for (int round = 0; round < 20000; round++) {
        char bytes[24];
        const size_t size = 1 + rng_below(&rng, sizeof bytes);
        for (size_t i = 0; i < size; i++)
            bytes[i] = (char)often[rng_below(&rng, sizeof often)];
        stream(bytes, size, 0, whole);
        stream(bytes, size, UINT32_MAX, split); /* single bytes: never more than three are held */
        assert_int_equal(whole->size, split->size);
        assert_memory_equal(whole->bytes, split->bytes, whole->size);
    }
    free(whole);
    free(split);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_split_gives_the_same_text),
        cmocka_unit_test(released_text_is_that_of_released_tokens),
        cmocka_unit_test(endless_half_characters_are_cut),
        cmocka_unit_test(random_bytes_are_valid_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
