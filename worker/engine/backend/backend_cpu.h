/* backend_cpu.h - what backend_cpu_ops cannot say: for tests, benchmarks and --version output. As one of several ranks: rank.h. */
#ifndef ROOST_WORKER_ENGINE_BACKEND_CPU_H
#define ROOST_WORKER_ENGINE_BACKEND_CPU_H

struct backend;

/* The instruction-set level in use: "baseline", "avx2", "avx512", "avx512vnni". */
const char *backend_cpu_isa(const struct backend *backend);

#endif
