# Libraries from the distribution. Package names (Debian 12) are in deploy/packages.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
foreach(dependency IN ITEMS
    "zmq:libzmq>=4.3.4" "protobuf_c:libprotobuf-c>=1.4" "hiredis:hiredis>=0.14" "event:libevent_core>=2.1"
    "cyaml:libcyaml>=1.3" "jansson:jansson>=2.14" "sodium:libsodium>=1.0.18" "xxhash:libxxhash>=0.8"
    "sentencepiece:sentencepiece>=0.1.97" "curl:libcurl>=7.85")
  string(REGEX MATCH "^([^:]+):(.+)$" _ "${dependency}")
  set(_name ${CMAKE_MATCH_1})
  pkg_check_modules(${_name} REQUIRED IMPORTED_TARGET "${CMAKE_MATCH_2}")
  add_library(dep::${_name} ALIAS PkgConfig::${_name})
endforeach()
if(ROOST_TESTS)
  pkg_check_modules(cmocka REQUIRED IMPORTED_TARGET cmocka>=1.1.5)
  add_library(dep::cmocka ALIAS PkgConfig::cmocka)
endif()
find_program(PROTOC_C protoc-c REQUIRED)
