"""The files a dataset is read from: whether they are there, and lists with one image per line."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

PREPARED = "prepared.json"
"""What ``dml data prepare`` writes beside the copies it makes: of which data set, and how."""


def require(root: Path, names: Sequence[str], origin: str) -> None:
    """Check that ``root`` holds the files and folders of a dataset.

    Args:
        root: Folder of the dataset, as the user gave it.
        names: The files and folders it must hold.
        origin: Address of the site that offers the data.

    Raises:
        FileNotFoundError: If one is missing; the message, one line, says what was found in its place.
    """
    if not _holds(root, names):
        raise FileNotFoundError(
            f"root is {str(root)!r}, which must be a folder with {_and(names)}, but {_found(root, names)}; "
            f"the data can be had from {origin}"
        )


def read_list(file: Path, row: str, form: str, *, header: bool = False) -> pd.DataFrame:
    """Read a list of images, one per line.

    Args:
        file: The list, in UTF-8.
        row: Regular expression (of RE2, which has no look-around) that every line must match whole; its named groups
            are the columns.
        form: How a line is written, in words.
        header: Whether the first line is ``form``.

    Returns:
        One row per line, in order; all columns are strings.

    Raises:
        ValueError: If a line is not written so; the message names file, line and content.
    """
    lines = file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    if header and lines[0] != form:
        raise ValueError(f"{file}, line 1: {lines[0]!r} is not the header {form!r}")
    return parse_lines(file, lines[int(header) :], row, form, first_line=1 + header)


def parse_lines(file: Path, lines: Sequence[str], row: str, form: str, *, first_line: int = 1) -> pd.DataFrame:
    """:func:`read_list` of lines that are read already, the first of which is line ``first_line`` of the file."""
    # Arrow takes a microsecond a line, and keeps no Python object of it.
    fields = pc.extract_regex(pa.array(lines, pa.string()), f"^(?:{row})$")
    if fields.null_count:
        wrong = pc.index(pc.is_null(fields), True).as_py()
        raise ValueError(f"{file}, line {first_line + wrong}: {lines[wrong]!r} is not written {form!r}")
    names = [field.name for field in fields.type]
    return pd.DataFrame({name: strings(fields.field(name)) for name in names})


def read_plain_pickle(file: Path) -> Any:
    """Read a pickle of lists, dicts, strings and numbers. Any other could run code of its author, and is refused.

    Raises:
        ValueError: If it holds anything else, or is damaged; the message names the file.
    """
    try:
        with file.open("rb") as stream:
            return _PlainUnpickler(stream).load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise ValueError(f"{file} is not a pickle of plain lists, dicts, strings and numbers: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def strings(column: pa.Array) -> pd.Series:
    """A column of strings that keeps no Python object of any."""
    return pd.Series(column, dtype="string[pyarrow]")


def _holds(root: Path, names: Sequence[str]) -> bool:
    return all((root / name).exists() for name in names)


def _found(root: Path, names: Sequence[str]) -> str:
    if not root.exists():
        return "it does not exist"
    if not root.is_dir():
        return "it is a file"
    missing = [name for name in names if not (root / name).exists()]
    packed = [name + suffix for name in missing for suffix in (".zip", ".gz") if (root / (name + suffix)).exists()]
    if packed:
        return f"it has {_and(packed)}: unzip them there"
    # One folder too high or too low is the commonest mistake.
    folders = [*sorted(path for path in root.iterdir() if path.is_dir()), root.absolute().parent]
    right = [folder for folder in folders if _holds(folder, names)]
    if right:
        return f"those are in {str(right[0])!r}: point root there"
    entries = sorted(path.name for path in root.iterdir())
    more = f" and {len(entries) - 5} more" if len(entries) > 5 else ""
    return f"it lacks {_and(missing)}: it holds {entries[:5]}{more}"


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
