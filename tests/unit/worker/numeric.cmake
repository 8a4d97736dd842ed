# Unit tests of the numerical half of the engine.
set(numeric_here ${CMAKE_CURRENT_LIST_DIR})
roost_unit_test(NAME model_config_test SOURCES ${numeric_here}/model_config_test.c LIBRARIES roost_engine)
roost_unit_test(NAME safetensors_test SOURCES ${numeric_here}/safetensors_test.c ${numeric_here}/random_model.c LIBRARIES roost_engine)
roost_unit_test(NAME backend_test SOURCES ${numeric_here}/backend_test.c ${numeric_here}/random_model.c LIBRARIES roost_engine dep::jansson m)
