/* train_kernels.c - calls into the table of the chosen instruction-set level; attention lays a sequence's K and V out as pages first. */
#include "worker/train/train_kernels.h"
#include <stdio.h>
#include <stdlib.h>
#include "kernels/kernels.h"

#define LOG2_E 0x1.715476p+0f     /* log2(e) rounded to float32 */

static const struct kernels *kernels;

static size_t whole_lines(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

const char *train_kernels_open(void)
{
    fenv_t saved;
    kernels_float_enter(&saved);           /* the choice of a level runs a known answer */
    const enum status status = kernels_select(&kernels);
    kernels_float_leave(&saved);
    if (status == STATUS_OK)
        return kernels->isa;
    (void)fprintf(stderr, "train_kernels: %s\n", status_detail());
    return NULL;
}

bool train_quantize_rows(const float *x, size_t rows, size_t columns, int8_t *q, float *scale)
{
    fenv_t saved;
    kernels_float_enter(&saved);
    const bool finite = kernels->quantize_rows(x, rows, columns, q, scale);
    kernels_float_leave(&saved);
    return finite;
}

void train_dequantize_rows(const int8_t *q, const float *scale, size_t rows, size_t columns, float *out)
{
    fenv_t saved;
    kernels_float_enter(&saved);
    for (size_t r = 0; r < rows; r++)
        kernels->dequantize_row(q + r * columns, scale[r], columns, out + r * columns);
    kernels_float_leave(&saved);
}

bool train_rmsnorm(const float *x, const float *weight, float epsilon, size_t rows, size_t columns, float *out)
{
    fenv_t saved;
    kernels_float_enter(&saved);
    const bool finite = kernels->rmsnorm_rows(
        &(struct rmsnorm){.x = x, .weight = weight, .epsilon = epsilon, .rows = rows, .columns = columns, .out = out});
    kernels_float_leave(&saved);
    return finite;
}

bool train_linear(const int8_t *q, const float *q_scale, const int8_t *w, const float *w_scale, size_t rows, size_t outputs,
                  size_t depth, float *out)
{
    void *scratch = aligned_alloc(64, whole_lines(GEMM_SCRATCH_BYTES(depth)));
    if (scratch == NULL)
        return false;
    fenv_t saved;
    kernels_float_enter(&saved);
    kernels->gemm_int8(&(struct gemm_int8){.a = q, .a_scale = q_scale, .w = w, .w_scale = w_scale, .rows = rows, .outputs = outputs,
                                           .depth = depth, .out = out, .scratch = scratch});
    kernels_float_leave(&saved);
    free(scratch);
    return true;
}

void train_rope_table(double base, size_t dim, size_t count, float *cosine, float *sine)
{
    double frequency[TRAIN_DIM_MAX / 2];
    fenv_t saved;
    kernels_float_enter(&saved);
    rope_frequencies(&(struct rope){.base = base, .scale = 1, .dim = (unsigned)dim, .pairs = (unsigned)dim / 2}, frequency);
    kernels->rope_table(frequency, dim / 2, 0, count, cosine, sine);
    kernels_float_leave(&saved);
}

void train_rope_rows(float *x, size_t rows, size_t heads, size_t dim, const float *cosine, const float *sine)
{
    fenv_t saved;
    kernels_float_enter(&saved);
    kernels->rope_rows(x, rows, heads, dim, cosine, sine);
    kernels_float_leave(&saved);
}

void train_silu_gate(float *gate, const float *up, size_t count)
{
    fenv_t saved;
    kernels_float_enter(&saved);
    kernels->silu_gate(gate, up, count);
    kernels_float_leave(&saved);
}

struct page_layout {                       /* bytes; the layout of kernels/attention.h, one layer a page */
    size_t plane, v, k_scale, v_scale, page;
};

static struct page_layout lay_out(const struct train_attention *attention)
{
    const size_t plane = attention->kv_heads * ATTENTION_BLOCK * attention->dim;
    const size_t scales = attention->kv_heads * ATTENTION_BLOCK * sizeof(float);
    return (struct page_layout){.plane = plane, .v = plane, .k_scale = 2 * plane, .v_scale = 2 * plane + scales,
                                .page = whole_lines(2 * plane + 2 * scales)};
}

static void write_page(const struct train_attention *attention, const struct page_layout *layout, size_t start, char *page)
{
    const size_t dim = attention->dim, heads = attention->kv_heads;
    const size_t count = attention->length - start < ATTENTION_BLOCK ? attention->length - start : ATTENTION_BLOCK;
    int8_t *k = (int8_t *)page, *v = (int8_t *)(page + layout->v);
    float *k_scale = (float *)(page + layout->k_scale), *v_scale = (float *)(page + layout->v_scale);
    for (size_t t = 0; t < count; t++)
        for (size_t h = 0; h < heads; h++) {
            const size_t from = (start + t) * heads + h, to = h * ATTENTION_BLOCK + t;
            k_scale[to] = attention->k_scale[from];
            v_scale[to] = attention->v_scale[from];
            for (size_t d = 0; d < dim; d++) {
                k[to * dim + d] = attention->k[from * dim + d];
                v[(h * dim + d) * ATTENTION_BLOCK + t] = attention->v[from * dim + d];
            }
        }
}

bool train_attention(const struct train_attention *attention)
{
    const struct page_layout layout = lay_out(attention);
    const size_t pages = (attention->length + ATTENTION_BLOCK - 1) / ATTENTION_BLOCK;
    const size_t scratch_bytes = whole_lines(attention_scratch_bytes(attention->heads, attention->kv_heads, attention->dim));
    char *memory = aligned_alloc(64, pages * layout.page + scratch_bytes);
    void **page = malloc(pages * sizeof *page);
    const bool there = memory != NULL && page != NULL;
    if (there) {
        for (size_t b = 0; b < pages; b++) {
            page[b] = memory + b * layout.page;
            write_page(attention, &layout, b * ATTENTION_BLOCK, page[b]);
        }
        fenv_t saved;
        kernels_float_enter(&saved);
        kernels->attention(&(struct attention){
            .q = attention->q, .q_scale = attention->q_scale, .rows = attention->length, .heads = attention->heads,
            .kv_heads = attention->kv_heads, .dim = attention->dim, .window = (uint32_t)attention->window,
            .score_scale = (float)attention->attention_scale * LOG2_E, .pages = page, .v_offset = layout.v,
            .k_scale_offset = layout.k_scale, .v_scale_offset = layout.v_scale, .out = attention->out,
            .scratch = memory + pages * layout.page});
        kernels_float_leave(&saved);
    }
    free(page);
    free(memory);
    return there;
}
