# clang-format over all sources.

no_arguments "$@"
need clang-format
has clang-format || die "please install clang-format"
cd "$root"
find include tests bench examples test_package cmake \
  \( -name '*.hpp' -o -name '*.cpp' -o -name '*.cu' \) -exec clang-format -i {} +
