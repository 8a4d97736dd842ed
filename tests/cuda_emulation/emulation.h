/* emulation.h - what tests may set and read of the emulated device. C and C++. All settings are of the process; call between launches.
 *
 * Environment: ROOST_TEST_SEED (orders, 1 without it), ROOST_EMULATION_MEMORY (bytes of device memory, default 4 GiB), ROOST_EMULATION_DEVICES
 * (default 1; 0: no driver), ROOST_EMULATION_CAPABILITY ("8.0"), ROOST_EMULATION_POISON (n: the n-th kernel launch that runs faults, and every
 * call after it fails, as on a poisoned context), ROOST_EMULATION_REFUSE (n: the n-th launch is refused). */
#ifndef ROOST_TESTS_CUDA_EMULATION_EMULATION_H
#define ROOST_TESTS_CUDA_EMULATION_EMULATION_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

bool emulation_present(void);                         /* false where tests/gpu runs the same tests on a GPU; all below then does nothing */
uint64_t emulation_seed(void);
void emulation_set_seed(uint64_t seed);               /* begins the drawn orders anew */

/* How eagerly streams run: 0 only when the host waits; 256 at once; default 64: about a quarter of the calls run something. */
void emulation_set_eagerness(unsigned of_256);

void emulation_set_memory(size_t bytes);
void emulation_poison_at(uint64_t launch, int error); /* counted from now, 1 the next launch that runs; 0: never. error: a cudaError_t */
void emulation_refuse_at(uint64_t launch);            /* counted from now; 0: never */
void emulation_heal(void);                            /* the context is whole again, as in a new process; queued work is dropped */

struct emulation_counts {
    uint64_t launches, blocks, threads, switches, accesses, operations;
    size_t memory_used, memory_peak, pinned_used;
    uint64_t graphs;                                  /* there now, instances of graphs among them */
};
void emulation_get_counts(struct emulation_counts *counts);

#ifdef __cplusplus
}
#endif
#endif
