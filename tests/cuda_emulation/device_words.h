/* device_words.h - words of device memory, for the emulator's own tests. C++. */
#ifndef ROOST_TESTS_CUDA_EMULATION_DEVICE_WORDS_H
#define ROOST_TESTS_CUDA_EMULATION_DEVICE_WORDS_H
#include <stdint.h>
#include "kernels/cuda/runtime.h"

struct device_words {                   /* owned; to and from it by waiting copies */
    uint32_t *p;
    uint32_t count;
    explicit device_words(uint32_t n) : p(nullptr), count(n) { (void)cudaMalloc(reinterpret_cast<void **>(&p), n * 4); }
    ~device_words() { (void)cudaFree(p); }
    void put(const uint32_t *from) { (void)cudaMemcpy(p, from, count * 4, cudaMemcpyHostToDevice); }
    void get(uint32_t *to) { (void)cudaMemcpy(to, p, count * 4, cudaMemcpyDeviceToHost); }
};

#endif
