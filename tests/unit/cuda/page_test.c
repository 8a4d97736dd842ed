/* cuda_page_copy_prefix against what backend_cpu_kv.c does, written down byte by byte. */
#include <string.h>
#include "on_device.h"
#include "tests/unit/kernels/reference.h"

static void check(struct random *random, uint32_t kv_heads, uint32_t dim, uint32_t slots, uint32_t tokens)
{
    const size_t plane = (size_t)kv_heads * 64 * dim;
    const struct cuda_page_layout layout = {.kv_heads = kv_heads, .dim = dim, .slots = slots, .slot_bytes = 2 * plane + 2 * (size_t)kv_heads * 64 * 4};
    const size_t bytes = slots * layout.slot_bytes;
    unsigned char *from = malloc(bytes), *want = malloc(bytes), *got = malloc(bytes);
    assert_true(from && want && got);
    for (size_t i = 0; i < bytes; i++) {
        const size_t at = i % layout.slot_bytes;
        const size_t token = at < plane ? at / dim % 64 : at < 2 * plane ? at % 64 : (at - 2 * plane) / 4 % 64;
        from[i] = (unsigned char)(1 + random_below(random, 255));
        want[i] = token < tokens ? from[i] : 0;
        got[i] = 0xa5;
    }
    void *src = device_put(from, bytes), *dst = device_put(got, bytes);
    launched(cuda_page_copy_prefix(&layout, dst, src, tokens, NULL));
    device_get(got, dst, bytes);
    for (size_t i = 0; i < bytes; i++)
        if (got[i] != want[i])
            fail_msg("%u heads, dim %u, %u slots, %u tokens: byte %zu is %u, not %u", kv_heads, dim, slots, tokens, i, got[i], want[i]);
    device_get(got, src, bytes);
    assert_memory_equal(got, from, bytes);
    device_drop(src), device_drop(dst);
    free(from), free(want), free(got);
}

static void prefixes(void **state)
{
    (void)state;
    static const uint32_t dims[] = {2, 6, 16, 20, 64, 130, 256}, tokens[] = {0, 1, 2, 3, 5, 31, 32, 62, 63, 64};
    struct random random = {test_seed(1)};
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
        for (size_t t = 0; t < sizeof tokens / sizeof *tokens; t++)
            check(&random, 1 + (uint32_t)(d + t) % 3, dims[d], 1 + (uint32_t)t % 2, tokens[t]);
    check(&random, 4, 512, 3, 33);           /* more words than the grid has threads */
    check(&random, 4, 512, 5, 64);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(prefixes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
