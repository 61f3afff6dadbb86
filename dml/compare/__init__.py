"""Many runs side by side: what they got, how sure that is, and what it cost."""

from pathlib import Path

from dml.compare.folders import read_folders
from dml.compare.kept import keep, read_kept
from dml.compare.logs import RunLogs
from dml.compare.table import Comparison, compare
from dml.compare.wandb_runs import read_wandb

__all__ = ["Comparison", "RunLogs", "compare", "keep", "read", "read_folders", "read_kept", "read_wandb"]


def read(*paths: str | Path, with_retrievals: bool = True) -> RunLogs:
    """The runs under some folders, at any depth: those of their folders, and of logs that :func:`keep` has written.

    A data frame for each protocol, and every number of every run::

        logs = dml.compare.read("runs")
        dml.compare.compare(logs)[0].rows
        logs.curves

    Args:
        paths: Of the folders.
        with_retrievals: Whether to read the pictures of retrievals, which take the most space.

    Raises:
        ValueError: If there is none, or one is no folder, holds no run or has damaged logs.
    """
    if not paths:
        raise ValueError("paths is empty; give one or more folders with runs")
    return read_folders(paths, with_retrievals=with_retrievals)  # all at once: a test may be in one, its run in another
