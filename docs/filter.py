"""What Doxygen reads in place of a header: the same lines, with four things said its way.

What a header declares becomes a page of its own, under its room; the rows of a promise (Shapes,
Units, ...) become a table; an option's default stands before its description; inline namespaces,
whose names only keep units of different flags apart, are left out. Lines keep their numbers, so
that a warning points into the header.
"""

import pathlib
import re
import sys

ROWS = "Shapes Units Requires Throws Gradient Edges Numerics Cost Source Elsewhere Example".split()
ROW = re.compile(r"^(\s*///) (%s)\s+(\S.*)$" % "|".join(ROWS))
MORE = re.compile(r"^(\s*///)\s{3,}(\S.*)$")
DEFAULT = re.compile(r"^(  [\w:]+ \w+ = ([^;{}]+);)(?:\s*///<(.*))?$")
SPECIAL = re.compile(r"([\\<>&#@$%|*~])")  # what Markdown or Doxygen would take for a command


def purpose(lines):
    """The first sentence of the comment that makes the header's first promise."""
    comments = [[]]
    for line in lines:
        if line.strip().startswith("///") and not line.strip().startswith("///<"):
            comments[-1].append(line.strip()[3:].strip())
        elif comments[-1]:
            comments.append([])
    promises = [c for c in comments if any(text.startswith("Source ") for text in c)]
    words = " ".join(promises[0] if promises else []).split("  ")[0]
    return SPECIAL.sub(r"\\\1", re.split(r"\.(?: |$)", words)[0].rstrip(":"))


def rows(lines):
    inside = False
    for line, following in zip(lines, lines[1:] + [""]):
        row = ROW.match(line)
        more = MORE.match(line) if inside else None
        if row:
            start = "</td></tr><tr>" if inside else '<table class="promise"><tr>'
            line = f"{row[1]} {start}<th>{row[2]}</th><td>" + SPECIAL.sub(r"\\\1", row[3])
            inside = True
        elif more:
            line = more[1] + " " + SPECIAL.sub(r"\\\1", more[2])
        if inside and not (ROW.match(following) or MORE.match(following)):
            line += "</td></tr></table>"
            inside = False
        yield line


def members(lines):
    """The table of a config's members shows no defaults: they go before what is said of each."""
    inside = False
    for line in lines:
        inside = re.match(r"struct \w+_(config|term) \{$", line) or inside and line != "};"
        if found := inside and DEFAULT.match(line):
            line = f"{found[1]}  ///< <code>= {found[2].split('::')[-1]}</code> {found[3] or ''}"
        if line.endswith("named_only use_designators = named_only();"):
            line = ""  # nobody fills it
        yield re.sub(r"///< \+", "///< <span>+</span>", line)


def grouped(lines, group):
    """Every namespace but detail opens and closes the group: Doxygen loses it at their braces."""
    scopes = []
    opened = False
    for line, following in zip(lines, lines[1:] + [""]):
        line = re.sub(r"::inline (v1|RLHF_COMPUTE|RLHF_CHECKS)\b", "", line)
        if found := re.match(r"(inline )?namespace ([\w:]+) \{$", line):
            inner = "detail" in found[2] or "inner" in scopes
            kind = "inline" if found[1] else "inner" if inner or following else "open"
            scopes.append(kind)
            if kind == "inline":
                line = 'extern "C++" {'
            elif kind == "open":
                line += f" /** @addtogroup {group}"
                opened = True
        elif opened:
            line, opened = "@{ */", False
        elif re.match(r"\}  // namespace ", line) and scopes.pop() == "open":
            line = "/** @} */ " + line
        yield line


path = pathlib.Path(sys.argv[1])
parts = path.parts[len(path.parts) - path.parts[::-1].index("rlhf") :]  # below include/rlhf
group = "header_" + "_".join(parts).removesuffix(".hpp")
lines = path.read_text(encoding="utf-8").splitlines()
text = "\n".join(grouped(list(members(rows(lines))), group))
# A default argument that stands for none at all: see detail::no_config.
print(re.sub(r" =(\s+)detail::no_config<[^>]*>::value", lambda m: m[1].rstrip(" "), text))
name = "/".join(parts)
print(f"/** @defgroup {group} {name}")
print(f"@ingroup {parts[0] if len(parts) > 1 else 'entry'}")
if words := purpose(lines):
    print(f"@brief {words}.\n")
print(f"`#include <rlhf/{name}>` */")
