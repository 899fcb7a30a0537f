"""Every local link of the site leads somewhere: the file exists, and the place in it too.

Every name of the library in the prose of a page is a link: Doxygen says nothing of one that it does
not know.
"""

import html.parser
import pathlib
import re
import sys
import urllib.parse

site = pathlib.Path(sys.argv[1])
written = {p.stem + ".html" for p in pathlib.Path(__file__).parent.glob("*.md")}


class page(html.parser.HTMLParser):
    QUIET = ("a", "code", "pre", "title", "script", "style")

    def __init__(self, path):
        super().__init__()
        self.links, self.places, self.unknown = set(), set(), set()
        self.quiet = 0  # how many of QUIET and of fragments of code are open
        self.divs = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for key, value in attributes:
            if key in ("href", "src", "data") and value:
                self.links.add(value)
            elif key in ("id", "name") and value:
                self.places.add(value)
        if tag == "div":
            self.divs.append(dict(attributes).get("class") == "fragment")
            self.quiet += self.divs[-1]
        self.quiet += tag in self.QUIET

    def handle_endtag(self, tag):
        if tag == "div" and self.divs:
            self.quiet -= self.divs.pop()
        self.quiet -= tag in self.QUIET

    def handle_data(self, data):
        if not self.quiet:
            self.unknown.update(re.findall(r"rlhf::\w[\w:]*", data))


pages = {path.name: page(path) for path in site.glob("*.html")}
complaints = []
for name, source in sorted(pages.items()):
    for link in sorted(source.links):
        url = urllib.parse.urlsplit(link)
        if url.scheme or url.netloc:
            continue
        target = urllib.parse.unquote(url.path) or name
        place = urllib.parse.unquote(url.fragment)
        if not (site / target).exists():
            complaints.append(f"{name}: {link}: there is no such file")
        elif place and target in pages and place not in pages[target].places:
            complaints.append(f"{name}: {link}: there is no such place")
    if name in written:
        complaints += [f"{name}: {word}: there is no such name" for word in sorted(source.unknown)]
complaints += [f"{name}: this page is missing" for name in sorted(written - set(pages))]
print("\n".join(complaints), end="\n" if complaints else "")
print(f"{len(pages)} pages, {sum(len(p.links) for p in pages.values())} links")
sys.exit(bool(complaints) or not pages)
