#include "worker/engine/text/sampler.h"
#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "common/hash.h"
#include "kernels/pinned_math.h"
#include "worker/engine/text/sampler_tally.h"
#include "worker/engine/text/sampler_weights.h"

#define BLOCK_IDS 128u /* the highest value of each block is kept, so that later passes skip most of them */

struct candidate {
    uint64_t key; /* descending keys are descending values, equal ones by ascending id */
    uint64_t weight;
};

struct sampler {
    uint32_t vocab_size;
    float *adjusted;              /* (vocab): logits after bias and penalties */
    uint32_t *left_out;           /* (vocab): ids, where the caller's mask alone does not do */
    float *block_max;             /* (vocab / BLOCK_IDS): -infinity where every id is left out */
    struct candidate *candidates; /* (vocab) */
    struct sampler_tally *tally;  /* for histories without their own */
};

struct view { /* the values of one pick */
    const float *values;
    uint32_t vocab_size;
    const uint32_t *left_out; /* ascending */
    uint32_t left_out_count;
    const float *block_max;
    float max;
    uint32_t best; /* the lowest id that has max */
};

#define NOISE_MAX 17.0f /* above every value of noise: -log(-log(1 - 2^-24)) is 16.64 */

static const uint64_t gamma_ = 0x9E3779B97F4A7C15u;

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static uint64_t position_state(uint64_t seed, uint32_t choice, uint32_t position)
{
    return mix(mix(seed + gamma_) ^ ((uint64_t)choice << 32 | position));
}

/* The 23 bits that u is made of. */
static uint32_t noise_bits(uint64_t state, uint32_t id)
{
    return (uint32_t)(mix(state + ((uint64_t)id + 1) * gamma_) >> 41);
}

static float noise(uint32_t bits)
{
    const float u = (float)(2 * bits + 1) * 0x1p-24f;
    return -pinned_log(-pinned_log(u));
}

/* At least noise(bits), without logarithms: -log(u) >= 1 - u = v, so noise <= -log(v) <= (24 - b) * log(2) for v >=
 * 2^(b - 24). 0.01 is far more than pinned_log can be wrong by. */
static float noise_bound(uint32_t bits)
{
    const uint32_t v = (1u << 24) - (2 * bits + 1); /* odd: at least 1 */
    const int b = 31 - __builtin_clz(v);
    return (float)(24 - b) * 0.693148f + 0.01f;
}

float sampler_noise(uint64_t seed, uint32_t choice, uint32_t position, uint32_t id)
{
    return noise(noise_bits(position_state(seed, choice, position), id));
}


/* ---- walking the ids that may be drawn ---- */

struct run { /* ids [start, end), none left out */
    uint32_t start, end;
    uint32_t cursor; /* into left_out */
};

/* The next run of ids of a block; run->end is where the last one ended, the block's start at first. Blocks come in ascending order. */
static bool run_next(const struct view *view, uint32_t block_end, struct run *run)
{
    uint32_t at = run->end;
    while (run->cursor < view->left_out_count && view->left_out[run->cursor] < at)
        run->cursor++;
    while (at < block_end && run->cursor < view->left_out_count && view->left_out[run->cursor] == at) {
        run->cursor++;
        at++;
    }
    run->start = at;
    run->end = block_end;
    if (run->cursor < view->left_out_count && view->left_out[run->cursor] < block_end)
        run->end = view->left_out[run->cursor];
    return at < block_end;
}

static uint32_t block_count(uint32_t vocab_size)
{
    return (vocab_size + BLOCK_IDS - 1) / BLOCK_IDS;
}

static uint32_t block_end(const struct view *view, uint32_t block)
{
    const uint32_t left = view->vocab_size - block * BLOCK_IDS;
    return block * BLOCK_IDS + (left < BLOCK_IDS ? left : BLOCK_IDS);
}

typedef float lanes_f __attribute__((vector_size(16)));
typedef int32_t lanes_i __attribute__((vector_size(16)));

/* The highest of values[0 .. count); *finite becomes false if one is not. */
static float run_max(const float *values, uint32_t count, float max, bool *finite)
{
    lanes_f top = {max, max, max, max};
    lanes_i bad = {0};
    uint32_t i = 0;
    for (; i + 4 <= count; i += 4) {
        lanes_f v;
        memcpy(&v, values + i, sizeof v);
        const lanes_i higher = v > top;
        top = (lanes_f)(((lanes_i)v & higher) | ((lanes_i)top & ~higher));
        bad |= (v - v) != (lanes_f){0}; /* NaN and infinities: their difference is NaN */
    }
    for (unsigned k = 0; k < 4; k++)
        max = top[k] > max ? top[k] : max;
    *finite = *finite && (bad[0] | bad[1] | bad[2] | bad[3]) == 0;
    for (; i < count; i++) {
        *finite = *finite && isfinite(values[i]);
        max = values[i] > max ? values[i] : max;
    }
    return max;
}

/* Fills block_max, max and best. Returns whether all values are finite; best is UINT32_MAX if every id is left out. */
static bool view_scan(struct view *view, float *block_max)
{
    bool finite = true;
    struct run run = {0};
    view->block_max = block_max;
    view->max = -INFINITY;
    view->best = UINT32_MAX;
    uint32_t best_block = 0;
    for (uint32_t b = 0; b < block_count(view->vocab_size); b++) {
        float max = -INFINITY;
        run.end = b * BLOCK_IDS;
        while (run_next(view, block_end(view, b), &run))
            max = run_max(view->values + run.start, run.end - run.start, max, &finite);
        block_max[b] = max;
        if (max > view->max) {
            view->max = max;
            best_block = b;
        }
    }
    if (!finite)
        return false;
    run = (struct run){.end = best_block * BLOCK_IDS};
    while (view->best == UINT32_MAX && run_next(view, block_end(view, best_block), &run))
        for (uint32_t i = run.start; i < run.end && view->best == UINT32_MAX; i++)
            if (view->values[i] == view->max)
                view->best = i;
    return true;
}

static enum status refuse_not_finite(const struct view *view, uint32_t position)
{
    struct run run = {0};
    uint32_t bad = 0;
    while (run_next(view, view->vocab_size, &run))
        for (bad = run.start; bad < run.end; bad++)
            if (!isfinite(view->values[bad]))
                return STATUS_FAIL(STATUS_CORRUPT, "logit %u at position %u is not a finite number", bad, position);
    return STATUS_FAIL(STATUS_INTERNAL, "a logit was not a finite number");
}

/* ---- candidates ---- */

static uint64_t candidate_key(float value, uint32_t id)
{
    uint32_t bits;
    value += 0.0f; /* -0 becomes +0 */
    memcpy(&bits, &value, sizeof bits);
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | (uint32_t)~id;
}

static uint32_t candidate_id(const struct candidate *candidate)
{
    return ~(uint32_t)candidate->key;
}

/* Those with a value of at least floor. Every such set is a beginning of the order of step 5. */
static uint32_t gather(const struct view *view, float floor, struct candidate *out)
{
    uint32_t count = 0;
    struct run run = {0};
    for (uint32_t b = 0; b < block_count(view->vocab_size); b++) {
        if (!(view->block_max[b] >= floor))
            continue;
        run.end = b * BLOCK_IDS;
        while (run_next(view, block_end(view, b), &run))
            for (uint32_t i = run.start; i < run.end; i++)
                if (view->values[i] >= floor)
                    out[count++].key = candidate_key(view->values[i], i);
    }
    return count;
}

static void swap(struct candidate *a, struct candidate *b)
{
    const struct candidate kept = *a;
    *a = *b;
    *b = kept;
}

/* Moves those before the pivot in the order to the front of [low, high), the pivot behind them. Returns where it is and the
 * weight in front of it. The pivot is the middle one of three, drawn so that no order of ids is slow. */
static uint32_t partition(struct candidate *c, uint32_t low, uint32_t high, uint64_t *rng, uint64_t *weight)
{
    uint32_t pick[3];
    for (unsigned i = 0; i < 3; i++) {
        *rng = *rng * 6364136223846793005u + 1442695040888963407u;
        pick[i] = low + (uint32_t)((*rng >> 33) % (high - low));
    }
    const uint64_t a = c[pick[0]].key, b = c[pick[1]].key, d = c[pick[2]].key;
    const unsigned middle = (a >= b) == (b >= d) ? 1 : (b >= a) == (a >= d) ? 0 : 2;
    swap(&c[pick[middle]], &c[high - 1]);
    const uint64_t pivot = c[high - 1].key;
    uint32_t front = low;
    uint64_t sum = 0;
    for (uint32_t i = low; i < high - 1; i++)
        if (c[i].key > pivot) {
            sum += c[i].weight;
            swap(&c[i], &c[front++]);
        }
    swap(&c[front], &c[high - 1]);
    *weight = sum;
    return front;
}

/* Puts the shortest beginning of the order whose weights reach target (at least 1) to the front; returns its length, count if
 * all together do not reach it. Linear on average (quickselect; Hoare, 1961). */
static uint32_t select_front(struct candidate *c, uint32_t count, uint64_t target)
{
    uint32_t low = 0, high = count;
    uint64_t rng = 1;
    while (low < high) {
        uint64_t before;
        const uint32_t at = partition(c, low, high, &rng, &before);
        if (before >= target) {
            high = at;
        } else if (before + c[at].weight >= target) {
            return at + 1;
        } else {
            target -= before + c[at].weight;
            low = at + 1;
        }
    }
    return low;
}

static uint32_t select_count(struct candidate *c, uint32_t count, uint32_t wanted)
{
    if (wanted >= count)
        return count;
    for (uint32_t i = 0; i < count; i++)
        c[i].weight = 1;
    return select_front(c, count, wanted);
}

/* The `wanted` first of all ids. The wanted-th highest of the blocks' maxima is a floor that few values reach. */
static uint32_t gather_first(const struct view *view, uint32_t wanted, struct candidate *c)
{
    const uint32_t blocks = block_count(view->vocab_size);
    float floor = -INFINITY;
    if (wanted <= blocks) {
        for (uint32_t b = 0; b < blocks; b++)
            c[b].key = candidate_key(view->block_max[b], b);
        floor = view->max;
        for (uint32_t n = select_count(c, blocks, wanted); n > 0; n--) {
            const float max = view->block_max[candidate_id(&c[n - 1])];
            floor = max < floor ? max : floor;
        }
    }
    return select_count(c, gather(view, floor, c), wanted);
}

static uint64_t weigh(const struct view *view, float scale, struct candidate *c, uint32_t count)
{
    float values[BLOCK_IDS];
    uint64_t weights[BLOCK_IDS], total = 0;
    for (uint32_t at = 0; at < count; at += BLOCK_IDS) {
        const uint32_t n = count - at < BLOCK_IDS ? count - at : BLOCK_IDS;
        for (uint32_t i = 0; i < n; i++)
            values[i] = view->values[candidate_id(&c[at + i])];
        total += sampler_weights(values, n, view->max, scale, true, weights);
        for (uint32_t i = 0; i < n; i++)
            c[at + i].weight = weights[i];
    }
    return total;
}

static uint64_t weigh_all(const struct view *view, float scale)
{
    struct run run = {0};
    uint64_t total = 0;
    while (run_next(view, view->vocab_size, &run))
        total += sampler_weights(view->values + run.start, run.end - run.start, view->max, scale, true, NULL);
    return total;
}

__extension__ typedef unsigned __int128 uint128;

/* value = the result * 2^*exponent; below 2^24. */
static uint32_t split_float(float value, int *exponent)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t field = bits >> 23 & 0xFF, fraction = bits & 0x7FFFFF;
    *exponent = (field == 0 ? 1 : (int)field) - 150;
    return field == 0 ? fraction : fraction | 0x800000;
}

/* ceil(share * total), share below 1. total is at least 2^32 and below 2^53. */
static uint64_t share_of(float share, uint64_t total)
{
    int exponent;
    const uint128 product = (uint128)split_float(share, &exponent) * total; /* below 2^77 */
    if (exponent < -100)
        return 1;
    return (uint64_t)((product + (((uint128)1 << -exponent) - 1)) >> -exponent);
}

/* The first ids whose weights reach top_p of all. Most often few ids carry it: floors are tried that reach further each time. */
static uint32_t gather_share(const struct view *view, float top_p, float scale, struct candidate *c)
{
    static const float reach[] = {-4, -10, -36}; /* log2 of a weight over the highest one's; below -33 weights are 0 */
    const uint64_t target = share_of(top_p, weigh_all(view, scale));
    uint32_t count = 0;
    for (unsigned i = 0; i < 4; i++) {
        count = gather(view, i < 3 ? view->max + reach[i] / scale : -INFINITY, c);
        if (weigh(view, scale, c, count) >= target)
            break;
    }
    return select_front(c, count, target);
}

/* Those whose weight min_p lets stay, and some more: a weight below half of min_p's power of two, or 0, is out. */
static uint32_t gather_likely(const struct view *view, float min_p, float scale, struct candidate *c)
{
    int exponent;
    (void)split_float(min_p, &exponent); /* min_p >= 2^(exponent + 23), but for denormals */
    const float reach = exponent + 21 > -36 ? (float)(exponent + 21) : -36;
    const uint32_t count = gather(view, view->max + reach / scale, c);
    (void)weigh(view, scale, c, count);
    return count;
}

/* Step 5. Weights are set where top-p or min-p needs them. */
static uint32_t choose_candidates(const struct sampler_options *o, const struct view *view, struct candidate *c)
{
    const bool top_p = o->top_p > 0 && o->top_p < 1;
    const float scale = sampler_weight_scale(o->temperature);
    uint32_t count, kept = 0;
    if (o->top_k > 0) {
        count = gather_first(view, o->top_k, c);
        if (top_p || o->min_p > 0) {
            const uint64_t total = weigh(view, scale, c, count);
            count = top_p ? select_front(c, count, share_of(o->top_p, total)) : count;
        }
    } else {
        count = top_p ? gather_share(view, o->top_p, scale, c) : gather_likely(view, o->min_p, scale, c);
    }
    if (!(o->min_p > 0))
        return count;
    for (uint32_t i = 0; i < count; i++)
        if ((double)c[i].weight >= (double)o->min_p * 0x1p+32)
            c[kept++] = c[i];
    return kept;
}

/* ---- the draw ---- */

struct draw {
    uint64_t state;
    float max, temperature;
    uint32_t best;
    float best_score;
};

static void draw_offer(struct draw *draw, float value, uint32_t id)
{
    const float scaled = (value - draw->max) / draw->temperature;
    if (scaled + NOISE_MAX <= draw->best_score)
        return; /* no noise can lift it */
    const uint32_t bits = noise_bits(draw->state, id);
    if (scaled + noise_bound(bits) <= draw->best_score)
        return; /* its own cannot: most ids end here, and logarithms are what costs */
    const float score = scaled + noise(bits);
    if (score > draw->best_score || (score == draw->best_score && id < draw->best)) {
        draw->best = id;
        draw->best_score = score;
    }
}

/* The most likely id comes first, so that its score rules most others out, often a block at a time: rounding is monotonic. */
static struct draw draw_begin(const struct view *view, const struct sampler_options *options,
                              const struct sampler_history *history)
{
    struct draw draw = {.state = position_state(options->seed, history->choice, history->count),
                        .max = view->max,
                        .temperature = options->temperature,
                        .best = view->best};
    draw.best_score = noise(noise_bits(draw.state, view->best));
    return draw;
}

static uint32_t draw_all(const struct view *view, struct draw *draw)
{
    struct run run = {0};
    for (uint32_t b = 0; b < block_count(view->vocab_size); b++) {
        if ((view->block_max[b] - draw->max) / draw->temperature + NOISE_MAX <= draw->best_score)
            continue;
        run.end = b * BLOCK_IDS;
        while (run_next(view, block_end(view, b), &run))
            for (uint32_t i = run.start; i < run.end; i++)
                draw_offer(draw, view->values[i], i);
    }
    return draw->best;
}

/* ---- steps 1 to 3 ---- */

static float clamp(float value)
{
    return value > FLT_MAX ? FLT_MAX : value < -FLT_MAX ? -FLT_MAX : value;
}

static bool has_penalties(const struct sampler_options *o)
{
    return (o->repetition_penalty > 0 && o->repetition_penalty != 1) || o->presence_penalty != 0 ||
           o->frequency_penalty != 0;
}

static void penalise(const struct sampler_options *o, const struct sampler_tally *tally, float *values)
{
    const bool repetition = o->repetition_penalty > 0 && o->repetition_penalty != 1;
    uint32_t count;
    const struct sampler_tally_entry *entries = sampler_tally_entries(tally, &count);
    for (uint32_t i = 0; i < count; i++) {
        float v = values[entries[i].id];
        if (repetition)
            v = v > 0 ? v / o->repetition_penalty : v * o->repetition_penalty;
        if (entries[i].reply_count > 0)
            v = (v - o->presence_penalty) - o->frequency_penalty * (float)entries[i].reply_count;
        values[entries[i].id] = v;
    }
}

/* Brings back what was not finite before (an error wherever it may be drawn), and within floats what became infinite. */
static float settle(float raw, float value)
{
    return isfinite(raw) ? clamp(value) : raw;
}

static enum status adjust(struct sampler *sampler, const struct sampler_options *o, const struct sampler_history *history,
                          const float *logits)
{
    struct sampler_tally *tally = history->tally != NULL ? history->tally : sampler->tally;
    float *values = sampler->adjusted;
    uint32_t count = 0;
    const struct sampler_tally_entry *entries = NULL;
    if (has_penalties(o)) {
        if (history->tally == NULL)
            sampler_tally_clear(tally);
        TRY(sampler_tally_update(tally, history));
        entries = sampler_tally_entries(tally, &count);
    }
    memcpy(values, logits, sampler->vocab_size * sizeof *values);
    for (uint32_t i = 0; i < o->bias_count; i++)
        values[o->bias_ids[i]] += o->bias_values[i];
    if (has_penalties(o))
        penalise(o, tally, values);
    for (uint32_t i = 0; i < o->bias_count; i++)
        values[o->bias_ids[i]] = settle(logits[o->bias_ids[i]], values[o->bias_ids[i]]);
    for (uint32_t i = 0; i < count; i++)
        values[entries[i].id] = settle(logits[entries[i].id], values[entries[i].id]);
    return STATUS_OK;
}

/* The mask and the end ids together, ascending, each once. */
static uint32_t leave_out_ends(const struct sampler_options *o, uint32_t *out)
{
    uint32_t ends[SAMPLER_END_IDS_MAX], count = 0, m = 0;
    for (uint32_t i = 0; i < o->end_count; i++) { /* insertion sort: at most 72 */
        uint32_t at = i;
        for (; at > 0 && ends[at - 1] > o->end_ids[i]; at--)
            ends[at] = ends[at - 1];
        ends[at] = o->end_ids[i];
    }
    for (uint32_t e = 0; e < o->end_count || m < o->masked_count;) {
        const bool from_mask = e == o->end_count || (m < o->masked_count && o->masked[m] <= ends[e]);
        const uint32_t id = from_mask ? o->masked[m++] : ends[e++];
        if (count == 0 || out[count - 1] != id)
            out[count++] = id;
    }
    return count;
}

enum status sampler_pick(struct sampler *sampler, const struct sampler_options *options,
                         const struct sampler_history *history, const float *logits, uint32_t *id)
{
    struct view view = {.values = logits,
                        .vocab_size = sampler->vocab_size,
                        .left_out = options->masked,
                        .left_out_count = options->masked_count};
    assert(history->prompt_count <= history->count && options->end_count <= SAMPLER_END_IDS_MAX);
    if (options->end_count > 0 && history->count - history->prompt_count < options->tokens_min) {
        view.left_out_count = leave_out_ends(options, sampler->left_out);
        view.left_out = sampler->left_out;
    }
    if (options->bias_count > 0 || has_penalties(options)) {
        TRY(adjust(sampler, options, history, logits));
        view.values = sampler->adjusted;
    }
    if (!view_scan(&view, sampler->block_max))
        return refuse_not_finite(&view, history->count);
    if (view.best == UINT32_MAX)
        return STATUS_FAIL(STATUS_INVALID, "no token may be drawn: every id is masked");
    *id = view.best;
    if (!(options->temperature > 0))
        return STATUS_OK;
    struct draw draw = draw_begin(&view, options, history);
    if (options->top_k == 0 && !(options->top_p > 0 && options->top_p < 1) && !(options->min_p > 0)) {
        *id = draw_all(&view, &draw);
        return STATUS_OK;
    }
    const uint32_t count = choose_candidates(options, &view, sampler->candidates);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t candidate = candidate_id(&sampler->candidates[i]);
        draw_offer(&draw, view.values[candidate], candidate);
    }
    *id = draw.best;
    return STATUS_OK;
}

/* ---- log probabilities ---- */

static int compare_candidates(const void *a, const void *b)
{
    const uint64_t x = ((const struct candidate *)a)->key, y = ((const struct candidate *)b)->key;
    return x < y ? 1 : x > y ? -1 : 0;
}

void sampler_logprobs(struct sampler *sampler, const float *logits, uint32_t id, uint32_t alternatives,
                      struct sampler_logprobs *out)
{
    struct view view = {.values = logits, .vocab_size = sampler->vocab_size};
    assert(id < sampler->vocab_size && alternatives <= SAMPLER_LOGPROBS_MAX);
    out->chosen = -INFINITY;
    out->count = 0;
    if (!view_scan(&view, sampler->block_max)) { /* only behind a mask: leave those out */
        view.left_out = sampler->left_out;
        for (uint32_t i = 0; i < sampler->vocab_size; i++)
            if (!isfinite(logits[i]))
                sampler->left_out[view.left_out_count++] = i;
        (void)view_scan(&view, sampler->block_max);
    }
    if (view.best == UINT32_MAX)
        return;
    const uint64_t total = weigh_all(&view, sampler_weight_scale(1.0f));
    const float log_sum = pinned_log((float)total * 0x1p-32f);
    if (isfinite(logits[id]))
        out->chosen = (logits[id] - view.max) - log_sum;
    if (alternatives == 0)
        return;
    out->count = gather_first(&view, alternatives, sampler->candidates);
    qsort(sampler->candidates, out->count, sizeof *sampler->candidates, compare_candidates);
    for (uint32_t i = 0; i < out->count; i++) {
        out->ids[i] = candidate_id(&sampler->candidates[i]);
        out->values[i] = (logits[out->ids[i]] - view.max) - log_sum;
    }
}

/* ---- options and memory ---- */

static enum status check_range(const char *name, float value, float low, float high)
{
    if (!(value >= low && value <= high))
        return STATUS_FAIL(STATUS_INVALID, "%s is %g; it may be from %g to %g", name, (double)value, (double)low, (double)high);
    return STATUS_OK;
}

static enum status check_ids(const char *name, const uint32_t *ids, uint32_t count, uint32_t count_max, uint32_t vocab_size)
{
    if (count > count_max)
        return STATUS_FAIL(STATUS_INVALID, "%s has %u ids, at most %u are possible", name, count, count_max);
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] >= vocab_size)
            return STATUS_FAIL(STATUS_INVALID, "%s has the id %u, the vocabulary ends at %u", name, ids[i], vocab_size - 1);
    return STATUS_OK;
}

static int compare_ids(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static enum status check_bias(const struct sampler_options *o, uint32_t vocab_size)
{
    uint32_t sorted[SAMPLER_BIAS_MAX];
    TRY(check_ids("bias", o->bias_ids, o->bias_count, SAMPLER_BIAS_MAX, vocab_size));
    for (uint32_t i = 0; i < o->bias_count; i++) {
        TRY(check_range("a bias", o->bias_values[i], -1000, 1000));
        sorted[i] = o->bias_ids[i];
    }
    qsort(sorted, o->bias_count, sizeof *sorted, compare_ids);
    for (uint32_t i = 1; i < o->bias_count; i++)
        if (sorted[i] == sorted[i - 1])
            return STATUS_FAIL(STATUS_INVALID, "bias gives the id %u twice", sorted[i]);
    return STATUS_OK;
}

enum status sampler_check(const struct sampler_options *o, uint32_t vocab_size)
{
    TRY(check_range("temperature", o->temperature, 0, SAMPLER_TEMPERATURE_MAX));
    TRY(check_range("top_p", o->top_p, 0, 1));
    TRY(check_range("min_p", o->min_p, 0, 1));
    TRY(check_range("repetition_penalty", o->repetition_penalty, 0, 10));
    TRY(check_range("presence_penalty", o->presence_penalty, -10, 10));
    TRY(check_range("frequency_penalty", o->frequency_penalty, -10, 10));
    TRY(check_ids("masked", o->masked, o->masked_count, vocab_size, vocab_size));
    for (uint32_t i = 1; i < o->masked_count; i++)
        if (o->masked[i] <= o->masked[i - 1])
            return STATUS_FAIL(STATUS_INVALID, "masked ids are not ascending at %u", o->masked[i]);
    TRY(check_ids("end_ids", o->end_ids, o->end_count, SAMPLER_END_IDS_MAX, vocab_size));
    return check_bias(o, vocab_size);
}

enum status sampler_create(uint32_t vocab_size, struct sampler **out)
{
    struct sampler *sampler = calloc(1, sizeof *sampler);
    if (sampler != NULL && sampler_tally_create(&sampler->tally) == STATUS_OK) {
        sampler->vocab_size = vocab_size;
        sampler->adjusted = malloc(vocab_size * sizeof *sampler->adjusted);
        sampler->left_out = malloc(vocab_size * sizeof *sampler->left_out);
        sampler->block_max = malloc(block_count(vocab_size) * sizeof *sampler->block_max);
        sampler->candidates = malloc(vocab_size * sizeof *sampler->candidates);
        if (sampler->adjusted != NULL && sampler->left_out != NULL && sampler->block_max != NULL &&
            sampler->candidates != NULL) {
            *out = sampler;
            return STATUS_OK;
        }
    }
    sampler_destroy(&sampler);
    return STATUS_FAIL(STATUS_NO_MEMORY, "no memory to sample from %u ids", vocab_size);
}

void sampler_destroy(struct sampler **sampler)
{
    if (*sampler == NULL)
        return;
    sampler_tally_destroy(&(*sampler)->tally);
    free((*sampler)->adjusted);
    free((*sampler)->left_out);
    free((*sampler)->block_max);
    free((*sampler)->candidates);
    free(*sampler);
    *sampler = NULL;
}

uint64_t sampler_default_seed(const char *tenant, size_t tenant_size, const uint8_t request_id[16], uint32_t choice)
{
    struct {
        char domain[12];
        uint8_t tenant[HASH_DIGEST_BYTES];
        uint8_t request_id[16];
        uint8_t choice[4];
    } input;
    uint8_t digest[HASH_DIGEST_BYTES];
    uint64_t seed = 0;
    static_assert(sizeof input == 12 + HASH_DIGEST_BYTES + 16 + 4, "no padding is hashed");
    memcpy(input.domain, "roost seed 1", sizeof input.domain);
    hash_digest(tenant, tenant_size, NULL, 0, input.tenant);
    memcpy(input.request_id, request_id, sizeof input.request_id);
    for (unsigned i = 0; i < 4; i++)
        input.choice[i] = (uint8_t)(choice >> (8 * i));
    hash_digest(&input, sizeof input, NULL, 0, digest);
    for (unsigned i = 0; i < 8; i++)
        seed |= (uint64_t)digest[i] << (8 * i);
    return seed;
}
