# The whole CUDA backend.
set(worker_tests ${CMAKE_SOURCE_DIR}/tests/unit/worker)
foreach(test IN ITEMS backend_cuda_test backend_matrix_test kv_cuda_test)
  roost_unit_test(NAME ${test} SOURCES ${test}.c ${worker_tests}/backend_fixture.c ${worker_tests}/random_model.c
                  LIBRARIES roost_backend_cuda_emulated roost_model roost_text roost_kv m LABELS emulation TIMEOUT 900)
  target_include_directories(${test} PRIVATE ${worker_tests})
endforeach()
roost_unit_test(NAME engine_cuda_test SOURCES engine_cuda_test.c ${worker_tests}/engine_client.c ${worker_tests}/random_model.c
                LIBRARIES roost_engine roost_backend_cuda_emulated LABELS emulation TIMEOUT 900)
