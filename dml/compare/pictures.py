"""The same queries under each loss, with their nearest neighbours."""

import base64
import io
from typing import Any, NamedTuple

import pandas as pd
from PIL import Image, UnidentifiedImageError

from dml.compare.logs import RunLogs
from dml.compare.table import Comparison

_SECTION = "random"  # the worst queries are others under each loss
_SMALL = 48  # images of fewer pixels are enlarged, and keep their pixels sharp


class Picture(NamedTuple):
    """An image in the page itself; without a source if it could not be read."""

    path: str
    source: str | None
    is_small: bool


class Neighbour(NamedTuple):
    """What was retrieved."""

    picture: Picture
    similarity: float
    is_right: bool


class Strip(NamedTuple):
    """What a row of the comparison retrieves for a query, the nearest first."""

    row: int
    average_precision: float
    neighbours: list[Neighbour]


class Query(NamedTuple):
    """A query, and what each loss retrieves for it."""

    picture: Picture
    strips: list[Strip]


def queries(logs: RunLogs, comparison: Comparison, *, max_queries: int = 5, max_rows: int = 6) -> list[Query]:
    """The first queries that all of the first rows have pictures of; empty if there are none.

    A row is shown by its run of the lowest seed that has pictures.

    Args:
        logs: Have the pictures.
        comparison: Whose rows are shown.
        max_queries: At most so many queries.
        max_rows: At most so many rows, those of the same loss and backbone once.
    """
    drawn = logs.retrievals[logs.retrievals["section"].str.startswith(_SECTION)]
    shown = _runs(logs, comparison, set(drawn["run"]))[:max_rows]
    strips = {row: drawn[drawn["run"] == run] for row, run in shown}
    if not strips:
        return []
    asked = [frame["query_path"].drop_duplicates() for frame in strips.values()]
    common = [path for path in asked[0] if all((path == each).any() for each in asked)]
    found = {path: {row: frame[frame["query_path"] == path] for row, frame in strips.items()} for path in common}
    return [_query(frames) for frames in list(found.values())[:max_queries]]


def _runs(logs: RunLogs, comparison: Comparison, drawn: set[str]) -> list[tuple[int, str]]:
    """Rows that have pictures, and the run whose they are; of a loss and backbone the first row only."""
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for row, each in enumerate(comparison.rows.to_dict("records")):
        runs = sorted((run for run in each["runs"] if run in drawn), key=lambda run: logs.runs["seed"][run])
        if runs:
            found.setdefault((each["loss"], each["backbone"]), (row, runs[0]))
    return list(found.values())


def _query(frames: dict[int, pd.DataFrame]) -> Query:
    first = next(iter(frames.values())).iloc[0]
    return Query(
        _picture(first["query_path"], first["query_image"]),
        [_strip(row, frame.sort_values("place")) for row, frame in frames.items()],
    )


def _strip(row: int, frame: pd.DataFrame) -> Strip:
    columns = (frame[name] for name in ("path", "image", "similarity", "is_right"))
    neighbours = [
        Neighbour(_picture(path, image), float(similarity), bool(is_right))
        for path, image, similarity, is_right in zip(*columns, strict=True)
    ]
    return Strip(row, float(frame["average_precision"].iloc[0]), neighbours)


def _picture(path: str, content: Any) -> Picture:
    if not isinstance(content, bytes):
        return Picture(path, None, False)
    try:
        with Image.open(io.BytesIO(content)) as image:
            is_small = max(image.size) <= _SMALL
            image.load()
            smaller = content if is_small else _webp(image)
    except (UnidentifiedImageError, OSError):
        return Picture(path, None, False)
    kind, content = ("webp", smaller) if len(smaller) < len(content) else ("png", content)
    return Picture(path, f"data:image/{kind};base64,{base64.b64encode(content).decode()}", is_small)


def _webp(image: Image.Image) -> bytes:
    """Photos of GroceryStore, 96 pixels wide, take a seventh of their PNG."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="WEBP", quality=80)
    return buffer.getvalue()
