/* order.cc - finds accesses of two operations to one word of device memory, one of them a write, that nothing orders: no stream, event,
 * edge of a graph or wait of the host. By vector clocks, so it does not take the unlucky schedule. Per word the last writer and the
 * last reader are kept.
 *
 * Likewise of two blocks of one kernel, which run one after the other here and side by side on a GPU. What orders them is one atomic
 * word: a block accesses, fences (fence_device) and then updates the word; the other updates it too, fences, and accesses. Phases are a
 * block's stretches between sync_blocks: a fence covers what the block did up to the end of its phase. An order through two such words,
 * one after the other, is not followed. Blocks are told apart by bytes, as neighbours may write bytes of one word. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unordered_map>
#include "tests/cuda_emulation/emulator.h"

#define RANGE_SIZE (size_t(32) << 30)            /* as memory.cc */
#define ATOMIC 0x80000000u
#define BLOCKS_MAX (1u << 16)                    /* of a kernel that are told apart: as many as 16 bytes a word of memory hold */
#define PHASES_MAX 0xffu                         /* later ones count as this one */

namespace {
/* Of one operation: the block that came last, from 1 on, and its phase; which of the word's bytes it accessed, and which the blocks before it. */
struct word_blocks {
    uint32_t block : 16, phase : 8, own : 4, before : 4;
};
struct word_order {
    uint32_t writer, reader;                     /* operations; writer with ATOMIC if it was one */
    word_blocks written, read;
};
struct block_release {                           /* what `block` did up to the end of `phase` is over */
    uint32_t block, phase;
};
struct operation {
    const char *name;
    uint32_t lane;
};
word_order *words;
auto &operations = *new std::vector<operation>{{"", 0}};
uint32_t lane_count;
uint32_t current;
const order_clock *current_clock;

/* The block that runs: 0 if none does. What it may count as done, and from its next fence on; its last fence, -1: none. */
uint32_t block, block_count, phase;
int fenced_phase;
bool any_fence;
auto &known = *new std::vector<block_release>, &learned = *new std::vector<block_release>;
auto &releases = *new std::unordered_map<size_t, std::vector<block_release>>;      /* by the atomic word */

bool before_current(uint32_t other)
{
    uint32_t lane = operations[other].lane;
    return lane == operations[current].lane || (lane < current_clock->size() && other <= (*current_clock)[lane]);
}

const char *kind_name(access_kind kind)
{
    return kind == ACCESS_READ ? "reads" : kind == ACCESS_WRITE ? "writes" : "updates";
}

[[noreturn]] void unordered(uint32_t other, const char *did, access_kind kind, size_t offset)
{
    emulation_fault("race between operations: %s (number %u) %s device address %p, which %s (number %u) %s, and nothing orders the two",
                    operations[current].name, current, kind_name(kind), reinterpret_cast<void *>(memory_device_base() + offset),
                    operations[other].name, other, did);
}

void judge_block(const word_blocks &did, unsigned bytes, bool wrote, access_kind kind, size_t offset)
{
    bool other = did.block != block;
    if ((bytes & (other ? did.own | did.before : did.before)) == 0 || (!other && !known.empty()))
        return;
    for (const block_release &release : known)
        if (release.block == did.block && did.phase <= release.phase)
            return;
    emulation_fault("race between blocks: this one %s device address %p, which %s of the same kernel %s, and no atomic with fences orders "
                    "the two", kind_name(kind), reinterpret_cast<void *>(memory_device_base() + offset), other ? "another" : "others", wrote ? "wrote" : "read");
}

void note_block(word_blocks &did, unsigned bytes, bool same_operation)
{
    unsigned before = !same_operation ? 0 : did.block == block ? did.before : did.own | did.before;
    unsigned own = same_operation && did.block == block ? did.own | bytes : bytes;
    did = {block & (BLOCKS_MAX - 1), phase & PHASES_MAX, own & 15u, before & 15u};
}

/* An atomic update of a word takes part in the order: what others released before it is learned, what this block has fenced is released. */
void meet(size_t word)
{
    if (!any_fence)
        return;
    auto found = releases.find(word);
    if (found != releases.end())
        learned.insert(learned.end(), found->second.begin(), found->second.end());
    if (fenced_phase >= 0)
        releases[word].push_back({block, static_cast<uint32_t>(fenced_phase)});
}
} // namespace

uint32_t order_lane_new()
{
    return lane_count++;
}

uint32_t order_operation_new(uint32_t lane, const char *name)
{
    operations.push_back({name, lane});
    emulation_count.operations++;
    return static_cast<uint32_t>(operations.size() - 1);
}

void order_merge(order_clock &into, const order_clock &from)
{
    if (into.size() < from.size())
        into.resize(from.size());
    for (size_t i = 0; i < from.size(); i++)
        into[i] = from[i] > into[i] ? from[i] : into[i];
}

void order_note(order_clock &clock, uint32_t lane, uint32_t number)
{
    if (clock.size() <= lane)
        clock.resize(lane + 1);
    clock[lane] = number > clock[lane] ? number : clock[lane];
}

void order_run(uint32_t number, const order_clock *clock)
{
    current = number;
    current_clock = clock;
    block = block_count = 0;
    any_fence = false;
    releases.clear();
}

void order_block_begins()
{
    block = ++block_count < BLOCKS_MAX ? block_count : 0;
    phase = 0;
    fenced_phase = -1;
    known.clear();
    learned.clear();
}

void order_block_barrier()
{
    phase += phase < PHASES_MAX;
}

void order_fence()
{
    any_fence = true;
    fenced_phase = static_cast<int>(phase);
    known.insert(known.end(), learned.begin(), learned.end());
    learned.clear();
}

void order_access(uintptr_t offset, size_t size, access_kind kind)
{
    if (words == nullptr) {
        void *p = mmap(nullptr, RANGE_SIZE / 4 * sizeof *words, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) {
            perror("cuda emulation: addresses for the order of accesses");
            abort();
        }
        words = static_cast<word_order *>(p);
    }
    for (size_t i = offset / 4; i < (offset + size + 3) / 4; i++) {
        word_order *word = &words[i];
        unsigned low = i * 4 < offset ? static_cast<unsigned>(offset % 4) : 0;
        unsigned high = i * 4 + 4 > offset + size ? static_cast<unsigned>((offset + size) % 4) : 4;
        unsigned bytes = (1u << high) - (1u << low);
        uint32_t writer = word->writer & ~ATOMIC;
        bool both_atomic = kind == ACCESS_ATOMIC && word->writer & ATOMIC;
        if (writer != current && writer != 0 && !both_atomic && !before_current(writer))
            unordered(writer, "wrote", kind, i * 4);
        if (block != 0 && writer == current && !both_atomic)
            judge_block(word->written, bytes, true, kind, i * 4);
        if (kind == ACCESS_READ) {
            note_block(word->read, bytes, word->reader == current);
            word->reader = current;
            continue;
        }
        if (word->reader != current && word->reader != 0 && !before_current(word->reader))
            unordered(word->reader, "read", kind, i * 4);
        if (block != 0 && word->reader == current)
            judge_block(word->read, bytes, false, kind, i * 4);
        note_block(word->written, bytes, writer == current);
        word->writer = kind == ACCESS_ATOMIC ? current | ATOMIC : current;
        if (block != 0 && kind == ACCESS_ATOMIC)
            meet(i);
    }
}

void order_forget(uintptr_t offset, size_t size)
{
    if (words != nullptr)
        madvise(&words[offset / 4], size / 4 * sizeof *words, MADV_DONTNEED);
}
