# For a build that tests the single header (-DRLHF_TEST_SINGLE_HEADER=ON): a folder whose headers
# have the names of those in include/ and include nothing but the single header. rlhf_include
# becomes that folder, so no test can reach include/. Backends of other libraries are not in the
# single header and have no stand-in.
set(rlhf_single_include "${PROJECT_BINARY_DIR}/single_include")
execute_process(COMMAND "${CMAKE_COMMAND}" "-DOUT=${rlhf_single_include}"
                        -P "${PROJECT_SOURCE_DIR}/cmake/single_header.cmake"
                COMMAND_ERROR_IS_FATAL ANY)

file(GLOB_RECURSE headers CONFIGURE_DEPENDS RELATIVE "${rlhf_include}" "${rlhf_include}/rlhf/*.hpp")
foreach(header IN LISTS headers)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${rlhf_include}/${header}")
endforeach()
list(JOIN rlhf_components "|" others)
list(FILTER headers EXCLUDE REGEX "^rlhf/backend/(${others})(\\.hpp|/)")
set(rlhf_include "${PROJECT_BINARY_DIR}/stand_ins")
foreach(header IN LISTS headers)
  file(CONFIGURE OUTPUT "${rlhf_include}/${header}" @ONLY
       CONTENT "#pragma once\n#include \"@rlhf_single_include@/rlhf/rlhf.hpp\"\n")
endforeach()
