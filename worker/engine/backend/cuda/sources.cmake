# The CUDA backend's own sources: for the plugin (CMakeLists.txt here), for emulation, and for tests/gpu.
set(BACKEND_CUDA_SOURCES
  backend_cuda.c
  backend_cuda_copies.c
  backend_cuda_graph.c
  backend_cuda_layers.c
  backend_cuda_linear.c
  backend_cuda_memory.c
  backend_cuda_ranks.c
  backend_cuda_step.c
  cuda_health.c
)
