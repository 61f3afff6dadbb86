"""The files a dataset is read from: whether they are there, and lists with one image per line."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd


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
        file: The list.
        row: Regular expression that every line must match whole; its named groups are the columns.
        form: How a line is written, in words.
        header: Whether the first line is ``form``.

    Returns:
        One row per line, in order; all columns are strings.

    Raises:
        ValueError: If a line is not written so; the message names file, line and content.
    """
    pattern = re.compile(row)
    lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if header and lines[0] != form:
        raise ValueError(f"{file}, line 1: {lines[0]!r} is not the header {form!r}")
    rows = []
    for number, line in enumerate(lines[1:] if header else lines, start=2 if header else 1):
        match = pattern.fullmatch(line)
        if match is None:
            raise ValueError(f"{file}, line {number}: {line!r} is not written {form!r}")
        rows.append(match.groups())
    return pd.DataFrame(rows, columns=list(pattern.groupindex))


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
