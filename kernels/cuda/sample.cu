/* The next token of each row: docs/numerics.md, section 9, steps 4 to 6. Same ids as worker/engine/text/sampler.c.
 *
 * One block a row, some walks over its logits, no sort. An id has a key, and keys in descending order are section 9's order: by value, equal
 * ones by id. What top-k and top-p leave is a beginning of that order, so it is one bound, the lowest key that stays. The bound is searched two
 * bits at a time: how many keys, or how much weight, lie from each of three trial bounds on? Sums are exact integers, so the order in which
 * threads add is free.
 *
 *   scan (highest key, finite?) -> [ floors -> gather -> ] bounds -> draw
 *
 * Rounds of trials are many (32 bits of value and those of an id), and most often few ids matter: so the ids above a floor are first gathered
 * into shared memory, then into registers. Floors are tried together in one walk, and the highest that holds all that can stay is taken. If
 * those are too many, trials walk the whole row: slow, and right. */
#include "kernels/cuda/row.h"
#include <assert.h>

#define THREADS 1024u
#define WARPS 32u                            /* as many as lanes: a warp reads one number of each */
#define AHEAD 4u                             /* loads of a thread under way: 64 KiB of the row a block */
#define OWN 4u                               /* gathered ids of one thread */
#define GATHER_MAX (THREADS * OWN)
#define FLOORS 5u
#define NOISE_MAX 17.0f                      /* above every value of noise: -log(-log(1 - 2^-24)) is 16.64 */
#define FLOAT_MAX 0x1.fffffep+127f
#define GAMMA 0x9E3779B97F4A7C15u

/* Shared memory: up to FLOORS numbers a warp, the count of what is gathered, the gathered keys. */
#define SHARED_COUNT (FLOORS * WARPS * 8u)
#define SHARED_KEYS (SHARED_COUNT + 16u)
#define SHARED_SIZE (SHARED_KEYS + GATHER_MAX * 8u)

__extension__ typedef unsigned __int128 uint128;

/* ---- numbers of the whole block, in every thread ---- */

/* Sums of a warp stay below 2^58: of counts of ids, and of weights, whose sum over any row is below 2^53. */
DEVICE uint64_t warp_sum_64(uint64_t v)
{
    const uint32_t low = warp_sum(static_cast<uint32_t>(v) & 0x7ffffffu), high = warp_sum(static_cast<uint32_t>(v >> 27));
    return (static_cast<uint64_t>(high) << 27) + low;
}

DEVICE uint64_t warp_max_64(uint64_t v)
{
    const uint32_t own = static_cast<uint32_t>(v >> 32), high = warp_max(own);
    return static_cast<uint64_t>(high) << 32 | warp_max(own == high ? static_cast<uint32_t>(v) : 0u);
}

/* Both begin with a barrier, as the slots may still be read. */
template <uint32_t N> DEVICE void block_sums(uint64_t (&v)[N])
{
    uint64_t *slots = shared<uint64_t>(0);
    uint64_t of_warp[N];
    for (uint32_t n = 0; n < N; n++)
        of_warp[n] = warp_sum_64(v[n]);
    sync_block();
    if (lane_index() == 0)
        for (uint32_t n = 0; n < N; n++)
            slots[n * WARPS + warp_index()] = of_warp[n];
    sync_block();
    for (uint32_t n = 0; n < N; n++)
        v[n] = warp_sum_64(slots[n * WARPS + lane_index()]);
}

DEVICE uint64_t block_max(uint64_t v)
{
    uint64_t *slots = shared<uint64_t>(0);
    const uint64_t of_warp = warp_max_64(v);
    sync_block();
    if (lane_index() == 0)
        slots[warp_index()] = of_warp;
    sync_block();
    return warp_max_64(slots[lane_index()]);
}

/* ---- keys, weights, noise ---- */

/* Bits that compare like the floats; -0 and +0 are equal. */
DEVICE uint32_t order_of(float v)
{
    const uint32_t bits = float_bits(v + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

DEVICE float value_of(uint32_t order)
{
    return float_from_bits(order >> 31 ? order & 0x7fffffffu : ~order);
}

struct row_keys {                            /* key = order of the value, then of the id, in as many bits as ids need */
    uint32_t id_bits, vocab;
};

DEVICE uint64_t key_of(const row_keys &keys, float v, uint32_t id)
{
    return static_cast<uint64_t>(order_of(v)) << keys.id_bits | (keys.vocab - 1 - id);
}

DEVICE float key_value(const row_keys &keys, uint64_t key) { return value_of(static_cast<uint32_t>(key >> keys.id_bits)); }
DEVICE uint32_t key_id(const row_keys &keys, uint64_t key)
{
    return keys.vocab - 1 - static_cast<uint32_t>(key & ((1u << keys.id_bits) - 1));
}

struct weigher {
    float max, scale;
};

/* rint(2^32 * exp2((v - max) * scale)): the product by 2^32 is exact in double; adding 2^52 rounds, half to even. */
DEVICE uint64_t weight_of(const weigher &w, float v)
{
    const double weight = static_cast<double>(inline_exp2((v - w.max) * w.scale)) * 0x1p+32;
    return static_cast<uint64_t>((weight + 0x1p+52) - 0x1p+52);
}

/* ceil(share * total), exact; share in (0, 1], total within [2^32, 2^53]. At least 1. */
DEVICE uint64_t share_of(float share, uint64_t total)
{
    const uint32_t bits = float_bits(share), field = bits >> 23;
    const uint32_t fraction = field == 0 ? bits : (bits & 0x7fffffu) | 0x800000u;
    const uint32_t shift = 150u - (field == 0 ? 1u : field);       /* share = fraction / 2^shift, shift 23 .. 149 */
    const uint128 product = static_cast<uint128>(fraction) * total;    /* below 2^77 */
    return shift > 100 ? 1u : static_cast<uint64_t>((product + ((static_cast<uint128>(1) << shift) - 1)) >> shift);
}

DEVICE uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

DEVICE float noise(uint64_t state, uint32_t id)
{
    const uint32_t bits = static_cast<uint32_t>(mix(state + (static_cast<uint64_t>(id) + 1) * GAMMA) >> 41);
    return -inline_log(-inline_log(static_cast<float>(2 * bits + 1) * 0x1p-24f));
}

/* ---- walks: every key of the row, or of what was gathered, is some thread's once ---- */

struct whole_row {
    row_plain logits;
    row_keys keys;
    const uint32_t *masked;                  /* bits; may be NULL */
};

/* Of ids [id, id + 4), id a multiple of 4: a bit for each that is left out. */
DEVICE uint32_t masked_four(const whole_row &row, uint32_t id)
{
    return row.masked == nullptr ? 0u : row.masked[id / 32] >> id % 32 & 15u;
}

template <typename F> DEVICE void each_key(const whole_row &row, F visit)
{
    const uint32_t columns = row.logits.columns;
    for (uint32_t i = 4 * thread_index(); i < columns; i += 4 * AHEAD * THREADS) {
        row_quad quad[AHEAD];
        for (uint32_t n = 0; n < AHEAD; n++)
            quad[n] = i + 4 * n * THREADS < columns ? row_four(row.logits, i + 4 * n * THREADS) : row_quad{};
        for (uint32_t n = 0; n < AHEAD; n++) {
            const uint32_t first = i + 4 * n * THREADS, masked = first < columns ? masked_four(row, first) : 15u;
            for (uint32_t k = 0; k < 4; k++) {
                const uint32_t id = first + k;
                if (id < columns && !(masked >> k & 1u))
                    visit(key_of(row.keys, quad[n].v[k], id), quad[n].v[k]);
            }
        }
    }
}

struct gathered {                            /* in registers; 0 is no key: the least float's is above it */
    uint64_t key[OWN];
    row_keys keys;
};

template <typename F> DEVICE void each_key(const gathered &some, F visit)
{
    for (uint32_t k = 0; k < OWN; k++)
        if (some.key[k] != 0)
            visit(some.key[k], key_value(some.keys, some.key[k]));
}

template <typename W> DEVICE uint64_t weight_from(const W &walk, const weigher &w, uint64_t bound)
{
    uint64_t sum[1] = {};
    each_key(walk, [&](uint64_t key, float v) {
        if (key >= bound)
            sum[0] += weight_of(w, v);
    });
    block_sums(sum);
    return sum[0];
}

/* The highest bound from which on the keys' amounts reach the target: a key, or 0 where all together do not (top-k of more than there are). */
template <typename W, typename F> DEVICE uint64_t search_bound(const W &walk, uint64_t target, F amount)
{
    uint64_t bound = 0;
    for (uint32_t bits = (32 + walk.keys.id_bits + 1) / 2 * 2; bits > 0; bits -= 2) {
        const uint64_t step = static_cast<uint64_t>(1) << (bits - 2);
        uint64_t sum[3] = {};
        each_key(walk, [&](uint64_t key, float v) {
            if (key < bound + step)
                return;
            const uint64_t own = amount(v);
            sum[0] += own;
            sum[1] += key >= bound + 2 * step ? own : 0;
            sum[2] += key >= bound + 3 * step ? own : 0;
        });
        block_sums(sum);
        bound += step * ((sum[0] >= target) + (sum[1] >= target) + (sum[2] >= target));
    }
    return bound;
}

struct limits {                              /* what steps 5's top-k and top-p are to leave; 0, 1: off */
    uint32_t top_k;
    float top_p;
};

template <typename W> DEVICE uint64_t find_bound(const W &walk, const limits &l, const weigher &w, uint64_t total)
{
    uint64_t bound = 0;
    if (l.top_k > 0) {
        bound = search_bound(walk, l.top_k, [](float) { return static_cast<uint64_t>(1); });
        total = l.top_p < 1.0f ? weight_from(walk, w, bound) : 0;
    }
    if (l.top_p < 1.0f)                              /* top-k's bound reaches the target, so the new one is not below it */
        bound = search_bound(walk, share_of(l.top_p, total), [&](float v) { return weight_of(w, v); });
    return bound;
}

/* ---- floors ---- */

/* log2 of a weight over the highest one's. */
DEVICE float floor_of(const weigher &w, uint32_t n)
{
    const float reach[FLOORS] = {-3.0f, -7.0f, -12.0f, -18.0f, -24.0f};
    return w.max + reach[n] / w.scale;
}

/* The highest floor that keeps all that can stay, if that is little enough to gather. Without top-k total becomes the weight of the whole row. */
DEVICE bool choose_floor(const whole_row &row, const limits &l, const weigher &w, uint64_t *total, float *floor)
{
    const bool by_weight = l.top_k == 0;
    float at[FLOORS];
    uint64_t ids[FLOORS] = {}, amount[FLOORS] = {}, all[1] = {};
    uint32_t count[FLOORS] = {};
    for (uint32_t n = 0; n < FLOORS; n++)
        at[n] = floor_of(w, n);
    each_key(row, [&](uint64_t, float v) {
        const uint64_t own = by_weight ? weight_of(w, v) : 1;
        all[0] += own;
        for (uint32_t n = 0; n < FLOORS; n++)
            if (v >= at[n]) {
                amount[n] += own;
                count[n]++;
            }
    });
    for (uint32_t n = 0; n < FLOORS; n++)
        ids[n] = count[n];
    block_sums(ids);
    block_sums(amount);
    block_sums(all);
    *total = all[0];
    const uint64_t target = by_weight ? share_of(l.top_p, *total) : l.top_k;
    bool found = false;
    for (uint32_t n = FLOORS; n-- > 0;)
        if (amount[n] >= target && ids[n] <= GATHER_MAX) {
            found = true;
            *floor = at[n];
        }
    return found;
}

DEVICE gathered gather(const whole_row &row, float floor)
{
    uint32_t *count = shared<uint32_t>(SHARED_COUNT);
    uint64_t *list = shared<uint64_t>(SHARED_KEYS);
    if (thread_index() == 0)
        *count = 0;
    sync_block();
    each_key(row, [&](uint64_t key, float v) {
        if (v >= floor)
            list[atomic_add(count, 1u)] = key;
    });
    sync_block();
    gathered some = {{}, row.keys};
    for (uint32_t k = 0; k < OWN; k++) {
        const uint32_t at = k * THREADS + thread_index();
        some.key[k] = at < *count ? list[at] : 0;
    }
    return some;
}

/* ---- the draw ---- */

/* Among those from the bound on: the highest score; of equal ones the lowest id. */
template <typename W> DEVICE uint32_t draw(const W &walk, const cuda_sample_options &o, const weigher &w, uint32_t most_likely, uint64_t bound)
{
    const uint64_t state = mix(mix(o.seed + GAMMA) ^ (static_cast<uint64_t>(o.choice) << 32 | o.position));
    const uint64_t weight_min = o.min_p > 0.0f ? share_of(o.min_p, static_cast<uint64_t>(1) << 32) : 0;
    const float temperature = o.temperature, sure = noise(state, most_likely);      /* its score: others have to reach it */
    uint64_t best = 0;
    each_key(walk, [&](uint64_t key, float v) {
        const float scaled = (v - w.max) / temperature;
        if (key < bound || scaled + NOISE_MAX < sure || (weight_min > 0 && weight_of(w, v) < weight_min))
            return;
        const uint32_t id = key_id(walk.keys, key);
        const uint64_t offer = key_of(walk.keys, scaled + noise(state, id), id);
        best = offer > best ? offer : best;
    });
    return key_id(walk.keys, block_max(best));
}

/* Steps 5 and 6. */
DEVICE uint32_t sample(const whole_row &row, const cuda_sample_options &o, float max, uint32_t most_likely)
{
    const float scale = KERNEL_LOG2_E / o.temperature;
    const weigher w = {max, scale <= FLOAT_MAX ? scale : FLOAT_MAX};
    const limits l = {o.top_k < row.keys.vocab ? o.top_k : 0, o.top_p > 0.0f ? o.top_p : 1.0f};
    if (l.top_k == 0 && !(l.top_p < 1.0f))
        return draw(row, o, w, most_likely, 0);
    uint64_t total;
    float floor = 0.0f;
    if (!choose_floor(row, l, w, &total, &floor))
        return draw(row, o, w, most_likely, find_bound(row, l, w, total));
    const gathered some = gather(row, floor);
    return draw(some, o, w, most_likely, find_bound(some, l, w, total));
}

ENTRY(THREADS) sample_rows(cuda_sample job, uint32_t id_bits)
{
    const uint32_t number = block_index();
    const whole_row row = {row_plain_at(job.logits + size_t(number) * job.vocab, job.vocab), {id_bits, job.vocab}, job.masked};
    const cuda_sample_options &o = job.options[number];
    uint64_t top = 0;
    bool bad = false;
    each_key(row, [&](uint64_t key, float v) {
        top = key > top ? key : top;
        bad = bad || (float_bits(v) & 0x7fffffffu) >= ROW_NOT_FINITE;
    });
    top = block_max(top);
    uint32_t token = key_id(row.keys, top);
    if (sync_block_any(bad)) {
        token = 0;
        if (thread_index() == 0)
            atomic_min(job.bad_row, number);
    } else if (o.temperature > 0.0f) {
        token = sample(row, o, key_value(row.keys, top), token);
    }
    if (thread_index() == 0)
        job.token[number] = token;
}

bool cuda_sample_rows(const struct cuda_sample *job, cuda_stream stream)
{
    assert(job->vocab > 0 && job->vocab <= 1u << 20);      /* sums of weights stay below 2^53 */
    uint32_t id_bits = 1;
    while (job->vocab > 1u << id_bits)
        id_bits++;
    return job->rows == 0 || LAUNCH(sample_rows, job->rows, THREADS, SHARED_SIZE, stream, *job, id_bits);
}
