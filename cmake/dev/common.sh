# What the commands of ./dev share: what they need, and how a preset is built.

say() { printf '%s\n' "$*"; }
die() { printf '%s\n' "dev: $*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }
no_arguments() { [ $# = 0 ] || die "$command takes no arguments, not $1"; }

installed() {
  case $1 in
    g++ | cmake | ccache | python3 | doxygen | clang-format) has "$1" ;;
    ninja-build) has ninja ;;
    *) [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ] ;;
  esac
}

# need PACKAGE...: installs what is missing through apt. What still lacks is named later, by CMake.
need() {
  if has apt-get && has dpkg-query; then
    missing=
    for package; do installed "$package" || missing="$missing $package"; done
    if [ -n "$missing" ]; then
      if [ "$(id -u)" = 0 ]; then as_root=
      elif has sudo; then as_root=sudo
      else as_root=none; fi
      if [ "$as_root" = none ]; then
        say "Missing; install as root: apt-get install$missing"
      else
        say "Installing:$missing"
        export DEBIAN_FRONTEND=noninteractive
        # shellcheck disable=SC2086
        install="$as_root apt-get -q install -y --no-install-recommends"
        $as_root apt-get -q update >&2 || true
        $install $missing >&2 || for package in $missing; do
          $install "$package" >&2 || say "Could not install $package"
        done
      fi
    fi
  fi
}

# need_compiler PACKAGE...: the same, and a compiler, CMake and Ninja.
need_compiler() {
  need g++ cmake ninja-build "$@"
  for tool in g++:c++ cmake:cmake ninja-build:ninja; do
    has "${tool#*:}" || die "please install ${tool%:*} (Debian's names for all that is of use: $*)"
  done
  version=$(cmake --version | sed -n 's/^cmake version \([0-9]*\.[0-9]*\).*/\1/p')
  [ "${version%.*}" -gt 3 ] || [ "${version#*.}" -ge 25 ] ||
    die "CMake 3.25 or later is needed, this is $version; \`pip install cmake\` has a newer one"
}

for_examples='libeigen3-dev libcli11-dev nlohmann-json3-dev libspdlog-dev zlib1g-dev'
for_bench='libbenchmark-dev libcli11-dev nlohmann-json3-dev libtbb-dev ccache'
for_tests='doctest-dev libxtensor-dev librapidcheck-dev libtbb-dev libthrust-dev ccache python3'

# configure PRESET [CMake arguments]: quiet unless it fails.
configure() {
  preset=$1
  shift
  mkdir -p "$build/$preset"
  (cd "$root" && cmake --preset "$preset" "$@") >"$build/$preset/configure.log" 2>&1 ||
    { cat "$build/$preset/configure.log" >&2; return 1; }
  grep '^-- SKIPPED' "$build/$preset/configure.log" || true
}

make_target() {  # PRESET TARGET
  configure "$1" && cmake --build "$build/$1" --target "$2"
}
