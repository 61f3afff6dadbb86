"""Indices that were parsed before."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

_KEY = b"dml_lists"
_STRINGS = pd.StringDtype("pyarrow")


def cached(name: str, lists: Sequence[Path], read: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """What ``read`` returns; from the cache, if it was read before from lists of the same size and time.

    The cache is a Parquet file for each name, in ``$XDG_CACHE_HOME/dml`` (``~/.cache/dml``). It is written at once or
    not at all, and a cache that cannot be read or written is as good as none.

    Args:
        name: Of the index.
        lists: The files that it follows from; also those that are missing count, and the code that reads them. Of a
            folder, the time when a file was last put into it or taken out counts.
        read: What to do if they have changed.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dml"
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.parquet"
    key = json.dumps([name, *(_stamp(file) for file in lists)]).encode()
    try:
        if (pq.read_schema(path).metadata or {}).get(_KEY) == key:
            # Without what pandas has noted, which older releases take to mean one Python object for each string.
            table = pq.read_table(path).replace_schema_metadata()
            found: pd.DataFrame = table.to_pandas(types_mapper={pa.string(): _STRINGS, pa.large_string(): _STRINGS}.get)
            return found
    except (OSError, pa.ArrowException):
        pass
    index = read()
    table = pa.Table.from_pandas(index)
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: key}), temporary)
        temporary.replace(path)
    except OSError:  # a full disk, or no place to write
        with contextlib.suppress(OSError):
            temporary.unlink()
    return index


def _stamp(file: Path) -> tuple[str, int, int]:
    if not file.exists():
        return (str(file), -1, 0)
    status = file.stat()
    # How large a folder is depends on the file system.
    return (str(file), status.st_size if file.is_file() else -1, status.st_mtime_ns)
