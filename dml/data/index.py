"""The index: one DataFrame that says which images there are, in which split, in which role, of which classes."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

ROLES = ("query", "gallery", "both")


def check_index(index: pd.DataFrame, levels: Sequence[str]) -> pd.DataFrame:
    """Validate an index and turn its labels into integer codes.

    Args:
        index: One row per image, with the columns ``path`` (relative to the root of the dataset), ``split``, ``role``
            (one of :data:`ROLES`) and one column of labels (strings or numbers) per level.
        levels: Names of the label columns, finest first. Each must be nested in the next.

    Returns:
        The columns ``path, split, role, *levels`` with a fresh row number. Labels are codes from 0, in sorted order
        over all splits.

    Raises:
        ValueError: If the contract is broken; the message names the culprit.
    """
    columns = ["path", "split", "role", *levels]
    missing = [column for column in columns if column not in index.columns]
    if missing:
        raise ValueError(f"index lacks columns {missing}; it has {sorted(map(str, index.columns))}")
    index = index[columns].reset_index(drop=True)
    if index.empty:
        raise ValueError("index has no rows: no image was found")
    _check_values(index, columns)
    _check_paths(index)
    for fine, coarse in pairwise(levels):
        parents = index.groupby(fine)[coarse].nunique()
        if (parents > 1).any():
            culprit = parents.index[parents > 1].tolist()[0]
            found = sorted(index.loc[index[fine] == culprit, coarse].unique().tolist())
            raise ValueError(f"level {fine!r} is not nested in {coarse!r}: {fine} {culprit!r} is in {found}")
    return index.assign(**{level: pd.factorize(index[level], sort=True)[0] for level in levels})


def hold_out_classes(index: pd.DataFrame, level: str, fraction: float, seed: int) -> pd.DataFrame:
    """Move a fraction of the training classes of ``level``, chosen by ``seed``, from the split ``train`` to ``val``.

    No epoch should be chosen on the test classes; most datasets of the field publish no validation split.

    Raises:
        ValueError: If ``fraction`` is not in (0, 1), leaves either side without a class, or the index has a ``val``
            split already.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"val_classes is {fraction}; it is a fraction of the training classes, between 0 and 1")
    if (index["split"] == "val").any():
        raise ValueError(
            f"val_classes is {fraction}, but the dataset has a split 'val' of its own; leave val_classes out"
        )
    train = index["split"] == "train"
    classes = np.sort(index.loc[train, level].unique())
    held_out = np.random.default_rng(seed).permutation(classes)[: round(fraction * len(classes))]
    if len(held_out) in (0, len(classes)):
        raise ValueError(
            f"val_classes is {fraction}, which holds out {len(held_out)} of {len(classes)} training classes"
        )
    return index.assign(split=index["split"].mask(train & index[level].isin(held_out), "val"))


def _check_values(index: pd.DataFrame, columns: Sequence[str]) -> None:
    for column in columns:
        empty = index[column].isna()
        if empty.any():
            raise ValueError(f"index has no {column!r} in {empty.sum()} rows, first row {empty.to_numpy().argmax()}")
    unknown = sorted(set(index["role"]) - set(ROLES))
    if unknown:
        raise ValueError(f"role must be one of {list(ROLES)}; the index has {unknown}")


def _check_paths(index: pd.DataFrame) -> None:
    path = index["path"].astype(str).str.replace("\\", "/")
    outside = path.str.startswith("/") | path.str.contains(r"^[A-Za-z]:|(?:^|/)\.\.(?:/|$)", regex=True)
    if outside.any():
        first = index.loc[outside, "path"].iloc[0]
        raise ValueError(f"path {first!r} leaves the root of the dataset; paths are relative to it")
    repeated = index.duplicated(["split", "path"])
    if repeated.any():
        first = index[repeated].iloc[0]
        raise ValueError(f"path {first['path']!r} is repeated in split {first['split']!r} ({repeated.sum()} repeats)")
