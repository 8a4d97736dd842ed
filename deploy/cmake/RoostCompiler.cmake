# One set of compiler flags for the whole tree, carried by the interface target roost_flags.
cmake_path(SET ROOST_TREE NORMALIZE ${CMAKE_CURRENT_LIST_DIR}/../..)      # tests/gpu is a project of its own inside it
string(REGEX REPLACE "/$" "" ROOST_TREE ${ROOST_TREE})
set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "" FORCE)
endif()

add_library(roost_flags INTERFACE)
target_compile_options(roost_flags INTERFACE
  -Wall -Wextra -Wshadow -Wpointer-arith -Wwrite-strings
  $<$<COMPILE_LANGUAGE:C>:-Wstrict-prototypes -Wmissing-prototypes>
  -fno-strict-aliasing
  -ffp-contract=off)            # docs/numerics.md: a fused multiply-add is written as fma(), never made by the compiler
target_compile_definitions(roost_flags INTERFACE _GNU_SOURCE ROOST_VERSION="${PROJECT_VERSION}")
target_include_directories(roost_flags INTERFACE ${ROOST_TREE})
if(ROOST_PROBES)
  target_compile_definitions(roost_flags INTERFACE ROOST_PROBES)
endif()
if(ROOST_WERROR)
  target_compile_options(roost_flags INTERFACE -Werror)
endif()
if(ROOST_SANITIZE)
  target_compile_options(roost_flags INTERFACE -fsanitize=${ROOST_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(roost_flags INTERFACE -fsanitize=${ROOST_SANITIZE})
endif()
if(ROOST_FUZZ)
  if(NOT CMAKE_C_COMPILER_ID STREQUAL "Clang")
    message(FATAL_ERROR "ROOST_FUZZ needs clang: use the preset fuzz")
  endif()
  target_compile_options(roost_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
