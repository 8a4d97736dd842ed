# Kernels of rows, heads and samples.
foreach(test IN ITEMS embed gate join norm qkv quantize rope sample)
  roost_unit_test(NAME cuda_${test}_test SOURCES ${test}_test.c ../kernels/reference.c LIBRARIES roost_kernels_cuda_emulated roost_text roost_kernels m
                  LABELS emulation TIMEOUT 900)
endforeach()
