"""Every ```cpp block of README.md is compiled: its paragraphs stand, in order, in one program.

Programs are docs/snippets/ and examples/. White space does not matter, nor where clang-format
breaks a line; `...` stands for any part of a statement. A block without a language is a command or
the print of a program: it then stands in a transcript.
"""

import re
from house import finish, root


def words(code):
    return re.sub(r" ?([][(){},]) ?", r"\1", " ".join(code.split()))


def pattern(block):
    paragraphs = [words(p) for p in re.split(r"\n\s*\n", block) if p.strip()]
    return re.compile(".*?".join(re.escape(p).replace(r"\.\.\.", "[^;]*?") for p in paragraphs))


programs = [p for folder in ("docs/snippets", "examples")
            for p in sorted((root / folder).rglob("*")) if p.suffix in (".cpp", ".cu", ".hpp")]
texts = [words(p.read_text(encoding="utf-8")) for p in programs]
readme = (root / "README.md").read_text(encoding="utf-8")
blocks = re.findall(r"^\s*```cpp\n(.*?)^\s*```", readme, re.M | re.S)
complaints = [f"README.md: no program has this code:\n{block}" for block in blocks
              if not any(pattern(block).search(text) for text in texts)]
transcripts = [words(p.read_text(encoding="utf-8"))
               for folder in ("docs/snippets", "tests/examples")
               for p in sorted((root / folder).glob("*.txt"))]
prints = [p for p in re.findall(r"^```\n(.*?)^```", re.sub(r"^```\w+\n.*?^```", "", readme,
                                                          flags=re.M | re.S), re.M | re.S)
          if not p.startswith("./dev ")]
complaints += [f"README.md: no transcript has this print:\n{p}" for p in prints
               if not any(words(p) in text for text in transcripts)]
if not blocks:
    complaints.append("README.md: no ```cpp block was found")
finish(complaints, f"{len(blocks)} blocks, {len(prints)} prints")
