"""Docstrings are written with the roles of Sphinx; here they become Markdown before mkdocstrings reads them."""

import functools
import re
from collections.abc import Iterator
from typing import Any

from griffe import Alias, AliasResolutionError, Class, Extension, Module, NameResolutionError, Object

_MATH = re.compile(r":math:`([^`]+)`")
_LITERAL = re.compile(r"::$", re.MULTILINE)  # announces a block of code, which is indented as in Markdown
_REFERENCE = re.compile(r":(?:class|func|meth|attr|mod|data):`(~?)([^`]+)`")
# The formula goes on as long as lines are indented deeper than the directive, and ends at an empty line.
_DIRECTIVE = re.compile(r"^( *)\.\. math:: (.+(?:\n\1 +\S.*)*)", re.MULTILINE)


class SphinxRoles(Extension):
    """Formulas for arithmatex, and references for autorefs, in every docstring of a package."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Called by griffe when a package is loaded whole, so that names can be looked up."""
        for documented in objects_of(pkg):
            if documented.docstring is not None:
                documented.docstring.value = to_markdown(documented.docstring.value, documented)


def objects_of(module: Module) -> Iterator[Object]:
    """The module and what is defined in it, without what it imports."""
    waiting: list[Object] = [module]
    while waiting:
        found = waiting.pop()
        yield found
        waiting.extend(member for member in found.members.values() if isinstance(member, Object))


def to_markdown(docstring: str, scope: Object) -> str:
    """A docstring without roles and directives.

    Args:
        docstring: As it was written.
        scope: Where its names are looked up.

    Raises:
        ValueError: If it refers to something of ``dml`` that does not exist.
    """
    docstring = _DIRECTIVE.sub(lambda found: f"{found[1]}$${' '.join(found[2].split())}$$", docstring)
    docstring = _LITERAL.sub(":", docstring)
    docstring = _MATH.sub(lambda found: rf"\({found[1]}\)", docstring)
    return _REFERENCE.sub(lambda found: _reference(found[2], bool(found[1]), scope), docstring)


def _reference(name: str, short: bool, scope: Object) -> str:
    path = path_of(name, scope)
    shown = name.rpartition(".")[2] if short else name
    # Optional: not everything that exists has a page.
    return f'<autoref optional identifier="{path}"><code>{shown}</code></autoref>'


def path_of(name: str, scope: Object) -> str:
    """Where a name in a docstring leads, as a dotted path.

    Raises:
        ValueError: If there is no such thing.
    """
    first, *rest = name.split(".")
    package = scope.package
    try:
        path = ".".join([package.path if first == package.path else _path_in_scope(first, scope), *rest])
        if path.startswith(f"{package.path}."):
            functools.reduce(_member, path.split(".")[1:], package)
    except (AliasResolutionError, NameResolutionError, KeyError) as error:
        raise ValueError(f"the docstring of {scope.path} refers to {name!r}, which does not exist") from error
    return path


def _path_in_scope(name: str, scope: Object) -> str:
    """By the class that the docstring is of or in, with what it inherits, else by the module."""
    owner = scope if isinstance(scope, Class) else scope.parent
    if isinstance(owner, Class) and name in owner.all_members:
        return owner.all_members[name].canonical_path
    return scope.resolve(name)


def _member(owner: Object | Alias, name: str) -> Object | Alias:
    owner = owner.final_target if isinstance(owner, Alias) else owner
    return owner.all_members[name]
