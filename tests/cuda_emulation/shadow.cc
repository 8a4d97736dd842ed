/* shadow.cc - judges every access of a kernel. The compiler's hooks on loads and stores (the thread sanitizer's, without its runtime) come here.
 *
 * Shared memory: a shade says who wrote last and who read since, with two clocks: the block's barriers (epoch) and the warp's (turn; a block
 * barrier counts as one too). Two accesses by different threads, one of them a write, are ordered if the earlier one's epoch is older, or if the
 * threads are of one warp and its turn is older. A shade stands for an aligned word until bytes of it are accessed alone. Clocks never go back, so
 * shades need no clearing between blocks: what is older than the block's first epoch was not written by this block. */
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <vector>
#include "tests/cuda_emulation/emulator.h"

namespace {

enum shade_flags : uint8_t {
    SHADE_ATOMIC = 1,            /* the last write was atomic */
    SHADE_WRITERS = 2,           /* atomics of several threads of the writer's warp in write_turn */
    SHADE_WRITER_WARPS = 4,      /* atomics of several warps in write_epoch */
    SHADE_READERS = 8,           /* several threads of the reader's warp in read_turn */
    SHADE_READER_WARPS = 16,     /* several warps in read_epoch */
    SHADE_COPY = 32,             /* an asynchronous copy by the writer is under way */
};

struct shade {
    uint32_t write_epoch, write_turn, read_epoch, read_turn;
    uint16_t writer, reader;
    uint8_t flags;
};

struct shared_word {
    shade all;
    bool split;                  /* `bytes` counts, not `all` */
};

alignas(128) unsigned char shared_memory[EMULATION_SHARED_MAX];
shared_word words[EMULATION_SHARED_MAX / 4];
shade bytes[EMULATION_SHARED_MAX];
size_t shared_size;
unsigned warp_count;
uint32_t epoch, first_epoch, turns[EMULATION_THREADS_MAX / WARP_THREADS];

const char *kind_name(access_kind kind)
{
    return kind == ACCESS_READ ? "read" : kind == ACCESS_WRITE ? "write" : "atomic";
}

[[noreturn]] void race(const shade &s, bool with_write, size_t offset, access_kind kind, unsigned thread)
{
    const char *several = with_write ? (s.flags & (SHADE_WRITERS | SHADE_WRITER_WARPS) ? " and others" : "")
                                     : (s.flags & (SHADE_READERS | SHADE_READER_WARPS) ? " and others" : "");
    emulation_fault("race in shared memory: byte %zu, %s by thread %u after a %s by thread %u%s with no barrier between", offset, kind_name(kind),
                    thread, with_write ? "write" : "read", with_write ? s.writer : s.reader, several);
}

inline void judge(shade &s, size_t offset, access_kind kind, unsigned thread)
{
    unsigned warp = thread / WARP_THREADS;
    uint32_t turn = turns[warp];
    if (__builtin_expect(s.flags & SHADE_COPY && s.write_epoch >= first_epoch, 0))
        emulation_fault("%s of shared byte %zu by thread %u while an asynchronous copy of thread %u to it is under way", kind_name(kind), offset, thread,
                        s.writer);
    if (__builtin_expect(kind != ACCESS_WRITE && s.write_epoch < first_epoch, 0))
        emulation_fault("%s of shared byte %zu by thread %u, which nobody wrote", kind_name(kind), offset, thread);
    if (s.write_epoch == epoch && (s.writer != thread || s.flags & (SHADE_WRITERS | SHADE_WRITER_WARPS)) &&
        !(kind == ACCESS_ATOMIC && s.flags & SHADE_ATOMIC) &&
        (s.flags & SHADE_WRITER_WARPS || s.writer / WARP_THREADS != warp || s.write_turn == turn))
        race(s, true, offset, kind, thread);
    if (kind == ACCESS_READ) {
        if (s.read_epoch != epoch) {
            s.read_epoch = epoch;
            s.read_turn = turn;
            s.reader = static_cast<uint16_t>(thread);
            s.flags &= static_cast<uint8_t>(~(SHADE_READERS | SHADE_READER_WARPS));
        } else if (s.reader / WARP_THREADS != warp) {
            s.flags |= SHADE_READER_WARPS;
        } else if (s.read_turn != turn) {
            s.read_turn = turn;
            s.reader = static_cast<uint16_t>(thread);
            s.flags &= static_cast<uint8_t>(~SHADE_READERS);
        } else if (s.reader != thread) {
            s.flags |= SHADE_READERS;
        }
        return;
    }
    if (s.read_epoch == epoch && (s.reader != thread || s.flags & (SHADE_READERS | SHADE_READER_WARPS)) &&
        (s.flags & SHADE_READER_WARPS || s.reader / WARP_THREADS != warp || s.read_turn == turn))
        race(s, false, offset, kind, thread);
    uint8_t flags = 0;
    if (kind == ACCESS_ATOMIC) {
        flags = SHADE_ATOMIC;
        if (s.write_epoch == epoch && s.flags & SHADE_ATOMIC) {
            if (s.flags & SHADE_WRITER_WARPS || s.writer / WARP_THREADS != warp)
                flags |= SHADE_WRITER_WARPS;
            else if (s.write_turn == turn && (s.flags & SHADE_WRITERS || s.writer != thread))
                flags |= SHADE_WRITERS;
        }
    }
    s = {epoch, turn, 0, 0, static_cast<uint16_t>(thread), 0, flags};
}

inline void access_shared(size_t offset, unsigned size, access_kind kind, unsigned thread)
{
    if (offset + size > shared_size)
        emulation_fault("%s of %u bytes at byte %zu of shared memory, which has %zu", kind_name(kind), size, offset, shared_size);
    if (((offset | size) & 3u) == 0) {
        for (size_t word = offset / 4; word < (offset + size) / 4; word++) {
            if (!words[word].split) {
                judge(words[word].all, word * 4, kind, thread);
                continue;
            }
            for (size_t i = word * 4; i < word * 4 + 4; i++)
                judge(bytes[i], i, kind, thread);
            if (kind != ACCESS_READ) {
                words[word].split = false;
                words[word].all = bytes[word * 4];
            }
        }
        return;
    }
    for (size_t i = offset; i < offset + size; i++) {
        shared_word &word = words[i / 4];
        if (!word.split) {
            word.split = true;
            for (size_t j = i / 4 * 4; j < i / 4 * 4 + 4; j++)
                bytes[j] = word.all;
        }
        judge(bytes[i], i, kind, thread);
    }
}

/* Constant tables of kernels: what is mapped read-only from a program or library. */
struct constant_range {
    uintptr_t low, high;
};
auto &constants = *new std::vector<constant_range>;

int note_constants(struct dl_phdr_info *info, size_t, void *)
{
    for (unsigned i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD && !(info->dlpi_phdr[i].p_flags & PF_W))
            constants.push_back({info->dlpi_addr + info->dlpi_phdr[i].p_vaddr,
                                 info->dlpi_addr + info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz});
    return 0;
}

bool in_constants(uintptr_t p, unsigned size)
{
    for (int attempt = 0; attempt < 2; attempt++) {
        for (const constant_range &range : constants)
            if (p >= range.low && p + size <= range.high)
                return true;
        if (attempt == 0) {
            constants.clear();
            dl_iterate_phdr(note_constants, nullptr);
        }
    }
    return false;
}

void access_elsewhere(const void *p, unsigned size, access_kind kind)
{
    size_t left = memory_left(p);
    memory_kind memory = memory_kind_of(p);
    if (memory == MEMORY_PINNED && left >= size)
        return;
    if (memory == MEMORY_DEVICE)
        emulation_fault("%s of %u bytes at device address %p, %zu bytes before its allocation's end", kind_name(kind), size, p, left);
    if (memory_in_device_range(p))
        emulation_fault("%s of %u bytes at device address %p, where nothing is allocated", kind_name(kind), size, p);
    if (memory == MEMORY_PINNED)
        emulation_fault("%s of %u bytes at pinned address %p, %zu bytes before its allocation's end", kind_name(kind), size, p, left);
    if (kind == ACCESS_READ && in_constants(reinterpret_cast<uintptr_t>(p), size))
        return;
    emulation_fault("%s of %u bytes at %p: a host pointer", kind_name(kind), size, p);
}

} // namespace

address_range shadow_stack, shadow_arguments;

void shadow_block_begins(unsigned warps, size_t size)
{
    warp_count = warps;
    shared_size = size;
    shadow_block_barrier();
    first_epoch = epoch;
}

void shadow_block_barrier()
{
    epoch++;
    for (unsigned i = 0; i < warp_count; i++)
        turns[i]++;
}

void shadow_warp_barrier(unsigned warp)
{
    turns[warp]++;
}

unsigned char *shadow_shared()
{
    return shared_memory;
}

void shadow_access_shared(const void *p, unsigned size, access_kind kind, unsigned thread)
{
    size_t offset = static_cast<size_t>(static_cast<const unsigned char *>(p) - shared_memory);
    if (offset >= EMULATION_SHARED_MAX)
        emulation_fault("thread %u gives %p, which is not shared memory", thread, p);
    if (offset % size != 0)
        emulation_fault("%s of %u bytes at byte %zu of shared memory by thread %u: not aligned", kind_name(kind), size, offset, thread);
    access_shared(offset, size, kind, thread);
}

static inline void access(const void *p, unsigned size, access_kind kind, bool aligned)
{
    uintptr_t at = reinterpret_cast<uintptr_t>(p);
    emulation_count.accesses++;
    if (at - shadow_stack.low < shadow_stack.size || (at - shadow_arguments.low < shadow_arguments.size && kind == ACCESS_READ))
        return;
    if (aligned && at % size != 0)
        emulation_fault("%s of %u bytes at %p: not aligned", kind_name(kind), size, p);
    size_t offset = static_cast<size_t>(static_cast<const unsigned char *>(p) - shared_memory);
    if (offset < EMULATION_SHARED_MAX) {
        access_shared(offset, size, kind, emulation_index(EMULATION_THREAD));
        return;
    }
    if (memory_in_device_range(p) && memory_left(p) >= size)
        order_access(at - memory_device_base(), size, kind);
    else
        access_elsewhere(p, size, kind);
}

void shadow_access(const void *p, unsigned size, access_kind kind)
{
    access(p, size, kind, true);
}

void shadow_copy_begins(void *to, unsigned size, unsigned thread)
{
    shadow_access_shared(to, size, ACCESS_WRITE, thread);
    size_t offset = static_cast<size_t>(static_cast<unsigned char *>(to) - shared_memory);
    for (size_t word = offset / 4; word < (offset + size) / 4; word++)
        words[word].all.flags |= SHADE_COPY;
}

void shadow_copy_lands(void *to, unsigned size, unsigned thread)
{
    size_t offset = static_cast<size_t>(static_cast<unsigned char *>(to) - shared_memory);
    for (size_t word = offset / 4; word < (offset + size) / 4; word++)
        words[word] = {{epoch, turns[thread / WARP_THREADS], 0, 0, static_cast<uint16_t>(thread), 0, 0}, false};
}

/* ---- the compiler's hooks. Host code of kernel sources has them too: outside of a kernel they do nothing. */
#define HOOK(name, size, kind, aligned)                                                                                     \
    extern "C" void name(void *p);                                                                                          \
    extern "C" void name(void *p)                                                                                           \
    {                                                                                                                       \
        if (emulation_inside)                                                                                               \
            access(p, size, kind, aligned);                                                                                 \
    }
HOOK(__tsan_read1, 1, ACCESS_READ, true)
HOOK(__tsan_read2, 2, ACCESS_READ, true)
HOOK(__tsan_read4, 4, ACCESS_READ, true)
HOOK(__tsan_read8, 8, ACCESS_READ, true)
HOOK(__tsan_read16, 16, ACCESS_READ, true)
HOOK(__tsan_write1, 1, ACCESS_WRITE, true)
HOOK(__tsan_write2, 2, ACCESS_WRITE, true)
HOOK(__tsan_write4, 4, ACCESS_WRITE, true)
HOOK(__tsan_write8, 8, ACCESS_WRITE, true)
HOOK(__tsan_write16, 16, ACCESS_WRITE, true)
/* A GPU has no unaligned loads: a copy of unknown alignment goes by bytes there, so these are fine at any address. */
HOOK(__tsan_unaligned_read2, 2, ACCESS_READ, false)
HOOK(__tsan_unaligned_read4, 4, ACCESS_READ, false)
HOOK(__tsan_unaligned_read8, 8, ACCESS_READ, false)
HOOK(__tsan_unaligned_read16, 16, ACCESS_READ, false)
HOOK(__tsan_unaligned_write2, 2, ACCESS_WRITE, false)
HOOK(__tsan_unaligned_write4, 4, ACCESS_WRITE, false)
HOOK(__tsan_unaligned_write8, 8, ACCESS_WRITE, false)
HOOK(__tsan_unaligned_write16, 16, ACCESS_WRITE, false)

extern "C" void __tsan_func_entry(void *);         /* clang calls these too */
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit();
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init();
extern "C" void __tsan_init() {}
extern "C" void __tsan_read_range(void *p, unsigned long size);
extern "C" void __tsan_read_range(void *p, unsigned long size)
{
    if (emulation_inside)
        access(p, static_cast<unsigned>(size), ACCESS_READ, false);
}
extern "C" void __tsan_write_range(void *p, unsigned long size);
extern "C" void __tsan_write_range(void *p, unsigned long size)
{
    if (emulation_inside)
        access(p, static_cast<unsigned>(size), ACCESS_WRITE, false);
}
