/* null_backend.h - a backend that computes and copies nothing, for measuring what lies around it. Its arenas are reserved address space: memory
 * is taken only where a page is touched, and nothing touches one. They live as long as the program. */
#ifndef ROOST_TESTS_BENCH_NULL_BACKEND_H
#define ROOST_TESTS_BENCH_NULL_BACKEND_H
#include "worker/engine/backend/backend.h"

extern const struct backend_ops null_backend_ops;   /* no create, forward or page_bytes: only what kv_cache.h calls */

#endif
