/* memory.cc - device memory is one range of addresses that the host may not touch except while the emulator runs (memory_open). Allocations
 * begin at pages and have an unused page behind them; freed ones are used again only after the range was gone through once. */
#include <algorithm>
#include <map>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "tests/cuda_emulation/emulator.h"

#define PAGE 4096u
#define RANGE_SIZE (size_t(32) << 30)            /* eight times the default memory: the address space is free, and reuse comes late */
#define MEMORY_DEFAULT (size_t(4) << 30)
#define GARBAGE_MAX (size_t(16) << 20)           /* so much of an allocation is filled, so that large pools cost no memory */

namespace {
unsigned char *base;
size_t high, next_at;                            /* the range that was ever used; where the search goes on */
auto &allocated = *new std::map<size_t, size_t>;         /* offset -> size */
uint64_t *page_end;                              /* by page: where its allocation ends, as an offset; 0: none */
auto &pinned = *new std::map<uintptr_t, size_t>, &registered = *new std::map<uintptr_t, size_t>;
size_t limit;
int open_depth;

void begin()
{
    if (base != nullptr)
        return;
    void *range = mmap(nullptr, RANGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    void *pages = mmap(nullptr, RANGE_SIZE / PAGE * sizeof *page_end, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED || pages == MAP_FAILED) {
        perror("cuda emulation: addresses for the device's memory");
        abort();
    }
    base = static_cast<unsigned char *>(range);
    page_end = static_cast<uint64_t *>(pages);
}

size_t whole_pages(size_t size)
{
    return (size + PAGE - 1) / PAGE * PAGE;
}

/* The first gap from `from` on that holds `size` and a page behind it. */
size_t find_gap(size_t from, size_t size)
{
    size_t at = from;
    for (auto i = allocated.lower_bound(from); i != allocated.end(); ++i) {
        if (at + size + PAGE <= i->first)
            return at;
        at = i->first + whole_pages(i->second) + PAGE;
    }
    return at + size + PAGE <= RANGE_SIZE ? at : SIZE_MAX;
}

void protect(int how)
{
    if (high != 0 && mprotect(base, high, how) != 0) {
        perror("cuda emulation: mprotect");
        abort();
    }
}
} // namespace

size_t memory_limit()
{
    if (limit == 0) {
        const char *text = getenv("ROOST_EMULATION_MEMORY");
        limit = text != nullptr && *text != '\0' ? strtoull(text, nullptr, 10) : MEMORY_DEFAULT;
    }
    return limit;
}

void memory_set_limit(size_t bytes)
{
    limit = bytes;
}

void *memory_device_alloc(size_t size)
{
    begin();
    size_t rounded = whole_pages(size);
    if (rounded < size || rounded > memory_limit() || emulation_count.memory_used > memory_limit() - rounded)
        return nullptr;
    size_t at = find_gap(next_at, rounded);
    if (at == SIZE_MAX)
        at = find_gap(0, rounded);
    if (at == SIZE_MAX)
        return nullptr;
    memory_open();
    if (at + rounded > high) {
        if (mprotect(base + high, at + rounded - high, PROT_READ | PROT_WRITE) != 0) {
            memory_close();
            return nullptr;
        }
        high = at + rounded;
    }
    memset(base + at, 0xff, std::min(size, GARBAGE_MAX));        /* NaN as float, -1 as an integer */
    memory_close();
    allocated[at] = size;
    for (size_t page = at / PAGE; page < (at + rounded) / PAGE; page++)
        page_end[page] = at + size;
    next_at = at + rounded + PAGE;
    emulation_count.memory_used += rounded;
    emulation_count.memory_peak = std::max(emulation_count.memory_peak, emulation_count.memory_used);
    return base + at;
}

bool memory_device_free(void *p)
{
    auto i = allocated.find(static_cast<size_t>(static_cast<unsigned char *>(p) - base));
    if (base == nullptr || i == allocated.end())
        return false;
    size_t at = i->first, rounded = whole_pages(i->second);
    allocated.erase(i);
    for (size_t page = at / PAGE; page < (at + rounded) / PAGE; page++)
        page_end[page] = 0;
    madvise(base + at, rounded, MADV_DONTNEED);
    order_forget(at, rounded);
    emulation_count.memory_used -= rounded;
    return true;
}

void *memory_pinned_alloc(size_t size)
{
    void *p = mmap(nullptr, whole_pages(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return nullptr;
    memset(p, 0xff, std::min(size, GARBAGE_MAX));
    pinned[reinterpret_cast<uintptr_t>(p)] = size;
    emulation_count.pinned_used += whole_pages(size);
    return p;
}

bool memory_pinned_free(void *p)
{
    auto i = pinned.find(reinterpret_cast<uintptr_t>(p));
    if (i == pinned.end())
        return false;
    emulation_count.pinned_used -= whole_pages(i->second);
    munmap(p, whole_pages(i->second));
    pinned.erase(i);
    return true;
}

bool memory_pinned_register(void *p, size_t size)
{
    return size != 0 && memory_kind_of(p) == MEMORY_PAGEABLE && registered.emplace(reinterpret_cast<uintptr_t>(p), size).second;
}

bool memory_pinned_unregister(void *p)
{
    return registered.erase(reinterpret_cast<uintptr_t>(p)) == 1;
}

bool memory_in_device_range(const void *p)
{
    return static_cast<size_t>(static_cast<const unsigned char *>(p) - base) < RANGE_SIZE && base != nullptr;
}

uintptr_t memory_device_base()
{
    return reinterpret_cast<uintptr_t>(base);
}

static size_t left_in(const std::map<uintptr_t, size_t> &ranges, uintptr_t p)
{
    auto i = ranges.upper_bound(p);
    if (i == ranges.begin())
        return 0;
    --i;
    return p - i->first < i->second ? i->second - (p - i->first) : 0;
}

size_t memory_left(const void *p)
{
    if (memory_in_device_range(p)) {
        size_t at = static_cast<size_t>(static_cast<const unsigned char *>(p) - base);
        uint64_t end = page_end[at / PAGE];
        return end > at ? end - at : 0;
    }
    size_t left = left_in(pinned, reinterpret_cast<uintptr_t>(p));
    return left != 0 ? left : left_in(registered, reinterpret_cast<uintptr_t>(p));
}

memory_kind memory_kind_of(const void *p)
{
    if (memory_left(p) == 0)
        return MEMORY_PAGEABLE;
    return memory_in_device_range(p) ? MEMORY_DEVICE : MEMORY_PINNED;
}

void memory_open()
{
    if (open_depth++ == 0)
        protect(PROT_READ | PROT_WRITE);
}

void memory_close()
{
    if (--open_depth == 0)
        protect(PROT_NONE);
}
