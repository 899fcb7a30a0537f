# tests/examples/<any>.txt is a transcript: `$ <example> <arguments>` and then what it prints. A
# line `...` stands for any lines.
file(GLOB rlhf_transcripts CONFIGURE_DEPENDS examples/*.txt)
foreach(transcript IN LISTS rlhf_transcripts)
  cmake_path(GET transcript STEM name)
  file(STRINGS "${transcript}" first LIMIT_COUNT 1)
  separate_arguments(first UNIX_COMMAND "${first}")
  list(POP_FRONT first dollar example)
  if(NOT dollar STREQUAL "$")
    message(FATAL_ERROR "${transcript} must begin with a line `$ example arguments`")
  endif()
  if(TARGET ${example})
    add_test(NAME example.${name} COMMAND "${CMAKE_COMMAND}"
             "-DPROGRAM=$<TARGET_FILE:${example}>" "-DARGUMENTS=${first}"
             "-DTRANSCRIPT=${transcript}"
             "-DFOLDER=${CMAKE_CURRENT_BINARY_DIR}/examples/${name}"
             -P "${PROJECT_SOURCE_DIR}/cmake/compare_print.cmake")
  elseif(RLHF_BUILD_EXAMPLES)
    rlhf_skip("transcript ${name}" "the example ${example} is not built")
  endif()
endforeach()

# What the pipeline does with files: bad lines, no usable pair, the same seed twice, an interrupt.
if(TARGET rlhf_pipeline)
  target_compile_options(rlhf_pipeline PRIVATE ${rlhf_test_optimise})
  add_test(NAME example.rlhf_pipeline_files COMMAND "${CMAKE_COMMAND}"
           "-DPROGRAM=$<TARGET_FILE:rlhf_pipeline>"
           "-DFOLDER=${CMAKE_CURRENT_BINARY_DIR}/examples/rlhf_pipeline_files"
           -P "${CMAKE_CURRENT_SOURCE_DIR}/examples/rlhf_pipeline_files.cmake")
endif()
