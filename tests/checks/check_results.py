"""docs/results.md names every field of every result that a call returns, and no other."""

import re

from house import ROOMS, finish, include, root

page = (root / "docs/results.md").read_text(encoding="utf-8")
blocks = re.split(r"(?=rlhf::\w+_result\b)", page)
shown = {re.match(r"rlhf::(\w+)", b)[1]: set(re.findall(r"`(\w+)`", b.split("\n\n## ")[0]))
         for b in blocks[1:]}
complaints, count = [], 0
for room in ROOMS:
    for path in sorted((include / room).glob("*.hpp")):
        text = path.read_text(encoding="utf-8")
        for name, body in re.findall(r"^struct (\w+_result) \{\n(.*?)^\};", text, re.M | re.S):
            count += 1
            fields = set(re.findall(r"^  [\w:]+ (\w+)(?: = [^;]+)?;", body.split("friend")[0], re.M))
            if name not in shown:
                complaints.append(f"docs/results.md lacks {name}")
                continue
            complaints += [f"docs/results.md: {name} lacks `{f}`" for f in sorted(fields - shown[name])]
            named = {w for w in shown[name] - fields if not w.endswith("_loss")}  # functions
            complaints += [f"docs/results.md: {name} has no `{f}`" for f in sorted(named)]
finish(complaints, f"{count} results")
