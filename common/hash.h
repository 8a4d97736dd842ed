/* hash.h - hashes and random bytes, over libsodium and xxhash. Thread-safe after hash_setup. */
#ifndef ROOST_COMMON_HASH_H
#define ROOST_COMMON_HASH_H
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

#define HASH_ID_BYTES 16       /* request ids, sessions, incarnations, cache ids: 128 random bits */
#define HASH_DIGEST_BYTES 32   /* BLAKE2b-256 */
#define HASH_HEX_SIZE(bytes) (2 * (bytes) + 1)

enum status hash_setup(void);  /* once per process, before threads; initialises libsodium */

/* Not for secrets: XXH3-64. */
uint64_t hash_fast(const void *data, size_t size, uint64_t seed);
/* Mixes two 64-bit values into one (splitmix64 finaliser). */
uint64_t hash_mix(uint64_t a, uint64_t b);

/* BLAKE2b-256, keyed when key_size > 0 (16 to 64 bytes). */
void hash_digest(const void *data, size_t size, const void *key, size_t key_size, uint8_t out[HASH_DIGEST_BYTES]);

/* The same over several pieces. */
struct hash_stream;            /* opaque */
enum status hash_stream_create(const void *key, size_t key_size, struct hash_stream **out);
void hash_stream_update(struct hash_stream *stream, const void *data, size_t size);
void hash_stream_final(struct hash_stream *stream, uint8_t out[HASH_DIGEST_BYTES]);
void hash_stream_destroy(struct hash_stream **stream);   /* accepts NULL; sets *stream to NULL */

void hash_random(void *out, size_t size);                          /* unpredictable bytes */
void hash_hex(const void *data, size_t size, char *out);           /* out has HASH_HEX_SIZE(size) bytes */

#endif
