/* device_emulated.h - device.h's names on the CPU; included by it only. Sources that include it are compiled with the compiler's hooks on memory
 * accesses (RoostCuda.cmake), which shadow.cc answers: so plain loads and stores of kernels are checked too. */
#ifndef ROOST_TESTS_CUDA_EMULATION_DEVICE_EMULATED_H
#define ROOST_TESTS_CUDA_EMULATION_DEVICE_EMULATED_H

/* The most threads of a block go into the function's code, one no-operation for each warp at its beginning, where emulation_launch counts them: an
 * attribute may stand where ENTRY does and may depend on a template's parameters, and a GPU's own bound lies in its code too. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define ENTRY(threads) __attribute__((patchable_function_entry((threads) / WARP_THREADS, 0))) static void
#else
#define ENTRY(threads) static void
#endif
#define ENTRY_BLOCKS(threads, blocks) ENTRY(threads)
#define DEVICE static inline
#define UNROLL
#define UNROLL_BY(n)

/* Where a kernel's source is: the default arguments make it the caller's line. */
struct emulation_place {
    const char *file;
    int line;
};
#define EMULATION_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMULATION_PLACE emulation_place{file, line}

enum emulation_index_name {
    EMULATION_THREAD, EMULATION_BLOCK_X, EMULATION_BLOCK_Y, EMULATION_BLOCK_Z, EMULATION_BLOCK_THREADS, EMULATION_GRID_X, EMULATION_GRID_Y,
    EMULATION_GRID_Z, EMULATION_INDEX_COUNT
};
/* Const: it does not change while one thread runs one kernel. */
uint32_t emulation_index(emulation_index_name which) __attribute__((const));

enum emulation_lane_op {
    EMULATION_SYNC_WARP, EMULATION_SHUFFLE_XOR, EMULATION_SHUFFLE_DOWN, EMULATION_SHUFFLE_FROM, EMULATION_BALLOT,
    EMULATION_SUM_U32, EMULATION_SUM_S32, EMULATION_MIN_U32, EMULATION_MIN_S32, EMULATION_MAX_U32, EMULATION_MAX_S32,
    EMULATION_LDMATRIX_X4, EMULATION_LDMATRIX_X2, EMULATION_LDMATRIX_X4_TRANS, EMULATION_LDMATRIX_X2_TRANS, EMULATION_MMA_S8, EMULATION_MMA_U8S8
};
enum emulation_atomic_op {
    EMULATION_ADD, EMULATION_MIN, EMULATION_MAX, EMULATION_EXCHANGE, EMULATION_COMPARE_SWAP
};

uint32_t emulation_lanes(emulation_lane_op op, uint32_t value, uint32_t other, emulation_place place);
void emulation_matrix(emulation_lane_op op, uint32_t *d, const uint32_t *a, const uint32_t *b, emulation_place place);
bool emulation_sync_block(bool value, emulation_place place);
uint64_t emulation_atomic(emulation_atomic_op op, void *p, unsigned size, bool is_signed, uint64_t v, uint64_t expected, emulation_place place);
u32x4 emulation_load_16(const void *p, bool must_be_shared, emulation_place place);
void emulation_store_16(void *p, u32x4 v, bool must_be_shared, emulation_place place);
void emulation_copy(void *to, const void *from, unsigned size, bool valid, emulation_place place);
void emulation_copy_commit();
void emulation_copy_wait(unsigned newest, emulation_place place);
void *emulation_shared_view(size_t offset, size_t alignment, emulation_place place);
void emulation_fence();
bool emulation_launch(const char *name, const void *kernel, grid_size grid, uint32_t block, size_t shared_size, cudaStream_t stream, void (*call)(const void *),
                      const void *closure, size_t closure_size);

DEVICE uint32_t thread_index() { return emulation_index(EMULATION_THREAD); }
DEVICE uint32_t block_index() { return emulation_index(EMULATION_BLOCK_X); }
DEVICE uint32_t block_index_y() { return emulation_index(EMULATION_BLOCK_Y); }
DEVICE uint32_t block_index_z() { return emulation_index(EMULATION_BLOCK_Z); }
DEVICE uint32_t block_threads() { return emulation_index(EMULATION_BLOCK_THREADS); }
DEVICE uint32_t grid_blocks() { return emulation_index(EMULATION_GRID_X); }
DEVICE uint32_t grid_blocks_y() { return emulation_index(EMULATION_GRID_Y); }
DEVICE uint32_t grid_blocks_z() { return emulation_index(EMULATION_GRID_Z); }
DEVICE uint32_t lane_index() { return thread_index() % WARP_THREADS; }
DEVICE uint32_t warp_index() { return thread_index() / WARP_THREADS; }

DEVICE unsigned char *shared_bytes(EMULATION_HERE) { return static_cast<unsigned char *>(emulation_shared_view(0, 1, EMULATION_PLACE)); }
template <typename T> DEVICE T *shared(uint32_t offset, EMULATION_HERE)
{
    return static_cast<T *>(emulation_shared_view(offset, alignof(T), EMULATION_PLACE));
}

DEVICE void sync_block(EMULATION_HERE) { emulation_sync_block(false, EMULATION_PLACE); }
DEVICE bool sync_block_any(bool v, EMULATION_HERE) { return emulation_sync_block(v, EMULATION_PLACE); }
DEVICE void sync_warp(EMULATION_HERE) { emulation_lanes(EMULATION_SYNC_WARP, 0, 0, EMULATION_PLACE); }
DEVICE void fence_device() { emulation_fence(); }

DEVICE uint32_t emulation_word(uint32_t v) { return v; }
DEVICE uint32_t emulation_word(int32_t v) { return static_cast<uint32_t>(v); }
DEVICE uint32_t emulation_word(float v) { return float_bits(v); }
template <typename T> struct emulation_from;
template <> struct emulation_from<uint32_t> { static uint32_t word(uint32_t w) { return w; } };
template <> struct emulation_from<int32_t> { static int32_t word(uint32_t w) { return static_cast<int32_t>(w); } };
template <> struct emulation_from<float> { static float word(uint32_t w) { return float_from_bits(w); } };
template <typename T> struct emulation_signed { static const int value = 0; };
template <> struct emulation_signed<int32_t> { static const int value = 1; };

#define EMULATION_LANES(name, op, parameter, other)                                                                         \
    template <typename T> DEVICE T name(T v, parameter EMULATION_HERE)                                                      \
    {                                                                                                                       \
        return emulation_from<T>::word(emulation_lanes(static_cast<emulation_lane_op>(op), emulation_word(v), other, EMULATION_PLACE)); \
    }
#define EMULATION_COMMA ,
EMULATION_LANES(shuffle_xor, EMULATION_SHUFFLE_XOR, uint32_t mask EMULATION_COMMA, mask)
EMULATION_LANES(shuffle_down, EMULATION_SHUFFLE_DOWN, uint32_t delta EMULATION_COMMA, delta)
EMULATION_LANES(shuffle_from, EMULATION_SHUFFLE_FROM, uint32_t lane EMULATION_COMMA, lane)
EMULATION_LANES(warp_sum, EMULATION_SUM_U32 + emulation_signed<T>::value, , 0)
EMULATION_LANES(warp_min, EMULATION_MIN_U32 + emulation_signed<T>::value, , 0)
EMULATION_LANES(warp_max, EMULATION_MAX_U32 + emulation_signed<T>::value, , 0)
#undef EMULATION_LANES
#undef EMULATION_COMMA

DEVICE uint32_t vote_ballot(bool v, EMULATION_HERE) { return emulation_lanes(EMULATION_BALLOT, v, 0, EMULATION_PLACE); }
DEVICE bool vote_any(bool v, EMULATION_HERE) { return emulation_lanes(EMULATION_BALLOT, v, 0, EMULATION_PLACE) != 0; }
DEVICE bool vote_all(bool v, EMULATION_HERE) { return emulation_lanes(EMULATION_BALLOT, v, 0, EMULATION_PLACE) == 0xffffffffu; }

#define EMULATION_ATOMIC(name, op, type, is_signed)                                                                         \
    DEVICE type name(type *p, type v, EMULATION_HERE)                                                                       \
    {                                                                                                                       \
        return static_cast<type>(emulation_atomic(op, p, sizeof(type), is_signed, static_cast<uint64_t>(v), 0, EMULATION_PLACE)); \
    }
EMULATION_ATOMIC(atomic_add, EMULATION_ADD, uint32_t, false)
EMULATION_ATOMIC(atomic_add, EMULATION_ADD, int32_t, true)
EMULATION_ATOMIC(atomic_add, EMULATION_ADD, uint64_t, false)
EMULATION_ATOMIC(atomic_min, EMULATION_MIN, uint32_t, false)
EMULATION_ATOMIC(atomic_min, EMULATION_MIN, int32_t, true)
EMULATION_ATOMIC(atomic_min, EMULATION_MIN, uint64_t, false)
EMULATION_ATOMIC(atomic_max, EMULATION_MAX, uint32_t, false)
EMULATION_ATOMIC(atomic_max, EMULATION_MAX, int32_t, true)
EMULATION_ATOMIC(atomic_max, EMULATION_MAX, uint64_t, false)
EMULATION_ATOMIC(atomic_exchange, EMULATION_EXCHANGE, uint32_t, false)
#undef EMULATION_ATOMIC
DEVICE uint32_t atomic_compare_swap(uint32_t *p, uint32_t expected, uint32_t v, EMULATION_HERE)
{
    return static_cast<uint32_t>(emulation_atomic(EMULATION_COMPARE_SWAP, p, 4, false, v, expected, EMULATION_PLACE));
}

DEVICE u32x4 load_16(const void *p, EMULATION_HERE) { return emulation_load_16(p, false, EMULATION_PLACE); }
DEVICE u32x4 load_16_once(const void *p, EMULATION_HERE) { return emulation_load_16(p, false, EMULATION_PLACE); }
DEVICE u32x4 load_16_plain(const void *p, EMULATION_HERE) { return emulation_load_16(p, false, EMULATION_PLACE); }
DEVICE void store_16(void *p, u32x4 v, EMULATION_HERE) { emulation_store_16(p, v, false, EMULATION_PLACE); }
DEVICE u32x4 load_shared_16(const void *p, EMULATION_HERE) { return emulation_load_16(p, true, EMULATION_PLACE); }
DEVICE void store_shared_16(void *p, u32x4 v, EMULATION_HERE) { emulation_store_16(p, v, true, EMULATION_PLACE); }

DEVICE void cp_async_16(void *to, const void *from, bool valid, EMULATION_HERE) { emulation_copy(to, from, 16, valid, EMULATION_PLACE); }
DEVICE void cp_async_4(void *to, const void *from, bool valid, EMULATION_HERE) { emulation_copy(to, from, 4, valid, EMULATION_PLACE); }
DEVICE void cp_async_commit() { emulation_copy_commit(); }
template <int N> DEVICE void cp_async_wait(EMULATION_HERE) { emulation_copy_wait(N, EMULATION_PLACE); }

/* Registers stand in local copies, so that the caller's arrays stay registers and are no memory to the hooks. */
#define EMULATION_LDMATRIX(name, op, words)                                                                                 \
    DEVICE void name(uint32_t r[words], const void *row, EMULATION_HERE)                                                    \
    {                                                                                                                       \
        uint32_t d[words];                                                                                                  \
        emulation_matrix(op, d, static_cast<const uint32_t *>(row), nullptr, EMULATION_PLACE);                              \
        for (int i = 0; i < words; i++)                                                                                     \
            r[i] = d[i];                                                                                                    \
    }
EMULATION_LDMATRIX(ldmatrix_x4, EMULATION_LDMATRIX_X4, 4)
EMULATION_LDMATRIX(ldmatrix_x2, EMULATION_LDMATRIX_X2, 2)
EMULATION_LDMATRIX(ldmatrix_x4_trans, EMULATION_LDMATRIX_X4_TRANS, 4)
EMULATION_LDMATRIX(ldmatrix_x2_trans, EMULATION_LDMATRIX_X2_TRANS, 2)
#undef EMULATION_LDMATRIX

#define EMULATION_MMA(name, op)                                                                                             \
    DEVICE void name(int32_t d[4], const uint32_t a[4], const uint32_t b[2], EMULATION_HERE)                                \
    {                                                                                                                       \
        uint32_t sum[4] = {uint32_t(d[0]), uint32_t(d[1]), uint32_t(d[2]), uint32_t(d[3])};                                 \
        const uint32_t left[4] = {a[0], a[1], a[2], a[3]}, right[2] = {b[0], b[1]};                                         \
        emulation_matrix(op, sum, left, right, EMULATION_PLACE);                                                            \
        for (int i = 0; i < 4; i++)                                                                                         \
            d[i] = static_cast<int32_t>(sum[i]);                                                                            \
    }
EMULATION_MMA(mma_s8, EMULATION_MMA_S8)
EMULATION_MMA(mma_u8s8, EMULATION_MMA_U8S8)
#undef EMULATION_MMA

DEVICE int32_t dot_s8(int32_t c, uint32_t a, uint32_t b)
{
    for (int i = 0; i < 32; i += 8)
        c += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
    return c;
}
DEVICE int32_t dot_u8s8(int32_t c, uint32_t a, uint32_t b)
{
    for (int i = 0; i < 32; i += 8)
        c += static_cast<uint8_t>(a >> i) * static_cast<int8_t>(b >> i);
    return c;
}
DEVICE uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector)
{
    uint64_t bytes = uint64_t(b) << 32 | a;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t s = selector >> (4 * i), byte = static_cast<uint8_t>(bytes >> (8 * (s & 7u)));
        r |= (s & 8u ? (byte & 0x80u ? 0xffu : 0u) : byte) << (8 * i);
    }
    return r;
}
DEVICE uint32_t bit_count(uint32_t v) { return static_cast<uint32_t>(__builtin_popcount(v)); }
DEVICE uint32_t leading_zeros(uint32_t v) { return v == 0 ? 32u : static_cast<uint32_t>(__builtin_clz(v)); }
DEVICE uint32_t lowest_bit(uint32_t v) { return static_cast<uint32_t>(__builtin_ctz(v)); }
DEVICE float float_sqrt(float x) { return __builtin_sqrtf(x); }

template <typename... P>
static inline bool device_launch(const char *name, void (*kernel)(P...), grid_size grid, uint32_t block, size_t shared_size, cudaStream_t stream,
                                 typename launch_argument<P>::type... arguments)
{
    auto closure = [=] { kernel(arguments...); };      /* the arguments by value, as a launch takes them */
    typedef decltype(closure) closure_type;
    static_assert(__is_trivially_copyable(closure_type), "kernel arguments are copied as bytes");
    return emulation_launch(name, reinterpret_cast<const void *>(kernel), grid, block, shared_size, stream, [](const void *c) { (*static_cast<const closure_type *>(c))(); }, &closure,
                            sizeof closure);
}

#endif
