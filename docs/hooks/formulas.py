"""Formulas as MathML, which browsers render by themselves: no script, no font to download."""

import re
from html import unescape

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

# What pymdownx.arithmatex leaves of `$a$`, `\(a\)` and `$$a$$`.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def to_mathml(formula: str, *, block: bool) -> str:
    r"""The ``math`` element of a formula in LaTeX.

    Raises:
        ValueError: If the formula has a command that has no MathML.
    """
    element = convert(formula.strip(), display="block" if block else "inline")
    if "\\" in element or "&#x0005C;" in element:
        raise ValueError(f"formula is {formula!r}; it has a command that latex2mathml does not know")
    return element


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Called by MkDocs with each page."""
    return _FORMULA.sub(lambda found: to_mathml(unescape(found[2]), block=found[1] == "div"), html)
