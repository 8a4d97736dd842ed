/* backend_cpu_kv.c - pages of K and V: their layout, what is written into them, attention over them.
 *
 *   page of a group:  slot 0 | slot 1 | ...          one a producing layer
 *   slot:             K plane (kv_heads, 64, dim) | V plane (kv_heads, dim, 64) | K scales (kv_heads, 64) | V scales (kv_heads, 64) */
#include <string.h>
#include "worker/engine/backend/backend_cpu_internal.h"

#define PAGE BACKEND_PAGE_TOKENS
_Static_assert(PAGE == ATTENTION_BLOCK, "a page is one block of attention");

void cpu_group_layout(struct cpu_group *group, const struct model_attention *attention)
{
    group->plane_bytes = (size_t)attention->kv_head_count * PAGE * attention->head_dim;
    group->scale_bytes = (size_t)attention->kv_head_count * PAGE * sizeof(float);
    group->slot_bytes = 2 * group->plane_bytes + 2 * group->scale_bytes;
}

size_t cpu_page_bytes(const struct backend *self, uint32_t group)
{
    return self->groups[group].slot_bytes * self->model->config.producer_count[group];
}

void cpu_page_copy_prefix(struct backend *self, uint32_t group, void *dst, const void *src, uint32_t tokens)
{
    const struct model_attention *attention = &self->model->config.attention[group];
    const struct cpu_group *layout = &self->groups[group];
    size_t dim = attention->head_dim, heads = attention->kv_head_count;
    memset(dst, 0, cpu_page_bytes(self, group));
    for (uint16_t slot = 0; slot < self->model->config.producer_count[group]; slot++) {
        char *to = (char *)dst + slot * layout->slot_bytes;
        const char *from = (const char *)src + slot * layout->slot_bytes;
        for (size_t head = 0; head < heads; head++) {
            size_t at = head * PAGE * dim;
            memcpy(to + at, from + at, tokens * dim);                             /* K rows */
        }
        to += layout->plane_bytes;
        from += layout->plane_bytes;
        for (size_t line = 0; line < heads * dim; line++)
            memcpy(to + line * PAGE, from + line * PAGE, tokens);                 /* V columns */
        to += layout->plane_bytes;
        from += layout->plane_bytes;
        for (size_t line = 0; line < 2 * heads; line++) {
            size_t at = line * PAGE * sizeof(float);
            memcpy(to + at, from + at, tokens * sizeof(float));                   /* both planes of scales */
        }
    }
}

static const struct batch_span *span_of_row(const struct backend *self, uint32_t row)
{
    uint32_t low = 0, high = self->span_count - 1;
    while (low < high) {
        uint32_t middle = (low + high + 1) / 2;
        if (self->spans[middle].row <= row)
            low = middle;
        else
            high = middle - 1;
    }
    return &self->spans[low];
}

bool cpu_store_kv(struct backend *self, uint32_t layer, bool value, uint32_t row, uint32_t thread)
{
    const struct model_config *config = &self->model->config;
    enum model_layer_type type = config->layer_types[layer];
    const struct cpu_group *layout = &self->groups[type];
    const struct cpu_scratch *scratch = &self->scratch[thread];
    size_t dim = config->attention[type].head_dim, heads = config->attention[type].kv_head_count;
    if (!self->kernels->quantize_rows(self->kv + row * heads * dim, heads, dim, scratch->kv, scratch->kv_scale))
        return false;
    const struct batch_span *span = span_of_row(self, row);
    uint32_t position = span->start + (row - span->row);
    size_t token = position % PAGE;
    char *slot = (char *)span->run->pages[type][position / PAGE] + config->producer_slot[layer] * layout->slot_bytes;
    int8_t *plane = (int8_t *)(slot + (value ? layout->plane_bytes : 0));
    float *scale = (float *)(slot + 2 * layout->plane_bytes + (value ? layout->scale_bytes : 0));
    for (size_t head = 0; head < heads; head++) {
        const int8_t *from = scratch->kv + head * dim;
        int8_t *to = plane + head * PAGE * dim;
        if (value)
            for (size_t d = 0; d < dim; d++)
                to[d * PAGE + token] = from[d];
        else
            memcpy(to + token * dim, from, dim);
        scale[head * PAGE + token] = scratch->kv_scale[head];
    }
    return true;
}

void cpu_plan_attention(struct backend *self)
{
    self->piece_count = 0;
    for (uint32_t s = 0; s < self->span_count; s++)
        for (uint32_t first = 0; first < self->spans[s].count && cpu_is_own(self, self->spans[s].run_index); first += CPU_ATTENTION_ROWS) {
            uint32_t left = self->spans[s].count - first;
            self->pieces[self->piece_count++] =
                (struct cpu_piece){s, first, left < CPU_ATTENTION_ROWS ? left : CPU_ATTENTION_ROWS};
        }
}

struct attend_job {
    struct backend *self;
    uint32_t layer;
    uint32_t head_parts;            /* every piece is split by heads into so many */
};

static void attend_part(void *context, uint32_t index, uint32_t thread)
{
    const struct attend_job *job = context;
    struct backend *self = job->self;
    const struct model_config *config = &self->model->config;
    enum model_layer_type type = config->layer_types[job->layer];
    const struct model_attention *geometry = &config->attention[type];
    const struct cpu_group *layout = &self->groups[type];
    const struct cpu_piece *piece = &self->pieces[index / job->head_parts];
    const struct batch_span *span = &self->spans[piece->span];
    uint32_t part = index % job->head_parts, row = span->row + piece->first;
    size_t heads = config->head_count, dim = geometry->head_dim;
    size_t head_first = heads * part / job->head_parts, head_end = heads * (part + 1) / job->head_parts;
    size_t slot = config->producer_slot[config->kv_producer[job->layer]] * layout->slot_bytes;
    struct attention attention = {
        .q = self->q_int8 + row * heads * dim, .q_scale = self->q_scale + row * heads, .rows = piece->count,
        .heads = heads, .kv_heads = geometry->kv_head_count, .dim = dim, .head_first = head_first, .head_count = head_end - head_first,
        .start = span->start + piece->first, .window = type == MODEL_LAYER_LOCAL ? geometry->window : 0,
        .sinks = type == MODEL_LAYER_LOCAL ? geometry->sinks : 0, .score_scale = self->constants.score_scale, .pages = span->run->pages[type],
        .k_offset = slot, .v_offset = slot + layout->plane_bytes, .k_scale_offset = slot + 2 * layout->plane_bytes,
        .v_scale_offset = slot + 2 * layout->plane_bytes + layout->scale_bytes, .out = self->attended + row * heads * dim,
        .scratch = self->scratch[thread].attention};
    self->kernels->attention(&attention);
}

/* Of queries and keys, and of weights and values; windows by their width. */
static uint64_t attention_products(const struct backend *self, enum model_layer_type type)
{
    const struct model_attention *geometry = &self->model->config.attention[type];
    uint64_t keys = 0;
    for (uint32_t s = 0; s < self->span_count; s++) {
        const struct batch_span *span = &self->spans[s];
        if (!cpu_is_own(self, span->run_index))
            continue;
        uint32_t behind = span->start + span->count, seen = geometry->window + geometry->sinks;
        keys += (uint64_t)span->count * (type == MODEL_LAYER_LOCAL && seen < behind ? seen : behind);
    }
    return keys * 2 * self->model->config.head_count * geometry->head_dim;
}

void cpu_attend(struct backend *self, uint32_t layer)
{
    uint32_t heads = self->model->config.head_count, wanted = 2 * self->config.threads, parts = 1;
    uint64_t products = attention_products(self, self->model->config.layer_types[layer]);
    if (cpu_splits(self, products) && self->piece_count > 0 && self->piece_count < wanted) {
        parts = (wanted + self->piece_count - 1) / self->piece_count;
        parts = parts < heads ? parts : heads;
    }
    struct attend_job job = {.self = self, .layer = layer, .head_parts = parts};
    cpu_share(self, products, self->piece_count * parts, attend_part, &job);
}
