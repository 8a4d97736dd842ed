/* emulator_faults.h - small kernels, each with one planted fault and mended. */
#ifndef ROOST_TESTS_CUDA_EMULATION_EMULATOR_FAULTS_H
#define ROOST_TESTS_CUDA_EMULATION_EMULATOR_FAULTS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct emulator_fault {
    const char *name, *message;         /* part of what the emulator says */
    bool (*run)(bool mended);           /* launches and waits; false: a result is wrong */
};
extern const struct emulator_fault emulator_faults[];
extern const size_t emulator_fault_count;

/* What a kernel of the given grid and block costs: every thread meets `barriers` barriers. */
bool emulator_measure(uint32_t blocks, uint32_t threads, uint32_t barriers);
/* As many threads as ENTRY says are accepted, a warp more is refused. */
bool emulator_launch_bounds(void);
/* A kernel with collectives of all kinds over random values, compared with plain loops. */
bool emulator_lanes_agree(uint64_t seed);
/* 16 x 32 by 32 x 8 bytes through ldmatrix and mma, as kernels load their fragments, compared with a plain product. */
bool emulator_product_agrees(uint64_t seed);

#ifdef __cplusplus
}
#endif
#endif
