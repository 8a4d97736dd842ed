# ROOST_CUDA=AUTO looks for the toolkit and says what it found; ON fails loudly without it; OFF never looks.
# The same kernels are compiled for the CPU by tests/cuda_emulation, with or without a toolkit.
#
# AUTO builds the real objects for all three architectures, so that what CI runs compiles every kernel with warnings as errors and has ptxas' word on
# each (tests/gpu/code). Measured on two cores, nothing cached: 72 s of nvcc, 74 s of a build of the kernels alone, of the 25 minutes that tests/run
# may take; one architecture would be 23 s (sm_80 22, sm_90a 23, sm_100 27), and would leave the others' warnings and spills to be found later.
# Not with sanitizers: they do not reach these objects, which would be the same ones once more.
set(ROOST_HAVE_CUDA OFF)
set(ROOST_CUDA_WHY_NOT "ROOST_CUDA is ${ROOST_CUDA}")
if(NOT ROOST_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "ROOST_CUDA is '${ROOST_CUDA}': use AUTO, ON or OFF")
endif()
if(ROOST_CUDA STREQUAL "AUTO" AND ROOST_SANITIZE)
  set(ROOST_CUDA_WHY_NOT "ROOST_CUDA is AUTO, and this is a build with sanitizers")
  message(STATUS "CUDA: left out, ${ROOST_CUDA_WHY_NOT}")
elseif(NOT ROOST_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    find_package(CUDAToolkit QUIET)
  endif()
  if(CMAKE_CUDA_COMPILER AND CUDAToolkit_FOUND)
    set(ROOST_HAVE_CUDA ON)
    message(STATUS "CUDA: toolkit ${CUDAToolkit_VERSION} found")
  elseif(ROOST_CUDA STREQUAL "ON")
    message(FATAL_ERROR "ROOST_CUDA=ON, but no CUDA compiler and toolkit were found: install the CUDA toolkit and put nvcc on PATH, or use -DROOST_CUDA=AUTO or OFF")
  else()
    set(ROOST_CUDA_WHY_NOT "no nvcc found")
    message(STATUS "CUDA: not found, building for the CPU only")
  endif()
endif()

if(ROOST_HAVE_CUDA)
  # A100; H100 with its own features; B100 and, as PTX, what comes after.
  set(CMAKE_CUDA_ARCHITECTURES "80;90a-real;100")
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
endif()

# docs/numerics.md's arithmetic.
set(ROOST_CUDA_CODE_FLAGS -fmad=false -prec-div=true -prec-sqrt=true -ftz=false)

# Flags of every target with .cu files: that arithmetic, and all warnings of nvcc, ptxas and the host compiler as errors.
function(roost_cuda_target target)
  target_include_directories(${target} PRIVATE ${ROOST_TREE})
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:${ROOST_CUDA_CODE_FLAGS} -Werror=all-warnings -Xptxas=-v
    -Xcompiler=-Wall,-Wextra,-Wno-unused-function,-fno-strict-aliasing,-ffp-contract=off>)
  target_link_libraries(${target} PUBLIC CUDA::cudart_static)
  set_target_properties(${target} PROPERTIES CUDA_COMPILER_LAUNCHER "${ROOST_TREE}/deploy/cmake/nvcc_report")
endfunction()

# Emulation needs the thread sanitizer's hooks for its own checks, so a build with that sanitizer goes without it.
set(ROOST_EMULATION OFF)
if(ROOST_TESTS AND NOT ROOST_FUZZ AND NOT ROOST_SANITIZE MATCHES "thread")
  set(ROOST_EMULATION ON)
endif()

# Sources with kernels, in targets that link roost_cuda_emulator: C++, with a call before each load and store (tests/cuda_emulation/shadow.cc).
function(roost_emulated_sources)
  set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS
    "-fno-sanitize=address;-fsanitize=thread;$<$<CXX_COMPILER_ID:GNU>:--param=tsan-instrument-func-entry-exit=0>;-fno-math-errno;-Wno-unused-function")
endfunction()
