"""Every public function of the algorithms has an entry in tests/registry, so all suites run on it."""

import re

from house import ROOMS, finish, include, root

calls = "".join(p.read_text(encoding="utf-8") for p in (root / "tests/registry").glob("*_entries.cpp"))
missing, count = [], 0
for room in ROOMS:
    for path in sorted((include / room).glob("*.hpp")):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"^result_of<Exec, [\w:]+>\s+(\w+)\(", text, re.M):
            count += 1
            if not re.search(rf"\brlhf::{name}<T>\(", calls):
                missing.append(f"{room}/{path.name}: {name} has no entry in tests/registry")
finish(missing, f"{count} functions")
