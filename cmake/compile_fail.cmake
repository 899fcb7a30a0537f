# cmake -DCASE=x.cpp "-DCOMPILE=compiler;flags" -DCOMMON=header.hpp -DINCLUDE=folder -DSTAMP=file -P
# compile_fail.cmake
#
# The case begins with `// expect: a sentence`, one or more of them, and must fail to compile with
# each sentence in the compiler's message; one that begins with `rlhf: ` is in its first error.
# `// flags: ...` adds flags. A case that mentions RLHF_CONTROL must compile when that is defined: the
# right use, beside the wrong one, which shows that nothing else is wrong with it. STAMP remembers a
# verdict until the case, a header or the command changes.
file(GLOB_RECURSE headers "${INCLUDE}/rlhf/*.hpp")
set(state "${COMPILE}")
foreach(file IN LISTS headers ITEMS "${CASE}" "${CMAKE_CURRENT_LIST_FILE}")
  file(SHA1 "${file}" hash)
  string(APPEND state " ${hash}")
endforeach()
string(SHA1 state "${state}")
if(EXISTS "${STAMP}")
  file(READ "${STAMP}" known)
  if(known STREQUAL state)
    return()
  endif()
endif()

file(READ "${CASE}" text)
file(STRINGS "${CASE}" sentences REGEX "^// expect: ")
file(STRINGS "${CASE}" flags REGEX "^// flags: ")
list(TRANSFORM sentences REPLACE "^// expect: " "")
list(TRANSFORM flags REPLACE "^// flags: " "")
separate_arguments(flags UNIX_COMMAND "${flags}")
if(NOT sentences OR NOT text MATCHES "^// expect: ")
  message(FATAL_ERROR "${CASE} must begin with `// expect: the sentence`")
endif()
# Without a backend the lack of one may be the point of the case.
if(COMMON AND text MATCHES "#include [<\"]rlhf/backend/")
  list(APPEND flags -include "${COMMON}")
endif()

execute_process(COMMAND ${CMAKE_COMMAND} -E env LC_ALL=C ${COMPILE} ${flags} -fsyntax-only "${CASE}"
                RESULT_VARIABLE code ERROR_VARIABLE errors OUTPUT_VARIABLE errors)
if(code EQUAL 0)
  message(FATAL_ERROR "${CASE} compiles")
endif()
string(REGEX MATCH "[^\n]*error:[^\n]*" first_error "${errors}")
foreach(sentence IN LISTS sentences)
  if(sentence MATCHES "^rlhf: ")
    string(FIND "${first_error}" "${sentence}" at)
  else()
    string(FIND "${errors}" "${sentence}" at)
  endif()
  if(at EQUAL -1)
    message(FATAL_ERROR "${CASE} fails without the sentence\n  ${sentence}\nbut with\n${errors}")
  endif()
endforeach()

if(text MATCHES "RLHF_CONTROL")
  execute_process(COMMAND ${CMAKE_COMMAND} -E env LC_ALL=C
                          ${COMPILE} ${flags} -DRLHF_CONTROL -fsyntax-only "${CASE}"
                  RESULT_VARIABLE code ERROR_VARIABLE errors OUTPUT_VARIABLE errors)
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "${CASE} does not compile with RLHF_CONTROL\n${errors}")
  endif()
endif()
file(WRITE "${STAMP}" "${state}")
