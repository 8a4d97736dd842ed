/* block.cc - runs a kernel. One fiber a thread; a thread runs until it waits at a barrier or a collective, then some ready one runs, drawn at
 * random. Whoever comes last to a barrier or collective frees the others. If nobody is ready and not all are done, the kernel diverged. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tests/cuda_emulation/emulator.h"

#define STACK_SIZE (128u * 1024u)        /* kernels hold their state in registers; sanitized builds spread it over the stack */

namespace {

struct pending_copy {
    unsigned char *to;
    const unsigned char *from;
    unsigned size, group;
    bool valid, taken;                   /* taken: the bytes were read when it was issued, else they are when it lands */
    unsigned char bytes[16];
};

struct thread_state {
    fiber_stack stack;
    lane_call call;
    const char *waits;                   /* for what; NULL: does not */
    emulation_place place;               /* of its last device call */
    std::vector<pending_copy> copies;
    unsigned group;                      /* the one being filled */
    bool finished;
};

struct warp_state {
    unsigned arrived;
    emulation_lane_op op;
    emulation_place place;
    unsigned first;                      /* thread that came first */
};

const launch *work;
thread_state *threads;
unsigned thread_count, running, finished_count;
uint16_t ready[EMULATION_THREADS_MAX];
unsigned ready_count;
warp_state warps[EMULATION_THREADS_MAX / WARP_THREADS];
unsigned barrier_arrived, barrier_first;
emulation_place barrier_place;
bool barrier_any;
bool barrier_result;
fiber_stack host_stack;
uint32_t indices[EMULATION_INDEX_COUNT];

bool same_place(emulation_place a, emulation_place b)
{
    return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

/* Hands the processor on. If nobody is ready, to the host's stack, which finds out why. */
void leave(bool ends)
{
    thread_state *self = &threads[running];
    if (ready_count == 0) {
        fiber_switch(&self->stack, &host_stack, ends);
        return;
    }
    unsigned i = emulation_draw.below(ready_count);
    unsigned next = ready[i];
    ready[i] = ready[--ready_count];
    if (next == running)
        return;
    running = next;
    indices[EMULATION_THREAD] = next;
    shadow_stack = {reinterpret_cast<uintptr_t>(threads[next].stack.low), threads[next].stack.size};
    fiber_switch(&self->stack, &threads[next].stack, ends);
}

void thread_main()
{
    fiber_entered();
    work->call(work->closure.data());
    thread_state *self = &threads[running];
    if (!self->copies.empty())
        emulation_fault("the thread ends with %zu asynchronous copies not waited for", self->copies.size());
    self->finished = true;
    finished_count++;
    leave(true);
    abort();
}

void stuck()
{
    unsigned waiting = 0;
    while (waiting < thread_count && threads[waiting].finished)
        waiting++;
    const thread_state *self = &threads[waiting];
    running = waiting;
    indices[EMULATION_THREAD] = waiting;
    char rest[160] = "";
    for (unsigned i = 0; i < thread_count; i++)
        if (threads[i].finished || !same_place(threads[i].place, self->place)) {
            snprintf(rest, sizeof rest, threads[i].finished ? ", thread %u has ended" : ", thread %u waits in %s at %s:%d", i, threads[i].waits,
                     threads[i].place.file, threads[i].place.line);
            break;
        }
    emulation_fault("diverged: %u of %u threads have ended, thread %u waits for the others in %s%s", finished_count, thread_count, waiting,
                    self->waits, rest);
}

void run_block()
{
    ready_count = 0;
    finished_count = 0;
    barrier_arrived = 0;
    memset(warps, 0, sizeof warps);
    for (unsigned i = 0; i < thread_count; i++) {
        thread_state *thread = &threads[i];
        if (thread->stack.low == nullptr)
            fiber_stack_make(&thread->stack, STACK_SIZE);
        fiber_prepare(&thread->stack, thread_main);
        thread->waits = nullptr;
        thread->place = {"its beginning", 0};
        thread->copies.clear();
        thread->group = 0;
        thread->finished = false;
        ready[ready_count++] = static_cast<uint16_t>(i);
    }
    shadow_block_begins(thread_count / WARP_THREADS, work->shared_size);
    emulation_count.blocks++;
    emulation_count.threads += thread_count;
    unsigned i = emulation_draw.below(ready_count);
    running = ready[i];
    ready[i] = ready[--ready_count];
    indices[EMULATION_THREAD] = running;
    shadow_stack = {reinterpret_cast<uintptr_t>(threads[running].stack.low), threads[running].stack.size};
    fiber_switch(&host_stack, &threads[running].stack, false);
    if (finished_count != thread_count)
        stuck();
}

} // namespace

thread_local bool emulation_inside;

bool block_on_fiber()
{
    uintptr_t here = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
    return here - shadow_stack.low < shadow_stack.size;
}

/* Blocks in an order that is some odd stride through the grid: every block once, neighbours far apart. */
void block_run_all(const launch &kernel)
{
    static thread_state all[EMULATION_THREADS_MAX];
    threads = all;
    work = &kernel;
    thread_count = kernel.block;
    indices[EMULATION_BLOCK_THREADS] = kernel.block;
    indices[EMULATION_GRID_X] = kernel.grid.x;
    indices[EMULATION_GRID_Y] = kernel.grid.y;
    indices[EMULATION_GRID_Z] = kernel.grid.z;
    host_stack = {};
    shadow_arguments = {reinterpret_cast<uintptr_t>(kernel.closure.data()), kernel.closure.size()};
    emulation_inside = true;
    uint64_t count = uint64_t(kernel.grid.x) * kernel.grid.y * kernel.grid.z, size = 1;
    while (size < count)
        size *= 2;
    uint64_t stride = emulation_draw.next() | 1u, at = emulation_draw.next();
    for (uint64_t i = 0; i < size; i++, at += stride) {
        uint64_t block = at & (size - 1);
        if (block >= count)
            continue;
        indices[EMULATION_BLOCK_X] = static_cast<uint32_t>(block % kernel.grid.x);
        indices[EMULATION_BLOCK_Y] = static_cast<uint32_t>(block / kernel.grid.x % kernel.grid.y);
        indices[EMULATION_BLOCK_Z] = static_cast<uint32_t>(block / kernel.grid.x / kernel.grid.y);
        order_block_begins();
        run_block();
    }
    emulation_inside = false;
    emulation_count.launches++;
}

uint32_t emulation_index(emulation_index_name which)
{
    return indices[which];
}

const char *block_describe(char *text, size_t size)
{
    const thread_state *self = &threads[running];
    snprintf(text, size, "kernel %s, block (%u, %u, %u) of (%u, %u, %u), thread %u of %u, last device call at %s:%d", work->name,
             indices[EMULATION_BLOCK_X], indices[EMULATION_BLOCK_Y], indices[EMULATION_BLOCK_Z], indices[EMULATION_GRID_X],
             indices[EMULATION_GRID_Y], indices[EMULATION_GRID_Z], running, thread_count, self->place.file, self->place.line);
    return text;
}

bool emulation_sync_block(bool value, emulation_place place)
{
    unsigned thread = running;
    threads[thread].place = place;
    if (barrier_arrived == 0) {
        barrier_place = place;
        barrier_first = thread;
        barrier_any = false;
    } else if (!same_place(barrier_place, place)) {
        emulation_fault("diverged: this sync_block meets the one that thread %u waits at, %s:%d", barrier_first, barrier_place.file,
                        barrier_place.line);
    }
    barrier_any |= value;
    threads[thread].waits = "sync_block";
    if (++barrier_arrived == thread_count) {
        barrier_arrived = 0;
        barrier_result = barrier_any;
        shadow_block_barrier();
        order_block_barrier();
        for (unsigned i = 0; i < thread_count; i++)
            ready[i] = static_cast<uint16_t>(i);
        ready_count = thread_count;
    }
    leave(false);
    threads[thread].waits = nullptr;
    return barrier_result;
}

static void collective(emulation_lane_op op, emulation_place place)
{
    unsigned thread = running, index = thread / WARP_THREADS;
    warp_state *warp = &warps[index];
    threads[thread].place = place;
    if (warp->arrived == 0) {
        warp->op = op;
        warp->place = place;
        warp->first = thread;
    } else if (warp->op != op || !same_place(warp->place, place)) {
        emulation_fault("diverged: %s meets the %s that thread %u of the same warp waits at, %s:%d", lanes_name(op), lanes_name(warp->op), warp->first,
                        warp->place.file, warp->place.line);
    }
    threads[thread].waits = lanes_name(op);
    if (++warp->arrived == WARP_THREADS) {
        warp->arrived = 0;
        lane_call *lanes[WARP_THREADS];
        for (unsigned i = 0; i < WARP_THREADS; i++) {
            unsigned lane = index * WARP_THREADS + i;
            lanes[i] = &threads[lane].call;
            ready[ready_count++] = static_cast<uint16_t>(lane);
        }
        if (op == EMULATION_SYNC_WARP)
            shadow_warp_barrier(index);
        else
            lanes_compute(op, lanes, index * WARP_THREADS);
    }
    leave(false);
    threads[thread].waits = nullptr;
}

uint32_t emulation_lanes(emulation_lane_op op, uint32_t value, uint32_t other, emulation_place place)
{
    lane_call *call = &threads[running].call;
    call->value = value;
    call->other = other;
    collective(op, place);
    return call->result;
}

void emulation_matrix(emulation_lane_op op, uint32_t *d, const uint32_t *a, const uint32_t *b, emulation_place place)
{
    lane_call *call = &threads[running].call;
    call->d = d;
    call->a = a;
    call->b = b;
    collective(op, place);
}

void *emulation_shared_view(size_t offset, size_t alignment, emulation_place place)
{
    if (!emulation_inside)
        abort();
    threads[running].place = place;
    if (offset > work->shared_size)
        emulation_fault("a view of shared memory from byte %zu on, of %zu", offset, work->shared_size);
    if (offset % alignment != 0)
        emulation_fault("a view of shared memory from byte %zu on for values that are aligned to %zu", offset, alignment);
    return shadow_shared() + offset;
}

u32x4 emulation_load_16(const void *p, bool must_be_shared, emulation_place place)
{
    threads[running].place = place;
    bool is_shared = static_cast<size_t>(static_cast<const unsigned char *>(p) - shadow_shared()) < EMULATION_SHARED_MAX;
    if (must_be_shared != is_shared)
        emulation_fault("a 16-byte load of %s memory from %p, which is not", must_be_shared ? "shared" : "device", p);
    shadow_access(p, 16, ACCESS_READ);
    u32x4 r;
    memcpy(&r, p, sizeof r);
    return r;
}

void emulation_store_16(void *p, u32x4 v, bool must_be_shared, emulation_place place)
{
    threads[running].place = place;
    bool is_shared = static_cast<size_t>(static_cast<const unsigned char *>(p) - shadow_shared()) < EMULATION_SHARED_MAX;
    if (must_be_shared != is_shared)
        emulation_fault("a 16-byte store to %s memory at %p, which is not", must_be_shared ? "shared" : "device", p);
    shadow_access(p, 16, ACCESS_WRITE);
    memcpy(p, &v, sizeof v);
}

template <typename U, typename S> static uint64_t atomic_apply(emulation_atomic_op op, void *p, bool is_signed, U v, U expected)
{
    U old, now;
    memcpy(&old, p, sizeof old);
    bool less = is_signed ? static_cast<S>(v) < static_cast<S>(old) : v < old;
    switch (op) {
    case EMULATION_ADD: now = old + v; break;
    case EMULATION_MIN: now = less ? v : old; break;
    case EMULATION_MAX: now = less ? old : v; break;
    case EMULATION_EXCHANGE: now = v; break;
    default: now = old == expected ? v : old; break;
    }
    memcpy(p, &now, sizeof now);
    return old;
}

uint64_t emulation_atomic(emulation_atomic_op op, void *p, unsigned size, bool is_signed, uint64_t v, uint64_t expected, emulation_place place)
{
    threads[running].place = place;
    shadow_access(p, size, ACCESS_ATOMIC);
    if (size == 8)
        return atomic_apply<uint64_t, int64_t>(op, p, is_signed, v, expected);
    return atomic_apply<uint32_t, int32_t>(op, p, is_signed, static_cast<uint32_t>(v), static_cast<uint32_t>(expected));
}

void emulation_copy(void *to, const void *from, unsigned size, bool valid, emulation_place place)
{
    thread_state *self = &threads[running];
    self->place = place;
    pending_copy copy = {static_cast<unsigned char *>(to), static_cast<const unsigned char *>(from), size, self->group, valid, false, {}};
    if (static_cast<size_t>(copy.to - shadow_shared()) >= EMULATION_SHARED_MAX)
        emulation_fault("an asynchronous copy to %p, which is not shared memory", to);
    if (reinterpret_cast<uintptr_t>(from) % size != 0)
        emulation_fault("an asynchronous copy of %u bytes from %p, which is not aligned to them", size, from);
    if (valid) {
        if (!memory_in_device_range(from))
            emulation_fault("an asynchronous copy from %p, which is not device memory", from);
        shadow_access(from, size, ACCESS_READ);
        copy.taken = emulation_draw.next() & 1u;
        if (copy.taken)
            memcpy(copy.bytes, from, size);
    }
    shadow_copy_begins(to, size, running);
    memset(to, 0xdb, size);
    self->copies.push_back(copy);
}

void emulation_fence()
{
    order_fence();
}

void emulation_copy_commit()
{
    threads[running].group++;
}

void emulation_copy_wait(unsigned newest, emulation_place place)
{
    thread_state *self = &threads[running];
    self->place = place;
    size_t kept = 0;
    for (const pending_copy &copy : self->copies) {
        if (copy.group + newest >= self->group) {
            self->copies[kept++] = copy;
            continue;
        }
        if (!copy.valid)
            memset(copy.to, 0, copy.size);
        else
            memcpy(copy.to, copy.taken ? copy.bytes : copy.from, copy.size);
        shadow_copy_lands(copy.to, copy.size, running);
    }
    self->copies.resize(kept);
}

/* What ENTRY wrote into the code: threads of a block at most. */
static uint32_t launch_bound(const void *kernel)
{
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
    static const unsigned char landing[4] = {0xf3, 0x0f, 0x1e, 0xfa};
    const unsigned char *code = static_cast<const unsigned char *>(kernel);
    if (memcmp(code, landing, sizeof landing) == 0)
        code += sizeof landing;
    uint32_t warps_most = 0;
    while (code[warps_most] == 0x90)
        warps_most++;
    return warps_most * WARP_THREADS;
#else
    (void)kernel;
    return EMULATION_THREADS_MAX;
#endif
}

bool emulation_launch(const char *name, const void *kernel, grid_size grid, uint32_t block, size_t shared_size, cudaStream_t stream, void (*call)(const void *),
                      const void *closure, size_t closure_size)
{
    cudaError_t error = cudaSuccess;
    if (block == 0 || block % WARP_THREADS != 0 || block > EMULATION_THREADS_MAX || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
        grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        error = cudaErrorInvalidConfiguration;
    else if (shared_size > EMULATION_SHARED_MAX || block > launch_bound(kernel))
        error = cudaErrorInvalidValue;
    if (error == cudaSuccess) {
        const unsigned char *bytes = static_cast<const unsigned char *>(closure);
        error = stream_put_kernel(stream, {name, grid, block, shared_size, call, std::vector<unsigned char>(bytes, bytes + closure_size)});
    }
    if (error == cudaSuccess)
        return true;
    return launch_refused(name, static_cast<int>(error), "", grid.x * grid.y * grid.z, block, shared_size);
}
