/* cuda_page_copy_prefix and cuda_page_load_slot against what backend_cpu_kv.c does, written down byte by byte. */
#include <string.h>
#include "on_device.h"
#include "tests/unit/kernels/reference.h"

/* Whether a page's byte is of its first tokens. */
static bool belongs(const struct cuda_page_layout *layout, size_t byte, uint32_t tokens)
{
    const size_t at = byte % layout->slot_bytes, plane = (size_t)layout->kv_heads * 64 * layout->dim;
    const size_t token = at < plane ? at / layout->dim % 64 : at < 2 * plane ? at % 64 : (at - 2 * plane) / 4 % 64;
    return token < tokens;
}

static void check(struct random *random, uint32_t kv_heads, uint32_t dim, uint32_t slots, uint32_t tokens)
{
    const struct cuda_page_layout layout = {.kv_heads = kv_heads, .dim = dim, .slots = slots,
                                            .slot_bytes = 2 * (size_t)kv_heads * 64 * dim + 2 * (size_t)kv_heads * 64 * 4};
    const size_t bytes = slots * layout.slot_bytes;
    unsigned char *from = malloc(bytes), *want = malloc(bytes), *got = malloc(bytes);
    assert_true(from && want && got);
    for (size_t i = 0; i < bytes; i++) {
        from[i] = (unsigned char)(1 + random_below(random, 255));
        want[i] = belongs(&layout, i, tokens) ? from[i] : 0;
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

enum { PAGES = 9 };

/* Pages in pinned memory and one on the device, some of them only their beginnings, one slot; the other slots stay as they were. */
static void check_load(struct random *random, uint32_t kv_heads, uint32_t dim, uint32_t slots, uint32_t count)
{
    const struct cuda_page_layout layout = {.kv_heads = kv_heads, .dim = dim, .slots = slots,
                                            .slot_bytes = 2 * (size_t)kv_heads * 64 * dim + 2 * (size_t)kv_heads * 64 * 4};
    const size_t bytes = slots * layout.slot_bytes;
    const uint32_t slot = random_below(random, slots), on_device = random_below(random, count);
    struct cuda_page_copy copies[PAGES];
    unsigned char *pinned, *want = malloc(PAGES * bytes), *got = malloc(PAGES * bytes);
    assert_true(want && got);
    assert_int_equal(cudaMallocHost((void **)&pinned, PAGES * bytes), cudaSuccess);
    memset(want, 0xa5, PAGES * bytes);
    char *there = device_put(want, PAGES * bytes);
    for (size_t i = 0; i < PAGES * bytes; i++)
        pinned[i] = (unsigned char)(1 + random_below(random, 255));
    void *source = device_put(pinned + on_device * bytes, bytes);
    for (uint32_t page = 0; page < count; page++) {
        copies[page] = (struct cuda_page_copy){.dst = there + (count - 1 - page) * bytes, .src = page == on_device ? source : pinned + page * bytes,
                                               .tokens = page % 3 == 2 ? random_below(random, 65) : 64};
        for (size_t i = slot * layout.slot_bytes; i < (slot + 1) * layout.slot_bytes; i++)
            want[(count - 1 - page) * bytes + i] = belongs(&layout, i, copies[page].tokens) ? pinned[page * bytes + i] : 0;
    }
    void *table = device_put(copies, sizeof copies);
    launched(cuda_page_load_slot(&layout, slot, table, count, NULL));
    device_get(got, there, PAGES * bytes);
    for (size_t i = 0; i < PAGES * bytes; i++)
        if (got[i] != want[i])
            fail_msg("%u heads, dim %u, slot %u of %u, %u pages: byte %zu of page %zu is %u, not %u", kv_heads, dim, slot, slots, count, i % bytes,
                     i / bytes, got[i], want[i]);
    device_drop(table), device_drop(source), device_drop(there);
    (void)cudaFreeHost(pinned);
    free(want), free(got);
}

static void loads(void **state)
{
    (void)state;
    static const uint32_t dims[] = {2, 6, 16, 20, 64, 130};
    struct random random = {test_seed(2)};
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
        for (uint32_t count = 1; count <= PAGES; count += 4)
            check_load(&random, 1 + (uint32_t)(d + count) % 3, dims[d], 1 + count % 3, count);
    check_load(&random, 4, 256, 1, PAGES);   /* more pieces than threads have under way */
    launched(cuda_page_load_slot(&(struct cuda_page_layout){.kv_heads = 1, .dim = 16, .slots = 1, .slot_bytes = 2560}, 0, NULL, 0, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(prefixes), cmocka_unit_test(loads)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
