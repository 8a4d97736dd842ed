/* hash_test.c - published or independently computed values: these hashes are stored and compared between processes.
 * BLAKE2b: Python's hashlib.blake2b(digest_size=32). XXH3: the values of xxhash's own documentation. hash_mix: the formula in
 * hash.c evaluated with Python integers; its inner round for (0, 0) is splitmix64's first output for seed 0. */
#include "tests/unit/unit.h"
#include "common/hash.h"
#include <string.h>

static void check_digest(const void *data, size_t size, const void *key, size_t key_size, const char *expected)
{
    uint8_t digest[HASH_DIGEST_BYTES];
    char hex[HASH_HEX_SIZE(HASH_DIGEST_BYTES)];
    hash_digest(data, size, key, key_size, digest);
    hash_hex(digest, sizeof digest, hex);
    assert_string_equal(hex, expected);
}

static void test_digest_known_answers(void **state)
{
    (void)state;
    uint8_t key[32];
    for (unsigned i = 0; i < sizeof key; i++)
        key[i] = (uint8_t)i;
    check_digest("", 0, NULL, 0, "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8");
    check_digest("abc", 3, NULL, 0, "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319");
    check_digest("abc", 3, key, sizeof key, "d63a32d3e44738d7907f964316c241adaba0abfeabc32349677578a15a203f7f");
}

static void test_stream_equals_digest(void **state)
{
    (void)state;
    uint8_t data[1000], key[16], whole[HASH_DIGEST_BYTES], parts[HASH_DIGEST_BYTES];
    hash_random(data, sizeof data);
    hash_random(key, sizeof key);
    for (size_t step = 1; step < sizeof data; step = step * 3 + 1) {
        struct hash_stream *stream = NULL;
        assert_ok(hash_stream_create(key, sizeof key, &stream));
        for (size_t at = 0; at < sizeof data; at += step)
            hash_stream_update(stream, data + at, at + step > sizeof data ? sizeof data - at : step);
        hash_stream_update(stream, NULL, 0);
        hash_stream_final(stream, parts);
        hash_stream_destroy(&stream);
        assert_null(stream);
        hash_digest(data, sizeof data, key, sizeof key, whole);
        assert_memory_equal(whole, parts, sizeof whole);
    }
    struct hash_stream *none = NULL;
    hash_stream_destroy(&none);
}

static void test_stream_refuses_bad_keys(void **state)
{
    (void)state;
    uint8_t key[65] = {0};
    struct hash_stream *stream = NULL;
    assert_int_equal(hash_stream_create(key, 15, &stream), STATUS_INVALID);
    assert_int_equal(hash_stream_create(key, 65, &stream), STATUS_INVALID);
    assert_null(stream);
}

static void test_fast_known_answers(void **state)
{
    (void)state;
    assert_true(hash_fast("", 0, 0) == 0x2d06800538d394c2u);
    assert_true(hash_fast("abc", 3, 0) == 0x78af5f94892f3950u);
    assert_true(hash_fast("abc", 3, 1) != hash_fast("abc", 3, 0));
}

static void test_mix_known_answers(void **state)
{
    (void)state;
    assert_true(hash_mix(0, 0) == 0xa706dd2f4d197e6fu);
    assert_true(hash_mix(1, 0) == 0x5e41ab087439611eu);
    assert_true(hash_mix(0, 1) == 0x2a98f501af37e97fu);
    assert_true(hash_mix(UINT64_MAX, UINT64_MAX) == 0x5155e650b56274f2u);
}

/* Every input bit flips about half of the output bits. */
static void test_mix_avalanche(void **state)
{
    (void)state;
    for (unsigned bit = 0; bit < 128; bit++) {
        unsigned flipped = 0;
        for (uint64_t i = 0; i < 256; i++) {
            uint64_t a = i * 7, b = i * 13;
            uint64_t other = hash_mix(bit < 64 ? a ^ 1ull << bit : a, bit < 64 ? b : b ^ 1ull << (bit - 64));
            flipped += (unsigned)__builtin_popcountll(hash_mix(a, b) ^ other);
        }
        assert_in_range(flipped / 256, 28, 36); /* 32 expected, deviation of the mean 0.25 */
    }
}

static void test_random_and_hex(void **state)
{
    (void)state;
    uint8_t a[HASH_ID_BYTES], b[HASH_ID_BYTES];
    hash_random(a, sizeof a);
    hash_random(b, sizeof b);
    assert_memory_not_equal(a, b, sizeof a);
    char hex[HASH_HEX_SIZE(3)];
    hash_hex("\x00\xff\x1a", 3, hex);
    assert_string_equal(hex, "00ff1a");
}

static int setup(void **state)
{
    (void)state;
    return hash_setup() == STATUS_OK && hash_setup() == STATUS_OK ? 0 : -1; /* a second call is harmless */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_digest_known_answers),    cmocka_unit_test(test_stream_equals_digest),
        cmocka_unit_test(test_stream_refuses_bad_keys), cmocka_unit_test(test_fast_known_answers),
        cmocka_unit_test(test_mix_known_answers),       cmocka_unit_test(test_mix_avalanche),
        cmocka_unit_test(test_random_and_hex),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
