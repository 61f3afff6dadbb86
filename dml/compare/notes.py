"""What a reader of a table must know besides its numbers."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dml.compare.significance import ClassSums
from dml.compare.variants import Variant, listed, settings_apart, validated_as


def gaps(found: Sequence[Variant], sums: Sequence[ClassSums | None]) -> list[str]:
    """Of rows without an interval or a test."""
    without = [variant.name for variant, of_row in zip(found, sums, strict=True) if of_row is None]
    notes = []
    if without:
        notes.append(f"no interval and no test without per_query/test.parquet of the same queries: {listed(without)}")
    others = [
        variant.name
        for variant, of_row in zip(found, sums, strict=True)
        if of_row is not None and sums[0] is not None and not of_row.has_queries_of(sums[0])
    ]
    if others:
        notes.append(f"not tested against {found[0].name}, whose test queries are others: {listed(others)}")
    return notes


def single_seeds(found: Sequence[Variant], rows: pd.DataFrame) -> list[str]:
    """Of rows whose difference from the first is known on other classes, and not with other seeds."""
    without = rows["p_classes"].notna() & rows["p_seeds"].isna()
    names = [variant.name for variant, is_alone in zip(found, without, strict=True) if is_alone]
    whose = found[0].name if len(found[0].runs) == 1 else listed(names)
    return [f"one seed of {whose}: p is of the test classes only, and has no star"] if names else []


def validated_apart(groups: Sequence[Sequence[Variant]], monitor: str) -> list[str]:
    """Of rows whose validation values are not of one scale, from :func:`~dml.compare.variants.by_validation`."""
    if len(groups) < 2:
        return []
    texts = settings_apart([validated_as(group[0]) for group in groups])
    return [
        f"{monitor} is not of one validation and only compared where it is the same: {text}: "
        f"{listed([variant.name for variant in group])}"
        for group, text in zip(groups, texts, strict=True)
    ]


def copies(runs: pd.DataFrame) -> list[str]:
    """Of data that were read from several folders."""
    roots = [json.loads(config)["data"].get("root") for config in runs["config"]]
    known = list(dict.fromkeys(str(Path(root)) for root in roots if root))
    return (
        [f"the data were read from {len(known)} folders, taken to hold the same: {listed(known)}"] if known[1:] else []
    )


def tested_elsewhere(runs: pd.DataFrame, monitor: str) -> list[str]:
    """Of runs that were not tested at their best epoch."""
    apart = runs[(runs["best_epoch"] != runs["val_epoch"]).fillna(False)]
    if apart.empty:
        return []
    told = [f"{run} (tested {row['best_epoch']}, best {row['val_epoch']})" for run, row in apart.iterrows()]
    return [f"tested at another epoch than the best by {monitor}: {listed(told)}"]
