# The same inputs through PyTorch and other projects.
. "$root/cmake/dev/build_bench.sh"

# A virtual environment in build/ with PyTorch for the CPU.
peers_python() {
  need python3 python3-venv
  has python3 || die "SKIPPED: peers (python3 was not found)"
  [ -x "$build/python/bin/python" ] || python3 -m venv "$build/python" ||
    die "SKIPPED: peers (python3 cannot make a virtual environment)"
  "$build/python/bin/python" -c 'import torch, numpy' 2>/dev/null ||
    "$build/python/bin/pip" install -q torch numpy || die "SKIPPED: peers (PyTorch was not found)"
}

build_bench >&2
peers_python >&2
exec "$build/python/bin/python" "$root/bench/peers.py" \
  --bench "$build/bench/bench/rlhf_bench" --commit "$(commit)" "$@"
