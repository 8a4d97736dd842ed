/* machine.c - what the tests link and a GPU's machine has otherwise, or not at all. The emulator's handles do nothing here
 * (tests/cuda_emulation/emulation.h); of common/hash.h only what needs no library is built, and nothing here draws a digest. */
#include <stdlib.h>
#include "common/hash.h"
#include "tests/cuda_emulation/emulation.h"
#include "worker/engine/model/model.h"

bool emulation_present(void)
{
    return false;
}

void emulation_set_seed(uint64_t seed)
{
    (void)seed;
}

void emulation_set_eagerness(unsigned of_256)
{
    (void)of_256;
}

void emulation_set_memory(size_t bytes)
{
    (void)bytes;
}

void emulation_poison_at(uint64_t launch, int error)
{
    (void)launch, (void)error;
}

void emulation_refuse_at(uint64_t launch)
{
    (void)launch;
}

void emulation_heal(void)
{
}

enum status hash_setup(void)
{
    return STATUS_OK;
}

void hash_digest(const void *data, size_t size, const void *key, size_t key_size, uint8_t out[HASH_DIGEST_BYTES])
{
    (void)data, (void)size, (void)key, (void)key_size, (void)out;
    abort();                           /* of a tenant and a seed in words (sampler_seed) */
}

void model_destroy(struct model **model)    /* of random_model_make: one piece of memory */
{
    free(*model);
    *model = NULL;
}
