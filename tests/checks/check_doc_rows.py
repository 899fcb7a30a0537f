"""The comment over every function that takes an executor has the rows of a promise, in order."""

import re
from house import ROOMS, finish, include

ORDER = "Shapes Units Requires Throws Gradient Edges Numerics Cost Source Elsewhere Example".split()
TYPE = re.compile(r"(struct|class|concept|using|union|enum|inline constexpr|extern)\b")
ROW = re.compile(r" ([A-Z][a-z]+)\s+\S")
NEEDED = [("Shapes",), ("Requires", "Throws"), ("Edges",), ("Numerics",), ("Cost",), ("Source",)]


def templates(text):
    """(line, comment, declaration) of templates under ///, except formulas and details."""
    spaces, comment = [], []
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if opened := re.match(r"(?:inline )?namespace\s*([^{;=]*)\{", stripped):
            spaces.append(opened[1])
        elif re.match(r"\}\s*// namespace", stripped) and spaces:
            spaces.pop()
        if stripped.startswith("///"):
            comment.append(stripped[3:])
            continue
        inner = re.search(r"formula|detail", " ".join(spaces))
        if comment and stripped.startswith("template") and not inner:
            declaration = re.split(r"[;{]", " ".join(lines[number - 1 : number + 24]))[0]
            yield number, comment, declaration
        if stripped and not stripped.startswith("//"):
            comment = []


complaints, count = [], 0
for room in ROOMS:
    for path in sorted((include / room).glob("*.hpp")):
        for number, comment, declaration in templates(path.read_text(encoding="utf-8")):
            after = re.sub(r"^template\s*<.*?>\s*(?=\w)", "", declaration, count=1)
            if TYPE.match(after) or "(" not in after:
                continue
            if "executor" not in declaration:
                continue  # a helper: whatever computes takes an executor
            count += 1
            name = (re.findall(r"(\w+)\s*\(", after) or ["?"])[0]
            where = f"{path.relative_to(include)}:{number}: {name}"
            rows = [m[1] for line in comment if (m := ROW.match(line)) and m[1] in ORDER]
            for choice in NEEDED:
                if not set(choice) & set(rows):
                    complaints.append(f"{where} lacks the row {' or '.join(choice)}")
            if rows != sorted(rows, key=ORDER.index):
                complaints.append(f"{where} has its rows out of order: {', '.join(rows)}")
finish(complaints, f"{count} functions")
