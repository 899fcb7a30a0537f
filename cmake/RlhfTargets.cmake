# The targets. Each optional header belongs to the target that carries its dependency, so a user of
# rlhf::rlhf needs nothing but a compiler. Targets exist even where their dependency was not found:
# the installed package offers every component, and each looks for its own dependency when it is
# asked for.
include(RlhfComponents)
include(CMakePackageConfigHelpers)
set(rlhf_include "${PROJECT_SOURCE_DIR}/include")
if(RLHF_TEST_SINGLE_HEADER)
  include(RlhfSingleHeaderTests)  # stand-ins for include/, each of which is the single header
endif()

# Until 1.0 a minor version may break a caller.
function(rlhf_write_version_file file)
  write_basic_package_version_file("${file}" COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
endfunction()

file(GLOB_RECURSE rlhf_core_headers CONFIGURE_DEPENDS "${rlhf_include}/rlhf/*.hpp")

add_library(rlhf INTERFACE)
add_library(rlhf::rlhf ALIAS rlhf)
target_compile_features(rlhf INTERFACE cxx_std_20)

foreach(component IN LISTS rlhf_components)
  # backend/eigen.hpp and whatever stands in backend/eigen/.
  set(headers ${rlhf_core_headers})
  list(FILTER headers INCLUDE REGEX "/rlhf/backend/${component}(\\.hpp|/)")
  if(headers)
    list(REMOVE_ITEM rlhf_core_headers ${headers})
  endif()
  add_library(rlhf_${component} INTERFACE)
  add_library(rlhf::${component} ALIAS rlhf_${component})
  set_target_properties(rlhf_${component} PROPERTIES EXPORT_NAME ${component})
  target_link_libraries(rlhf_${component} INTERFACE rlhf)
  target_sources(rlhf_${component} INTERFACE
                 FILE_SET HEADERS BASE_DIRS "${rlhf_include}" FILES ${headers})
endforeach()

target_sources(rlhf INTERFACE
               FILE_SET HEADERS BASE_DIRS "${rlhf_include}" FILES ${rlhf_core_headers})

# rlhf_link_component(eigen Eigen3::Eigen): the dependency by its target's name, which the installed
# package repeats. Where it was not found, the reason stands in its place: a name with "::" that is no
# target stops whoever links it.
function(rlhf_link_component component dependency)
  get_property(why GLOBAL PROPERTY RLHF_WITHOUT_${component})
  if(why)
    set(dependency
        "$<BUILD_INTERFACE:rlhf::${component} ${why}>$<INSTALL_INTERFACE:${dependency}>")
  endif()
  target_link_libraries(rlhf_${component} INTERFACE ${dependency})
endfunction()

# rlhf_refuse_users(FOLDER eigen WHY): says so before CMake does, in one sentence, for each target of
# the folder and of those below that links rlhf::eigen itself.
function(rlhf_refuse_users folder component why)
  get_property(targets DIRECTORY "${folder}" PROPERTY BUILDSYSTEM_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(libraries ${target} LINK_LIBRARIES)
    if("rlhf::${component}" IN_LIST libraries)
      message(SEND_ERROR "target ${target}: rlhf::${component} ${why}")
    endif()
  endforeach()
  get_property(folders DIRECTORY "${folder}" PROPERTY SUBDIRECTORIES)
  foreach(inner IN LISTS folders)
    rlhf_refuse_users("${inner}" ${component} "${why}")
  endforeach()
endfunction()

# rlhf_find_dependencies(COMPONENT...): looks for what they need. What is found is visible
# everywhere: a project that adds this one as a folder links rlhf::eigen, and with it Eigen3::Eigen.
# The global property RLHF_WITHOUT_<component> says why one cannot be used here.
function(rlhf_find_dependencies)
  set(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL ON)
  foreach(component IN LISTS ARGN)
    rlhf_find_component(${component} found why)
    if(NOT found)
      set_property(GLOBAL PROPERTY RLHF_WITHOUT_${component} "${why}")
      rlhf_refuse_users("${CMAKE_SOURCE_DIR}" ${component} "${why}")
    elseif(component STREQUAL "thrust")
      rlhf_use_thrust(rlhf_thrust BUILD_INTERFACE)
    endif()
  endforeach()
  rlhf_link_component(eigen Eigen3::Eigen)
  rlhf_link_component(xtensor xtensor)
  rlhf_link_component(thrust "")
  rlhf_link_component(tbb TBB::tbb)
  rlhf_link_component(openmp OpenMP::OpenMP_CXX)
endfunction()

if(PROJECT_IS_TOP_LEVEL OR RLHF_BUILD_TESTS OR RLHF_BUILD_BENCH OR RLHF_BUILD_EXAMPLES)
  rlhf_find_dependencies(${rlhf_components})
  foreach(component IN LISTS rlhf_components)
    get_property(why GLOBAL PROPERTY RLHF_WITHOUT_${component})
    if(why)
      set(rlhf_has_${component} OFF)
      rlhf_skip("rlhf::${component}" "${why}")
    else()
      set(rlhf_has_${component} ON)
    endif()
  endforeach()
else()
  # As a part of another project: once that has said everything, so that an Eigen which it adds
  # itself, before or after this folder, is the one that is taken.
  # A deferred call would expand its arguments in that project: EVAL expands them now.
  list(JOIN rlhf_components " " all)
  cmake_language(EVAL CODE "
    cmake_language(DEFER DIRECTORY [[${CMAKE_SOURCE_DIR}]] CALL rlhf_find_dependencies ${all})")
endif()

# Fetched with FetchContent, a later find_package(rlhf 0.1 COMPONENTS eigen) of that project, or of
# another part of it, is answered as the installed package would answer it.
if(EXISTS "${CMAKE_FIND_PACKAGE_REDIRECTS_DIR}/rlhf-config.cmake" AND NOT PROJECT_IS_TOP_LEVEL)
  rlhf_write_version_file("${CMAKE_FIND_PACKAGE_REDIRECTS_DIR}/rlhf-config-version.cmake")
  file(WRITE "${CMAKE_FIND_PACKAGE_REDIRECTS_DIR}/rlhf-extra.cmake" "
cmake_policy(VERSION 3.23...3.25)
include(\"${CMAKE_CURRENT_LIST_DIR}/RlhfComponents.cmake\")
rlhf_find_components()
")
endif()

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
