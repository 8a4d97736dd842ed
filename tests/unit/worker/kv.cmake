roost_unit_test(NAME kv_random_test SOURCES kv_random_test.c kv_world.c fake_backend.c LIBRARIES roost_kv LABELS unit seeded)
roost_unit_test(NAME kv_cache_test SOURCES kv_cache_test.c kv_world.c fake_backend.c LIBRARIES roost_kv LABELS unit seeded)
roost_unit_test(NAME kv_tier_test SOURCES kv_tier_test.c kv_world.c fake_backend.c LIBRARIES roost_kv LABELS unit seeded)
