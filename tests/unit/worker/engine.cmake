roost_unit_test(NAME scheduler_test SOURCES scheduler_test.c LIBRARIES roost_engine LABELS unit seeded)

set(engine_test_base engine_client.c engine_fixture.c fake_backend.c random_model.c)
roost_unit_test(NAME engine_test SOURCES engine_test.c ${engine_test_base} LIBRARIES roost_engine LABELS unit seeded)
roost_unit_test(NAME engine_batch_test SOURCES engine_batch_test.c ${engine_test_base} LIBRARIES roost_engine)
roost_unit_test(NAME engine_reply_test SOURCES engine_reply_test.c ${engine_test_base} LIBRARIES roost_engine m)
roost_unit_test(NAME engine_fate_test SOURCES engine_fate_test.c ${engine_test_base} LIBRARIES roost_engine LABELS unit seeded)
roost_unit_test(NAME engine_draw_test SOURCES engine_draw_test.c drawing_backend.c ${engine_test_base}
  LIBRARIES roost_engine m LABELS unit equality)
roost_unit_test(NAME engine_resume_test SOURCES engine_resume_test.c ${engine_test_base}
  LIBRARIES roost_engine LABELS unit equality)
roost_unit_test(NAME backend_simulate_test SOURCES backend_simulate_test.c ${engine_test_base} LIBRARIES roost_engine)
roost_unit_test(NAME engine_soak_test SOURCES engine_soak_test.c ${engine_test_base}
  LIBRARIES roost_engine LABELS unit equality seeded)
roost_unit_test(NAME engine_known_answer_test SOURCES engine_known_answer_test.c ${engine_test_base}
  LIBRARIES roost_engine dep::jansson LABELS unit equality)
roost_unit_test(NAME engine_equality_test SOURCES engine_equality_test.c drawing_backend.c engine_client.c random_model.c
  LIBRARIES roost_engine m LABELS unit equality TIMEOUT 900)
