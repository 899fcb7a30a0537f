"""Pages under docs/ show code and output of programs that are compiled and run, never a copy."""

import re
from house import finish, root

complaints, shown = [], set()
for page in sorted((root / "docs").glob("*.md")):
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        where = f"docs/{page.name}:{number}"
        if re.match(r"\s*(```|~~~)\s*\{?\.?(cpp|c|cuda|cu)\b", line):
            complaints.append(f"{where}: code that nobody compiles; show it with \\snippet")
        if found := re.match(r"\s*[\\@](?:snippet|include|verbinclude) (\S+)(?: (\S+))?", line):
            shown.add((found[1], found[2]))
            if not (root / "docs" / "snippets" / found[1]).is_file():
                complaints.append(f"{where}: docs/snippets/{found[1]} does not exist")

# A part that no page shows has lost its reader.
marker = re.compile(r"^\s*(?://!|/\*) \[(\w+)\]", re.M)
for program in sorted((root / "docs" / "snippets").iterdir()):
    for part in sorted(set(marker.findall(program.read_text(encoding="utf-8")))):
        if (program.name, part) not in shown:
            complaints.append(f"docs/snippets/{program.name}: no page shows [{part}]")
finish(complaints, f"{len(shown)} parts")
