"""Speed and memory of the loaders: ``python -m benchmarks.loading``.

Photos of the size of those of Stanford Online Products are drawn into a temporary folder and loaded in training, with a
random resized crop to 224 pixels and a flip. By turns, in one run:

- bare: as many processes as the loader has workers read, decode and transform their share of the images, one after the
  other, and keep none of them: what a loader cannot surpass;
- ImageFolder: torchvision's data set in a DataLoader, with the same transforms of a PIL image;
- dml: the training loader of RetrievalDataModule, on 0 and more worker processes.

Then the memory: that of the parent over epochs, and what an index of many images adds to each worker. Linux only.
"""

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from dml.data import RetrievalDataModule, RetrievalDataset
from dml.data.datasets import DataFrameDataset, ImageFolderDataset

SIZE = (500, 480)  # width and height in pixels
IMAGES_PER_CLASS = 4


def main() -> None:
    """Measure, and print two tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=1024, help="How many, a multiple of the batch.")
    parser.add_argument("--batch", type=int, default=256, help="Images in a training batch.")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="Worker processes.")
    parser.add_argument("--turns", type=int, default=5, help="How often each is measured.")
    parser.add_argument("--epochs", type=int, default=10, help="Over which the parent's memory is watched.")
    parser.add_argument("--items", type=int, default=1_600_000, help="Of the index whose memory is measured.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "photos", arguments.images)
        speeds(Path(folder) / "photos", arguments)
        memory(Path(folder), arguments)


def draw(root: Path, number: int) -> None:
    """Draw JPEG files of blurred noise, which compress like photos, into one folder per class."""
    generator = np.random.default_rng(0)
    for image in range(number):
        path = root / f"{image // IMAGES_PER_CLASS:05}" / f"{image}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (SIZE[1] // 6, SIZE[0] // 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=90)


def speeds(root: Path, arguments: argparse.Namespace) -> None:
    """Images a second of each way to load, and ratios of ours."""
    crop = [v2.RandomResizedCrop(224, scale=(0.2, 1.0), antialias=True), v2.RandomHorizontalFlip()]
    dataset = ImageFolderDataset(root, transform=torch.nn.Sequential(*crop))

    runs: dict[str, Callable[[], None]] = {}
    pools = []
    for workers in (0, *arguments.workers):
        if workers:
            pools.append(Pool(workers))
            shares = [range(worker, len(dataset), workers) for worker in range(workers)]
            runs[f"bare {workers}"] = partial(pools[-1].map, partial(bare, dataset), shares)
        else:
            runs["bare 0"] = partial(bare, dataset, range(len(dataset)))
        runs[f"ImageFolder {workers}"] = drained(image_folder(root, crop, workers, arguments.batch))
        runs[f"dml {workers}"] = drained(ours(root, crop, workers, arguments.batch))
    seconds = by_turns(runs, arguments.turns)
    print(f"{arguments.images} photos of {SIZE[0]} x {SIZE[1]} pixels, batches of {arguments.batch}\n")
    print("| workers | dml images/s | x bare | x ImageFolder | bare images/s | ImageFolder images/s |")
    print("|---|---|---|---|---|---|")
    for workers in (0, *arguments.workers):
        row = [str(workers), rate(arguments.images, seconds[f"dml {workers}"])]
        peers = [seconds[f"{peer} {workers}"] for peer in ("bare", "ImageFolder")]
        row += [times_faster(seconds[f"dml {workers}"], peer) for peer in peers]
        row += [rate(arguments.images, peer) for peer in peers]
        print(f"| {' | '.join(row)} |")
    for pool in pools:
        pool.terminate()


def bare(dataset: RetrievalDataset, rows: range) -> None:
    """Read, decode and transform images, and drop them."""
    assert dataset.transform is not None
    for row in rows:
        dataset.transform(dataset.load(row))


def rate(images: int, seconds: list[float]) -> str:
    """Images a second."""
    return f"{images / statistics.median(seconds):.0f}"


def times_faster(ours: list[float], theirs: list[float]) -> str:
    """By the median of the turns: what disturbs one way disturbs the other in the same turn."""
    return f"{statistics.median(their / our for our, their in zip(ours, theirs, strict=True)):.2f}"


def ours(root: Path, crop: list[torch.nn.Module], workers: int, batch: int) -> DataLoader:
    """The training loader of the data module."""
    data = RetrievalDataModule(
        ImageFolderDataset,
        str(root),
        batch // IMAGES_PER_CLASS,
        IMAGES_PER_CLASS,
        train_transforms=crop,
        val_split="train",
        num_workers=workers,
    )
    data.setup("fit")
    return data.train_dataloader()


def image_folder(root: Path, crop: list[torch.nn.Module], workers: int, batch: int) -> DataLoader:
    """What one would write without this project."""
    dataset = ImageFolder(str(root), transform=v2.Compose([*crop, v2.PILToTensor()]))
    return DataLoader(dataset, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def drained(loader: DataLoader) -> Callable[[], None]:
    """An epoch of it."""

    def epoch() -> None:
        for _ in loader:
            pass

    epoch()  # starts the workers
    return epoch


def by_turns(runs: dict[str, Callable[[], None]], turns: int) -> dict[str, list[float]]:
    """Seconds of each run, as often as there are turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def memory(folder: Path, arguments: argparse.Namespace) -> None:
    """What epochs add to the parent, and what a large index adds to a worker."""
    crop: list[torch.nn.Module] = [v2.Resize((8, 8))]
    epoch = drained(ours(folder / "photos", crop, 1, arguments.batch))
    before = held(os.getpid(), "Rss")
    for _ in range(arguments.epochs):
        epoch()
    gc.collect()
    grown = held(os.getpid(), "Rss") - before
    few, many = (worker_memory(indexed(folder, number)) for number in (1_000, arguments.items))
    print(f"\nparent after {arguments.epochs} more epochs: {grown / 2**20:+.1f} MiB")
    print(f"a worker of {arguments.items:,} images against one of 1,000: {(many - few) / 2**20:+.1f} MiB")


def indexed(folder: Path, number: int) -> RetrievalDataset:
    """A data set of so many rows, with two levels, whose files do not exist."""
    rows = np.arange(number)
    names = pd.Series(rows).map("images/train/a/b/c/{:016x}.jpg".format)
    root = folder / f"index_{number}"
    root.mkdir()
    pd.DataFrame({"path": names, "class": rows // 20, "group": rows // 2000}).to_parquet(root / "index.parquet")
    return DataFrameDataset(root)


def worker_memory(dataset: RetrievalDataset) -> int:
    """Bytes that a worker holds to itself after it has touched 20,000 rows at random."""
    # A missing file is named in place of its image: all of the index that loading touches is touched.
    rows = np.random.default_rng(0).integers(0, len(dataset), 20_000).tolist()
    named: Any = dataset
    loader = DataLoader(named, 100, sampler=rows, num_workers=1, collate_fn=len, persistent_workers=True)
    iterator: Any = iter(loader)
    for _ in range(len(rows) // 100):
        next(iterator)
    (worker,) = iterator._workers
    return held(worker.pid, "Private")


def held(process: int, kind: str) -> int:
    """Bytes of memory of a process: ``Rss`` is all, ``Private`` what no other has the same pages of."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(kind))


if __name__ == "__main__":
    main()
