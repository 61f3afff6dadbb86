"""What a browser would make of a page."""

from html.parser import HTMLParser
from typing import NamedTuple

VOID = {"meta", "link", "img", "br", "wbr", "line", "rect", "circle", "path"}


class Element(NamedTuple):
    tag: str
    attributes: dict
    inside: list

    def text(self):
        return "".join(each if isinstance(each, str) else each.text() for each in self.inside)

    def find(self, tag, **attributes):
        """All elements of the tag within this one that have the attributes; of a class, among others."""
        found = []
        for each in self.inside:
            if not isinstance(each, str):
                found += [each] if each.tag == tag and each.has(**attributes) else []
                found += each.find(tag, **attributes)
        return found

    def has(self, **attributes):
        return all(value in (self.attributes.get(name.strip("_")) or "").split() for name, value in attributes.items())


class _Parser(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open = [Element("document", {}, [])]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs), [])
        assert len(element.attributes) == len(attrs), f"{tag} has an attribute twice"
        self.open[-1].inside.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID, f"{tag} closes itself"
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.open[-1].inside.append(data)


def parsed(path):
    """The document; fails if an element is not closed, or in another than the one it was opened in."""
    parser = _Parser()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert len(parser.open) == 1, f"{parser.open[-1].tag} is not closed"
    return parser.open[0]
