set(backend_sources backend_fixture.c random_model.c)
roost_unit_test(NAME model_config_test SOURCES model_config_test.c LIBRARIES roost_model)
roost_unit_test(NAME safetensors_test SOURCES safetensors_test.c LIBRARIES roost_model)
roost_unit_test(NAME model_test SOURCES model_test.c random_model.c LIBRARIES roost_model m)
roost_unit_test(NAME backend_test SOURCES backend_test.c reference_forward.c ../kernels/reference.c ${backend_sources}
  LIBRARIES roost_model m LABELS unit equality TIMEOUT 900)
roost_unit_test(NAME backend_float_test SOURCES backend_float_test.c ${backend_sources} LIBRARIES roost_model m)
roost_unit_test(NAME backend_memory_test SOURCES backend_memory_test.c ${backend_sources} LIBRARIES roost_model m)
roost_unit_test(NAME known_answer_test SOURCES known_answer_test.c ${backend_sources} LIBRARIES roost_model m LABELS unit equality)
