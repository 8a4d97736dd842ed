/* hash.c - thin shells over libsodium and xxhash. Owns only the streams it hands out.
 * Always true: the same bytes give the same values on every host and in every release (values are stored and compared
 * between processes; tests/unit/common/hash_test.c pins them). */
#include "common/hash.h"
#include <assert.h>
#include <sodium.h>
#include <stdlib.h>
#include <xxhash.h>

static_assert(HASH_DIGEST_BYTES >= crypto_generichash_BYTES_MIN && HASH_DIGEST_BYTES <= crypto_generichash_BYTES_MAX,
              "BLAKE2b can give a digest of this size");

struct hash_stream {
    crypto_generichash_state state; /* 64-byte aligned by its type */
};

enum status hash_setup(void)
{
    if (sodium_init() < 0) /* 1: was done already */
        return STATUS_FAIL(STATUS_INTERNAL, "libsodium could not be initialised");
    return STATUS_OK;
}

uint64_t hash_fast(const void *data, size_t size, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, size, seed);
}

static void check_key(const void *key, size_t key_size)
{
    assert(key_size == 0 || (key != NULL && key_size >= crypto_generichash_KEYBYTES_MIN &&
                             key_size <= crypto_generichash_KEYBYTES_MAX));
    (void)key;
    (void)key_size;
}

void hash_digest(const void *data, size_t size, const void *key, size_t key_size, uint8_t out[HASH_DIGEST_BYTES])
{
    check_key(key, key_size);
    int rc = crypto_generichash(out, HASH_DIGEST_BYTES, data, size, key_size ? key : NULL, key_size);
    assert(rc == 0); /* fails only for sizes that were just checked */
    (void)rc;
}

enum status hash_stream_create(const void *key, size_t key_size, struct hash_stream **out)
{
    if (key_size > 0 && (key == NULL || key_size < crypto_generichash_KEYBYTES_MIN ||
                         key_size > crypto_generichash_KEYBYTES_MAX))
        return STATUS_FAIL(STATUS_INVALID, "a hash key has 16 to 64 bytes, this one %zu", key_size);
    size_t alignment = _Alignof(struct hash_stream);
    size_t size = (sizeof(struct hash_stream) + alignment - 1) / alignment * alignment;
    struct hash_stream *stream = aligned_alloc(alignment, size);
    if (!stream)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a hash stream");
    crypto_generichash_init(&stream->state, key_size ? key : NULL, key_size, HASH_DIGEST_BYTES);
    *out = stream;
    return STATUS_OK;
}

void hash_stream_update(struct hash_stream *stream, const void *data, size_t size)
{
    if (size > 0)
        crypto_generichash_update(&stream->state, data, size);
}

void hash_stream_final(struct hash_stream *stream, uint8_t out[HASH_DIGEST_BYTES])
{
    int rc = crypto_generichash_final(&stream->state, out, HASH_DIGEST_BYTES);
    assert(rc == 0); /* fails only when called twice on one stream */
    (void)rc;
}

void hash_stream_destroy(struct hash_stream **stream)
{
    if (!stream || !*stream)
        return;
    sodium_memzero(*stream, sizeof **stream); /* the state holds the key */
    free(*stream);
    *stream = NULL;
}

void hash_random(void *out, size_t size)
{
    randombytes_buf(out, size);
}
