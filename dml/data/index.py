"""The index: one DataFrame that says which images there are, in which split, in which role, of which classes."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

ROLES = ("query", "gallery", "both")
BOX = ("left", "top", "right", "bottom")
"""Columns of the box that an image is cropped to, in pixels as it is stored; missing values mean the whole image."""


def check_index(index: pd.DataFrame, levels: Sequence[str]) -> pd.DataFrame:
    """Validate an index and turn its labels into integer codes.

    Args:
        index: One row per image, with the columns ``path`` (relative to the root of the dataset), ``split``, ``role``
            (one of :data:`ROLES`) and one column of labels (strings or numbers) per level; it may have the columns
            :data:`BOX`, and any other.
        levels: Names of the label columns, finest first. Each must be nested in the next.

    Returns:
        The columns ``path, split, role, *levels`` and then all others, with a fresh row number. Labels are codes from
        0, in sorted order over all splits. Paths are Arrow strings, splits and roles categories: no Python object is
        kept for any image.

    Raises:
        ValueError: If the contract is broken; the message names the culprit.
    """
    columns = ["path", "split", "role", *levels]
    missing = [column for column in columns if column not in index.columns]
    if missing:
        raise ValueError(f"index lacks columns {missing}; it has {sorted(map(str, index.columns))}")
    others = [column for column in index.columns if column not in columns]
    index = index[[*columns, *others]].reset_index(drop=True)
    if index.empty:
        raise ValueError("index has no rows: no image was found")
    _check_values(index, columns)
    index["path"] = pd.Series(pa.array(index["path"].astype(str)), dtype="string[pyarrow]")
    _check_paths(index)
    coded = {level: pd.factorize(index[level], sort=True) for level in levels}
    for fine, coarse in pairwise(levels):
        _check_nesting(fine, coarse, coded)
    codes = {level: code.astype(np.int64) for level, (code, _) in coded.items()}
    texts = [name for name in others if pd.api.types.infer_dtype(index[name], skipna=True) == "string"]
    index[texts] = index[texts].astype("string[pyarrow]")
    return index.assign(split=index["split"].astype("category"), role=pd.Categorical(index["role"], ROLES), **codes)


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
    train = (index["split"] == "train").to_numpy()
    classes = np.sort(index.loc[train, level].unique())
    held_out = np.random.default_rng(seed).permutation(classes)[: round(fraction * len(classes))]
    if len(held_out) in (0, len(classes)):
        raise ValueError(
            f"val_classes is {fraction}, which holds out {len(held_out)} of {len(classes)} training classes"
        )
    split = pd.Categorical(index["split"]).remove_unused_categories().add_categories(["val"])
    codes = split.codes.copy()
    codes[train & np.isin(index[level], held_out)] = len(split.categories) - 1
    return index.assign(split=pd.Categorical.from_codes(codes, split.categories).remove_unused_categories())


def label_columns(index: pd.DataFrame) -> tuple[str, ...]:
    """All columns that the contract has no other name for, in order."""
    return tuple(str(column) for column in index.columns if column not in ("path", "split", "role", *BOX))


def majority_label(index: pd.DataFrame, fine: str, coarse: str) -> pd.Series:
    """The label of ``coarse`` that most images of each class of ``fine`` have, the first in sorted order if even.

    For lists that file one class under two parents: it makes ``coarse`` a level that ``fine`` is nested in.
    """
    counts = index.groupby([fine, coarse], sort=True).size().reset_index(name="images")
    first = counts.sort_values("images", ascending=False, kind="stable").drop_duplicates(fine)
    return index[fine].map(first.set_index(fine)[coarse])


def _check_values(index: pd.DataFrame, columns: Sequence[str]) -> None:
    for column in columns:
        empty = index[column].isna()
        if empty.any():
            raise ValueError(f"index has no {column!r} in {empty.sum()} rows, first row {empty.to_numpy().argmax()}")
    unknown = sorted(set(index["role"].unique()) - set(ROLES))
    if unknown:
        raise ValueError(f"role must be one of {list(ROLES)}; the index has {unknown}")
    has_box = [column for column in BOX if column in index]
    if has_box and len(has_box) < len(BOX):
        raise ValueError(f"index has columns {has_box} of a box; it needs all of {list(BOX)}, or none")


def _check_paths(index: pd.DataFrame) -> None:
    path = pa.array(index["path"])
    outside = pc.match_substring_regex(path, r"^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)")
    if pc.any(outside).as_py():
        first = index["path"][pc.index(outside, True).as_py()]
        raise ValueError(f"path {first!r} leaves the root of the dataset; paths are relative to it")
    if pc.count_distinct(path).as_py() == len(path):
        return
    repeated = index.duplicated(["split", "path"])
    if repeated.any():
        first = index[repeated].iloc[0]
        raise ValueError(f"path {first['path']!r} is repeated in split {first['split']!r} ({repeated.sum()} repeats)")


def _check_nesting(fine: str, coarse: str, coded: dict[str, tuple[npt.NDArray[np.intp], pd.Index]]) -> None:
    (fine_code, fine_names), (coarse_code, coarse_names) = coded[fine], coded[coarse]
    pairs = np.unique(fine_code.astype(np.int64) * len(coarse_names) + coarse_code)
    repeated = np.flatnonzero(np.diff(pairs // len(coarse_names)) == 0)
    if len(repeated):
        culprit = pairs[repeated[0]] // len(coarse_names)
        parents = pairs[pairs // len(coarse_names) == culprit] % len(coarse_names)
        raise ValueError(
            f"level {fine!r} is not nested in {coarse!r}: {fine} {fine_names.tolist()[culprit]!r} is in "
            f"{coarse_names[parents].tolist()}"
        )
