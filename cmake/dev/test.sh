# Every test that needs no GPU.
. "$root/cmake/dev/suite.sh"

all=no limit=600
for argument; do
  case $argument in
    --all) all=yes limit=7200; export RLHF_LONG_TESTS=1 ;;
    *) die "test knows --all, not $argument" ;;
  esac
done
# shellcheck disable=SC2086
need_compiler $for_examples $for_tests
mkdir -p "$build"
: >"$skips"

test_preset default "all all_verify_interface_header_sets"

rooms() { if [ $all = yes ]; then echo -DRLHF_TEST_ROOMS=; else echo "-DRLHF_TEST_ROOMS=$1"; fi; }
if grep -q ' fma .* avx2 ' /proc/cpuinfo 2>/dev/null; then
  test_preset avx2 all "$(rooms "math;primitive;policy;advantage")"
else
  skip "avx2 (this processor lacks AVX2 or FMA)"
fi
test_preset sanitize all "$(rooms "tensor;primitive;policy;preference")"
if has nvcc; then
  test_preset cuda all "-DRLHF_TEST_CUDA_STRICT=$([ $all = yes ] && echo ON || echo OFF)"
else
  skip "CUDA tests (nvcc was not found)"
fi
if [ $all = yes ]; then
  test_preset scalar all
  if has clang++; then test_preset clang all; else skip "clang (clang++ was not found)"; fi
  make_target bench rlhf_bench || broken=$((broken + 1))
fi

finish
