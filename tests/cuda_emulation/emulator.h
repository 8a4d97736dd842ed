/* emulator.h - what the emulator's own files share.
 *   fiber.cc     stacks and the switch between them
 *   block.cc     one kernel: blocks one after another, their threads as fibers in drawn order, barriers and warp collectives
 *   lanes.cc     what a warp collective computes
 *   shadow.cc    every access of a kernel: shared memory by shadow, device memory by allocation and order of streams
 *   memory.cc    device and pinned memory
 *   order.cc     which operation happens before which
 *   stream.cc    streams and events; graph.cc captures and graphs
 *   runtime.cc   the rest of the runtime's calls
 * One lock (runtime.cc) holds all of it; a kernel runs on the host thread that waits. Containers are never destroyed: others' may free at exit. */
#ifndef ROOST_TESTS_CUDA_EMULATION_EMULATOR_H
#define ROOST_TESTS_CUDA_EMULATION_EMULATOR_H
#include <stddef.h>
#include <stdint.h>
#include <vector>
#include "kernels/cuda/device.h"
#include "tests/cuda_emulation/emulation.h"

#define EMULATION_THREADS_MAX 1024u              /* of a block, as every card */
#define EMULATION_SHARED_MAX (163u * 1024u)      /* of a block: sm_80's limit, the least of the cards meant */

/* xorshift64*; below(n) by multiplication. */
struct draw {
    uint64_t state;
    uint32_t next()
    {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return static_cast<uint32_t>((state * 0x2545F4914F6CDD1Du) >> 32);
    }
    uint32_t below(uint32_t n) { return static_cast<uint32_t>((uint64_t(next()) * n) >> 32); }
};
extern draw emulation_draw;
extern emulation_counts emulation_count;

/* Prints what is wrong, where the running thread is, and aborts. */
[[noreturn]] void emulation_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- fiber.cc */
struct fiber_stack {
    unsigned char *low;                          /* behind a guard page */
    size_t size;
    void *sp;                                    /* where it was left */
    void *fake;                                  /* the address sanitizer's */
};
void fiber_stack_make(fiber_stack *stack, size_t size);
void fiber_prepare(fiber_stack *stack, void (*entry)());
void fiber_switch(fiber_stack *from, fiber_stack *to, bool from_ends);
void fiber_entered();                            /* first thing a new fiber calls */

/* ---- block.cc */
struct launch {
    const char *name;
    grid_size grid;
    uint32_t block;
    size_t shared_size;
    void (*call)(const void *);
    std::vector<unsigned char> closure;
};
void block_run_all(const launch &work);
bool block_on_fiber();                           /* or on the host's stack, where nobody can go on */
const char *block_describe(char *text, size_t size);
extern thread_local bool emulation_inside __attribute__((tls_model("initial-exec")));       /* does this host thread run a kernel? */

struct lane_call {
    uint32_t value, other, result;
    uint32_t *d;
    const uint32_t *a, *b;
};

/* ---- lanes.cc */
const char *lanes_name(emulation_lane_op op);
void lanes_compute(emulation_lane_op op, lane_call *const lanes[WARP_THREADS], unsigned first_thread);

/* ---- shadow.cc */
enum access_kind { ACCESS_READ, ACCESS_WRITE, ACCESS_ATOMIC };
void shadow_block_begins(unsigned warps, size_t shared_size);
void shadow_block_barrier();
void shadow_warp_barrier(unsigned warp);
unsigned char *shadow_shared();
void shadow_access_shared(const void *p, unsigned size, access_kind kind, unsigned thread);     /* p in the block's shared memory */
void shadow_access(const void *p, unsigned size, access_kind kind);
void shadow_copy_begins(void *to, unsigned size, unsigned thread);
void shadow_copy_lands(void *to, unsigned size, unsigned thread);
struct address_range {
    uintptr_t low, size;
};
extern address_range shadow_stack;                 /* the running fiber's */
extern address_range shadow_arguments;             /* the running kernel's: to be read */

/* ---- memory.cc */
enum memory_kind { MEMORY_PAGEABLE, MEMORY_DEVICE, MEMORY_PINNED };
void *memory_device_alloc(size_t size);          /* NULL: none left */
bool memory_device_free(void *p);
void *memory_pinned_alloc(size_t size);
bool memory_pinned_free(void *p);
bool memory_pinned_register(void *p, size_t size);
bool memory_pinned_unregister(void *p);
memory_kind memory_kind_of(const void *p);
size_t memory_left(const void *p);               /* bytes from p to its allocation's end; 0: none there */
bool memory_in_device_range(const void *p);
uintptr_t memory_device_base();
void memory_open();                              /* device memory may be touched until memory_close; nests */
void memory_close();
void memory_set_limit(size_t bytes);
size_t memory_limit();

/* ---- order.cc: operations are numbered from 1; clock[lane] is the last operation of a lane known to be done. A lane is a stream, or a chain of
 * a graph. Blocks of one kernel are judged too. */
typedef std::vector<uint32_t> order_clock;
uint32_t order_lane_new();
uint32_t order_operation_new(uint32_t lane, const char *name);
void order_merge(order_clock &into, const order_clock &from);
void order_note(order_clock &clock, uint32_t lane, uint32_t operation);
void order_run(uint32_t operation, const order_clock *clock);       /* what runs now; 0, NULL: nothing */
void order_block_begins();                       /* of the kernel that runs; blocks follow one another */
void order_block_barrier();
void order_fence();
void order_access(uintptr_t device_offset, size_t size, access_kind kind);
void order_forget(uintptr_t device_offset, size_t size);

/* ---- stream.cc */
struct CUstream_st *stream_of(cudaStream_t stream);
bool stream_known(cudaStream_t stream);
cudaError_t stream_put_kernel(cudaStream_t stream, launch &&work);
void stream_drain();                             /* runs all there is */
void stream_drop();
void stream_nudge();                             /* now and then runs something */

/* ---- runtime.cc */
struct runtime_lock {
    runtime_lock();
    ~runtime_lock();
};
cudaError_t runtime_return(cudaError_t error);   /* notes it as the last error */
cudaError_t runtime_poisoned();                  /* cudaSuccess, or why every call fails */
bool runtime_launch_refused();                   /* an injected refusal */
bool runtime_kernel_runs();                      /* counts it; false: it shall fault, and the context is poisoned */

#endif
