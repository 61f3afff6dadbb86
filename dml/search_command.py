"""The commands ``dml index``, ``dml search`` and ``dml browse``, which need the extra ``search``."""

import importlib.util
from collections.abc import Sequence

from jsonargparse import ArgumentParser

_OF_PAGE = ("faiss", "starlette", "uvicorn")


def run_index(words: list[str], parser_class: type[ArgumentParser]) -> int:
    """Run ``dml index``; see :func:`dml.search.index_command.run`."""
    _require("dml index", ["faiss"])
    from dml.search import index_command  # only who searches has what it imports

    return index_command.run(words, parser_class)


def run_search(words: list[str], parser_class: type[ArgumentParser]) -> int:
    """Run ``dml search``; see :func:`dml.search.query_command.run`."""
    _require("dml search", ["faiss"])
    from dml.search import query_command

    return query_command.run(words, parser_class)


def run_browse(words: list[str], parser_class: type[ArgumentParser]) -> int:
    """Run ``dml browse``; see :func:`dml.search.browse_command.run`."""
    _require("dml browse", _OF_PAGE)
    from dml.search import browse_command

    return browse_command.run(words, parser_class)


def _require(command: str, packages: Sequence[str]) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{command} needs {', '.join(missing)}: pip install 'dml[search]'")
