# Attention, its plan and pages.
roost_unit_test(NAME cuda_attention_plan_test SOURCES attention_plan_test.c ${CMAKE_SOURCE_DIR}/kernels/cuda/attention_plan.c LIBRARIES roost_common)
foreach(test IN ITEMS attention page)
  roost_unit_test(NAME cuda_${test}_test SOURCES ${test}_test.c ../kernels/reference.c LIBRARIES roost_kernels_cuda_emulated roost_kernels m
                  LABELS emulation)
endforeach()
