"""Every header that gives an algorithm has its test: policy/x.hpp has tests/policy/x_test.cpp. So
has every lane function and every primitive."""

from house import algorithms, finish, headers, root

mirrored = algorithms() + [h for h in headers() if h.startswith(("math/", "primitive/"))]
missing = []
for header in mirrored:
    test = "tests/" + header.removesuffix(".hpp") + "_test.cpp"
    if not (root / test).is_file():
        missing.append(f"{test} is missing")
finish(missing, f"{len(mirrored)} tests")
