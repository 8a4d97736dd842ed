# The numerical half of the engine: model files, weights and the CPU backend.
target_sources(roost_engine PRIVATE
  ${CMAKE_CURRENT_LIST_DIR}/model_config.c
  ${CMAKE_CURRENT_LIST_DIR}/safetensors.c
  ${CMAKE_CURRENT_LIST_DIR}/model.c
  ${CMAKE_CURRENT_LIST_DIR}/backend_cpu.c)
target_link_libraries(roost_engine PUBLIC roost_kernels PRIVATE dep::jansson)
