# Matrices.
roost_unit_test(NAME cuda_gemm_test SOURCES gemm_test.c gemm_job.c ../kernels/reference.c LIBRARIES roost_kernels_cuda_emulated roost_kernels m
                LABELS emulation TIMEOUT 900)
