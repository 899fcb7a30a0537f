# Uses every package.

# conan_client: puts a Conan 2 client on the PATH, from PyPI into build/conan; CONAN_WHY says why
# there is none.
conan_client() {
  CONAN_WHY=
  ! { has conan && conan --version 2>/dev/null | grep -q 'version 2'; } || return 0
  if [ ! -x "$build/conan/bin/conan" ]; then
    say "Installing Conan 2 from PyPI into build/conan"
    rm -rf "$build/conan"
    if ! python3 -m venv "$build/conan" >"$build/conan.log" 2>&1; then
      CONAN_WHY="python3 -m venv failed; build/conan.log says why"
    elif ! "$build/conan/bin/pip" install -q --disable-pip-version-check "conan>=2,<3" \
      >"$build/conan.log" 2>&1; then
      CONAN_WHY="pip could not install conan>=2,<3; build/conan.log says why"
    fi
    [ -z "$CONAN_WHY" ] || { rm -rf "$build/conan"; return 0; }
  fi
  PATH=$build/conan/bin:$PATH
}

no_arguments "$@"
need_compiler libeigen3-dev libxtensor-dev libtbb-dev libthrust-dev doctest-dev \
  librapidcheck-dev nlohmann-json3-dev ccache clang git pkg-config python3 python3-venv
mkdir -p "$build"
conan_client
export CONAN_WHY
exec sh "$root/cmake/packaging/check.sh" "$root" "$build/package"
