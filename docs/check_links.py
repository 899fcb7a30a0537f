"""Every local link of the site leads somewhere: the file exists, and the place in it too."""

import html.parser
import pathlib
import sys
import urllib.parse

site = pathlib.Path(sys.argv[1])


class page(html.parser.HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.links, self.places = set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for key, value in attributes:
            if key in ("href", "src", "data") and value and tag != "base":
                self.links.add(value)
            elif key in ("id", "name") and value:
                self.places.add(value)


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
print("\n".join(complaints), end="\n" if complaints else "")
print(f"{len(pages)} pages, {sum(len(p.links) for p in pages.values())} links")
sys.exit(bool(complaints) or not pages)
