# shellcheck shell=sh disable=SC2154
# The Conan part of ../check.sh, with a home of its own and no remote.
export CONAN_HOME="$folder/conan home" CONAN_COLOR_DARK=0 NO_COLOR=1
# Nothing is written into the source tree.
quiet="-c tools.cmake.cmaketoolchain:user_presets="
tests="-c tools.cmake.cmake_layout:test_folder=$folder/conan_test"
modern='-s compiler.cppstd=20'

# package_id LOG: of rlhf, as `conan create` named it.
package_id() { sed -n "s/^ *rlhf\/$version.*:\([0-9a-f]\{40\}\).*/\1/p" "$1" | sort -u; }

conan_create() {
  # shellcheck disable=SC2086
  conan create "$root" --no-remote $modern $quiet $tests >"$folder/release.txt" 2>&1
  code=$?
  cat "$folder/release.txt"
  grep "rlhf $version: loss -0.1749" "$folder/release.txt" && return $code
}
conan_debug() {
  # shellcheck disable=SC2086
  conan create "$root" --no-remote $modern -s build_type=Debug --build=missing $quiet $tests \
    >"$folder/debug.txt" 2>&1
  code=$?
  cat "$folder/debug.txt"
  [ $code = 0 ] && [ "$(package_id "$folder/release.txt" | wc -l)" = 1 ] &&
    [ "$(package_id "$folder/release.txt")" = "$(package_id "$folder/debug.txt")" ] || return 1
  conan list "rlhf/$version:*" --format=compact
}
conan_refuses() {
  ! conan create "$root" --no-remote -s compiler.cppstd=17 >"$folder/cppstd.txt" 2>&1 &&
    grep -F 'Current cppstd (17) is lower than the required C++ standard (20)' "$folder/cppstd.txt"
}
conan_contents() {
  where=$(conan cache path "rlhf/$version:$(package_id "$folder/release.txt")") || return 1
  cmp "$root/LICENSE" "$where/licenses/LICENSE" && diff -r "$root/include" "$where/include"
}
conan_pkg_config() {
  # shellcheck disable=SC2086
  conan install "--requires=rlhf/$version" --no-remote $modern -g PkgConfigDeps \
    "-of=$folder/conan_pc" || return 1
  flags=$(PKG_CONFIG_PATH=$folder/conan_pc pkg-config --cflags rlhf) &&
    eval "c++ -std=c++20 $flags \"\$consumer/rlhf.cpp\" -o \"\$folder/conan_pc/consumer\"" &&
    "$folder/conan_pc/consumer"
}
conan_stand_ins() {
  system=$(dirname "$(c++ -std=c++20 -M -x c++ - <<'END' | tr ' ' '\n' | grep 'xtensor/xtensor.hpp$'
#include <xtensor/xtensor.hpp>
END
)")
  system=${system%/xtensor}
  FROM=$eigen conan create "$packaging/conan" --no-remote --name eigen --version 3.4.0 &&
    FROM=$system conan create "$packaging/conan" --no-remote --name xtensor --version 0.24.3 &&
    FROM=$system conan create "$packaging/conan" --no-remote --name onetbb --version 2021.8.0
}
conan_components() {
  # shellcheck disable=SC2086
  conan install "--requires=rlhf/$version" --no-remote $modern $quiet --build=missing \
    -o 'rlhf/*:with_eigen=True' -o 'rlhf/*:with_xtensor=True' \
    -o 'rlhf/*:with_tbb=True' -o 'rlhf/*:with_openmp=True' \
    -g CMakeDeps -g CMakeToolchain "-of=$folder/conan_use" || return 1
  # The distribution's own packages are out of sight: what is found comes through Conan.
  use from_conan "-DCMAKE_TOOLCHAIN_FILE=$folder/conan_use/conan_toolchain.cmake" \
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF \
    '-DWANT=rlhf;eigen;xtensor;tbb;openmp' || return 1
  grep -F "$CONAN_HOME" "$folder/from_conan/build.ninja" | grep -q eigen
}
conan_version_compatibility() {
  refuses 'compatible with requested version "0.0"' -DVERSION=0.0 -DCMAKE_BUILD_TYPE=Release \
    "-DCMAKE_TOOLCHAIN_FILE=$folder/conan_use/conan_toolchain.cmake"
}

check "Conan: profile" conan profile detect
check "conan create with cppstd=20 and its test_package" conan_create
check "Conan: Debug after Release is the same package" conan_debug
check "Conan: cppstd=17 is refused in a sentence" conan_refuses
check "Conan: headers and licence are packaged" conan_contents
if has pkg-config; then check "Conan: pkg-config" conan_pkg_config; fi
case $here in
  *eigen*xtensor*tbb*)
    check "Conan: stand-ins for eigen, xtensor and onetbb" conan_stand_ins
    check "Conan: a user of every option" conan_components
    check "Conan: a version that does not fit" conan_version_compatibility
    ;;
  *) skip "Conan: the options" "eigen, xtensor and TBB are not all here" ;;
esac
