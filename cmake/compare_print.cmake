# Runs PROGRAM ARGUMENTS in FOLDER and compares its standard output with TRANSCRIPT, line by line.
file(MAKE_DIRECTORY "${FOLDER}")
execute_process(COMMAND "${PROGRAM}" ${ARGUMENTS} WORKING_DIRECTORY "${FOLDER}"
                OUTPUT_VARIABLE print RESULT_VARIABLE code)
if(NOT code EQUAL 0)
  message(FATAL_ERROR "${PROGRAM} ended with ${code}\n${print}")
endif()
file(READ "${TRANSCRIPT}" expected)
string(FIND "${expected}" "\n" end)
math(EXPR end "${end} + 1")
string(SUBSTRING "${expected}" ${end} -1 expected)

string(REGEX REPLACE "([][+.*?^$()|\\\\])" "\\\\\\1" pattern "${expected}")
string(REPLACE "\n\\.\\.\\.\n" "\n(.*\n)?" pattern "\n${pattern}")
if(NOT "\n${print}" MATCHES "^${pattern}$")
  message(FATAL_ERROR "Expected:\n${expected}\nPrinted:\n${print}")
endif()
