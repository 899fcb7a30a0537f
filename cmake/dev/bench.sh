# Every algorithm beside a copy of the same bytes.
. "$root/cmake/dev/build_bench.sh"

has nvcc || say "SKIPPED: figures of a GPU (no CUDA toolkit; ./dev gpu measures them)" >&2
has python3 || say "SKIPPED: plots and peers (python3 was not found)" >&2
build_bench >&2
exec "$build/bench/bench/rlhf_bench" "--benchmark_context=commit=$(commit)" "$@"
