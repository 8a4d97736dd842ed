/* isa.c - which levels were built, which this machine runs, and the choice at start. */
#include "kernels/kernels.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/log.h"

extern const struct kernels kernels_baseline;
#ifdef ROOST_KERNELS_X86
extern const struct kernels kernels_avx2, kernels_avx512, kernels_avx512vnni;
#endif

static const struct kernels *const levels_[] = {
    &kernels_baseline,
#ifdef ROOST_KERNELS_X86
    &kernels_avx2, &kernels_avx512, &kernels_avx512vnni,
#endif
};
#define LEVEL_COUNT (sizeof levels_ / sizeof *levels_)

static bool runs_here(unsigned level)
{
#ifdef ROOST_KERNELS_X86
    __builtin_cpu_init();
    switch (level) {
    case 1: return __builtin_cpu_supports("x86-64-v3");
    case 2: return __builtin_cpu_supports("x86-64-v4");
    case 3: return __builtin_cpu_supports("x86-64-v4") && __builtin_cpu_supports("avx512vnni");
    default: break;
    }
#endif
    return level == 0;
}

const struct kernels *kernels_at(unsigned index)
{
    for (unsigned level = 0; level < LEVEL_COUNT; level++)
        if (runs_here(level) && index-- == 0)
            return levels_[level];
    return NULL;
}

static enum status find(const char *isa, const struct kernels **out)
{
    char names[64] = "";
    for (unsigned level = 0; level < LEVEL_COUNT; level++) {
        if (strcmp(isa, levels_[level]->isa) == 0) {
            if (!runs_here(level))
                return STATUS_FAIL(STATUS_UNSUPPORTED, "ROOST_ISA=%s: this processor does not have it", isa);
            *out = levels_[level];
            return STATUS_OK;
        }
        snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", level ? ", " : "", levels_[level]->isa);
    }
    return STATUS_FAIL(STATUS_INVALID, "ROOST_ISA=%.32s: not a level; use one of %s", isa, names);
}

enum status kernels_select_isa(const char *isa, const struct kernels **out)
{
    const struct kernels *chosen = levels_[0];
    if (isa && *isa) {
        TRY(find(isa, &chosen));
    } else {
        for (unsigned level = 1; level < LEVEL_COUNT; level++)
            if (runs_here(level))
                chosen = levels_[level];
    }
    if (kernels_check(chosen) != STATUS_OK) {
        if (chosen == levels_[0])
            return STATUS_CORRUPT;
        LOG_WARN("kernels: level %s fails its known answer, using %s: %s", chosen->isa, levels_[0]->isa, status_detail());
        chosen = levels_[0];
        TRY(kernels_check(chosen));
    }
    *out = chosen;
    return STATUS_OK;
}

enum status kernels_select(const struct kernels **out)
{
    return kernels_select_isa(getenv("ROOST_ISA"), out);
}

void kernels_float_enter(fenv_t *saved)
{
    (void)fegetenv(saved);
    (void)fesetenv(FE_DFL_ENV);
}

void kernels_float_leave(const fenv_t *saved)
{
    (void)fesetenv(saved);
}

size_t attention_scratch_bytes(size_t heads, size_t kv_heads, size_t dim)
{
    size_t group = heads / kv_heads;
    size_t pairs = group < ATTENTION_PAIRS ? ATTENTION_PAIRS : group;
    size_t bytes_per_pair = dim * (2 + 4 + 4 + 4) + ATTENTION_BLOCK * (4 + 2) + 4 + 4 + 3 * 12;
    return pairs * bytes_per_pair + 11 * 64;     /* eleven arrays, each rounded up to 64 bytes */
}
