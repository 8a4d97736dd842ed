# roost_redis: the asynchronous connection to Redis. A library of its own, so that only who talks to Redis links hiredis.
add_library(roost_redis STATIC ${CMAKE_CURRENT_LIST_DIR}/redis_link.c)
target_link_libraries(roost_redis PUBLIC roost_common PRIVATE roost_flags dep::hiredis dep::event)
