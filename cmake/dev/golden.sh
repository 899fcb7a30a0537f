# Compares with recorded numbers.

[ $# = 1 ] && [ -d "$1" ] || die "golden needs one folder"
need_compiler doctest-dev libeigen3-dev libxtensor-dev nlohmann-json3-dev >&2
make_target default rlhf_golden >&2
exec "$build/default/tests/rlhf_golden" "$1"
