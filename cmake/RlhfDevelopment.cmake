# What tests, benchmarks and examples of this project share. Nothing here reaches a user of the
# library.
set(CMAKE_CXX_EXTENSIONS OFF)

# The same object twice, in another clone or another build folder, is compiled once.
find_program(RLHF_CCACHE ccache DOC "Compiler cache; empty to do without")
mark_as_advanced(RLHF_CCACHE)
set(rlhf_launcher "")
if(RLHF_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(rlhf_launcher "${CMAKE_COMMAND}" -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      "CCACHE_BASEDIR=${PROJECT_SOURCE_DIR}" CCACHE_NOHASHDIR=1 "${RLHF_CCACHE}")
  set(CMAKE_CXX_COMPILER_LAUNCHER ${rlhf_launcher})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${rlhf_launcher})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)  # ccache asks for it
  endif()
endif()

# Our headers must be silent under all of these. Other people's headers are SYSTEM.
set(rlhf_warning_flags -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow
    -Wdouble-promotion -Wold-style-cast -Werror)
add_library(rlhf_warnings INTERFACE)
target_compile_options(rlhf_warnings INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${rlhf_warning_flags}>)


# A machine without packages: headers that were brought along stand in for them.
set(RLHF_HEADERS "" CACHE PATH "A folder with doctest/doctest.h and nlohmann/json.hpp")
function(rlhf_carried target header)
  if(RLHF_HEADERS AND NOT TARGET ${target} AND EXISTS "${RLHF_HEADERS}/${header}")
    add_library(${target} INTERFACE IMPORTED GLOBAL)
    target_include_directories(${target} SYSTEM INTERFACE "${RLHF_HEADERS}")
  endif()
endfunction()
