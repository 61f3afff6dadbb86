"""Logs of runs in few small files, to keep where the runs themselves are too large."""

from pathlib import Path

import pandas as pd
import pyarrow as pa

from dml.compare.logs import CLASSES, CURVES, RETRIEVALS, RUNS, RunLogs, empty

_FILES = {"runs": RUNS, "curves": CURVES, "classes": CLASSES}


def keep(logs: RunLogs, folder: str | Path) -> None:
    """Write ``runs.parquet``, ``curves.parquet`` and ``classes.parquet``; pictures are not kept.

    The same logs make the same files.

    Args:
        logs: Of any reader.
        folder: Which is made.

    Raises:
        ValueError: If it cannot be written to.
    """
    where = Path(folder).expanduser()
    try:
        where.mkdir(parents=True, exist_ok=True)
        for name, frame in zip(_FILES, (logs.runs.reset_index(), logs.curves, logs.classes), strict=True):
            frame.to_parquet(where / f"{name}.parquet", index=False, compression="zstd", compression_level=19)
    except OSError as error:
        raise ValueError(f"keep is {str(folder)!r}, which cannot be written: {error.strerror or error}") from error


def is_kept(folder: str | Path) -> bool:
    """Whether :func:`keep` has written there."""
    return all((Path(folder).expanduser() / f"{name}.parquet").is_file() for name in _FILES)


def read_kept(folder: str | Path) -> RunLogs:
    """What :func:`keep` has written.

    Raises:
        ValueError: If it has not, or a file is damaged.
    """
    where = Path(folder).expanduser()
    if not is_kept(where):
        raise ValueError(f"folder is {str(folder)!r}; it must hold {', '.join(f'{name}.parquet' for name in _FILES)}")
    frames = {}
    for name, columns in _FILES.items():
        wanted = ["run", *columns] if columns is RUNS else list(columns)
        try:
            frames[name] = pd.read_parquet(where / f"{name}.parquet")[wanted].astype(columns)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"folder is {str(folder)!r}, whose {name}.parquet is no logs of runs: {reason}") from error
    return RunLogs(frames["runs"].set_index("run"), frames["curves"], frames["classes"], empty(RETRIEVALS))
