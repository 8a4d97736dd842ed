/* backend_cuda.h - the models of backend_cpu.h on one NVIDIA GPU of compute capability 8.0 or more: the same bits, the same pages. In the plugin
 * libroost_cuda.so (backend_load.h), and with ROOST_CUDA_EMULATION on the emulated device of tests/cuda_emulation.
 *
 * The device is the first that CUDA shows (CUDA_VISIBLE_DEVICES chooses), of rank r the one with number r. The device tier is its memory, the
 * host tier pinned memory. Weights are copied at create; of per-layer embeddings the rows of a batch go over at each step. Everything that
 * forward starts has ended when it returns, so copies, which run beside it, need no order of their own. After an error of the device nothing
 * works any more: forward returns STATUS_CLOSED with its words, copies count as done. Called by one thread; copies and page_copy_prefix may be
 * another one's, all of them. */
#ifndef ROOST_WORKER_ENGINE_BACKEND_CUDA_H
#define ROOST_WORKER_ENGINE_BACKEND_CUDA_H
#include "worker/engine/backend/backend.h"

struct backend_cuda_counts {       /* since create */
    uint64_t graphs_captured, graph_launches;
};
void backend_cuda_counts(const struct backend *backend, struct backend_cuda_counts *out);

extern const struct backend_ops backend_cuda_ops;
extern const struct rank_ops rank_cuda_ops;       /* rank.h */

#endif
