"""A function of every image, on several processes."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch
from rich.progress import track

from dml.data.dataset import RetrievalDataset

Result = TypeVar("Result")

_AT_A_TIME = 64  # images
_work: tuple[Callable[[RetrievalDataset, int], Any], Sequence[RetrievalDataset]] | None = None  # of this process


def over_images(
    function: Callable[[RetrievalDataset, int], Result],
    datasets: Sequence[RetrievalDataset],
    *,
    num_workers: int,
    message: str,
    progress: bool = True,
) -> Iterator[Result]:
    """``function(dataset, row)`` of each image of each dataset, in order.

    Args:
        function: What to do, of a module, so that other processes find it.
        datasets: What to do it with. Images of one path, in several splits of a data set, are one: the first.
        num_workers: Processes to do it.
        message: What the progress bar says.
        progress: Whether to show one.
    """
    seen: set[str] = set()
    parts = []
    for number, dataset in enumerate(datasets):
        paths = dataset.index["path"].tolist()
        rows = [row for row, path in enumerate(paths) if path not in seen]
        seen.update(paths)
        parts += [(number, rows[start : start + _AT_A_TIME]) for start in range(0, len(rows), _AT_A_TIME)]
    # What is the same for all images is handed over once, not with every part of them.
    with ProcessPoolExecutor(max(1, num_workers), initializer=_start, initargs=((function, datasets),)) as processes:
        done = processes.map(_part, *zip(*parts, strict=True))
        for results in track(done, message, len(parts), disable=not progress):
            yield from results


def _start(work: tuple[Callable[[RetrievalDataset, int], Any], Sequence[RetrievalDataset]]) -> None:
    global _work
    _work = work
    # One thread each: they share the cores, and threads that the parent had would be waited for in vain after a fork.
    torch.set_num_threads(1)


def _part(number: int, rows: Sequence[int]) -> list[Any]:
    assert _work is not None
    function, datasets = _work
    return [function(datasets[number], row) for row in rows]
