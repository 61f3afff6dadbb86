"""From embeddings and images to an index in a folder, written whole or not at all."""

import json
import shutil
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from dml.search.embedded import Embedded
from dml.search.index import FACTS, GALLERY, IMAGES, QUERIES, VERSION, Facts
from dml.search.kinds import Embeddings, Kind
from dml.search.recall import Recall, measure_recall

_MEASURED = 1000  # queries
_PROBES = 3


@dataclass(frozen=True)
class Report:
    """What was measured of an index.

    Args:
        recall: Against exact search.
        seconds: Of building it.
        index_bytes: Of what faiss reads into memory.
        folder_bytes: Of all files.
    """

    recall: Recall
    seconds: float
    index_bytes: int
    folder_bytes: int


def check_out(out: Path, *, overwrite: bool) -> None:
    """Find out before the work whether an index can be written.

    Raises:
        ValueError: If there is something at ``out`` that may not be replaced, or no folder to put it in.
    """
    if not out.absolute().parent.is_dir():
        raise ValueError(f"out is {str(out)!r}, in a folder that does not exist")
    if not out.exists():
        return
    if not (out / FACTS).is_file():
        raise ValueError(f"out is {str(out)!r}, which is there and is not an index: it is left alone")
    if not overwrite:
        raise ValueError(f"out is {str(out)!r}, where there is an index already; --overwrite replaces it")
    others = sorted({path.name for path in out.iterdir()} - {GALLERY, QUERIES, IMAGES, FACTS})
    if others:
        raise ValueError(f"out is {str(out)!r}, an index with other files in its folder, {others[:3]}: move them away")


def build_index(
    embedded: Embedded, kind: Kind, out: Path, *, seed: int = 0, overwrite: bool = False, command: str = ""
) -> Report:
    """Build an index and write it.

    Args:
        embedded: Images of any role; those of the gallery can be found, the others are kept as queries.
        kind: Of the index, with its parameters.
        out: Folder to write.
        seed: Of what is random in building, and of which queries recall is measured on.
        overwrite: Replace an index that is there.
        command: By which it is built, to be kept with it.

    Returns:
        What was measured of it; the same is in ``index.json``.

    Raises:
        ValueError: If there is no gallery, the kind does not fit it, or ``out`` is taken.
    """
    check_out(out, overwrite=overwrite)
    embedded, count = _gallery_first(embedded)
    gallery = embedded.embeddings[:count]
    kind = kind.completed(count, gallery.shape[1])
    started = time.perf_counter()
    index = kind.build(gallery, seed)
    seconds = time.perf_counter() - started
    recall = measure_recall(index, gallery, *_measured(embedded, count, seed))
    # A sibling, so that the rename stays on one file system.
    folder = out.absolute().with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    folder.mkdir()
    try:
        _write(folder, index, embedded, count)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        report = Report(recall, seconds, sizes[GALLERY], sum(sizes.values()))
        facts = _facts(embedded, count, kind, sizes, report, command)
        (folder / FACTS).write_text(json.dumps(asdict(facts), indent=1), encoding="utf-8")
        _replace(folder, out.absolute())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report


def _write(folder: Path, index: faiss.Index, embedded: Embedded, count: int) -> None:
    faiss.write_index(index, str(folder / GALLERY))
    queries = embedded.embeddings[count:]
    if len(queries):
        flat = faiss.IndexFlatIP(queries.shape[1])
        flat.add(queries)
        faiss.write_index(flat, str(folder / QUERIES))
    embedded.images.to_parquet(folder / IMAGES, index=False)


def _gallery_first(embedded: Embedded) -> tuple[Embedded, int]:
    is_query = (embedded.images["role"] == "query").to_numpy()
    count = int((~is_query).sum())
    if count == 0:
        raise ValueError("embeddings are all of queries; an index needs a gallery")
    order = np.argsort(is_query, kind="stable")
    images = embedded.images.iloc[order].reset_index(drop=True)
    return Embedded(**{**vars(embedded), "images": images, "embeddings": embedded.embeddings[order]}), count


def _measured(embedded: Embedded, count: int, seed: int) -> tuple[Embeddings, npt.NDArray[np.int64]]:
    """Some queries, and their rows in the gallery."""
    candidates = np.flatnonzero((embedded.images["role"] != "gallery").to_numpy())
    if len(candidates) == 0:  # of a gallery alone, any image may be asked for
        candidates = np.arange(count)
    size = min(_MEASURED, len(candidates))
    rows = np.sort(np.random.default_rng(seed).choice(candidates, size, replace=False))
    return embedded.embeddings[rows], np.where(rows < count, rows, -1)


def _facts(embedded: Embedded, count: int, kind: Kind, sizes: dict[str, int], report: Report, command: str) -> Facts:
    probes = np.linspace(0, count - 1, min(_PROBES, count)).astype(int)
    return Facts(
        version=VERSION,
        kind=type(kind).__name__.lower(),
        parameters=dict(vars(kind)),
        dimension=embedded.embeddings.shape[1],
        count=count,
        split=embedded.split,
        levels=embedded.levels,
        root=str(embedded.root),
        checkpoint=embedded.checkpoint,
        sha256=embedded.sha256,
        command=command,
        report=asdict(report),
        probes={str(row): embedded.embeddings[row].tolist() for row in probes},
        sizes=sizes,
    )


def _replace(folder: Path, out: Path) -> None:
    """Give a folder the name of another, which is removed once that is done."""
    if not out.exists():
        folder.rename(out)
        return
    old = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.old")
    out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
