/* cuda_q_rows and cuda_kv_rows against kernels/ref and the CPU backend's page, bit for bit; bytes beside what is written stay. */
#include <math.h>
#include <string.h>
#include "on_device.h"
#include "kernels/kernels.h"
#include "tests/unit/kernels/reference.h"

#define ROWS 7u
#define HEADS 3u
#define DIM_MAX 512u
#define SLOTS 2u
#define PAGES 3u
#define MARK 0xa5

static const uint32_t dims[] = {2, 6, 32, 64, 80, 126, 128, 130, 256, 512};
#define DIMS (sizeof dims / sizeof *dims)

struct input {                       /* on the host */
    uint32_t dim, stride;
    bool weighted, norm;
    float x[ROWS * (HEADS * DIM_MAX + 8)];
    float weight[DIM_MAX], cosine[ROWS * DIM_MAX / 2], sine[ROWS * DIM_MAX / 2];
    uint32_t position[ROWS];
};

static void make_input(struct input *in, struct random *random, uint32_t dim, unsigned kind)
{
    double frequency[DIM_MAX / 2];
    in->dim = dim;
    in->stride = HEADS * dim + kind % 3;
    for (uint32_t row = 0; row < ROWS; row++) {
        for (uint32_t head = 0; head < HEADS; head++)
            random_row(random, (kind + row + head) % RANDOM_KINDS, in->x + row * in->stride + head * dim, dim);
        in->position[row] = row == 0 ? 0 : random_below(random, 1u << 17);
    }
    random_row(random, 0, in->weight, dim);
    rope_frequencies(&(struct rope){.base = 10000.0, .scale = 1.0, .dim = dim, .pairs = (dim + 3) / 4}, frequency);
    for (uint32_t row = 0; row < ROWS; row++)
        kernels_at(0)->rope_table(frequency, dim / 2, in->position[row], 1, in->cosine + row * dim / 2, in->sine + row * dim / 2);
}

static bool head_by_ref(const struct input *in, uint32_t row, uint32_t head, bool turn, int8_t *q, float *scale)
{
    float x[DIM_MAX];
    memcpy(x, in->x + row * in->stride + head * in->dim, in->dim * sizeof *x);
    struct rmsnorm norm = {.x = x, .weight = in->weighted ? in->weight : NULL, .epsilon = 1e-6f, .rows = 1, .columns = in->dim, .out = x};
    if (in->norm && !kernels_at(0)->rmsnorm_rows(&norm))
        return false;
    if (turn)
        kernels_at(0)->rope_rows(x, 1, 1, in->dim, in->cosine + row * in->dim / 2, in->sine + row * in->dim / 2);
    return kernels_at(0)->quantize_rows(x, 1, in->dim, q, scale);
}

static void run_q(const struct input *in)
{
    static int8_t q[ROWS * HEADS * DIM_MAX];
    int8_t want[DIM_MAX];
    float scale[ROWS * HEADS], want_scale;
    const size_t angles = ROWS * in->dim / 2 * sizeof(float);
    uint32_t want_bad = CUDA_NO_BAD_ROW, *bad_row = bad_row_new();
    struct cuda_q job = {.x = device_put(in->x, ROWS * in->stride * sizeof(float)), .x_stride = in->stride, .rows = ROWS, .heads = HEADS,
                         .dim = in->dim, .weight = device_put(in->weighted ? in->weight : NULL, in->dim * sizeof(float)), .epsilon = 1e-6f,
                         .cosine = device_put(in->cosine, angles), .sine = device_put(in->sine, angles), .q = device_new(ROWS * HEADS * in->dim),
                         .q_scale = device_new(sizeof scale), .bad_row = bad_row};
    launched(cuda_q_rows(&job, NULL));
    device_get(q, job.q, ROWS * HEADS * in->dim);
    device_get(scale, job.q_scale, sizeof scale);
    for (uint32_t row = 0; row < ROWS; row++)
        for (uint32_t head = 0; head < HEADS; head++) {
            const uint32_t at = row * HEADS + head;
            if (head_by_ref(in, row, head, true, want, &want_scale)) {
                assert_memory_equal(q + at * in->dim, want, in->dim);
                assert_memory_equal(&scale[at], &want_scale, sizeof want_scale);
            } else if (want_bad == CUDA_NO_BAD_ROW) {
                want_bad = row;
            }
        }
    assert_int_equal(bad_row_take(bad_row), want_bad);
    const void *const all[] = {job.x, job.weight, job.cosine, job.sine, job.q, job.q_scale};
    for (unsigned i = 0; i < 6; i++)
        device_drop(all[i]);
}

/* The page as backend_cpu_kv.c writes it. */
static void store_by_ref(unsigned char *page, const struct cuda_page_layout *layout, uint32_t slot, bool value, uint32_t head, uint32_t token,
                         const int8_t *q, float scale)
{
    const size_t plane_bytes = (size_t)HEADS * 64 * layout->dim;
    unsigned char *base = page + slot * layout->slot_bytes, *plane = base + (value ? plane_bytes : 0) + head * 64 * layout->dim;
    for (uint32_t d = 0; d < layout->dim; d++)
        plane[value ? d * 64 + token : token * layout->dim + d] = (unsigned char)q[d];
    memcpy(base + 2 * plane_bytes + ((value ? HEADS * 64 : 0) + head * 64 + token) * sizeof(float), &scale, sizeof scale);
}

static void run_kv(const struct input *in, bool value, uint32_t slot)
{
    const struct cuda_page_layout layout = {.kv_heads = HEADS, .dim = in->dim,
                                            .slot_bytes = 2 * (size_t)HEADS * 64 * in->dim + 2 * (size_t)HEADS * 64 * sizeof(float), .slots = SLOTS};
    const size_t page_bytes = SLOTS * layout.slot_bytes, angles = ROWS * in->dim / 2 * sizeof(float);
    unsigned char *want[PAGES], *got = malloc(page_bytes);
    void *pages[PAGES], *row_page[ROWS];
    uint32_t want_bad = CUDA_NO_BAD_ROW, *bad_row = bad_row_new();
    assert_non_null(got);
    for (uint32_t p = 0; p < PAGES; p++) {
        want[p] = malloc(page_bytes);
        assert_non_null(want[p]);
        memset(want[p], MARK, page_bytes);
        pages[p] = device_put(want[p], page_bytes);
    }
    for (uint32_t row = 0; row < ROWS; row++)
        row_page[row] = pages[row % PAGES];
    struct cuda_kv job = {.x = device_put(in->x, ROWS * in->stride * sizeof(float)), .x_stride = in->stride, .rows = ROWS, .value = value,
                          .norm = in->norm, .weight = device_put(in->weighted ? in->weight : NULL, in->dim * sizeof(float)), .epsilon = 1e-6f,
                          .cosine = device_put(in->cosine, angles), .sine = device_put(in->sine, angles), .layout = layout, .slot = slot,
                          .row_page = device_put(row_page, sizeof row_page), .position = device_put(in->position, sizeof in->position),
                          .bad_row = bad_row};
    launched(cuda_kv_rows(&job, NULL));
    for (uint32_t row = 0; row < ROWS; row++)
        for (uint32_t head = 0; head < HEADS; head++) {
            int8_t q[DIM_MAX];
            float scale;
            if (head_by_ref(in, row, head, !value, q, &scale))
                store_by_ref(want[row % PAGES], &layout, slot, value, head, in->position[row] % 64, q, scale);
            else if (want_bad == CUDA_NO_BAD_ROW)
                want_bad = row;
        }
    for (uint32_t p = 0; p < PAGES; p++) {
        device_get(got, pages[p], page_bytes);
        if (want_bad == CUDA_NO_BAD_ROW)
            assert_memory_equal(got, want[p], page_bytes);
        device_drop(pages[p]);
        free(want[p]);
    }
    free(got);
    assert_int_equal(bad_row_take(bad_row), want_bad);
    const void *const all[] = {job.x, job.weight, job.cosine, job.sine, job.row_page, job.position};
    for (unsigned i = 0; i < 6; i++)
        device_drop(all[i]);
}

static struct input in;

static void heads_equal_the_reference(void **state)
{
    (void)state;
    for (unsigned schedule = 0; schedule < SCHEDULES; schedule++) {
        struct random random = {test_seed(schedule)};
        emulation_set_seed(test_seed(schedule));
        for (size_t d = 0; d < DIMS; d++)
            for (unsigned kind = 0; kind < 3; kind++) {
                make_input(&in, &random, dims[d], kind + schedule);
                for (uint32_t row = 0; row < ROWS; row++)              /* rows of one page lie at different places of it */
                    in.position[row] = in.position[row] / 64 * 64 + (row == 0 ? 0 : 9 * row % 64);
                in.weighted = in.norm = kind > 0;
                run_q(&in);
                run_kv(&in, false, kind % SLOTS);
                in.weighted = false;
                run_kv(&in, true, (kind + 1) % SLOTS);
            }
    }
}

static void what_is_not_finite_is_reported(void **state)
{
    (void)state;
    static const float values[] = {NAN, INFINITY, -INFINITY, 0x1p+100f};
    for (unsigned at = 0; at < 12; at++) {
        struct random random = {at + 1};
        make_input(&in, &random, 64, 0);
        for (uint32_t row = 0; row < ROWS; row++)
            in.position[row] = row;
        in.x[(at % ROWS) * in.stride + (at % HEADS) * 64 + at] = values[at % 4];
        in.weighted = in.norm = at % 3 > 0;
        run_q(&in);
        run_kv(&in, false, 0);
        run_kv(&in, true, 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_equal_the_reference),
        cmocka_unit_test(what_is_not_finite_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
