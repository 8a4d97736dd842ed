#include "tests/cuda_emulation/emulator_faults.h"
#include <string.h>
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels_cuda.h"
#include "tests/cuda_emulation/device_words.h"

/* Each kernel is a template over `mended`; the check of the results is the same for both. */
#define THREADS 64u

namespace {

bool counts_up(device_words *words, uint32_t first, uint32_t step)
{
    uint32_t host[1024];
    words->get(host);
    for (uint32_t i = 0; i < words->count; i++)
        if (host[i] != first + step * i)
            return false;
    return true;
}

/* ---- barriers */

template <bool mended> ENTRY(THREADS) reverse_block(uint32_t *out)
{
    uint32_t *s = shared<uint32_t>(0);
    s[thread_index()] = 0;
    sync_block();
    s[thread_index()] = thread_index();
    if (mended)
        sync_block();
    else
        sync_warp();
    out[thread_index()] = s[THREADS - 1 - thread_index()];
}

bool missing_sync_block(bool mended)
{
    device_words out(THREADS);
    return (mended ? LAUNCH(reverse_block<true>, 1, THREADS, THREADS * 4, nullptr, out.p)
                   : LAUNCH(reverse_block<false>, 1, THREADS, THREADS * 4, nullptr, out.p)) &&
           counts_up(&out, THREADS - 1, ~0u);
}

template <bool mended> ENTRY(THREADS) reverse_warp(uint32_t *out)
{
    uint32_t *s = shared<uint32_t>(warp_index() * 128);
    s[lane_index()] = 0;
    sync_warp();
    s[lane_index()] = thread_index();
    if (mended)
        sync_warp();
    out[thread_index()] = s[lane_index() ^ 31] + 2 * lane_index() - 31;
}

bool missing_sync_warp(bool mended)
{
    device_words out(THREADS);
    return (mended ? LAUNCH(reverse_warp<true>, 1, THREADS, THREADS * 4, nullptr, out.p)
                   : LAUNCH(reverse_warp<false>, 1, THREADS, THREADS * 4, nullptr, out.p)) &&
           counts_up(&out, 0, 1);
}

/* A second round overwrites what others may still read. */
template <bool mended> ENTRY(THREADS) two_rounds(uint32_t *out)
{
    uint32_t *s = shared<uint32_t>(0), sum = 0;
    for (uint32_t round = 0; round < 2; round++) {
        s[thread_index()] = round;
        sync_block();
        sum += s[(thread_index() + 1) % THREADS];
        if (mended)
            sync_block();
    }
    out[thread_index()] = sum + thread_index();
}

bool write_after_read(bool mended)
{
    device_words out(THREADS);
    return (mended ? LAUNCH(two_rounds<true>, 1, THREADS, THREADS * 4, nullptr, out.p)
                   : LAUNCH(two_rounds<false>, 1, THREADS, THREADS * 4, nullptr, out.p)) &&
           counts_up(&out, 1, 1);
}

/* A shuffle puts the read before the write, so only the reader's mark tells; it orders no memory. */
template <bool mended> ENTRY(THREADS) shuffle_as_barrier(uint32_t *out)
{
    uint32_t *s = shared<uint32_t>(4 * warp_index());
    if (lane_index() == 0)
        s[0] = 0;
    sync_warp();
    uint32_t v = s[0];
    v = shuffle_xor(v, 1);
    if (mended)
        sync_warp();
    if (lane_index() == 0)
        s[0] = 1;
    out[thread_index()] = v + thread_index();
}

bool write_after_shuffle(bool mended)
{
    device_words out(THREADS);
    return (mended ? LAUNCH(shuffle_as_barrier<true>, 1, THREADS, 8, nullptr, out.p)
                   : LAUNCH(shuffle_as_barrier<false>, 1, THREADS, 8, nullptr, out.p)) &&
           counts_up(&out, 0, 1);
}

/* Two threads write bytes of one word, which is right, or one and the same byte, which is not. */
template <bool mended> ENTRY(THREADS) write_bytes(uint32_t *out)
{
    uint8_t *s = shared<uint8_t>(0);
    s[mended ? thread_index() : thread_index() & ~1u] = 1;
    if (thread_index() % 2 == 1)
        s[THREADS + thread_index() / 2] = 1;
    sync_block();
    uint32_t sum = 0;
    for (uint32_t i = 0; i < THREADS; i++)
        sum += s[mended ? i : i & ~1u];
    out[thread_index()] = sum + thread_index();
}

bool one_byte_twice(bool mended)
{
    device_words out(THREADS);
    return (mended ? LAUNCH(write_bytes<true>, 1, THREADS, THREADS * 2, nullptr, out.p)
                   : LAUNCH(write_bytes<false>, 1, THREADS, THREADS * 2, nullptr, out.p)) &&
           counts_up(&out, THREADS, 1);
}

template <bool mended> ENTRY(THREADS) count_shared(uint32_t *out)
{
    uint32_t *s = shared<uint32_t>(0);
    if (thread_index() == 0)
        s[0] = 0;
    sync_block();
    atomic_add(&s[0], 1u);
    if (mended)
        sync_block();
    out[thread_index()] = s[0] + thread_index();
}

bool atomic_then_read(bool mended)
{
    device_words out(THREADS);
    return (mended ? LAUNCH(count_shared<true>, 1, THREADS, 4, nullptr, out.p) : LAUNCH(count_shared<false>, 1, THREADS, 4, nullptr, out.p)) &&
           counts_up(&out, THREADS, 1);
}

/* ---- bounds */

template <bool mended> ENTRY(THREADS) shared_neighbour(uint32_t *out)
{
    uint32_t *s = shared<uint32_t>(0);
    s[thread_index() + (mended ? 0 : 1)] = thread_index();
    sync_block();
    out[thread_index()] = s[thread_index() + (mended ? 0 : 1)];
}

bool shared_too_far(bool mended)
{
    device_words out(THREADS);
    return (mended ? LAUNCH(shared_neighbour<true>, 1, THREADS, THREADS * 4, nullptr, out.p)
                   : LAUNCH(shared_neighbour<false>, 1, THREADS, THREADS * 4, nullptr, out.p)) &&
           counts_up(&out, 0, 1);
}

template <bool mended> ENTRY(THREADS) device_neighbour(uint32_t *out, uint32_t count)
{
    uint32_t i = thread_index();
    if (mended ? i < count : i <= count)
        out[i] = i;
}

bool device_too_far(bool mended)
{
    device_words out(THREADS - 1);
    return (mended ? LAUNCH(device_neighbour<true>, 1, THREADS, 0, nullptr, out.p, out.count)
                   : LAUNCH(device_neighbour<false>, 1, THREADS, 0, nullptr, out.p, out.count)) &&
           counts_up(&out, 0, 1);
}

bool freed_memory(bool mended)
{
    device_words out(THREADS), gone(THREADS);
    uint32_t *p = mended ? out.p : gone.p;
    (void)cudaFree(gone.p);
    gone.p = nullptr;
    return LAUNCH(device_neighbour<true>, 1, THREADS, 0, nullptr, p, THREADS) && counts_up(&out, 0, 1);
}

bool host_pointer(bool mended)
{
    device_words out(THREADS);
    uint32_t host[THREADS] = {};
    return LAUNCH(device_neighbour<true>, 1, THREADS, 0, nullptr, mended ? out.p : host, THREADS) && counts_up(&out, 0, 1);
}

bool device_pointer_on_host(bool mended)
{
    device_words out(THREADS);
    bool launched = LAUNCH(device_neighbour<true>, 1, THREADS, 0, nullptr, out.p, THREADS) && cudaDeviceSynchronize() == cudaSuccess;
    return launched && (mended ? counts_up(&out, 0, 1) : out.p[1] == 1);
}

ENTRY(THREADS) read_unwritten(uint32_t *out, uint32_t written)
{
    uint32_t *s = shared<uint32_t>(0);
    if (thread_index() < written)
        s[thread_index()] = thread_index();
    sync_block();
    out[thread_index()] = s[thread_index()];
}

bool unwritten_shared(bool mended)
{
    device_words out(THREADS);
    return LAUNCH(read_unwritten, 1, THREADS, THREADS * 4, nullptr, out.p, mended ? THREADS : THREADS - 1) && counts_up(&out, 0, 1);
}

/* ---- divergence */

template <bool mended> ENTRY(THREADS) half_warp(uint32_t *out)
{
    uint32_t v = lane_index();
    if (mended || lane_index() < 16)
        v = shuffle_xor(v, 1);
    out[thread_index()] = (v ^ 1u) + 32 * warp_index();
}

bool divergent_collective(bool mended)
{
    device_words out(THREADS);
    return (mended ? LAUNCH(half_warp<true>, 1, THREADS, 0, nullptr, out.p) : LAUNCH(half_warp<false>, 1, THREADS, 0, nullptr, out.p)) &&
           counts_up(&out, 0, 1);
}

template <bool mended> ENTRY(THREADS) two_places(uint32_t *out)
{
    uint32_t v = lane_index() < 16 ? 1 : 2;
    if (mended)
        v = warp_sum(v);
    else if (lane_index() < 16)
        v = warp_sum(v);
    else
        v = warp_sum(v) + 0;
    out[thread_index()] = v - 48 + thread_index();
}

bool collective_of_two_places(bool mended)
{
    device_words out(THREADS);
    return (mended ? LAUNCH(two_places<true>, 1, THREADS, 0, nullptr, out.p) : LAUNCH(two_places<false>, 1, THREADS, 0, nullptr, out.p)) &&
           counts_up(&out, 0, 1);
}

template <bool mended> ENTRY(THREADS) early_end(uint32_t *out)
{
    bool last = thread_index() == THREADS - 1;
    out[thread_index()] = thread_index();
    if (!mended && last)
        return;
    sync_block();
}

bool barrier_without_all(bool mended)
{
    device_words out(THREADS);
    return (mended ? LAUNCH(early_end<true>, 1, THREADS, 0, nullptr, out.p) : LAUNCH(early_end<false>, 1, THREADS, 0, nullptr, out.p)) &&
           counts_up(&out, 0, 1);
}

/* ---- asynchronous copies */

/* fault 0: none, 1: reads before its wait, 2: others read with no barrier, 3: never waits, 4: reads the newer group
 * after a wait for the older one */
template <int fault> ENTRY(THREADS) copied(const uint32_t *in, uint32_t *out)
{
    uint32_t *s = shared<uint32_t>(0);
    uint32_t i = thread_index(), early = 0;
    cp_async_4(&s[i], &in[i], i + 1 < THREADS);
    cp_async_commit();
    cp_async_4(&s[THREADS + i], &in[i], false);
    cp_async_commit();
    if (fault == 1)
        early = s[i];
    if (fault == 3)
        return;
    cp_async_wait<1>();
    if (fault != 2)
        sync_block();
    if (fault == 4)
        early = s[THREADS + i];
    uint32_t next = s[(i + 1) % THREADS];
    cp_async_wait<0>();
    out[i] = next + s[THREADS + i] + (i == THREADS - 2 ? THREADS : 0) + (early == 0x12345678u ? 1 : 0);
}

template <int fault> bool run_copied(bool mended)
{
    device_words in(THREADS), out(THREADS);
    uint32_t host[THREADS], result[THREADS];
    for (uint32_t i = 0; i < THREADS; i++)
        host[i] = 100 + i;
    in.put(host);
    if (!(mended ? LAUNCH(copied<0>, 1, THREADS, THREADS * 8, nullptr, in.p, out.p)
                 : LAUNCH(copied<fault>, 1, THREADS, THREADS * 8, nullptr, in.p, out.p)))
        return false;
    out.get(result);
    for (uint32_t i = 0; i < THREADS; i++)
        if (result[i] != (i == THREADS - 2 ? THREADS : 100 + (i + 1) % THREADS))
            return false;
    return true;
}

/* ---- alignment */

template <bool mended> ENTRY(THREADS) load_rows(uint32_t *out)
{
    uint32_t *s = shared<uint32_t>(0);
    for (uint32_t i = thread_index(); i < 160; i += THREADS)
        s[i] = i / 4;
    sync_block();
    uint32_t r[4];
    ldmatrix_x4(r, s + 4 * lane_index() + (mended ? 0 : 2));
    out[thread_index()] = r[0] - lane_index() / 4 + thread_index();
}

bool misaligned_ldmatrix(bool mended)
{
    device_words out(THREADS);
    return (mended ? LAUNCH(load_rows<true>, 1, THREADS, 640, nullptr, out.p) : LAUNCH(load_rows<false>, 1, THREADS, 640, nullptr, out.p)) &&
           counts_up(&out, 0, 1);
}

template <bool mended> ENTRY(THREADS) load_words(const uint32_t *in, uint32_t *out)
{
    out[thread_index()] = load_16(in + (mended ? 4 : 2)).v[0] + thread_index();
}

bool misaligned_load(bool mended)
{
    device_words in(8), out(THREADS);
    uint32_t host[8] = {};
    in.put(host);
    return (mended ? LAUNCH(load_words<true>, 1, THREADS, 0, nullptr, in.p, out.p)
                   : LAUNCH(load_words<false>, 1, THREADS, 0, nullptr, in.p, out.p)) &&
           counts_up(&out, 0, 1);
}

/* ---- streams */

ENTRY(THREADS) add_to(const uint32_t *in, uint32_t v, uint32_t *out)
{
    out[thread_index()] = in[thread_index()] + v;
}

bool missing_event(bool mended)
{
    device_words a(THREADS), b(THREADS), c(THREADS);
    uint32_t host[THREADS];
    for (uint32_t i = 0; i < THREADS; i++)
        host[i] = i;
    a.put(host);
    cudaStream_t one = nullptr, two = nullptr;
    cudaEvent_t event = nullptr;
    (void)cudaStreamCreateWithFlags(&one, cudaStreamNonBlocking);
    (void)cudaStreamCreateWithFlags(&two, cudaStreamNonBlocking);
    (void)cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    bool ok = LAUNCH(add_to, 1, THREADS, 0, one, a.p, 1, b.p);
    (void)cudaEventRecord(event, one);
    if (mended)
        (void)cudaStreamWaitEvent(two, event, 0);
    ok = ok && LAUNCH(add_to, 1, THREADS, 0, two, b.p, 1, c.p);
    ok = ok && cudaStreamSynchronize(two) == cudaSuccess && cudaStreamSynchronize(one) == cudaSuccess && counts_up(&c, 2, 1);
    (void)cudaEventDestroy(event);
    (void)cudaStreamDestroy(one);
    (void)cudaStreamDestroy(two);
    return ok;
}

/* The same within a graph, whose second stream joins by an event, or begins from one recorded too early. */
bool missing_edge(bool mended)
{
    device_words a(THREADS), b(THREADS), c(THREADS);
    uint32_t host[THREADS];
    for (uint32_t i = 0; i < THREADS; i++)
        host[i] = i;
    a.put(host);
    cudaStream_t one = nullptr, two = nullptr;
    cudaEvent_t event = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    (void)cudaStreamCreateWithFlags(&one, cudaStreamNonBlocking);
    (void)cudaStreamCreateWithFlags(&two, cudaStreamNonBlocking);
    (void)cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    bool ok = cudaStreamBeginCapture(one, cudaStreamCaptureModeThreadLocal) == cudaSuccess;
    if (!mended)
        (void)cudaEventRecord(event, one);
    ok = ok && LAUNCH(add_to, 1, THREADS, 0, one, a.p, 1, b.p);
    if (mended)
        (void)cudaEventRecord(event, one);
    (void)cudaStreamWaitEvent(two, event, 0);
    ok = ok && LAUNCH(add_to, 1, THREADS, 0, two, b.p, 1, c.p);
    (void)cudaEventRecord(event, two);
    (void)cudaStreamWaitEvent(one, event, 0);
    ok = ok && LAUNCH(add_to, 1, THREADS, 0, one, c.p, 1, a.p);
    ok = ok && cudaStreamEndCapture(one, &graph) == cudaSuccess && cudaStreamWaitEvent(two, event, 0) == cudaErrorCapturedEvent;
    ok = ok && cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess;
    for (int i = 0; i < 3 && ok; i++)
        ok = cudaGraphLaunch(exec, one) == cudaSuccess;
    ok = ok && cudaStreamSynchronize(one) == cudaSuccess && counts_up(&a, 9, 1);
    (void)cudaGraphExecDestroy(exec);
    (void)cudaGraphDestroy(graph);
    (void)cudaEventDestroy(event);
    (void)cudaStreamDestroy(one);
    (void)cudaStreamDestroy(two);
    return ok;
}

/* ---- blocks of one kernel */

template <bool mended> ENTRY(32) neighbours(uint32_t *out)
{
    uint32_t at = (block_index() * 32 + lane_index() + (!mended && lane_index() == 31 ? 1 : 0)) % (grid_blocks() * 32);
    out[at] = at;
}

bool block_writes_twice(bool mended)
{
    device_words out(4 * 32);
    return (mended ? LAUNCH(neighbours<true>, 4, 32, 0, nullptr, out.p) : LAUNCH(neighbours<false>, 4, 32, 0, nullptr, out.p)) && counts_up(&out, 0, 1);
}

/* Bytes of one word, by blocks: which is right, or one block reads the whole word, which is not. */
template <bool mended> ENTRY(32) byte_neighbours(uint32_t *out)
{
    if (lane_index() == 0)
        reinterpret_cast<uint8_t *>(out)[block_index()] = mended || out[0] != 1 ? static_cast<uint8_t>(block_index() == 0) : 2;
}

bool block_reads_word(bool mended)
{
    device_words out(1);
    return (mended ? LAUNCH(byte_neighbours<true>, 4, 32, 0, nullptr, out.p) : LAUNCH(byte_neighbours<false>, 4, 32, 0, nullptr, out.p)) &&
           counts_up(&out, 1, 1);
}

/* The block that comes last takes the sum of what all wrote. fault 1: no fence before the count, 2: none behind it, 3: the fence comes before the
 * write, 4: no atomic: the first block sums. */
template <int fault> ENTRY(THREADS) last_block_sums(uint32_t *parts, uint32_t *count, uint32_t *out)
{
    if (fault == 3) {
        fence_device();
        sync_block();
    }
    parts[block_index() * THREADS + thread_index()] = block_index();
    if (fault != 1 && fault != 3)
        fence_device();
    sync_block();
    bool last = false;
    if (thread_index() == 0)
        last = fault == 4 ? block_index() == 0 : atomic_add(count, 1u) == grid_blocks() - 1;
    last = sync_block_any(last);
    if (fault != 2)
        fence_device();
    if (!last)
        return;
    uint32_t sum = 0;
    for (uint32_t i = 0; i < grid_blocks(); i++)
        sum += parts[i * THREADS + thread_index()];
    out[thread_index()] = sum + thread_index();
}

template <int fault> bool run_last_block(bool mended)
{
    device_words parts(4 * THREADS), count(1), out(THREADS);
    const uint32_t zero = 0;
    count.put(&zero);
    return (mended ? LAUNCH(last_block_sums<0>, 4, THREADS, 0, nullptr, parts.p, count.p, out.p)
                   : LAUNCH(last_block_sums<fault>, 4, THREADS, 0, nullptr, parts.p, count.p, out.p)) &&
           counts_up(&out, 6, 1);
}

ENTRY(1024) meet(uint32_t barriers)
{
    for (uint32_t i = 0; i < barriers; i++)
        sync_block();
}

} // namespace

bool emulator_measure(uint32_t blocks, uint32_t threads, uint32_t barriers)
{
    return LAUNCH(meet, blocks, threads, 0, nullptr, barriers) && cudaDeviceSynchronize() == cudaSuccess;
}

bool emulator_launch_bounds(void)
{
    device_words out(2 * THREADS);
    bool ok = LAUNCH(device_neighbour<true>, 1, THREADS, 0, nullptr, out.p, THREADS) && LAUNCH(neighbours<true>, 4, 32, 0, nullptr, out.p) &&
              LAUNCH(meet, 1, 1024, 0, nullptr, 1);
    ok = ok && !LAUNCH(device_neighbour<true>, 1, THREADS + 32, 0, nullptr, out.p, THREADS) && strstr(cuda_launch_error(), "device_neighbour") != nullptr;
    ok = ok && !LAUNCH(neighbours<true>, 2, 64, 0, nullptr, out.p) && strstr(cuda_launch_error(), "neighbours") != nullptr;
    return ok && cudaDeviceSynchronize() == cudaSuccess;
}

const struct emulator_fault emulator_faults[] = {
    {"missing_sync_block", "race in shared memory", missing_sync_block},
    {"missing_sync_warp", "race in shared memory", missing_sync_warp},
    {"write_after_read", "race in shared memory", write_after_read},
    {"write_after_shuffle", "after a read by thread", write_after_shuffle},
    {"one_byte_twice", "race in shared memory", one_byte_twice},
    {"atomic_then_read", "race in shared memory", atomic_then_read},
    {"shared_too_far", "of shared memory, which has 256", shared_too_far},
    {"device_too_far", "at device address", device_too_far},
    {"freed_memory", "where nothing is allocated", freed_memory},
    {"host_pointer", "a host pointer", host_pointer},
    {"device_pointer_on_host", "", device_pointer_on_host},
    {"unwritten_shared", "which nobody wrote", unwritten_shared},
    {"divergent_collective", "diverged", divergent_collective},
    {"collective_of_two_places", "diverged", collective_of_two_places},
    {"barrier_without_all", "diverged", barrier_without_all},
    {"read_before_wait", "an asynchronous copy of thread", run_copied<1>},
    {"copy_without_barrier", "by thread", run_copied<2>},
    {"copy_not_waited_for", "not waited for", run_copied<3>},
    {"newer_group_read", "an asynchronous copy of thread", run_copied<4>},
    {"misaligned_ldmatrix", "not aligned", misaligned_ldmatrix},
    {"misaligned_load", "not aligned", misaligned_load},
    {"block_writes_twice", "race between blocks", block_writes_twice},
    {"block_reads_word", "race between blocks", block_reads_word},
    {"no_fence_before_count", "race between blocks", run_last_block<1>},
    {"no_fence_behind_count", "race between blocks", run_last_block<2>},
    {"fence_before_write", "race between blocks", run_last_block<3>},
    {"blocks_without_atomic", "race between blocks", run_last_block<4>},
    {"missing_event", "nothing orders the two", missing_event},
    {"missing_edge", "nothing orders the two", missing_edge},
};
const size_t emulator_fault_count = sizeof emulator_faults / sizeof *emulator_faults;
