"""Many runs side by side: what they got, how sure that is, and what it cost."""

from collections.abc import Sequence
from pathlib import Path

from dml.compare.folders import read_folders
from dml.compare.kept import is_kept, keep, read_kept
from dml.compare.logs import RunLogs, together
from dml.compare.table import Comparison, compare
from dml.compare.wandb_runs import read_wandb

__all__ = ["Comparison", "RunLogs", "compare", "keep", "read", "read_folders", "read_kept", "read_wandb"]


def read(*paths: str | Path, with_retrievals: bool = True) -> RunLogs:
    """The runs under some folders, each with the folders of runs or with logs that :func:`keep` has written.

    A data frame for each protocol, and every number of every run::

        logs = dml.compare.read("runs")
        dml.compare.compare(logs)[0].rows
        logs.curves

    Args:
        paths: Of the folders.
        with_retrievals: Whether to read the pictures of retrievals, which take the most space.

    Raises:
        ValueError: If there is none, or one is no folder or holds no run.
    """
    if not paths:
        raise ValueError("paths is empty; give one or more folders with runs")
    kept = [path for path in paths if is_kept(path)]
    others: Sequence[str | Path] = [path for path in paths if path not in kept]
    parts = [read_kept(path) for path in kept]
    if others:  # all at once: a test may be in one, and its run in another
        parts.append(read_folders(others, with_retrievals=with_retrievals))
    return together(parts)
