# Checks that are no test cases: what must not compile, headers alone, headers under other flags and
# compilers, and scripts that hold headers, README and tests against each other.
set(rlhf_check_folder "${CMAKE_CURRENT_BINARY_DIR}/checks")
file(MAKE_DIRECTORY "${rlhf_check_folder}")
file(GLOB rlhf_everything CONFIGURE_DEPENDS "${rlhf_include}/rlhf/rlhf.hpp")
file(GLOB rlhf_host CONFIGURE_DEPENDS "${rlhf_include}/rlhf/backend/host.hpp")

# rlhf_include_lines(variable component...): rlhf.hpp, the host backend, and the components that are
# here.
function(rlhf_include_lines variable)
  set(lines "")
  foreach(header rlhf.hpp backend/host.hpp)
    if(EXISTS "${rlhf_include}/rlhf/${header}")
      string(APPEND lines "#include <rlhf/${header}>\n")
    endif()
  endforeach()
  foreach(component IN LISTS ARGN)
    if(rlhf_has_${component} AND EXISTS "${rlhf_include}/rlhf/backend/${component}.hpp")
      string(APPEND lines "#include <rlhf/backend/${component}.hpp>\n")
    endif()
  endforeach()
  set(${variable} "${lines}" PARENT_SCOPE)
endfunction()

# The flags that lead to the dependencies of these components.
function(rlhf_include_flags variable)
  set(flags "")
  foreach(target Eigen3::Eigen xtensor xtl TBB::tbb)
    if(TARGET ${target})
      get_target_property(folders ${target} INTERFACE_INCLUDE_DIRECTORIES)
      foreach(folder IN LISTS folders)
        if(folder AND NOT folder MATCHES "[$]"
           AND NOT folder IN_LIST CMAKE_CXX_IMPLICIT_INCLUDE_DIRECTORIES)
          list(APPEND flags -isystem "${folder}")
        endif()
      endforeach()
    endif()
  endforeach()
  list(REMOVE_DUPLICATES flags)
  string(REPLACE ";" " " flags "${flags}")
  string(REPLACE "-isystem " "-isystem;" flags "${flags}")
  set(${variable} ${flags} PARENT_SCOPE)
endfunction()
rlhf_include_flags(rlhf_system_flags)
separate_arguments(rlhf_common_flags UNIX_COMMAND "${CMAKE_CXX_FLAGS}")
set(rlhf_plain_flags -std=c++20 "-I${rlhf_include}" ${rlhf_system_flags})

# ---------------------------------------------------------------- every header alone
if(PROJECT_IS_TOP_LEVEL)
  add_test(NAME check.headers_compile_alone 
           COMMAND "${CMAKE_COMMAND}" --build "${PROJECT_BINARY_DIR}"
                   --target all_verify_interface_header_sets)
endif()

# ---------------------------------------------------------------- all flags and compilers
function(rlhf_compile_check name compiler source)
  add_test(NAME check.${name} COMMAND ${rlhf_launcher} "${compiler}" ${rlhf_plain_flags}
           ${rlhf_warning_flags} ${ARGN} -c "${source}" -o "${rlhf_check_folder}/${name}.o")
endfunction()

if(rlhf_everything AND rlhf_host)
  rlhf_include_lines(lines eigen xtensor tbb)
  file(CONFIGURE OUTPUT "${rlhf_check_folder}/everything.cpp" CONTENT "${lines}")
  rlhf_include_lines(lines)
  file(CONFIGURE OUTPUT "${rlhf_check_folder}/host_only.cpp" CONTENT "${lines}")

  set(host_only "${rlhf_check_folder}/host_only.cpp")
  rlhf_compile_check(without_simd "${CMAKE_CXX_COMPILER}" "${host_only}" -DRLHF_NO_SIMD)
  rlhf_compile_check(strict "${CMAKE_CXX_COMPILER}" "${host_only}" -DRLHF_STRICT)
  rlhf_compile_check(without_exceptions_and_rtti "${CMAKE_CXX_COMPILER}" "${host_only}"
                     -fno-exceptions -fno-rtti)
  find_program(RLHF_CLANG NAMES clang++ clang++-20 clang++-19 clang++-18 clang++-17 clang++-16
                                clang++-15 clang++-14)
  mark_as_advanced(RLHF_CLANG)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    if(RLHF_CLANG)
      rlhf_compile_check(clang "${RLHF_CLANG}" "${rlhf_check_folder}/everything.cpp")
    else()
      rlhf_skip("clang's warnings" "clang++ was not found")
    endif()
  endif()
endif()

# ---------------------------------------------------------------- the single header
# The cheap part; `./dev package` has the other flags and the suite.
set(compilers "${CMAKE_CXX_COMPILER}")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND RLHF_CLANG)
  list(APPEND compilers "${RLHF_CLANG}")
endif()
foreach(compiler IN LISTS compilers)
  cmake_path(GET compiler FILENAME name)
  add_test(NAME check.single_header_${name} COMMAND "${CMAKE_COMMAND}"
           "-DFOLDER=${rlhf_check_folder}/single_header_${name}"
           "-DCOMPILE=${rlhf_launcher};${compiler}" "-DWARNINGS=${rlhf_warning_flags}"
           -DVARIANTS=plain -P "${PROJECT_SOURCE_DIR}/cmake/check_single_header.cmake")
endforeach()

# ---------------------------------------------------------------- what must not compile
file(GLOB rlhf_compile_fail CONFIGURE_DEPENDS compile_fail/*.cpp)
if(rlhf_compile_fail)
  # The cases share one precompiled header: half a second for a case instead of two or three. Clang
  # would refuse it for a case with flags of its own.
  set(common "${rlhf_check_folder}/compile_fail/common.hpp")
  rlhf_include_lines(lines eigen)
  file(CONFIGURE OUTPUT "${common}" CONTENT "${lines}")
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    add_custom_command(OUTPUT "${common}.gch"
      COMMAND ${rlhf_launcher} "${CMAKE_CXX_COMPILER}" ${rlhf_common_flags} ${rlhf_plain_flags}
              -x c++-header "${common}" -o "${common}.gch"
      DEPENDS "${common}" ${rlhf_core_headers} VERBATIM)
    add_custom_target(rlhf_compile_fail ALL DEPENDS "${common}.gch")
  else()
    set(common "")
  endif()
  foreach(case IN LISTS rlhf_compile_fail)
    cmake_path(GET case STEM name)
    add_test(NAME compile_fail.${name} COMMAND "${CMAKE_COMMAND}" "-DCASE=${case}"
      "-DCOMPILE=${CMAKE_CXX_COMPILER};${rlhf_common_flags};${rlhf_plain_flags}"
      "-DCOMMON=${common}" "-DINCLUDE=${rlhf_include}"
      "-DSTAMP=${rlhf_check_folder}/compile_fail/${name}.stamp"
      -P "${PROJECT_SOURCE_DIR}/cmake/compile_fail.cmake")
  endforeach()
endif()

# ---------------------------------------------------------------- scripts
file(GLOB rlhf_scripts CONFIGURE_DEPENDS checks/check_*.py)
if(Python3_FOUND)
  foreach(script IN LISTS rlhf_scripts)
    cmake_path(GET script STEM name)
    string(REGEX REPLACE "^check_" "" name "${name}")
    add_test(NAME check.${name}
             COMMAND ${Python3_EXECUTABLE} -B "${script}" "${PROJECT_SOURCE_DIR}")
  endforeach()
else()
  rlhf_skip("checks of headers, README and tests against each other" "python3 was not found")
endif()
