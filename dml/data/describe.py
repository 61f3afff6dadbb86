"""What a data set holds: counts against the published ones, class sizes, hierarchy, and what a sampler shows of it."""

import time
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dml.data.datamodule import RetrievalDataModule
from dml.data.dataset import RetrievalDataset
from dml.data.index import hold_out_classes, label_columns

Figures = tuple[int | None, ...]
"""Images of a split, and its classes at each level; None where unknown."""

_BAR = 24  # characters of the longest bar


def describe(data: RetrievalDataModule, *, sampler: bool = False, console: Console | None = None) -> None:
    """Print what a data set holds.

    Args:
        data: Its data module.
        sampler: Whether to draw an epoch of training batches, to say which classes and images it shows.
        console: Where to print; by default standard output.
    """
    console = console or Console()

    def show(what: str | Text | Table) -> None:
        # No markup: names of folders and columns may have brackets.
        console.print(what, markup=False, highlight=False, soft_wrap=not isinstance(what, Table))

    index, levels = data.dataset.whole_index(Path(data.root).expanduser(), data.levels)
    show(f"{data.dataset.__name__} in {data.root}")
    # Published figures are those of the levels that the data set names.
    published = data.dataset.published if levels == data.dataset.levels else {}
    show(_counts(index, levels, published, "images and classes"))
    show(_verdict(index, levels, published))
    show(_class_sizes(index, levels[0]))
    if len(levels) > 1:
        show(_hierarchy(index, levels))
    others = [column for column in label_columns(index) if column not in levels]
    if others:
        show(f"other columns, which data.levels can make levels of: {', '.join(others)}")
    if data.val_classes is not None:
        held_out = hold_out_classes(index, levels[0], data.val_classes, data.val_seed)
        show(_counts(held_out, levels, {}, f"with val_classes {data.val_classes}"))
    if sampler:
        show(_epoch(data))


def _counts(index: pd.DataFrame, levels: tuple[str, ...], published: Mapping[str, Figures], title: str) -> Table:
    """Images and classes of each split; below them, what was published of it."""
    table = Table(title=title, title_justify="left")
    table.add_column("split")
    for column in ("images", "queries", "gallery", *levels):
        table.add_column(column, justify="right")
    for split in _in_order(index["split"].unique()):
        rows = index[index["split"] == split]
        found = _figures(rows, levels)
        roles = [int((rows["role"] != other).sum()) for other in ("gallery", "query")]
        table.add_row(split, *(f"{number:,}" for number in (found[0], *roles, *found[1:])))
        if split in published:
            images, *classes = map(_compared, found, published[split])
            table.add_row("  published", images, "", "", *classes, style="dim")
    return table


def _figures(rows: pd.DataFrame, levels: tuple[str, ...]) -> list[int]:
    """How many images a split has, and how many classes at each level."""
    return [len(rows), *(rows[level].nunique() for level in levels)]


def _compared(found: int, published: int | None) -> Text:
    if published is None:
        return Text("?")
    return Text(f"{published:,}", "" if published == found else "bold red")


def _verdict(index: pd.DataFrame, levels: tuple[str, ...], published: Mapping[str, Figures]) -> Text:
    """Which of the published figures are met, which are not, and which are not known."""
    if not published:
        return Text("no published count is known: nothing could be compared")
    here = _in_order(index["split"].unique())
    compared, wrong, unknown = 0, [], [split for split in here if split not in published]
    for split, figures in published.items():
        if split not in here:  # a list that the root need not have
            unknown.append(f"{split} (not here)")
            continue
        found = _figures(index[index["split"] == split], levels)
        for name, number, figure in zip(("images", *levels), found, figures, strict=True):
            compared += figure is not None
            if figure is None:
                unknown.append(f"{name} of {split}")
            elif figure != number:
                wrong.append(f"{name} of {split} ({number:,}, published {figure:,})")
    if wrong:
        verdict = Text(f"not as published: {', '.join(wrong)}", "bold red")
    else:
        verdict = Text("as published" if compared else "no published count is known")
    return Text.assemble(verdict, f"; could not be compared: {', '.join(unknown)}") if unknown else verdict


def _in_order(splits: Iterable[str]) -> list[str]:
    first = ("train", "val", "test")
    return sorted(set(map(str, splits)), key=lambda split: (first.index(split) if split in first else 3, split))


def _class_sizes(index: pd.DataFrame, level: str) -> Table:
    """How many classes of each split have how many images, in bins that double."""
    table = Table(title=f"images of a {level}", title_justify="left")
    for column in ("split", "images", f"classes ({level})", ""):
        table.add_column(column, justify="right" if column in ("images", f"classes ({level})") else "left")
    for split in _in_order(index["split"].unique()):
        rows = index[index["split"] == split]
        sizes = np.unique(rows[level], return_counts=True)[1]
        exponents, classes = np.unique(np.ceil(np.log2(sizes)).astype(int), return_counts=True)
        for row, (exponent, number) in enumerate(zip(exponents.tolist(), classes.tolist(), strict=True)):
            first, last = 2**exponent // 2 + 1, 2**exponent
            images = f"{last:,}" if last <= 2 else f"{first:,} to {last:,}"
            bar = "█" * max(1, round(_BAR * number / classes.max()))
            table.add_row(split if row == 0 else "", images, f"{number:,}", bar)
        summary = f"{sizes.min():,} to {sizes.max():,}, median {np.median(sizes):g}"
        table.add_row("", summary, f"{len(sizes):,}", "", end_section=True)
    return table


def _hierarchy(index: pd.DataFrame, levels: tuple[str, ...]) -> Table:
    """How many classes of each level lie in one of the next."""
    table = Table(title="hierarchy (each level is nested in the next)", title_justify="left")
    for column in ("level", "in", "fewest", "mean", "most"):
        table.add_column(column, justify="left" if column in ("level", "in") else "right")
    for fine, coarse in pairwise(levels):
        children = index.drop_duplicates([fine, coarse]).groupby(coarse).size()
        table.add_row(fine, coarse, f"{children.min():,}", f"{children.mean():,.1f}", f"{children.max():,}")
    return table


def _epoch(data: RetrievalDataModule) -> Table:
    """What the first epoch of training shows."""
    # Without data.setup, which asks for a validation split too.
    dataset: RetrievalDataset = data.dataset(
        data.root,
        data.splits["train"],
        channels=data.channels,
        levels=data.levels,
        val_classes=data.val_classes,
        val_seed=data.val_seed,
    )
    drawn = data.train_sampler(dataset)
    start = time.perf_counter()
    images = np.fromiter(drawn, dtype=np.int64, count=len(drawn)).reshape(-1, drawn.batch_size)
    seconds = time.perf_counter() - start
    classes = dataset.labels[:, 0].numpy()
    repeats = np.mean([drawn.batch_size - len(np.unique(batch)) for batch in images])
    table = Table(title=f"an epoch of {type(drawn).__name__} on {dataset.split}", title_justify="left")
    for column in ("", "seen", "of"):
        table.add_column(column, justify="left" if column == "" else "right")
    table.add_row("classes", f"{len(np.unique(classes[images])):,}", f"{len(np.unique(classes)):,}")
    table.add_row("images", f"{len(np.unique(images)):,}", f"{len(dataset):,}")
    table.add_row("batches", f"{len(images):,}", "")
    table.add_row("images in a batch", f"{drawn.batch_size:,}", "")
    table.add_row("of those, seen before in the batch", f"{repeats:.1f}", "")
    table.add_row("images drawn in a second", f"{images.size / seconds:,.0f}", "")
    return table
