"""A data set that was packed as a stream."""

import json
import os
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import IO, NamedTuple

import pandas as pd

from dml.data.dataset import RetrievalDataset
from dml.data.files import require
from dml.data.pack import CHUNKS, INDEX, JUDGEMENTS, PLACE, STREAM, chunk_name


class PackedDataset(RetrievalDataset):
    """Images of any data set, read from chunks of many megabytes; :func:`~dml.data.pack.pack` makes one.

    The chunks lie in the folder, or are fetched from the ``url`` that ``stream.json`` names, each as a whole when its
    first image is needed. Fetched chunks are kept in ``$XDG_CACHE_HOME/dml/chunks`` (``~/.cache/dml/chunks``), which
    the processes of a machine share; those not used for longest make room when there are more than ``max_cache_bytes``.
    Train with :class:`~dml.data.samplers.StreamingSampler`, whose batches need few chunks::

        root/index.parquet
        root/judgements.parquet    optional
        root/stream.json
        root/chunks/               unless there is a url
    """

    files = (INDEX, STREAM)
    more_files = (JUDGEMENTS,)
    origin = "dml data pack"

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        return pd.read_parquet(root / INDEX)

    @staticmethod
    def read_judgements(root: Path) -> pd.DataFrame | None:
        return pd.read_parquet(root / JUDGEMENTS) if (root / JUDGEMENTS).is_file() else None

    @classmethod
    def whole_index(cls, root: Path, levels: Sequence[str] | None = None) -> tuple[pd.DataFrame, tuple[str, ...]]:
        require(root, cls.files, cls.origin)
        return super().whole_index(root, levels or json.loads((root / STREAM).read_text())["levels"])

    def content(self, index: int) -> bytes:
        chunk, offset, size, checksum = (int(self.index[column].to_numpy()[index]) for column in PLACE)
        with self._chunks.open(chunk) as stored:
            stored.seek(offset)
            content = stored.read(size)
        if zlib.crc32(content) != checksum:
            raise OSError(f"{stored.name} is damaged, or is a chunk of another pack than {self.root / INDEX}")
        return content

    @cached_property
    def _chunks(self) -> "_Chunks":
        stream = json.loads((self.root / STREAM).read_text())
        if stream["url"] is None:
            return _Chunks(self.root / CHUNKS, None, 0)
        # Another pack at the same place has other chunks.
        name = sha256(f"{stream['url']} {stream['id']}".encode()).hexdigest()[:16]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dml" / "chunks" / name
        return _Chunks(cache, stream["url"].rstrip("/"), stream["max_cache_bytes"])


class _Chunks(NamedTuple):
    """Chunks in a folder, into which they are fetched if there is a URL."""

    folder: Path
    url: str | None
    max_bytes: int

    def open(self, number: int) -> IO[bytes]:
        """Open a chunk. No file is kept open, so that workers have none to share, and any chunk can make room.

        Raises:
            OSError: If it is missing, or cannot be fetched.
        """
        file = self.folder / chunk_name(number)
        if self.url is None:
            return file.open("rb")
        try:
            opened = file.open("rb")
        except FileNotFoundError:
            return self._fetch(file)
        os.utime(opened.fileno())  # what is used is kept
        return opened

    def _fetch(self, file: Path) -> IO[bytes]:
        # It takes seconds to import, and only this needs it. The lock is of what litdata and torch are built on.
        from filelock import FileLock

        try:
            from litdata.streaming.downloader import get_downloader
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{self.url} is fetched by litdata; install it by: pip install dml[streaming]"
            ) from error
        self.folder.mkdir(parents=True, exist_ok=True)
        address, temporary = f"{self.url}/{file.name}", file.with_suffix(".partial")
        with FileLock(file.with_suffix(".lock")):  # of those who miss a chunk at once, one fetches it
            with suppress(FileNotFoundError):
                return file.open("rb")
            try:
                get_downloader(self.url, str(self.folder), []).download_file(address, str(temporary))
                opened = temporary.open("rb")
            except Exception as error:  # of each store its own
                raise OSError(f"cannot fetch {address}: {error}") from error
            # It is open before another process can remove it to make room.
            temporary.replace(file)
        self._make_room(keep=file)
        return opened

    def _make_room(self, keep: Path) -> None:
        """Remove the chunks that were not used for longest, and what processes left that were killed an hour ago."""
        found = []
        for file in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another process makes room too
                status = file.stat()
                if file.suffix == ".bin" or (file.suffix != ".lock" and status.st_mtime < time.time() - 3600):
                    found.append((status.st_mtime, status.st_size, file))
        total = sum(size for _, size, _ in found)
        for _, size, file in sorted(found):
            if total <= self.max_bytes:
                break
            if file != keep:
                file.unlink(missing_ok=True)
                total -= size
