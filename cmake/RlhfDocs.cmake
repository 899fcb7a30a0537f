# docs/snippets/<name>.cpp is a program whose code the pages show; <name>.txt, its transcript, is
# what they show as its output, and what the test snippet.<name> holds it to. start_c.c is linked by
# the C compiler with c_shim.cpp; *.cu are compiled by nvcc, and run where there is a GPU.
set(rlhf_snippets "${PROJECT_SOURCE_DIR}/docs/snippets")
add_custom_target(rlhf_snippets)

function(rlhf_snippet_test name program)
  set(transcript "${rlhf_snippets}/${name}.txt")
  if(NOT EXISTS "${transcript}")
    message(FATAL_ERROR "docs/snippets/${name} has no transcript ${name}.txt")
  endif()
  add_test(NAME snippet.${name} COMMAND "${CMAKE_COMMAND}" "-DPROGRAM=${program}"
           "-DTRANSCRIPT=${transcript}" "-DFOLDER=${CMAKE_CURRENT_BINARY_DIR}/snippets"
           -P "${PROJECT_SOURCE_DIR}/cmake/compare_print.cmake")
endfunction()

if(NOT RLHF_TEST_ROOMS)
  find_package(Threads QUIET)
  file(GLOB rlhf_snippet_files CONFIGURE_DEPENDS "${rlhf_snippets}/*.cpp")
  list(REMOVE_ITEM rlhf_snippet_files "${rlhf_snippets}/c_shim.cpp")
  foreach(file IN LISTS rlhf_snippet_files)
    cmake_path(GET file STEM name)
    file(READ "${file}" text)
    set(components "")
    set(missing "")
    foreach(component IN LISTS rlhf_components)
      if(text MATCHES "rlhf/backend/${component}\\.hpp")
        list(APPEND components rlhf::${component})
        if(NOT rlhf_has_${component})
          list(APPEND missing ${component})
        endif()
      endif()
    endforeach()
    if(missing)
      rlhf_skip("snippet ${name}" "not found: ${missing}")
      continue()
    endif()
    add_executable(snippet_${name} "${file}")
    target_link_libraries(snippet_${name} PRIVATE rlhf::rlhf ${components} rlhf_warnings
                                                  Threads::Threads)
    target_compile_options(snippet_${name} PRIVATE ${rlhf_test_optimise})
    add_dependencies(rlhf_snippets snippet_${name})
    rlhf_snippet_test(${name} $<TARGET_FILE:snippet_${name}>)
  endforeach()

  # Strict mode once more, with the instructions whose bits would differ without it.
  if(TARGET snippet_strict)
    include(CheckCXXSourceRuns)
    check_cxx_source_runs("int main() {
      return __builtin_cpu_supports(\"avx2\") && __builtin_cpu_supports(\"fma\") ? 0 : 1; }"
      RLHF_RUNS_AVX2)
    if(RLHF_RUNS_AVX2)
      add_executable(snippet_strict_avx2 "${rlhf_snippets}/strict.cpp")
      target_link_libraries(snippet_strict_avx2 PRIVATE rlhf::rlhf rlhf_warnings)
      # With less than -O2 g++ fuses nothing in any mode.
      target_compile_options(snippet_strict_avx2 PRIVATE -O2 -mavx2 -mfma)
      add_dependencies(rlhf_snippets snippet_strict_avx2)
      add_test(NAME snippet.strict_avx2 COMMAND "${CMAKE_COMMAND}"
               "-DPROGRAM=$<TARGET_FILE:snippet_strict_avx2>"
               "-DTRANSCRIPT=${rlhf_snippets}/strict.txt"
               "-DFOLDER=${CMAKE_CURRENT_BINARY_DIR}/snippets"
               -P "${PROJECT_SOURCE_DIR}/cmake/compare_print.cmake")
    else()
      rlhf_skip("snippet strict with AVX2" "this processor lacks AVX2 or FMA")
    endif()
  endif()

  # A C program: one C++ file without exceptions and RTTI, and the C compiler does the rest, with
  # nothing of the C++ runtime. Written out, because CMake would link with what C++ needs.
  include(CheckLanguage)
  check_language(C)
  if(CMAKE_CXX_FLAGS MATCHES "-fsanitize=")
    rlhf_skip("snippet start_c" "sanitizers want to be linked by the C++ compiler")
  elseif(CMAKE_C_COMPILER)
    add_library(snippet_c_shim OBJECT "${rlhf_snippets}/c_shim.cpp")
    target_link_libraries(snippet_c_shim PRIVATE rlhf::rlhf rlhf_warnings)
    target_compile_options(snippet_c_shim PRIVATE ${rlhf_test_optimise} -fno-exceptions -fno-rtti)
    set(program "${CMAKE_CURRENT_BINARY_DIR}/snippet_start_c")
    set(warnings ${rlhf_warning_flags})
    list(REMOVE_ITEM warnings -Wold-style-cast)
    add_custom_command(OUTPUT "${program}"
      COMMAND "${CMAKE_C_COMPILER}" -std=c11 -O1 ${warnings} "${rlhf_snippets}/start_c.c"
              $<TARGET_OBJECTS:snippet_c_shim> -lm -o "${program}"
      DEPENDS "${rlhf_snippets}/start_c.c" "${rlhf_snippets}/c_shim.h" snippet_c_shim
              $<TARGET_OBJECTS:snippet_c_shim>
      VERBATIM)
    add_custom_target(rlhf_snippet_in_c ALL DEPENDS "${program}")
    add_dependencies(rlhf_snippets rlhf_snippet_in_c)
    rlhf_snippet_test(start_c "${program}")
    add_test(NAME snippet.start_c_mistake COMMAND "${program}" mistake)
    set_tests_properties(snippet.start_c_mistake PROPERTIES PASS_REGULAR_EXPRESSION
      "^trainer: [a-z_]+: layout: lengths: expected 0 <= length <= columns, received 4")
  else()
    rlhf_skip("snippet start_c" "no C compiler was found")
  endif()
endif()

if(CMAKE_CUDA_COMPILER AND TARGET rlhf_test_cuda)
  file(GLOB rlhf_cuda_snippets CONFIGURE_DEPENDS "${rlhf_snippets}/*.cu")
  foreach(file IN LISTS rlhf_cuda_snippets)
    cmake_path(GET file STEM name)
    add_executable(snippet_${name} "${file}")
    target_compile_options(snippet_${name} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
    target_link_libraries(snippet_${name} PRIVATE rlhf::thrust)
    add_dependencies(rlhf_snippets snippet_${name})
    if(rlhf_gpu_lost)
      rlhf_skip("running the snippet ${name}" "no GPU, so it is compiled and linked only")
      add_test(NAME snippet.${name}_compiles
               COMMAND "${CMAKE_COMMAND}" -E md5sum $<TARGET_FILE:snippet_${name}>)
    else()
      add_test(NAME snippet.${name} COMMAND snippet_${name})
      set_tests_properties(snippet.${name} PROPERTIES RESOURCE_LOCK gpu)
    endif()
  endforeach()
else()
  find_program(RLHF_NVCC nvcc HINTS /usr/local/cuda/bin)
  mark_as_advanced(RLHF_NVCC)
  if(NOT RLHF_NVCC)
    rlhf_skip("snippet start_cuda" "nvcc was not found")
  endif()
endif()
