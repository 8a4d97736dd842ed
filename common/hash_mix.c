/* hash_mix.c - the part of hash.h that needs no library, so that tests/gpu builds without any. */
#include "common/hash.h"

/* Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014, figure 16 (Stafford's mix 13). */
static uint64_t finalise(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t hash_mix(uint64_t a, uint64_t b)
{
    /* Two rounds: for a fixed a this is one-to-one in b and the other way round, and hash_mix(a, b) != hash_mix(b, a). */
    const uint64_t golden_gamma = 0x9e3779b97f4a7c15u;
    return finalise(finalise(a + golden_gamma) + b + golden_gamma);
}

void hash_hex(const void *data, size_t size, char *out)
{
    static const char digits[] = "0123456789abcdef";
    const uint8_t *bytes = data;
    for (size_t i = 0; i < size; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
    out[2 * size] = '\0';
}
