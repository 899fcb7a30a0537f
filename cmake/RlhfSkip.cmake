# What this machine lacks is named, never dropped in silence: once here and once at the end of
# `./dev test`.
define_property(GLOBAL PROPERTY RLHF_SKIPPED BRIEF_DOCS "What was left out, and why")

function(rlhf_skip name why)
  if(PROJECT_IS_TOP_LEVEL)
    message(STATUS "SKIPPED: ${name} (${why})")
    set_property(GLOBAL APPEND PROPERTY RLHF_SKIPPED "SKIPPED: ${name} (${why})")
  endif()
endfunction()

function(rlhf_write_skips file)
  get_property(lines GLOBAL PROPERTY RLHF_SKIPPED)
  list(REMOVE_DUPLICATES lines)
  list(JOIN lines "\n" text)
  if(text)
    string(APPEND text "\n")
  endif()
  file(WRITE "${file}" "${text}")
endfunction()
