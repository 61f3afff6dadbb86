"""How far the measures of a test can be trusted: intervals, and a test between two runs, by drawing classes.

The queries of a class are alike, and retrieve each other: they are right or wrong together. Drawing images as if each
were a finding of its own makes intervals too narrow; what a test set holds independent copies of is classes.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from torch import Tensor

Values: TypeAlias = Tensor | npt.NDArray[Any] | pd.Series
_Floats: TypeAlias = npt.NDArray[np.float64]

_CELLS = 2**21  # of a block of draws, so that memory does not grow with the number of classes
_PROTOCOL = ("protocol", "level", "num_gallery", "distractors", "ties", "precision")


class Interval(NamedTuple):
    """A mean over queries, and where it would lie on other classes of the same kind."""

    low: float
    high: float
    mean: float
    standard_error: float
    num_classes: int


class PairedTest(NamedTuple):
    """The mean of the second run less that of the first, its interval, and how likely chance alone goes as far."""

    difference: float
    low: float
    high: float
    p_value: float
    num_queries: int
    num_classes: int


def bootstrap(
    values: Values, classes: Values, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Interval of the mean of a measure over queries: :func:`bootstrap_all` of one measure.

    Example:
        >>> bootstrap(np.array([1.0, 0.5, 0.5, 1.0, 0.0]), np.array([0, 0, 1, 1, 2])).mean
        0.6
    """
    found = bootstrap_all({"values": values}, classes, confidence=confidence, resamples=resamples, seed=seed)
    return found["values"]


def bootstrap_all(
    values: Mapping[str, Values], classes: Values, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Intervals of the means of several measures over queries, by a bootstrap over classes.

    As many classes as there are, are drawn with replacement; the mean over the queries of those drawn is one mean that
    the test could have had. All measures of the same classes are of the same draws. The interval is of percentiles,
    moved outwards as much as Student's interval is wider than that of a normal distribution with the plain standard
    deviation (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015): without, that of a few classes is too
    narrow. It never leaves the range of the values, and is a point where all classes are alike.

    Args:
        values: Of each measure, ``[Q]``. Queries that lack it have NaN, and are left out of it.
        classes: ``[Q]``, of each query.
        confidence: How often the interval should hold the mean over all classes there could be.
        resamples: How often classes are drawn.
        seed: Of the draws.

    Raises:
        ValueError: If ``confidence`` is not in (0, 1), lengths differ, a class is missing, or a measure has queries of
            fewer than two classes.
    """
    _check_draws(confidence, resamples)
    if not values:
        return {}
    sums, counts = _over_classes(values, classes)
    measured = counts > 0
    names = np.array(list(values), dtype=object)
    intervals: dict[str, Interval] = {}
    for name, number in zip(names, measured.sum(axis=0), strict=True):
        if number < 2:
            raise ValueError(f"{name} has queries of {number} classes; an interval needs at least 2 to draw from")
    for pattern in np.unique(measured, axis=1).T:
        same = (measured == pattern[:, None]).all(axis=0)
        block = sums[pattern][:, same], counts[pattern][:, same]
        found = _intervals(*block, confidence, resamples, seed)
        intervals |= dict(zip(names[same], found, strict=True))
    return {name: intervals[name] for name in values}


def paired_test(
    first: str | Path | pd.DataFrame,
    second: str | Path | pd.DataFrame,
    measure: str = "AP",
    *,
    level: str | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedTest:
    """Whether the second of two runs is better than the first on the same queries, by drawing classes.

    To compare two runs of ``dml test``::

        paired_test("runs/version_0/per_query/test.parquet", "runs/version_1/per_query/test.parquet")

    If the runs were equally good, each class could as well have gone the other way: the p-value is the share of sign
    flips of whole classes whose mean difference is as far from 0. All flips are tried if there are no more than
    ``resamples`` (and 65,536), else so many are drawn. The interval is that of :func:`bootstrap_all`.

    Args:
        first: A file of :class:`~dml.callbacks.WritePerQuery`, or a frame with columns ``path``, measures and levels.
        second: The same of the other run.
        measure: What to compare.
        level: Column of the classes; by default the level of the evaluation, which the files keep.
        confidence: Of the interval.
        resamples: How many sign flips, and how many draws of classes.
        seed: Of the draws.

    Raises:
        ValueError: If the runs differ in protocol, queries or classes, or one lacks the measure.
    """
    _check_resamples(resamples)
    before, after = _read(first, "first"), _read(second, "second")
    _check_protocol(before, after)
    level = before.attrs.get("level", after.attrs.get("level")) if level is None else level
    if level is None:
        raise ValueError(f"level is None, and neither run says which it was; it is one of {list(before.columns)}")
    pairs = _joined(_columns(before, "first", [measure, level]), _columns(after, "second", [measure, level]))
    differences = (pairs[f"{measure}_second"] - pairs[f"{measure}_first"]).dropna()
    classes = pairs.loc[differences.index, f"{level}_first"]
    interval = bootstrap(differences, classes, confidence=confidence, resamples=resamples, seed=seed)
    sums, _ = _over_classes({measure: differences}, classes)
    p_value = float(flip_classes(sums, resamples=resamples, seed=seed)[0])
    sizes = len(differences), interval.num_classes
    return PairedTest(interval.mean, interval.low, interval.high, p_value, *sizes)


def bootstrap_classes(
    sums: _Floats, counts: _Floats, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """:func:`bootstrap` for who knows no more than the sum of the values of each class ``[C]``, and their number.

    Raises:
        ValueError: If ``confidence`` is not in (0, 1), or there are fewer than two classes.
    """
    _check_draws(confidence, resamples)
    if len(sums) < 2:
        raise ValueError(f"sums are of {len(sums)} classes; an interval needs at least 2 to draw from")
    return next(_intervals(sums[:, None], counts[:, None], confidence, resamples, seed))


def flip_classes(sums: _Floats, *, resamples: int = 10_000, seed: int = 0) -> _Floats:
    """P-values ``[K]`` as that of :func:`paired_test`, from sums of the differences of each class ``[C, K]``."""
    num_classes, num_tests = sums.shape
    threshold = np.abs(sums.sum(axis=0)) - 1e-12 * np.abs(sums).sum(axis=0)  # flips as far but for rounding count
    if num_classes <= np.log2(min(resamples, 2**16)):
        flips = np.arange(2**num_classes)[:, None] >> np.arange(num_classes) & 1
        shares: _Floats = (np.abs((1 - 2 * flips) @ sums) >= threshold).mean(axis=0)
        return shares
    generator, extreme = np.random.default_rng(seed), np.ones(num_tests)
    for rows in _blocks(resamples, num_classes):
        flips = generator.integers(2, size=(rows, num_classes), dtype=np.int8)
        extreme += (np.abs((1.0 - 2 * flips) @ sums) >= threshold).sum(axis=0)
    return extreme / (1 + resamples)


def _check_draws(confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be between 0 and 1, such as 0.95")
    _check_resamples(resamples)


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it is a number of draws, at least 1")


def _over_classes(values: Mapping[str, Values], classes: Values) -> tuple[_Floats, _Floats]:
    """Sum and number of the values of each class and measure, both ``[C, K]``."""
    codes, names = pd.factorize(_array(classes), sort=True)  # the draws do not depend on the order of the queries
    if (codes < 0).any():
        raise ValueError(f"classes has {int((codes < 0).sum())} missing values; each query is of one class")
    sums, counts = [], []
    for name, column in values.items():
        value = _array(column).astype(np.float64)
        if value.shape != codes.shape:
            raise ValueError(f"{name} has shape {list(value.shape)}, but classes has {list(codes.shape)}; one each")
        has = ~np.isnan(value)
        sums.append(np.bincount(codes[has], value[has], minlength=len(names)))
        counts.append(np.bincount(codes[has], minlength=len(names)).astype(np.float64))
    return np.stack(sums, axis=1), np.stack(counts, axis=1)


def _array(values: Values) -> npt.NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _intervals(sums: _Floats, counts: _Floats, confidence: float, resamples: int, seed: int) -> Iterator[Interval]:
    """Of measures that all the classes have."""
    num_classes = len(sums)
    generator = np.random.default_rng(seed)
    drawn = [_draw(sums, counts, rows, generator) for rows in _blocks(resamples, num_classes)]
    means = np.concatenate(drawn)  # [resamples, K]
    correction = np.sqrt(num_classes / (num_classes - 1))  # draws vary by the variance over C, not over C - 1
    tail = stats.norm.cdf(correction * stats.t.ppf((1 - confidence) / 2, num_classes - 1))
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    errors = means.std(axis=0) * correction
    columns = np.stack([low, high, sums.sum(axis=0) / counts.sum(axis=0), errors])
    for bottom, top, mean, error in columns.T.tolist():
        yield Interval(bottom, top, mean, error, num_classes)


def _draw(sums: _Floats, counts: _Floats, rows: int, generator: np.random.Generator) -> _Floats:
    """Means ``[rows, K]`` over classes drawn with replacement."""
    num_classes = len(sums)
    drawn = generator.integers(num_classes, size=(rows, num_classes))
    drawn += num_classes * np.arange(rows)[:, None]
    times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)
    means: _Floats = (times @ sums) / (times @ counts)
    return means


def _blocks(resamples: int, num_classes: int) -> Iterator[int]:
    """Numbers of draws that are made at once."""
    step = max(1, _CELLS // num_classes)
    for start in range(0, resamples, step):
        yield min(step, resamples - start)


def _read(run: str | Path | pd.DataFrame, which: str) -> pd.DataFrame:
    frame = run if isinstance(run, pd.DataFrame) else pd.read_parquet(run)
    if "path" not in frame:
        raise ValueError(f"{which} has no column 'path', which says which query is which; it has {list(frame.columns)}")
    repeated = int(frame["path"].duplicated().sum())
    if repeated:
        raise ValueError(f"{which} repeats {repeated} paths; each query must be in it once")
    return frame


def _check_protocol(before: pd.DataFrame, after: pd.DataFrame) -> None:
    for key in _PROTOCOL:
        if key in before.attrs and key in after.attrs and before.attrs[key] != after.attrs[key]:
            values = f"{before.attrs[key]!r} in first and {after.attrs[key]!r} in second"
            raise ValueError(f"{key} is {values}; a paired test needs one protocol")


def _columns(frame: pd.DataFrame, which: str, names: list[str]) -> pd.DataFrame:
    missing = [name for name in names if name not in frame]
    if missing:
        raise ValueError(f"{which} has no column {missing[0]!r}; it has {list(frame.columns)}")
    return frame[["path", *names]]


def _joined(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """The columns of both, with suffixes; of the same queries, which have the same classes and lack the same values."""
    measure, level = before.columns[1:]
    for one, other, names in ((before, after, ("first", "second")), (after, before, ("second", "first"))):
        lacking = one.loc[~one["path"].isin(other["path"]), "path"]
        if len(lacking):
            raise ValueError(
                f"{names[0]} has {len(lacking)} of {len(one)} queries that {names[1]} lacks, such as "
                f"{lacking.iloc[0]!r}; a paired test needs the same queries"
            )
    pairs = before.merge(after, on="path", suffixes=("_first", "_second"))
    pairs = pairs.astype({f"{measure}{suffix}": np.float64 for suffix in ("_first", "_second")})
    moved = pairs[f"{level}_first"].to_numpy() != pairs[f"{level}_second"].to_numpy()
    if moved.any():
        path = pairs["path"][moved].iloc[0]
        raise ValueError(f"{moved.sum()} of {len(pairs)} queries, such as {path!r}, have another {level} in second")
    one_sided = pairs[f"{measure}_first"].isna() != pairs[f"{measure}_second"].isna()
    if one_sided.any():
        raise ValueError(f"{one_sided.sum()} of {len(pairs)} queries have {measure!r} in one run only")
    return pairs
