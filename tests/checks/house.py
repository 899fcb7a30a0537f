"""What the checks share: where things stand, and which headers are algorithms."""

import pathlib
import re
import sys

ROOMS = "policy value advantage preference reward kl distribution monitor statistics".split()

root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
include = root / "include" / "rlhf"


def headers():
    """All headers, as rlhf.hpp would name them: policy/clipped_surrogate.hpp."""
    return sorted(p.relative_to(include).as_posix() for p in include.rglob("*.hpp"))


def algorithms():
    """The headers that give an algorithm: those whose comments name a source."""
    found = []
    for room in ROOMS:
        for path in sorted((include / room).glob("*.hpp")):
            if re.search(r"^\s*/// Source ", path.read_text(encoding="utf-8"), re.M):
                found.append(f"{room}/{path.name}")
    return found


def finish(complaints, ok):
    for complaint in complaints:
        print(complaint)
    if complaints:
        sys.exit(1)
    print(ok)
