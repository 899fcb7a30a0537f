# The CUDA tests, compute-sanitizer and the bandwidth table, on a machine with a GPU.
. "$root/cmake/dev/suite.sh"
. "$root/cmake/dev/build_bench.sh"

# Everything ends within ten minutes, the builds too: what hangs is stopped, and what has no time left
# is named.
ends=$(($(date +%s) + 585))
in_time() {  # SECONDS COMMAND...: at most so many, and no more than are left
  seconds=$1
  shift
  left=$((ends - $(date +%s)))
  [ "$left" -gt "$seconds" ] || seconds=$left
  [ "$seconds" -gt 0 ] || { say "no time is left for $1"; return 1; }
  timeout -k 5 "$seconds" "$@"
}

# sanitize TOOL: one of compute-sanitizer's tools over the CUDA tests, at sizes made for it.
sanitize() {
  if RLHF_REDUCED_TESTS=1 in_time 100 compute-sanitizer --tool "$@" --error-exitcode 1 \
    "$build/cuda/tests/rlhf_test_cuda" --no-path-filenames=true \
    >"$build/cuda/$1.log" 2>&1; then
    say "passed: compute-sanitizer $1"
  else
    say "FAILED: compute-sanitizer $1"
    tail -n 40 "$build/cuda/$1.log"
    broken=$((broken + 1))
  fi
}

headers=${RLHF_HEADERS:-} json=$build/cuda/bandwidth.json quick=
while [ $# -gt 0 ]; do
  case $1 in
    --headers) [ $# -gt 1 ] && [ -d "$2" ] || die "--headers needs a folder"
      headers=$(cd "$2" && pwd); shift 2 ;;
    --json) [ $# -gt 1 ] || die "--json needs a file"
      json=$2; shift 2 ;;
    --quick) quick=--quick; shift ;;
    *) die "gpu knows --headers FOLDER, --json FILE and --quick, not $1" ;;
  esac
done
has nvcc || die "nvcc was not found; install a CUDA toolkit"
has nvidia-smi && nvidia-smi -L >/dev/null 2>&1 || die "no GPU was found"
has cmake && has c++ || die "please install CMake 3.25 and a C++ compiler"
[ -n "$headers" ] || need_compiler doctest-dev nlohmann-json3-dev
mkdir -p "$build"
: >"$skips"
limit=120
nvidia-smi -L
export CUDA_DEVICE_ORDER=PCI_BUS_ID  # nvidia-smi's first is CUDA's first
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d '. ')
if has ninja; then generator=Ninja; else generator='Unix Makefiles'; fi
export CMAKE_BUILD_PARALLEL_LEVEL="$jobs"
cmake() { in_time 300 cmake "$@"; }
ctest() { in_time 200 ctest "$@"; }
test_preset cuda all -G "$generator" "-DCMAKE_CUDA_ARCHITECTURES=$capability" \
  "-DRLHF_CUDA_CHIPS=$capability" \
  "-DRLHF_HEADERS=$headers" -DRLHF_BUILD_BENCH=ON -DRLHF_TEST_CUDA_STRICT=ON
if [ -x "$build/cuda/bench/cuda/rlhf_bench_cuda" ]; then
  # shellcheck disable=SC2086
  in_time 240 "$build/cuda/bench/cuda/rlhf_bench_cuda" $quick --json "$json" --commit "$(commit)" &&
    say "$json" || { say "FAILED: the bandwidth table"; broken=$((broken + 1)); }
else
  say "FAILED: the bandwidth table (it was not built)"
  broken=$((broken + 1))
fi
if ! has compute-sanitizer; then
  skip "compute-sanitizer (not found)"
elif [ -x "$build/cuda/tests/rlhf_test_cuda" ]; then
  sanitize memcheck --leak-check full
  sanitize racecheck
  sanitize initcheck
  sanitize synccheck
else
  say "FAILED: compute-sanitizer (the tests were not built)"
  broken=$((broken + 1))
fi
finish
