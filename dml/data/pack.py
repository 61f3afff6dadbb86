"""A data set as a stream: images in chunks of many megabytes, for data that does not fit one disk."""

import json
import re
import shutil
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.progress import track

from dml.data.dataset import RetrievalDataset

INDEX, JUDGEMENTS, STREAM, CHUNKS = "index.parquet", "judgements.parquet", "stream.json", "chunks"
"""What the folder of a packed data set holds."""
PLACE = ["stream_chunk", "stream_offset", "stream_bytes", "stream_crc32"]
"""Columns of the index that say where the image is: number of the chunk, first byte in it, size, and checksum."""
SCHEMES = ("s3://", "gs://", "azure://", "r2://", "local:")
"""Of the places that chunks can be fetched from."""

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_READ_AHEAD = 256  # images


class Packed(NamedTuple):
    """What was packed."""

    images: int
    bytes: int
    chunks: int


def pack(
    dataset_class: type[RetrievalDataset],
    root: str | Path,
    out: str | Path,
    *,
    levels: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    chunk_bytes: str = "64MB",
    max_cache_bytes: str = "100GB",
    url: str | None = None,
    seed: int = 0,
    num_workers: int = 8,
    progress: bool = True,
) -> Packed:
    """Write a data set as a stream, which :class:`~dml.data.datasets.packed.PackedDataset` reads.

    The stream holds the files of the images, byte for byte, one split after the other; the images of a class follow one
    another, and the classes of a split are in random order, so that any chunks in a row are a fair sample. An image in
    several splits is stored once, with the first::

        out/index.parquet         the index of the data set, in the order of the stream
        out/judgements.parquet    if the data set lists what is relevant
        out/stream.json           levels, url, max_cache_bytes
        out/chunks/               in the format of litdata

    To train from a store of objects, upload ``chunks/`` and name its place by ``url``, here or in ``stream.json``. The
    rest stays local. ``out`` appears when all is written: what a killed pack leaves, beside it, is replaced by the
    next.

    Args:
        dataset_class: Class of the data set.
        root: Its folder.
        out: Folder to write.
        levels: Columns of the index that are the labels, finest first; by default those that the data set names.
        splits: Which to write, in this order; by default all.
        chunk_bytes: Size of a chunk, such as ``64MB``.
        max_cache_bytes: Of the chunks that one machine keeps, if they are fetched.
        url: Where the chunks will lie, if not in ``out``: ``s3://...``, or another of :data:`SCHEMES`.
        seed: Of the order of the classes.
        num_workers: Threads that read images.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If an argument is out of range, or ``out`` holds something.
        OSError: If an image cannot be read.
        ModuleNotFoundError: If litdata is not installed.
    """
    root, out = Path(root).expanduser(), Path(out).expanduser()
    chunk_size, cache_size = _size("chunk_bytes", chunk_bytes), _size("max_cache_bytes", max_cache_bytes)
    if chunk_size > 10**9:
        raise ValueError(f"chunk_bytes is {chunk_bytes!r}; a chunk is fetched as a whole, so at most 1GB")
    if url is not None and not url.startswith(SCHEMES):
        raise ValueError(f"url is {url!r}; it must start with one of {list(SCHEMES)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out is {str(out)!r}, which holds other files; choose a new folder")
    index, levels = dataset_class.whole_index(root, levels)
    index, source = _in_order(index.drop(columns=PLACE, errors="ignore"), levels[0], splits, seed)
    datasets = {split: dataset_class(root, split, levels=levels) for split in source["split"].unique()}

    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / CHUNKS).mkdir(parents=True)
    # An image in several splits is stored once: numbers are those of paths, in the order of the stream.
    number, paths = pd.factorize(index["path"])
    stored = source[~index.duplicated("path")]
    contents = _contents(datasets, list(stored.itertuples(index=False, name=None)), num_workers)
    place = _write(partial / CHUNKS, track(contents, "packing images", len(paths), disable=not progress), chunk_size)
    judgements = dataset_class.read_judgements(root)
    if judgements is not None:
        judgements.to_parquet(partial / JUDGEMENTS)
    stream = {"levels": list(levels), "url": url, "max_cache_bytes": cache_size, "id": uuid.uuid4().hex}
    (partial / STREAM).write_text(json.dumps(stream, indent=2))
    index.assign(**dict(zip(PLACE, place[number].T, strict=True))).to_parquet(partial / INDEX)
    partial.rename(out)
    return Packed(len(paths), int(place[:, 2].sum()), int(place[-1, 0]) + 1)


def chunk_name(number: int) -> str:
    """Name of a chunk, as litdata gives it."""
    return f"chunk-0-{number}.bin"


def _in_order(
    index: pd.DataFrame, level: str, splits: Sequence[str] | None, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The index in the order of the stream; and for each row, the split, and the row in the data set of that split."""
    names = index["split"].unique().tolist()
    wanted = names if splits is None else list(splits)
    unknown = [split for split in wanted if split not in names]
    if unknown or not wanted:
        raise ValueError(f"splits is {wanted}; the data set has {names}")
    source = pd.DataFrame(
        {"split": index["split"].astype(str), "row": index.groupby("split", observed=True).cumcount()}
    )
    which = source["split"].map({split: number for number, split in enumerate(wanted)})
    random = np.random.default_rng(seed).permutation(int(index[level].max()) + 1)
    order = np.lexsort((random[index[level]], which))[: which.notna().sum()]  # nan is last
    return index.iloc[order].reset_index(drop=True), source.iloc[order].reset_index(drop=True)


def _contents(
    datasets: dict[str, RetrievalDataset], rows: Sequence[tuple[str, int]], num_workers: int
) -> Iterator[bytes]:
    """What is stored of each image.

    Raises:
        OSError: If one cannot be read; the message names it, and others that are to be read soon.
    """

    def content(split: str, row: int) -> bytes | OSError:
        try:
            return datasets[split].content(row)
        except OSError as error:
            return error

    with ThreadPoolExecutor(num_workers) as threads:
        for start in range(0, len(rows), _READ_AHEAD):
            read = list(threads.map(content, *zip(*rows[start : start + _READ_AHEAD], strict=True)))
            errors = [str(one) for one in read if isinstance(one, OSError)]
            if errors:
                raise OSError(f"cannot read {'; '.join(errors[:5])}; dml data verify lists all that cannot be used")
            yield from (one for one in read if isinstance(one, bytes))


def _write(folder: Path, contents: Iterable[bytes], chunk_bytes: int) -> npt.NDArray[np.int64]:
    """Write chunks; the place of each image ``[N, 4]``."""
    writer = _writer(folder, chunk_bytes)
    sizes, checksums = [], []
    for number, content in enumerate(contents):
        writer[number] = content
        sizes.append(len(content))
        checksums.append(zlib.crc32(content))
    writer.done()
    writer.merge()
    counts = np.array([chunk["chunk_size"] for chunk in json.loads((folder / "index.json").read_text())["chunks"]])
    chunk = np.repeat(np.arange(len(counts)), counts)
    # A chunk is the number of its items, where each of them starts and the last ends, and then, for each, its size and
    # its bytes; all numbers have four bytes.
    end = np.cumsum(np.array(sizes) + 4)
    before = np.concatenate(([0], end))[np.cumsum(counts) - counts]
    offset = end - np.array(sizes) - before[chunk] + 4 * (counts[chunk] + 2)
    return np.stack((chunk, offset, sizes, checksums), axis=1).astype(np.int64)


def _writer(folder: Path, chunk_bytes: int) -> Any:
    try:
        from litdata.streaming.writer import BinaryWriter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("chunks are written by litdata; install it by: pip install dml[streaming]") from error
    return BinaryWriter(str(folder), chunk_bytes=chunk_bytes)


def _size(argument: str, size: str) -> int:
    match = re.fullmatch(r"(\d+) ?([KMGT]?B)", size)
    if not match or int(match[1]) == 0:
        raise ValueError(f"{argument} is {size!r}; it is a number of {', '.join(_UNITS)}, such as 64MB")
    return int(match[1]) * _UNITS[match[2]]
