# gpu-bench, for a GPU (CMakeLists.txt) and for emulation (emulated/CMakeLists.txt). The .cu hold kernels.
set(GPU_BENCH_SOURCES bench_main.c bench_time.c bench_expect.c bench_report.c bench_matrices.c bench_lt.c bench_attention.c bench_rows.c bench_steps.c)
set(GPU_BENCH_KERNELS bench_ceiling.cu bench_scale.cu)
