# Reads JUnit reports of CTest and prints `N passed, N failed`. A test that runs doctest counts as
# its test cases, any other as one. `broken` are builds that failed. Exit status 1 when anything
# failed, or nothing ran.
function finish() {
  if (!inside) return
  inside = 0
  if (cases > 0) {
    passed += good
    failed += bad + (status == "fail" && bad == 0)
  } else if (status == "run") {
    ++passed
  } else if (status != "disabled") {
    ++failed  # failed, or could not be started
  }
}
/<testcase / {
  finish()
  inside = 1
  cases = good = bad = 0
  match($0, /status="[a-z]*"/)
  status = substr($0, RSTART + 8, RLENGTH - 9)
}
/\[doctest\] test cases:/ {
  split($0, field, /[|:]/)
  cases += field[2]
  good += field[3]
  bad += field[4]
}
/<\/testcase>/ { finish() }
END {
  finish()
  failed += broken
  print passed + 0 " passed, " failed + 0 " failed"
  exit failed > 0 || passed == 0
}
