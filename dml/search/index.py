"""A search index in a folder: what it holds, and how it is read."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pandas as pd

from dml.data.images import Box
from dml.data.index import BOX
from dml.search.kinds import Embeddings

VERSION = 1
GALLERY, QUERIES, IMAGES, FACTS = "index.faiss", "queries.faiss", "images.parquet", "index.json"
_KINDS = (faiss.IndexFlat, faiss.IndexHNSWFlat, faiss.IndexIVFPQ, faiss.IndexRefine)


@dataclass(frozen=True)
class Facts:
    """What an index says of itself, in ``index.json``.

    Args:
        version: Of the format.
        kind: flat, hnsw or ivfpq.
        parameters: Of the kind.
        dimension: ``D``.
        count: Images that can be found, the first rows. Those after them are queries only.
        split: Of the data set.
        levels: Columns of the labels, finest first.
        root: Folder of the images.
        checkpoint: That embedded them, if known.
        sha256: Of that file.
        command: That built the index.
        report: What was measured of it.
        probes: Rows and embeddings of a few images, by which a wrong model or transform is noticed.
        sizes: Of the files, in bytes.
    """

    version: int
    kind: str
    parameters: dict[str, Any]
    dimension: int
    count: int
    split: str | None
    levels: list[str]
    root: str
    checkpoint: str | None
    sha256: str | None
    command: str
    report: dict[str, Any]
    probes: dict[str, list[float]]
    sizes: dict[str, int]


class SearchIndex:
    """Images by their embeddings.

    Nothing in the folder is executed: it holds what faiss has written, Parquet and JSON.

    Args:
        folder: That ``dml index`` has written.
        root: Folder of the images, if they have moved.
        follow_links: Whether an image may lie outside of the root, behind a symbolic link in it.

    Attributes:
        images: A row per image: ``path``, ``role`` and the labels, by name where known. The first :attr:`count` can be
            found, and the others are queries only.

    Raises:
        ValueError: If the folder is not a whole index of this version.
    """

    def __init__(self, folder: str | Path, *, root: str | Path | None = None, follow_links: bool = False) -> None:
        self.folder = Path(folder).expanduser()
        self.facts = _read_facts(self.folder)
        self.count = self.facts.count
        self.images = _read_images(self.folder, self.facts)
        num_queries = len(self.images) - self.count
        self._gallery = _read_faiss(self.folder / GALLERY, self.facts.dimension, self.count)
        self._queries = _read_faiss(self.folder / QUERIES, self.facts.dimension, num_queries) if num_queries else None
        self.root = Path(self.facts.root if root is None else root).expanduser()
        if root is not None and not self.root.is_dir():
            raise ValueError(f"root is {str(root)!r}; it must be the folder of the images")
        self.follow_links = follow_links
        self._rows = {path: row for row, path in enumerate(self.images["path"])}

    @classmethod
    def load(cls, folder: str | Path) -> "SearchIndex":
        """Read an index from its folder."""
        return cls(folder)

    def search(self, embeddings: Embeddings, k: int = 10) -> tuple[Embeddings, npt.NDArray[np.int64]]:
        """The nearest images of each query, most similar first.

        Args:
            embeddings: ``[Q, D]``, which are brought to unit norm.
            k: How many; at most :attr:`count`.

        Returns:
            Scores ``[Q, k]``, cosines or their approximation, and rows of :attr:`images` ``[Q, k]``. Where an
            approximate index finds fewer, row -1 at score -inf.

        Raises:
            ValueError: If the embeddings are of another dimension, or not finite.
        """
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        embeddings = unit_norm(embeddings)
        if embeddings.shape[1] != self.facts.dimension:
            raise ValueError(f"embeddings have shape {embeddings.shape}; this index is of [Q, {self.facts.dimension}]")
        scores, rows = self._gallery.search(embeddings, min(k, self.count))
        return np.where(rows >= 0, scores, -np.inf).astype(np.float32), rows

    def neighbours(self, row: int, k: int = 10) -> tuple[Embeddings, npt.NDArray[np.int64]]:
        """:meth:`search` for an image of the index, which is not its own neighbour: scores ``[k]`` and rows ``[k]``."""
        scores, rows = self.search(self.embedding(row)[None], k + 1)
        others = (rows[0] != row) & (rows[0] >= 0)
        return scores[0][others][:k], rows[0][others][:k]

    def embedding(self, row: int) -> npt.NDArray[np.float32]:
        """The embedding of an image ``[D]``; from its code, and so not exactly, where nothing else is kept."""
        self._check(row)
        if row >= self.count:
            assert self._queries is not None
            stored: npt.NDArray[np.float32] = self._queries.reconstruct(row - self.count)
        else:
            stored = self._gallery.reconstruct(row)
        return stored

    def __contains__(self, path: str) -> bool:
        return path in self._rows

    def row(self, path: str) -> int:
        """The row of an image, by its path relative to the root.

        Raises:
            ValueError: If there is none.
        """
        if path not in self._rows:
            raise ValueError(f"path is {path!r}, no image of the index; its first is {self.images['path'].iloc[0]!r}")
        return self._rows[path]

    def file(self, row: int) -> Path:
        """Where an image is.

        Raises:
            ValueError: If that is outside of the root.
        """
        self._check(row)
        name = str(self.images["path"].iloc[row])
        file = self.root / name
        inside = ".." not in Path(name).parts and not Path(name).is_absolute()
        if not inside or not (self.follow_links or file.resolve().is_relative_to(self.root.resolve())):
            raise ValueError(
                f"image {name!r} lies outside of the root, {str(self.root)!r}; if by a symbolic link that is meant to "
                "be there, say --follow_links"
            )
        return file

    def box(self, row: int) -> Box | None:
        """What an image is cropped to, if it is."""
        if not set(BOX) <= set(self.images.columns):
            return None
        left, top, right, bottom = (float(side) for side in self.images[list(BOX)].iloc[row])
        return None if np.isnan([left, top, right, bottom]).any() else (left, top, right, bottom)

    def labels(self, row: int) -> dict[str, str]:
        """The label of each level, finest first."""
        return {level: str(self.images[level].iloc[row]) for level in self.facts.levels}

    def is_right(self, query: int, row: int) -> bool | None:
        """Whether two images are of one class of the finest level; None if the index has no labels."""
        if not self.facts.levels:
            return None
        labels = self.images[self.facts.levels[0]]
        return bool(labels.iloc[query] == labels.iloc[row])

    def _check(self, row: int) -> None:
        if not 0 <= row < len(self.images):
            raise ValueError(f"row is {row}; the index has images 0 to {len(self.images) - 1}")


def unit_norm(embeddings: npt.ArrayLike) -> Embeddings:
    """``[N, D]`` in float32 and of unit norm.

    Raises:
        ValueError: If one has no direction.
    """
    values = np.ascontiguousarray(embeddings, dtype=np.float32)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"embeddings have shape {values.shape}; they must be [N, D]")
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    bad = ~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0)
    if bad.any():
        raise ValueError(f"embeddings have {bad.sum()} rows of zeros, NaN or infinity, the first row {bad.argmax()}")
    scaled: Embeddings = values / norms
    return scaled


def _read_facts(folder: Path) -> Facts:
    if not (folder / FACTS).is_file():
        raise ValueError(f"index is {str(folder)!r}, which is not a folder that dml index has written: no {FACTS}")
    try:
        content = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        found = content["version"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{folder / FACTS} is damaged: {error}") from error
    if found != VERSION:
        raise ValueError(f"index is {str(folder)!r}, of format {found!r}; this is dml for format {VERSION}: build anew")
    wanted = {field.name for field in fields(Facts)}
    if set(content) != wanted:
        raise ValueError(f"{folder / FACTS} is damaged: fields {sorted(wanted ^ set(content))} are missing or too many")
    facts = Facts(**content)
    if not _is_plain(facts):
        raise ValueError(f"{folder / FACTS} is damaged: its fields are not of their types")
    for name, size in facts.sizes.items():
        file = folder / Path(name).name
        if not file.is_file() or file.stat().st_size != size:
            raise ValueError(f"index is {str(folder)!r}, which is not whole: {name} is not there with {size:,} bytes")
    return facts


def _is_plain(facts: Facts) -> bool:
    numbers = all(type(value) is int and value > 0 for value in (facts.dimension, facts.count))
    maps = all(isinstance(value, dict) for value in (facts.parameters, facts.report, facts.probes, facts.sizes))
    texts = all(isinstance(value, str) for value in (facts.kind, facts.root, facts.command))
    maybe = all(value is None or isinstance(value, str) for value in (facts.split, facts.checkpoint, facts.sha256))
    levels = isinstance(facts.levels, list) and all(isinstance(level, str) for level in facts.levels)
    return numbers and maps and texts and maybe and levels


def _read_images(folder: Path, facts: Facts) -> pd.DataFrame:
    try:
        images = pd.read_parquet(folder / IMAGES)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / IMAGES} is damaged: {str(error).splitlines()[0]}") from error
    missing = [name for name in ("path", "role", *facts.levels) if name not in images]
    if missing or len(images) < facts.count:
        raise ValueError(f"{folder / IMAGES} is of another index: {len(images)} rows, columns {missing} missing")
    return images


def _read_faiss(file: Path, dimension: int, count: int) -> faiss.Index:
    try:
        index = faiss.read_index(str(file))
    except RuntimeError as error:
        raise ValueError(f"{file} is missing or damaged: faiss cannot read it") from error
    if not isinstance(index, _KINDS) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ValueError(f"{file} holds a {type(index).__name__}, which dml index does not write")
    if (index.d, index.ntotal) != (dimension, count):
        raise ValueError(
            f"{file} is of another index: {index.ntotal} embeddings of dimension {index.d} in place of {count} of "
            f"{dimension}"
        )
    if isinstance(index, faiss.IndexIVFPQ):
        index.make_direct_map()  # to find the code of a row
    return index
