"""README's table names exactly the headers that give an algorithm."""

import re
from house import ROOMS, algorithms, finish, root

lines = (root / "README.md").read_text(encoding="utf-8").splitlines()
rows = [line for line in lines if line.lstrip().startswith("|")]
named = set(re.findall(r"\b((?:%s)/\w+\.hpp)" % "|".join(ROOMS), "\n".join(rows)))
wanted = set(algorithms())
finish(
    [f"README's table lacks {h}" for h in sorted(wanted - named)]
    + [f"README's table names {h}, which is no algorithm's header" for h in sorted(named - wanted)],
    f"{len(wanted)} algorithm headers",
)
