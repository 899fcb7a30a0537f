# The benchmarks, with the flags that their goals are for.

commit() {
  name=$(git -C "$root" rev-parse --short HEAD 2>/dev/null) || name='not known'
  [ -z "$(git -C "$root" status --porcelain --untracked-files=no 2>/dev/null)" ] ||
    name="$name with changes"
  say "$name"
}

# The goals are for AVX2; a machine without it gets its portable instructions.
build_bench() {
  # shellcheck disable=SC2086
  need_compiler $for_bench
  flags=
  if grep -q ' fma .* avx2 ' /proc/cpuinfo 2>/dev/null; then
    flags=-march=x86-64-v3
  else
    say "SKIPPED: AVX2 (this processor lacks AVX2 or FMA): portable instructions instead"
  fi
  configure bench "-DCMAKE_CXX_FLAGS=$flags"
  cmake --build "$build/bench" --target rlhf_bench ||
    die "the benchmarks were not built; they need Google Benchmark, CLI11 and nlohmann-json"
}
