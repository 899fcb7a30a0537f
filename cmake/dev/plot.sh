# Draws what bench and peers have measured.

# A Python with matplotlib: that of the peers, the one on the path, or the system's.
plot_python() {
  has python3 || need python3
  has python3 || die "SKIPPED: plots (python3 was not found)"
  for with in nothing python3-matplotlib; do
    [ $with = nothing ] || need python3-matplotlib
    for python in "$build/python/bin/python" python3 /usr/bin/python3; do
      "$python" -c 'import matplotlib' 2>/dev/null && return
    done
  done
  die "SKIPPED: plots (matplotlib was not found)"
}

plot_python >&2
exec "$python" "$root/bench/plot" "$@"
