"""Pages under docs/ show code and output of programs that are compiled and run, word for word.

A line <!-- start_cpp.cpp first --> stands before a block that holds what lies between the two lines
//! [first] of docs/snippets/start_cpp.cpp; without a name, the whole file. So a page reads the same
here, on a forge and on the site. `python3 tests/checks/check_docs_code.py . --write` fills blocks.
"""

import re
import sys
import textwrap

from house import finish, root

snippets = root / "docs" / "snippets"
LANGUAGE = {".cpp": "cpp", ".cu": "cpp", ".h": "c", ".c": "c", ".txt": ""}
PART = re.compile(r"^\s*(?://!|/\*!?) \[(\w+)\].*$", re.M)
BLOCK = re.compile(r"^<!-- (\S+\.(?:cpp|cu|c|h|txt))(?: (\w+))? -->\n((?:```.*?^```\n)?)", re.M | re.S)
write = "--write" in sys.argv
complaints, shown = [], set()


def part(name, of):
    """What a page shows of a file of docs/snippets; None where it has no such part."""
    text = (snippets / name).read_text(encoding="utf-8")
    if of is None:
        return text.strip("\n")
    marks = [m for m in PART.finditer(text) if m[1] == of]
    if len(marks) != 2:
        return None
    return textwrap.dedent(text[marks[0].end() : marks[1].start()]).strip("\n")


for page in sorted((root / "docs").glob("*.md")):
    text = page.read_text(encoding="utf-8")

    def block(found):
        name, of = found[1], found[2]
        shown.add((name, of))
        code = part(name, of) if (snippets / name).is_file() else None
        if code is None:
            complaints.append(f"docs/{page.name}: docs/snippets/{name} has no part [{of}]")
            return found[0]
        language = LANGUAGE[name[name.rindex(".") :]]
        return f"<!-- {name}{' ' + of if of else ''} -->\n```{language}\n{code}\n```\n"

    filled = BLOCK.sub(block, text)
    if filled != text:
        if write:
            page.write_text(filled, encoding="utf-8")
        else:
            complaints.append(f"docs/{page.name} differs from docs/snippets: run this with --write")
    bare = BLOCK.sub("\n", filled)
    complaints += [f"docs/{page.name}: code that nobody compiles: {line}"
                   for line in re.findall(r"^\s*(?:```|~~~)\s*\{?\.?(?:cpp|c|cuda|cu)\b.*", bare, re.M)]
    complaints += [f"docs/{page.name}: {line}: a forge does not show it"
                   for line in re.findall(r"^\s*[\\@](?:snippet|include|verbinclude)\b.*", bare, re.M)]

# A part that no page shows has lost its reader.
for program in sorted(snippets.iterdir()):
    for name in sorted(set(PART.findall(program.read_text(encoding="utf-8")))):
        if (program.name, name) not in shown:
            complaints.append(f"docs/snippets/{program.name}: no page shows [{name}]")
finish(complaints, f"{len(shown)} parts")
