"""Every header that gives an algorithm has its test: policy/x.hpp has tests/policy/x_test.cpp."""

from house import algorithms, finish, root

missing = []
for header in algorithms():
    test = "tests/" + header.removesuffix(".hpp") + "_test.cpp"
    if not (root / test).is_file():
        missing.append(f"{test} is missing")
finish(missing, f"{len(algorithms())} tests")
