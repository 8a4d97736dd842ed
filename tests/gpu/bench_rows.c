/* bench_rows.c - the kernels between the products: rows of a decode step (64) and of a prompt (4,096), of a 4B-like model. Inputs are as warm as the
 * kernel before leaves them: nothing is flushed, so small cases read the L2 cache. */
#include <stdlib.h>
#include <string.h>
#include "bench.h"

struct sizes {
    uint32_t rows, hidden, inner, heads, kv_heads, dim, vocab, layers, per_layer;
};

struct work {                              /* what all launches here need; each uses its part */
    struct sizes s;
    float *x, *other, *out, *weight, *scale, *cosine, *sine;
    int8_t *q, *q_low, *embedding;
    uint32_t *tokens, *index, *bad_row, *position, *drawn;
    double *frequency;
    struct cuda_page_layout layout;
    void **row_page;
    unsigned char *pages;
    struct cuda_sample_options *options;
    enum cuda_scheme scheme;
    bool residual, value;
};

static struct cuda_rows_int8 into(const struct work *w)
{
    return (struct cuda_rows_int8){.scheme = w->scheme, .input_scale = 0.05f, .q = w->q, .q_low = w->scheme == CUDA_SCHEME_WIDE ? w->q_low : NULL,
                                   .scale = w->scale};
}

static bool launch_embed(void *user, uint32_t turn, cudaStream_t stream)
{
    const struct work *w = user;
    (void)turn;
    return cuda_embed_rows(&(struct cuda_embed){.tokens = w->tokens, .weight = w->embedding, .scale = w->other, .factor = 50.0f, .rows = w->s.rows,
                                                .columns = w->s.hidden, .out = w->out}, stream);
}

static bool launch_norm(void *user, uint32_t turn, cudaStream_t stream)
{
    const struct work *w = user;
    const struct cuda_rows_int8 target = into(w);
    (void)turn;
    return cuda_norm_rows(&(struct cuda_norm){.x = w->x, .weight = w->weight, .epsilon = 1e-6f, .rows = w->s.rows, .columns = w->s.hidden,
                                              .out = w->residual ? NULL : w->out, .residual = w->residual ? w->out : NULL, .residual_scalar = 1.0f,
                                              .into = &target, .into_count = w->residual ? 0 : 1, .bad_row = w->bad_row}, stream);
}

static bool launch_quantize(void *user, uint32_t turn, cudaStream_t stream)
{
    const struct work *w = user;
    (void)turn;
    return cuda_quantize_rows(&(struct cuda_quantize){.x = w->x, .rows = w->s.rows, .columns = w->s.hidden, .into = into(w), .bad_row = w->bad_row},
                              stream);
}

static bool launch_gate(void *user, uint32_t turn, cudaStream_t stream)
{
    const struct work *w = user;
    (void)turn;
    return cuda_gate_rows(&(struct cuda_gate){.gate = w->x, .up = w->x + w->s.inner, .gate_stride = 2 * w->s.inner, .up_stride = 2 * w->s.inner,
                                              .activation = CUDA_ACTIVATION_GELU_TANH, .rows = w->s.rows, .columns = w->s.inner, .into = into(w),
                                              .bad_row = w->bad_row}, stream);
}

static bool launch_table(void *user, uint32_t turn, cudaStream_t stream)
{
    const struct work *w = user;
    (void)turn;
    return cuda_rope_table(w->frequency, w->s.dim / 2, w->position, w->s.rows, w->cosine, w->sine, stream);
}

static bool launch_q(void *user, uint32_t turn, cudaStream_t stream)
{
    const struct work *w = user;
    (void)turn;
    return cuda_q_rows(&(struct cuda_q){.x = w->x, .x_stride = w->s.heads * w->s.dim, .rows = w->s.rows, .heads = w->s.heads, .dim = w->s.dim,
                                        .weight = w->weight, .epsilon = 1e-6f, .cosine = w->cosine, .sine = w->sine, .q = w->q, .q_scale = w->scale,
                                        .bad_row = w->bad_row}, stream);
}

static bool launch_kv(void *user, uint32_t turn, cudaStream_t stream)
{
    const struct work *w = user;
    (void)turn;
    return cuda_kv_rows(&(struct cuda_kv){.x = w->x, .x_stride = w->s.kv_heads * w->s.dim, .rows = w->s.rows, .value = w->value, .norm = !w->value,
                                          .weight = w->weight, .epsilon = 1e-6f, .cosine = w->cosine, .sine = w->sine, .layout = w->layout,
                                          .row_page = w->row_page, .position = w->position, .bad_row = w->bad_row}, stream);
}

static bool launch_prefix(void *user, uint32_t turn, cudaStream_t stream)
{
    const struct work *w = user;
    (void)turn;
    return cuda_page_copy_prefix(&w->layout, w->pages, w->pages + w->layout.slot_bytes * w->layout.slots, 40, stream);
}

static bool launch_gather(void *user, uint32_t turn, cudaStream_t stream)
{
    const struct work *w = user;
    (void)turn;
    return cuda_gather_rows((const uint32_t *)w->x, w->index, w->s.rows, w->s.hidden, (uint32_t *)w->out, stream);
}

static bool launch_per_layer(void *user, uint32_t turn, cudaStream_t stream)
{
    const struct work *w = user;
    (void)turn;
    return cuda_per_layer_rows(&(struct cuda_per_layer){.f = w->out, .looked_up = w->embedding, .looked_up_scale = w->other, .norm_weight = w->weight,
                                                        .epsilon = 1e-6f, .factor_in = 0.02f, .factor_embed = 16.0f, .factor_sum = 0.7f,
                                                        .rows = w->s.rows, .layers = w->s.layers, .width = w->s.per_layer, .bad_row = w->bad_row},
                               stream);
}

static bool launch_sample(void *user, uint32_t turn, cudaStream_t stream)
{
    const struct work *w = user;
    (void)turn;
    return cuda_sample_rows(&(struct cuda_sample){.logits = w->x, .options = w->options, .rows = w->s.rows, .vocab = w->s.vocab, .token = w->drawn,
                                                  .bad_row = w->bad_row}, stream);
}

static void run(struct bench *bench, struct work *work, bench_launch_fn *launch, double bytes, const char *what, const char *of)
{
    struct bench_result *result = bench_add(bench, "rows", bytes, 0, bench_expect_bytes(&bench->rates, bytes), "%s, %u rows%s", what, work->s.rows, of);
    if (!bench->dry)
        result->microseconds = bench_time(bench, launch, work);
}

/* Every row in a page and at a position of its own; tokens and rows to gather are spread. */
static bool make_numbers(struct bench *bench, struct work *w)
{
    const uint32_t rows = w->s.rows, pages = (rows + 63) / 64 + 1;
    uint32_t *tokens = malloc(rows * sizeof *tokens), *position = malloc(rows * sizeof *position), *index = malloc(rows * sizeof *index);
    void **row_page = malloc(rows * sizeof *row_page);
    double frequency[256];
    const bool made = tokens && position && index && row_page;
    w->layout = (struct cuda_page_layout){.kv_heads = w->s.kv_heads, .dim = w->s.dim, .slots = 1,
                                          .slot_bytes = (size_t)w->s.kv_heads * 64 * (2 * w->s.dim + 2 * sizeof(float))};
    w->pages = bench_bytes(bench, pages * w->layout.slot_bytes);
    for (uint32_t i = 0; i < rows && made; i++) {
        tokens[i] = (uint32_t)(i * 7919ull % w->s.vocab);
        position[i] = i;
        index[i] = (uint32_t)(i * 5ull % rows);
        row_page[i] = w->pages + i / 64 * w->layout.slot_bytes;
    }
    for (uint32_t i = 0; i < w->s.dim / 2; i++)
        frequency[i] = 1.0 / (1.0 + i);
    if (made) {
        w->tokens = bench_put(bench, tokens, rows * sizeof *tokens);
        w->position = bench_put(bench, position, rows * sizeof *position);
        w->index = bench_put(bench, index, rows * sizeof *index);
        w->row_page = bench_put(bench, row_page, rows * sizeof *row_page);
        w->frequency = bench_put(bench, frequency, w->s.dim / 2 * sizeof *frequency);
    }
    free(tokens), free(position), free(index), free(row_page);
    return made;
}

static bool make(struct bench *bench, struct work *w)
{
    const struct sizes *s = &w->s;
    const size_t rows = s->rows, most = rows * (2 * s->inner > s->layers * s->per_layer ? 2 * s->inner : s->layers * s->per_layer);
    w->x = bench_floats(bench, most, -2.0f, 2.0f);
    w->out = bench_floats(bench, most, -2.0f, 2.0f);
    w->other = bench_floats(bench, s->vocab > rows * s->layers ? s->vocab : rows * s->layers, 0.01f, 0.02f);
    w->weight = bench_floats(bench, s->hidden, 0.5f, 1.5f);
    w->scale = bench_new(bench, rows * s->heads * sizeof(float));
    w->q = bench_new(bench, rows * s->inner), w->q_low = bench_new(bench, rows * s->inner);
    const size_t embedded = (size_t)s->vocab * s->hidden, looked_up = rows * s->layers * s->per_layer;
    w->embedding = bench_bytes(bench, embedded > looked_up ? embedded : looked_up);
    w->cosine = bench_floats(bench, rows * s->dim / 2, -0.7f, 0.7f), w->sine = bench_floats(bench, rows * s->dim / 2, -0.7f, 0.7f);
    w->bad_row = bench_put(bench, &(uint32_t){CUDA_NO_BAD_ROW}, sizeof(uint32_t));
    return w->bad_row && w->embedding && w->x && w->out && make_numbers(bench, w);
}

static void of_rows(struct bench *bench, struct work *w)
{
    static const char *const schemes[] = {", dynamic", ", static", ", rotated", ", wide"};
    const double rows = w->s.rows, hidden = w->s.hidden, inner = w->s.inner, heads = w->s.heads * w->s.dim, kv = w->s.kv_heads * w->s.dim;
    if (!bench->dry && !make(bench, w))
        return;
    run(bench, w, launch_embed, rows * hidden * 5, "embedding", "");
    run(bench, w, launch_norm, rows * hidden * 9, "norm into int8 and float", ", dynamic");
    w->residual = true;
    run(bench, w, launch_norm, rows * hidden * 12, "norm and residual", "");
    for (unsigned scheme = 0; scheme < 4; scheme++) {
        w->scheme = (enum cuda_scheme)scheme;
        run(bench, w, launch_quantize, rows * hidden * (scheme == CUDA_SCHEME_WIDE ? 6 : 5), "quantise", schemes[scheme]);
    }
    for (unsigned scheme = 0; scheme < 4; scheme++) {
        w->scheme = (enum cuda_scheme)scheme;
        run(bench, w, launch_gate, rows * inner * (scheme == CUDA_SCHEME_WIDE ? 10 : 9), "gate into int8", schemes[scheme]);
    }
    run(bench, w, launch_table, rows * w->s.dim * 4, "rotation table", "");
    run(bench, w, launch_q, rows * (heads * 5 + w->s.dim * 4), "queries", "");
    run(bench, w, launch_kv, rows * (kv * 5 + w->s.dim * 4), "keys", "");
    w->value = true;
    run(bench, w, launch_kv, rows * kv * 5, "values", "");
    run(bench, w, launch_gather, rows * hidden * 8, "gather", "");
    run(bench, w, launch_per_layer, rows * w->s.layers * w->s.per_layer * 9, "per-layer inputs", "");
    bench_release(bench);
}

static void sampling(struct bench *bench, uint32_t rows, uint32_t vocab)
{
    static const struct cuda_sample_options kinds[] = {{.temperature = 0}, {.temperature = 1, .top_p = 1}, {.temperature = 0.8f, .top_p = 0.95f, .top_k = 40}};
    static const char *const names[] = {"draw, likeliest", "draw, all", "draw, top_k 40 and top_p 0.95"};
    for (unsigned kind = 0; kind < 3; kind++) {
        struct work w = {.s = {.rows = rows, .vocab = vocab}};
        if (!bench->dry) {
            struct cuda_sample_options options[64];
            for (uint32_t i = 0; i < rows; i++) {
                options[i] = kinds[kind];
                options[i].seed = i;
            }
            w.x = bench_floats(bench, (size_t)rows * vocab, -8.0f, 8.0f);
            w.options = bench_put(bench, options, rows * sizeof *options);
            w.drawn = bench_new(bench, rows * sizeof *w.drawn);
            w.bad_row = bench_put(bench, &(uint32_t){CUDA_NO_BAD_ROW}, sizeof(uint32_t));
            if (!w.bad_row)
                return;
        }
        run(bench, &w, launch_sample, 4.0 * rows * vocab, names[kind], "");
        /* One block a row, and what one multiprocessor reads is some 100 GB/s: 64 KiB under way at 0.7 us. A filter reads the row three times. */
        struct bench_result *result = &bench->results[bench->result_count - 1];
        const double passes = kind == 0 ? 1 : kind == 1 ? 2 : 3, row_gbs = 100;
        result->expected = 2 + passes * 4.0 * vocab / (row_gbs * 1e3) * (rows > bench->rates.multiprocessors ? 2 : 1);
        bench_release(bench);
    }
}

void bench_rows(struct bench *bench)
{
    const struct sizes real = {0, 2560, 10240, 8, 4, 256, 262144, 35, 256}, tiny = {0, 128, 256, 2, 1, 32, 200, 3, 24};
    static const uint32_t real_rows[] = {64, 4096}, tiny_rows[] = {3, 70};
    for (unsigned i = 0; i < 2; i++) {
        struct work w = {.s = bench->tiny ? tiny : real};
        w.s.rows = (bench->tiny ? tiny_rows : real_rows)[i];
        of_rows(bench, &w);
    }
    const struct sizes *s = bench->tiny ? &tiny : &real;
    struct work prefix = {.s = *s};
    prefix.s.rows = 64;
    if (bench->dry || make(bench, &prefix))
        run(bench, &prefix, launch_prefix, 2.0 * s->kv_heads * 64 * (2 * s->dim + 8), "page prefix", "");
    bench_release(bench);
    sampling(bench, 1, s->vocab);
    sampling(bench, bench->tiny ? 3 : 64, s->vocab);
}
