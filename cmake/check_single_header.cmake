# cmake -DFOLDER=... "-DCOMPILE=launcher;compiler" "-DWARNINGS=..." "-DVARIANTS=plain;..." -P
# check_single_header.cmake
#
# Makes the single header twice and compares the bytes; then, for each variant, compiles the two
# units of tests/single_header/ with nothing else on the include path, links them and runs the
# program.
cmake_minimum_required(VERSION 3.25)
get_filename_component(root "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)

# Flags of the first unit | flags of the second.
set(plain "|")
set(scalar "-DRLHF_NO_SIMD|-DRLHF_NO_SIMD")
set(without_exceptions_and_rtti "-fno-exceptions;-fno-rtti|-fno-exceptions;-fno-rtti")
set(strict_optimised "-O2;-DRLHF_STRICT|-O2;-DRLHF_STRICT")
set(mixed "|-DRLHF_NO_SIMD;-fno-exceptions")

function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE code)
  if(NOT code EQUAL 0)
    list(JOIN ARGV " " command)
    message(FATAL_ERROR "ended with ${code}: ${command}")
  endif()
endfunction()

file(REMOVE_RECURSE "${FOLDER}")
foreach(out one "other place")
  run("${CMAKE_COMMAND}" "-DOUT=${FOLDER}/${out}" -P "${root}/cmake/single_header.cmake")
endforeach()
run("${CMAKE_COMMAND}" -E compare_files "${FOLDER}/one/rlhf/rlhf.hpp"
    "${FOLDER}/other place/rlhf/rlhf.hpp")

file(STRINGS "${FOLDER}/one/rlhf/rlhf.hpp" first LIMIT_COUNT 4)
if(NOT "${first}" MATCHES "rlhf [0-9]+\\.[0-9]+\\.[0-9]+:.*SPDX-License-Identifier: Apache-2\\.0")
  message(FATAL_ERROR "no version and licence at the top:\n${first}")
endif()
file(STRINGS "${FOLDER}/one/rlhf/rlhf.hpp" own REGEX "#[ ]*include[ ]*[\"<]rlhf/")
if(own)
  message(FATAL_ERROR "an own include is left: ${own}")
endif()

foreach(variant IN LISTS VARIANTS)
  if(NOT DEFINED ${variant} OR NOT "${${variant}}" MATCHES "^(.*)\\|(.*)$")
    message(FATAL_ERROR "there is no variant ${variant}")
  endif()
  set(flags_of_first ${CMAKE_MATCH_1})
  set(flags_of_second ${CMAKE_MATCH_2})
  set(program "${FOLDER}/${variant}")
  foreach(unit first second)
    run(${COMPILE} -std=c++20 -O0 ${WARNINGS} ${flags_of_${unit}} "-I${FOLDER}/one"
        -c "${root}/tests/single_header/${unit}.cpp" -o "${program}_${unit}.o")
  endforeach()
  run(${COMPILE} "${program}_first.o" "${program}_second.o" -o "${program}")
  run("${program}")
endforeach()
