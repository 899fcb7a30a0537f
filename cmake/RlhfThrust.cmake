# Used by this build and by the installed package: where Thrust's headers are, and the CUDA runtime
# if any. Newer CUDA toolkits keep Thrust in include/cccl, which nvcc knows and a host compiler does
# not.
function(rlhf_find_thrust result)
  find_package(CUDAToolkit QUIET)
  find_path(RLHF_THRUST_INCLUDE_DIR thrust/version.h
            HINTS ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES cccl
            DOC "The folder that holds thrust/version.h")
  mark_as_advanced(RLHF_THRUST_INCLUDE_DIR)
  if(RLHF_THRUST_INCLUDE_DIR)
    set(${result} ON PARENT_SCOPE)
  else()
    set(${result} OFF PARENT_SCOPE)
  endif()
endfunction()

# A second argument keeps the paths of this machine out of the installed package.
function(rlhf_use_thrust target)
  set(include "${RLHF_THRUST_INCLUDE_DIR}")
  set(runtime CUDA::cudart)
  if(ARGN)
    set(include "$<BUILD_INTERFACE:${include}>")
    set(runtime "$<BUILD_INTERFACE:${runtime}>")
  endif()
  target_include_directories(${target} SYSTEM INTERFACE "${include}")
  if(TARGET CUDA::cudart)
    target_link_libraries(${target} INTERFACE "${runtime}")
  endif()
endfunction()
