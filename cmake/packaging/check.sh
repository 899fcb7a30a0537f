#!/bin/sh
# check.sh ROOT FOLDER: every way to get the library. Each is followed by a user's build whose
# programs compute a loss and check its number. Ends with `N passed, N failed`.
set -u
root=$1 folder=$2
packaging=$root/cmake/packaging
consumer=$packaging/consumer
passed=0 failed=0
began=$(date +%s)
rm -rf "$folder"
mkdir -p "$folder"
prefix="$folder/a moved prefix"
version=$(sed -n 's/^#define RLHF_VERSION_.* //p' "$root/include/rlhf/version.hpp" | paste -sd. -)
# This is about packages, not about the caller's surroundings.
unset CMAKE_PREFIX_PATH rlhf_DIR rlhf_ROOT CXXFLAGS LDFLAGS CMAKE_TOOLCHAIN_FILE 2>/dev/null || true
export CMAKE_GENERATOR=Ninja

check() {  # NAME COMMAND...
  name=$1 from=$(date +%s)
  shift
  if "$@" >"$folder/log.txt" 2>&1; then
    passed=$((passed + 1))
    echo "passed: $name ($(($(date +%s) - from)) s)"
  else
    failed=$((failed + 1))
    echo "FAILED: $name"
    sed 's/^/    /' "$folder/log.txt"
  fi
}
skip() { echo "SKIPPED: $1 ($2)"; }
has() { command -v "$1" >/dev/null 2>&1; }

# ------------------------------------------------------------------ a user's build
# use FOLDER CMAKE-ARGUMENTS...: configures and builds the consumer, and runs every program of it.
use() {
  where=$folder/$1
  shift
  cmake -S "$consumer" -B "$where" "$@" && cmake --build "$where" || return 1
  ran=0
  for program in "$where"/consumer_*; do
    [ -f "$program" ] || return 1
    "$program" || return 1
    ran=$((ran + 1))
  done
  echo "$ran programs"
}
# refuses SENTENCE CMAKE-ARGUMENTS...: the consumer does not configure, and the sentence says why.
refuses() {
  sentence=$1
  shift
  rm -rf "$folder/refused"
  if cmake -S "$consumer" -B "$folder/refused" "$@" >"$folder/refused.txt" 2>&1; then
    echo "it configures: $*"
    return 1
  fi
  tr -s ' \n' '  ' <"$folder/refused.txt" | grep -F "$sentence" >/dev/null && return 0
  cat "$folder/refused.txt"
  return 1
}
installed() { use "$1" "-DCMAKE_PREFIX_PATH=$prefix" "-DWANT=$2"; }

# ------------------------------------------------------------------ installed, and moved
install_and_move() {
  cmake -S "$root" -B "$folder/build" -DRLHF_BUILD_TESTS=OFF -DRLHF_BUILD_BENCH=OFF \
    -DRLHF_BUILD_EXAMPLES=OFF -DRLHF_INSTALL=ON "-DCMAKE_INSTALL_PREFIX=$folder/first" &&
    cmake --install "$folder/build" && mv "$folder/first" "$prefix" && rm -rf "$folder/build"
}
nothing_absolute() { ! grep -rl -e "$root" -e "$folder" -e /usr/include "$prefix"; }
headers_complete() {
  (cd "$root/include" && find . -type f | sort) >"$folder/here.txt"
  (cd "$prefix/include" && find . -type f | sort) | diff "$folder/here.txt" - &&
    test -s "$prefix/share/licenses/rlhf/LICENSE"
}
versions() {
  cmake -S "$packaging/versions" -B "$folder/versions" "-DCMAKE_PREFIX_PATH=$prefix" \
    "-DIS=$version"
}
component_refused() {
  needs='Eigen 3.4 or later (the CMake package Eigen3)'
  refuses "component eigen needs $needs, which was not found" \
    "-DCMAKE_PREFIX_PATH=$prefix" -DWANT=eigen -DCMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON
}
old_eigen_refused() {
  mkdir -p "$folder/old eigen"
  echo 'add_library(Eigen3::Eigen INTERFACE IMPORTED)' >"$folder/old eigen/Eigen3Config.cmake"
  {
    echo 'set(PACKAGE_VERSION 3.3.9)'
    echo 'set(PACKAGE_VERSION_COMPATIBLE TRUE)'
  } >"$folder/old eigen/Eigen3ConfigVersion.cmake"
  refuses 'component eigen needs Eigen 3.4 or later' "-DCMAKE_PREFIX_PATH=$prefix" -DWANT=eigen \
    "-DEigen3_DIR=$folder/old eigen"
}
unknown_refused() {
  refuses 'component eigne is unknown; there are rlhf, eigen, xtensor, thrust, tbb, openmp' \
    "-DCMAKE_PREFIX_PATH=$prefix" -DWANT=eigne
}
optional() {
  use optional "-DCMAKE_PREFIX_PATH=$prefix" '-DMAYBE=eigen;tbb;nonesuch' \
    -DCMAKE_DISABLE_FIND_PACKAGE_TBB=ON >"$folder/optional.txt" 2>&1
  code=$?
  cat "$folder/optional.txt"
  grep 'rlhf_eigen_FOUND TRUE' "$folder/optional.txt" &&
    grep 'rlhf_tbb_FOUND FALSE' "$folder/optional.txt" &&
    grep 'rlhf_nonesuch_FOUND FALSE' "$folder/optional.txt" &&
    test -x "$folder/optional/consumer_eigen" && test $code = 0
}

check "install, and move the prefix" install_and_move
check "every header and the licence are installed" headers_complete
check "no path of this machine in the package" nothing_absolute
check "find_package: rlhf alone" installed core rlhf

# The components whose dependency is here: asked of the compiler, so that a package which fails to
# find one is not taken for a machine without it.
eigen=$(pkg-config --variable=includedir eigen3 2>/dev/null) || eigen=
eigen=${eigen:-/usr/include/eigen3}
finds() {
  printf '#include <%s>\n' "$1" |
    c++ -std=c++20 -E "-I$eigen" -fopenmp -x c++ - >/dev/null 2>&1
}
here=
for row in eigen:Eigen/Core xtensor:xtensor/xtensor.hpp tbb:tbb/parallel_for.h openmp:omp.h \
  thrust:thrust/version.h; do
  component=${row%%:*}
  if finds "${row#*:}"; then
    here="$here;$component"
    check "find_package: $component" installed "component_$component" $component
  else
    skip "find_package: $component" "the compiler does not find ${row#*:}"
  fi
done
all="rlhf$here"
check "find_package: optional components" optional
check "find_package: versions that fit and that do not" versions
check "find_package: a missing dependency is said in a sentence" component_refused
check "find_package: an Eigen that is too old is refused" old_eigen_refused
check "find_package: an unknown component is said in a sentence" unknown_refused

# ------------------------------------------------------------------ as a folder
as_folder() { use folder -DFROM=folder "-DSOURCE=$root" "-DWANT=$all"; }
adds_nothing() {
  cmake -S "$packaging/host" -B "$folder/host" "-DSOURCE=$root" \
    -DCMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON "-DCMAKE_INSTALL_PREFIX=$folder/nothing" &&
    cmake --build "$folder/host" &&
    cmake --install "$folder/host" || return 1
  [ ! -e "$folder/nothing" ] || { find "$folder/nothing"; return 1; }
  # What it may leave in the cache: its own options, and where it found what.
  ! grep -E '^(BUILD_|CMAKE_CXX_STANDARD|doctest|benchmark|RLHF_CCACHE)' \
    "$folder/host/CMakeCache.txt"
}
own_eigen() {
  cmake -S "$packaging/host" -B "$folder/own_eigen" "-DSOURCE=$root" "-DOWN_EIGEN=$eigen" \
    "-DCONSUMER=$consumer" && cmake --build "$folder/own_eigen" && "$folder/own_eigen/own_eigen"
}
without_all='-DCMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON -DCMAKE_DISABLE_FIND_PACKAGE_xtensor=ON
  -DCMAKE_DISABLE_FIND_PACKAGE_TBB=ON -DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON
  -DRLHF_THRUST_INCLUDE_DIR='
# missing COMPONENT THING HINT: one that is linked without what it needs says what to install or set.
missing() {
  # shellcheck disable=SC2086
  refuses "rlhf::$1 needs $2, which was not found: install $3" -DFROM=folder "-DSOURCE=$root" \
    "-DWANT=$1" $without_all || return 1
  ! grep -F 'the target was not found' "$folder/refused.txt"
}
missing_in_folder() {
  missing eigen 'Eigen 3.4 or later (the CMake package Eigen3)' 'it, or set Eigen3_DIR' &&
    missing xtensor 'xtensor 0.24 or later (the CMake package xtensor)' 'it, or set xtensor_DIR' &&
    missing tbb 'oneTBB (the CMake package TBB)' 'it, or set TBB_DIR' &&
    missing openmp 'OpenMP for the C++ compiler' 'its runtime, or set OpenMP_CXX_FLAGS' &&
    missing thrust 'Thrust, from a CUDA toolkit or its headers alone' \
      'it, or set RLHF_THRUST_INCLUDE_DIR' || return 1
  for component in eigen thrust; do  # through a library of the user's, CMake is who says it
    # shellcheck disable=SC2086
    refuses "rlhf::$component needs" -DFROM=folder "-DSOURCE=$root" -DWANT=$component \
      -DTHROUGH=ON $without_all || return 1
  done
}
installs_on_request() {  # the same package where nothing that a component needs is here
  # shellcheck disable=SC2086
  cmake -S "$consumer" -B "$folder/inner" -DFROM=folder "-DSOURCE=$root" -DRLHF_INSTALL=ON \
    "-DCMAKE_INSTALL_PREFIX=$folder/inner prefix" $without_all &&
    cmake --install "$folder/inner" && diff -r "$prefix" "$folder/inner prefix"
}

check "add_subdirectory: every component" as_folder
check "add_subdirectory adds no tests, options, flags or install rules" adds_nothing
check "add_subdirectory: a missing dependency is said in a sentence" missing_in_folder
case $here in
  *eigen*) check "add_subdirectory before the project's own Eigen" own_eigen ;;
  *) skip "add_subdirectory before the project's own Eigen" "no Eigen" ;;
esac
check "add_subdirectory with RLHF_INSTALL=ON installs the same package" installs_on_request

# ------------------------------------------------------------------ fetched; CPM goes this way too
make_repository() {
  mkdir "$folder/repository"
  for entry in "$root"/*; do
    case ${entry##*/} in
      build | rlhf_demo | single_include) ;;
      *) cp -R "$entry" "$folder/repository/" ;;
    esac
  done
  cd "$folder/repository" && git init -q && git add -A &&
    git -c user.name=check -c user.email=check@localhost -c commit.gpgsign=false \
      commit -q -m "The working tree" && git tag "v$version"
}
fetched() { use fetched -DFROM=fetched "$git" "$tag" '-DWANT=rlhf;eigen'; }
fetched_as_package() {
  use fetched_as_package -DFROM=fetched_as_package "$git" "$tag" '-DWANT=rlhf;eigen'
}
fetched_refuses() {
  refuses 'component eigen needs Eigen 3.4 or later' -DFROM=fetched_as_package "$git" "$tag" \
    -DWANT=eigen -DCMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON &&
    refuses 'component eigne is unknown' -DFROM=fetched_as_package "$git" "$tag" -DWANT=eigne &&
    refuses 'compatible with requested version "99.0"' -DFROM=fetched_as_package "$git" "$tag" \
      -DVERSION=99.0
}
source_dir() {
  use source_dir -DFROM=fetched -DGIT=file:///nowhere -DTAG=none \
    "-DFETCHCONTENT_SOURCE_DIR_RLHF=$root"
}

if has git; then
  git=-DGIT=file://$folder/repository tag=-DTAG=v$version
  check "a git repository with a tag" make_repository
  check "FetchContent from the tag" fetched
  check "FetchContent with OVERRIDE_FIND_PACKAGE, then find_package" fetched_as_package
  check "FetchContent, then find_package: refusals in a sentence" fetched_refuses
else
  skip "FetchContent" "git was not found"
fi
check "FETCHCONTENT_SOURCE_DIR_RLHF" source_dir

# ------------------------------------------------------------------ without CMake
bare() {
  c++ -std=c++20 -Wall -Wextra -Werror "-I$root/include" "$consumer/rlhf.cpp" -o "$folder/bare" &&
    "$folder/bare"
}
by_pkg_config() {
  PKG_CONFIG_PATH="$prefix/share/pkgconfig"
  export PKG_CONFIG_PATH
  [ "$(pkg-config --modversion rlhf)" = "$version" ] && pkg-config --validate rlhf || return 1
  for component in rlhf eigen; do
    modules=rlhf
    [ $component = rlhf ] || modules='rlhf eigen3'
    # shellcheck disable=SC2086
    flags=$(pkg-config --cflags --libs $modules) &&
      eval "c++ -std=c++20 \"\$consumer/$component.cpp\" $flags -o \"\$folder/by_pkg_config\"" &&
      "$folder/by_pkg_config" || return 1
  done
}
check "nothing but -I include" bare
if has pkg-config; then
  check "pkg-config from the moved prefix" by_pkg_config
else
  skip "pkg-config" "not found"
fi

# ------------------------------------------------------------------ the single header
warnings='-Wall;-Wextra;-Wpedantic;-Wconversion;-Wsign-conversion;-Wshadow;-Wdouble-promotion'
variants='plain;scalar;without_exceptions_and_rtti;strict_optimised;mixed'
single_header() {  # COMPILER
  cmake "-DFOLDER=$folder/single_header_$1" "-DCOMPILE=$1" \
    "-DWARNINGS=$warnings;-Wold-style-cast;-Werror" "-DVARIANTS=$variants" \
    -P "$root/cmake/check_single_header.cmake"
}
not_both() {  # in either order
  cmake "-DOUT=$folder/single_include" -P "$root/cmake/single_header.cmake" || return 1
  single="#include \"$folder/single_include/rlhf/rlhf.hpp\""
  printf '%s\n' "$single" '#include <rlhf/backend/host.hpp>' >"$folder/single_first.cpp"
  printf '%s\n' '#include <rlhf/backend/host.hpp>' "$single" >"$folder/folder_first.cpp"
  for order in single_first folder_first; do
    ! c++ -std=c++20 -fsyntax-only -fmax-errors=1 "-I$root/include" "$folder/$order.cpp" \
      >"$folder/both.txt" 2>&1 && grep 'not both in one unit' "$folder/both.txt" || return 1
  done
}
suite() {
  rm -rf "$folder/suite"
  cmake --preset single_header -S "$root" -B "$folder/suite" &&
    cmake --build "$folder/suite" && ctest --test-dir "$folder/suite" -j 2 --output-on-failure \
    --no-tests=error --timeout 600 || return 1
  # Not one of its objects has seen a header of include/.
  ninja -C "$folder/suite" -t deps >"$folder/deps.txt" &&
    grep -q 'single_include/rlhf/rlhf.hpp' "$folder/deps.txt" &&
    ! grep -F "$root/include/rlhf" "$folder/deps.txt"
}
for compiler in g++ clang++; do
  if has $compiler; then
    check "single header: two units, $compiler" single_header $compiler
  else
    skip "single header: two units, $compiler" "not found"
  fi
done
check "single header: both it and the folder are refused in a sentence" not_both
if [ -f /usr/include/doctest/doctest.h ] || pkg-config --exists doctest 2>/dev/null; then
  check "single header: the suite" suite
else
  skip "single header: the suite" "doctest was not found"
fi

# ------------------------------------------------------------------ vcpkg
port() {
  cmake "-DROOT=$root" "-DFOLDER=$folder/vcpkg" -P "$packaging/vcpkg/dry_run.cmake"
}
from_port() {  # the features are those components that another port serves
  want=rlhf
  for component in eigen xtensor tbb; do
    case $here in *$component*) want="$want;$component" ;; esac
  done
  use from_port "-DCMAKE_PREFIX_PATH=$folder/vcpkg/packages" "-DWANT=$want"
}
vcpkg_install() {
  vcpkg install rlhf "--overlay-ports=$packaging/vcpkg/ports" --classic \
    "--x-install-root=$folder/vcpkg_installed" || return 1
  for triplet in "$folder"/vcpkg_installed/*-*; do
    [ -d "$triplet/share/rlhf" ] && use from_vcpkg "-DCMAKE_PREFIX_PATH=$triplet" && return 0
  done
  return 1
}
check "vcpkg port: manifest, and a dry run with stand-ins for vcpkg's functions" port
check "vcpkg port: a user of its features" from_port
if has vcpkg; then
  check "vcpkg install" vcpkg_install
else
  skip "vcpkg install" "no vcpkg client"
fi

# ------------------------------------------------------------------ Conan 2
if has conan && conan --version 2>/dev/null | grep -q 'version 2'; then
  # shellcheck source=cmake/packaging/conan/check.sh
  . "$packaging/conan/check.sh"
else
  skip "Conan 2" "${CONAN_WHY:-no client; \`pip install 'conan>=2,<3'\` has it}"
fi

echo "took $(($(date +%s) - began)) s"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
