# The targets. Each optional header belongs to the target that carries its dependency, so a user of
# rlhf::rlhf needs nothing but a compiler. Targets exist even where their dependency was not found:
# the installed package offers every component, and each looks for its own dependency when it is
# asked for.
set(rlhf_include "${PROJECT_SOURCE_DIR}/include")
set(rlhf_components eigen xtensor thrust tbb openmp)

file(GLOB_RECURSE rlhf_core_headers CONFIGURE_DEPENDS "${rlhf_include}/rlhf/*.hpp")

add_library(rlhf INTERFACE)
add_library(rlhf::rlhf ALIAS rlhf)
target_compile_features(rlhf INTERFACE cxx_std_20)

foreach(component IN LISTS rlhf_components)
  # backend/eigen.hpp and whatever stands in backend/eigen/.
  set(headers ${rlhf_core_headers})
  list(FILTER headers INCLUDE REGEX "/rlhf/backend/${component}(\\.hpp|/)")
  list(REMOVE_ITEM rlhf_core_headers ${headers})
  add_library(rlhf_${component} INTERFACE)
  add_library(rlhf::${component} ALIAS rlhf_${component})
  set_target_properties(rlhf_${component} PROPERTIES EXPORT_NAME ${component})
  target_link_libraries(rlhf_${component} INTERFACE rlhf)
  target_sources(rlhf_${component} INTERFACE
                 FILE_SET HEADERS BASE_DIRS "${rlhf_include}" FILES ${headers})
endforeach()

target_sources(rlhf INTERFACE
               FILE_SET HEADERS BASE_DIRS "${rlhf_include}" FILES ${rlhf_core_headers})

# What is found is visible everywhere: a project that adds this one as a folder links rlhf::eigen,
# and with it Eigen3::Eigen.
set(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL ON)
if(NOT TARGET Eigen3::Eigen)
  find_package(Eigen3 CONFIG QUIET)
endif()
if(NOT TARGET xtensor)
  find_package(xtensor CONFIG QUIET)
endif()
if(NOT TARGET TBB::tbb)
  find_package(TBB CONFIG QUIET)
endif()
if(NOT TARGET OpenMP::OpenMP_CXX)
  find_package(OpenMP QUIET COMPONENTS CXX)
endif()

target_link_libraries(rlhf_eigen INTERFACE Eigen3::Eigen)
target_link_libraries(rlhf_xtensor INTERFACE xtensor)
target_link_libraries(rlhf_tbb INTERFACE TBB::tbb)
target_link_libraries(rlhf_openmp INTERFACE OpenMP::OpenMP_CXX)

foreach(row "eigen|Eigen3::Eigen|Eigen 3.4 or later" "xtensor|xtensor|xtensor 0.24 or later"
            "tbb|TBB::tbb|oneTBB" "openmp|OpenMP::OpenMP_CXX|OpenMP for this compiler")
  string(REPLACE "|" ";" row "${row}")
  list(GET row 0 component)
  list(GET row 1 dependency)
  list(GET row 2 words)
  if(TARGET ${dependency})
    set(rlhf_has_${component} ON)
  else()
    set(rlhf_has_${component} OFF)
    rlhf_skip("rlhf::${component}" "${words} was not found")
  endif()
endforeach()

# Thrust comes with a CUDA toolkit, or alone as plain headers.
include(RlhfThrust)
rlhf_find_thrust(rlhf_has_thrust)
if(rlhf_has_thrust)
  rlhf_use_thrust(rlhf_thrust BUILD_INTERFACE)
else()
  rlhf_skip("rlhf::thrust" "no Thrust headers, from a CUDA toolkit or alone")
endif()
unset(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL)

# For a project that adds this one as a folder: the components whose dependency was found.
foreach(component IN LISTS rlhf_components)
  if(rlhf_has_${component})
    set_property(DIRECTORY APPEND PROPERTY RLHF_COMPONENTS ${component})
  endif()
endforeach()

# `cmake --build . --target all_verify_interface_header_sets` compiles every header alone.
if(PROJECT_IS_TOP_LEVEL)
  set_target_properties(rlhf PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON)
  foreach(component IN LISTS rlhf_components)
    # Thrust without CUDA compiles only when its user has chosen another device system.
    if(rlhf_has_${component} AND (NOT component STREQUAL "thrust" OR TARGET CUDA::cudart))
      set_target_properties(rlhf_${component} PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON)
    endif()
  endforeach()
endif()
