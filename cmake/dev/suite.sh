# Runs the tests of presets and adds up what they say.

reports=
skips=$build/skips.txt
broken=0

skip() { say "SKIPPED: $1" | tee -a "$skips"; }

# What tells the build tool of a preset to go on after an error.
keep_going() { if [ -f "$build/$1/build.ninja" ]; then echo -k0; else echo -k; fi; }

# test_preset PRESET TARGETS [CMake arguments]: builds all it can, so that one error does not hide
# others.
test_preset() {
  preset=$1 targets=$2 began=$(date +%s)
  shift 2
  say "== $preset"
  if ! configure "$preset" "$@"; then
    broken=$((broken + 1))
    return
  fi
  cat "$build/$preset/skipped.txt" >>"$skips"
  report=$build/$preset/tests.xml
  rm -f "$report"
  # shellcheck disable=SC2086
  cmake --build "$build/$preset" --target $targets -- "$(keep_going "$preset")" ||
    broken=$((broken + 1))
  ctest --test-dir "$build/$preset" -j "$jobs" --timeout "$limit" --output-on-failure \
    --no-tests=ignore --output-junit "$report" \
    --test-output-size-passed 100000000 --test-output-size-failed 100000000 || true
  if [ -f "$report" ]; then reports="$reports $preset/tests.xml"; else broken=$((broken + 1)); fi
  say "== $preset took $(($(date +%s) - began)) s"
}

finish() {  # the last line is `N passed, N failed`
  say
  sort -u "$skips"
  cd "$build"
  # shellcheck disable=SC2086
  awk -v broken="$broken" -f ../cmake/count_tests.awk $reports /dev/null
}
