/* cuda_plugin.c - the CUDA backend as a plugin. */
#include "worker/engine/backend/backend_plugin.h"
#include "worker/engine/backend/cuda/backend_cuda.h"

const struct backend_plugin roost_backend_plugin = {.abi = BACKEND_PLUGIN_ABI, .ops = &backend_cuda_ops, .ranks = &rank_cuda_ops};
