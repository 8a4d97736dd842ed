# What a GPU's driver says of it, with a library that stands in for the driver's.
add_library(nvml_standin SHARED nvml/nvml_standin.c)
target_link_libraries(nvml_standin PRIVATE roost_flags)
set_target_properties(nvml_standin PROPERTIES OUTPUT_NAME nvidia-ml SUFFIX .so.1 LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests/nvml)
roost_unit_test(NAME cuda_health_test SOURCES cuda_health_test.c LIBRARIES roost_backend_cuda_emulated LABELS emulation
                ENVIRONMENT "LD_LIBRARY_PATH=${CMAKE_BINARY_DIR}/tests/nvml")
add_dependencies(cuda_health_test nvml_standin)
