"""What is computed from sums of classes is what is computed from queries."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dml.compare.logs import CLASSES
from dml.compare.significance import (
    ClassSums,
    holm,
    interval,
    over_seeds,
    p_over_both,
    p_over_classes,
    p_over_seeds,
    told_apart,
)
from dml.metrics.uncertainty import bootstrap, bootstrap_classes, flip_classes, paired_test

QUERIES = np.repeat(np.arange(9), np.arange(1, 10))


def _sums(values, classes=QUERIES):
    labels, codes = np.unique(classes, return_inverse=True)
    return ClassSums(labels, np.bincount(codes, values), np.bincount(codes).astype(float))


@pytest.mark.parametrize("num_classes", [3, 9, 40])
def test_intervals_and_tests_of_sums(num_classes):
    generator = np.random.default_rng(num_classes)
    classes = generator.permutation(np.arange(num_classes).repeat(5))
    first, second = generator.random((2, len(classes)))
    before, after = _sums(first, classes), _sums(second, classes)
    assert bootstrap_classes(before.sums, before.counts) == bootstrap(first, classes)
    frames = [pd.DataFrame({"path": np.arange(len(classes)), "AP": v, "class": classes}) for v in (first, second)]
    expected = paired_test(*frames, level="class").p_value
    assert flip_classes((after.sums - before.sums)[:, None]) == pytest.approx([expected])
    assert p_over_classes([before, after]) == pytest.approx([np.nan, expected], nan_ok=True)


def test_one_class_has_no_interval():
    one = _sums(np.ones(3), np.zeros(3, int))
    with pytest.raises(ValueError, match="sums are of 1 classes; an interval needs at least 2"):
        bootstrap_classes(one.sums, one.counts)
    assert interval(one, 0.95) is None


def test_seeds_are_averaged_before_classes():
    values = {"a": np.random.default_rng(0).random(45), "b": np.random.default_rng(1).random(45)}
    frames = [
        pd.DataFrame({"run": run, "measure": "test/AP", "label": s.labels, "sum": s.sums, "count": s.counts})
        for run, value in values.items()
        for s in [_sums(value)]
    ]
    classes = pd.concat(frames, ignore_index=True).astype(CLASSES).sample(frac=1, random_state=0)  # in any order
    averaged = over_seeds(classes, ["a", "b"])
    assert averaged.sums == pytest.approx(_sums((values["a"] + values["b"]) / 2).sums)
    assert averaged.counts.tolist() == list(range(1, 10))
    assert over_seeds(classes, ["a", "not there"]) is None
    assert over_seeds(classes.drop(classes.index[classes["label"] == 3][:1]), ["a", "b"]) is None


def test_other_queries_have_no_p_value():
    one, other = _sums(np.ones(45)), _sums(np.ones(44), QUERIES[1:])
    assert p_over_classes([one, other, None, one]) == pytest.approx([np.nan, np.nan, np.nan, 1], nan_ok=True)
    assert np.isnan(p_over_classes([None, one, other])).all()


def test_p_values_of_many_rows_are_those_of_each():
    generator = np.random.default_rng(0)
    classes = np.arange(30).repeat(3)
    first, *others = (_sums(generator.normal(shift, 1, 90), classes) for shift in (0, 0.1, 0.2, 0.3))
    alone = [p_over_classes([first, other])[1] for other in others]
    assert p_over_classes([first, *others])[1:] == pytest.approx(alone)


def test_many_rows_leave_small_p_values_small():
    classes = np.arange(40).repeat(2)
    first, other = _sums(np.zeros(80), classes), _sums(np.ones(80), classes)
    adjusted = holm(p_over_classes([first, *[other] * 29]))
    assert (adjusted[1:] < 0.001).all()


def test_told_apart_by_classes_and_by_seeds():
    rows = pd.DataFrame(
        [(np.nan, np.nan), (0.04, 0.04), (0.001, 0.06), (np.nan, 0.0)],
        columns=["p_seeds", "p_holm"],
    )
    assert told_apart(rows).tolist() == [False, True, False, False]


def test_seeds_by_welch():
    generator = np.random.default_rng(0)
    rows = [generator.normal(mean, spread, seeds) for mean, spread, seeds in ((0, 1, 3), (2, 0.1, 5), (1, 3, 2))]
    frame = pd.DataFrame(
        {
            "difference": [np.nan, *(row.mean() - rows[0].mean() for row in rows[1:])],
            "variance": [row.var(ddof=1) / len(row) for row in rows],
            "seeds": [len(row) for row in rows],
        }
    )
    expected = [stats.ttest_ind(rows[0], row, equal_var=False).pvalue for row in rows[1:]]
    found = p_over_seeds(frame["difference"], frame["variance"], frame["seeds"])
    assert found == pytest.approx([np.nan, *expected], nan_ok=True)


def test_seeds_of_one_and_seeds_that_all_agree():
    variance = pd.Series([0.0, 0.0, 0.0, np.nan])
    seeds = pd.Series([3, 3, 3, 1])
    found = p_over_seeds(pd.Series([np.nan, 0.0, 0.1, 0.1]), variance, seeds)
    assert found[1:] == pytest.approx([1, 0, np.nan], nan_ok=True)
    alone = p_over_seeds(pd.Series([np.nan, 0.1]), pd.Series([np.nan, 0.01]), pd.Series([1, 3]))
    assert np.isnan(alone).all()


def test_both_must_confirm_and_all_tests_count():
    classes, seeds = np.array([np.nan, 0.01, 0.002, 0.01, np.nan]), np.array([np.nan, 0.004, 0.02, np.nan, 0.001])
    assert p_over_both(classes, seeds).tolist() == pytest.approx([np.nan, 0.03, 0.03, 0.03, np.nan], nan_ok=True)


def test_chance_seldom_gives_a_star():
    """Of eight equal rows with three seeds each, seeds tell none from the first in 19 of 20 tables or more."""
    generator = np.random.default_rng(0)
    seeds, wrong = pd.Series([3] * 8), 0
    for _ in range(300):
        values = generator.normal(size=(8, 3)) * np.exp(generator.normal(0, 0.5, (8, 1)))
        means = pd.Series(values.mean(axis=1))
        variance = pd.Series(values.var(axis=1, ddof=1) / 3)
        of_seeds = p_over_seeds((means - means[0]).mask(means.index == 0), variance, seeds)
        wrong += bool((p_over_both(np.where(np.isnan(of_seeds), np.nan, 0.0), of_seeds) < 0.05).any())
    assert wrong / 300 < 0.05


def test_holm():
    """Against the definition: the smallest times how many there are, the next times one less, never falling."""
    assert holm(np.array([np.nan, 0.01, 0.04, 0.03, np.nan])).tolist() == pytest.approx(
        [np.nan, 0.03, 0.06, 0.06, np.nan], nan_ok=True
    )
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]
    assert holm(np.array([np.nan])).tolist() == pytest.approx([np.nan], nan_ok=True)


def test_holm_rejects_what_its_steps_reject():
    p_values = np.sort(stats.beta(0.3, 3).rvs(50, random_state=0))
    steps = p_values <= 0.05 / (50 - np.arange(50))
    rejected = np.cumprod(steps).astype(bool)
    assert (holm(p_values) <= 0.05).tolist() == rejected.tolist()
    assert 0 < rejected.sum() < 50
