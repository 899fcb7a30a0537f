#!/bin/sh
# check.sh ROOT FOLDER: every way to get the library, each followed by a user's build. Ends with `N
# passed, N failed`.
set -u
root=$1 folder=$2
passed=0 failed=0
rm -rf "$folder"
mkdir -p "$folder"
consumer=$root/cmake/packaging/consumer

check() {  # NAME COMMAND...
  name=$1
  shift
  if "$@" >"$folder/log.txt" 2>&1; then
    passed=$((passed + 1))
    echo "passed: $name"
  else
    failed=$((failed + 1))
    echo "FAILED: $name"
    sed 's/^/    /' "$folder/log.txt"
  fi
}
skip() { echo "SKIPPED: $1 ($2)"; }

install_and_move() {  # WHERE
  cmake -S "$root" -B "$1/build" -G Ninja -DRLHF_BUILD_TESTS=OFF -DRLHF_BUILD_BENCH=OFF \
    -DRLHF_BUILD_EXAMPLES=OFF -DRLHF_INSTALL=ON "-DCMAKE_INSTALL_PREFIX=$1/first" &&
    cmake --install "$1/build" && mv "$1/first" "$1/moved" && rm -rf "$1/build"
}
use() {  # BUILD CMAKE-ARGUMENTS...
  where=$1
  shift
  cmake -S "$consumer" -B "$where" -G Ninja "$@" && cmake --build "$where" && "$where/consumer" &&
    "$where/consumer_of_all"
}
refuses_clearly() {
  ! cmake -S "$consumer" -B "$folder/without" -G Ninja "-DCMAKE_PREFIX_PATH=$folder/moved" \
    -DCMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON >"$folder/without.txt" 2>&1 &&
    tr -s ' \n' '  ' <"$folder/without.txt" | grep 'component eigen needs Eigen3'
}
nothing_absolute() { ! grep -rl -e "$root" -e "$folder" "$folder/moved"; }
headers_complete() {
  (cd "$root/include" && find . -type f | sort) >"$folder/here.txt"
  (cd "$folder/moved/include" && find . -type f | sort) | diff "$folder/here.txt" -
}
bare() {
  eigen=$(pkg-config --cflags eigen3 2>/dev/null || echo -I/usr/include/eigen3)
  # shellcheck disable=SC2086
  c++ -std=c++20 -O1 "-I$1/include" $eigen "$consumer/main.cpp" -o "$folder/bare" && "$folder/bare"
}
by_pkg_config() {
  PKG_CONFIG_PATH=$folder/moved/share/pkgconfig
  export PKG_CONFIG_PATH
  flags=$(pkg-config --cflags rlhf eigen3) &&
    eval "c++ -std=c++20 -O1 $flags \"\$consumer/main.cpp\" -o \"\$folder/by_pkg_config\"" &&
    "$folder/by_pkg_config"
}
vcpkg_port() {
  cmake "-DROOT=$root" "-DFOLDER=$folder/vcpkg" -P "$root/cmake/packaging/vcpkg/dry_run.cmake" &&
    use "$folder/vcpkg/use" "-DCMAKE_PREFIX_PATH=$folder/vcpkg/packages"
}

check "install and move" install_and_move "$folder"
check "every header is installed" headers_complete
check "no path of this machine in the package" nothing_absolute
check "find_package from the moved prefix" use "$folder/use" "-DCMAKE_PREFIX_PATH=$folder/moved"
check "a component without its dependency is refused in a sentence" refuses_clearly
check "add_subdirectory" use "$folder/sub" "-DRLHF_SOURCE=$root"
check "nothing but -I include" bare "$root"
if command -v pkg-config >/dev/null 2>&1; then
  check "pkg-config from the moved prefix" by_pkg_config
else
  skip "pkg-config" "not found"
fi
check "vcpkg port, with stand-ins for its functions" vcpkg_port
if command -v vcpkg >/dev/null 2>&1; then
  check "vcpkg install" vcpkg install rlhf "--overlay-ports=$root/cmake/packaging/vcpkg/ports"
else
  skip "vcpkg install" "no vcpkg client"
fi
if command -v conan >/dev/null 2>&1 && conan --version 2>/dev/null | grep -q 'version 2'; then
  CONAN_HOME=$folder/conan
  export CONAN_HOME
  check "conan profile" conan profile detect
  check "conan create" conan create "$root" --no-remote -s compiler.cppstd=20
else
  skip "conan create" "no Conan 2 client; \`pip install 'conan>=2,<3'\` has it"
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
