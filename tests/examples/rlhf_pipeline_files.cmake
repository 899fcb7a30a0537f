# What rlhf_pipeline does with files: bad lines, files without a pair, the same seed, an interrupt.
#   cmake -DPROGRAM=.../rlhf_pipeline -DFOLDER=... -P rlhf_pipeline_files.cmake
file(REMOVE_RECURSE "${FOLDER}")
file(MAKE_DIRECTORY "${FOLDER}")

# run(CODE TEXT ARGUMENTS...): ends with CODE, and says TEXT on standard error.
function(run code text)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY "${FOLDER}" RESULT_VARIABLE result
                  OUTPUT_VARIABLE output ERROR_VARIABLE error)
  string(FIND "${error}" "${text}" at)
  if(NOT result EQUAL code OR at EQUAL -1)
    message(FATAL_ERROR "${ARGN}\nended with ${result}, not ${code}, or did not say: ${text}\n"
                        "${output}${error}")
  endif()
endfunction()

function(expect folder value)  # at the keys in ARGN of summary.json
  file(READ "${FOLDER}/${folder}/summary.json" summary)
  string(JSON found GET "${summary}" ${ARGN})
  if(NOT found STREQUAL value)
    message(FATAL_ERROR "${folder}: ${ARGN}: expected ${value}, found ${found}")
  endif()
endfunction()

set(small --epochs 1 --updates 2)

# Three bad lines among twenty-four.
set(lines "")
foreach(i RANGE 1 24)
  string(APPEND lines "{\"chosen\": \"\\n\\nHuman: ask ${i}\\n\\nAssistant: no, sorry ${i}\", "
                      "\"rejected\": \"\\n\\nHuman: ask ${i}\\n\\nAssistant: sure, do it ${i}\"}\n")
  if(i EQUAL 2)
    string(APPEND lines "{\"chosen\": \n{\"chosen\": \"no turns\", \"rejected\": \"none\"}\n[]\n")
  endif()
endforeach()
file(WRITE "${FOLDER}/pairs.jsonl" "${lines}")
foreach(number 3 4 5)
  run(0 "pairs.jsonl: line ${number} skipped: "
      "${PROGRAM}" --preferences pairs.jsonl --out lines ${small})
endforeach()
expect(lines 3 data skipped_lines)
expect(lines 20 data train_pairs)
expect(lines 4 data heldout_pairs)

# A file without a usable pair is an error, and nothing is written.
file(WRITE "${FOLDER}/none.jsonl" "{}\nno JSON\n")
run(1 "none.jsonl: no usable pair in 2 lines" "${PROGRAM}" --preferences none.jsonl --out none)
run(1 "missing.jsonl: cannot be opened" "${PROGRAM}" --preferences missing.jsonl --out none)
if(EXISTS "${FOLDER}/none")
  message(FATAL_ERROR "a run without pairs has written files")
endif()

# The same seed gives the same summary.
foreach(folder first second)
  run(0 "" "${PROGRAM}" --pairs 60 --seed 7 --out ${folder} ${small})
  file(READ "${FOLDER}/${folder}/summary.json" ${folder})
  string(REGEX REPLACE "\"seconds\": [^\n]*" "" ${folder} "${${folder}}")
endforeach()
if(NOT first STREQUAL second)
  message(FATAL_ERROR "the same seed gave\n${first}\nand\n${second}")
endif()
expect(first OFF interrupted)

# Ctrl-C leaves files that can be read.
find_program(timeout timeout)
if(timeout)
  run(130 "interrupted" "${timeout}" --preserve-status --signal=INT 2
      "${PROGRAM}" --updates 100000 --out interrupted)
  expect(interrupted ON interrupted)
  file(STRINGS "${FOLDER}/interrupted/metrics.jsonl" metrics)
  foreach(line IN LISTS metrics)
    string(JSON stage GET "${line}" stage)
  endforeach()
  file(READ "${FOLDER}/interrupted/report.html" page)
  if(NOT page MATCHES "</html>")
    message(FATAL_ERROR "the report of an interrupted run is cut")
  endif()
endif()
