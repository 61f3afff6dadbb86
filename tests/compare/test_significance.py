"""What is computed from sums of classes is what is computed from queries."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dml.compare.logs import CLASSES
from dml.compare.significance import ClassSums, holm, interval, over_seeds, p_values, told_apart
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
    assert p_values([before, after]) == pytest.approx([np.nan, expected], nan_ok=True)


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
    assert p_values([one, other, None, one]) == pytest.approx([np.nan, np.nan, np.nan, 1], nan_ok=True)
    assert np.isnan(p_values([None, one, other])).all()


def test_p_values_of_many_rows_are_those_of_each():
    generator = np.random.default_rng(0)
    classes = np.arange(30).repeat(3)
    first, *others = (_sums(generator.normal(shift, 1, 90), classes) for shift in (0, 0.1, 0.2, 0.3))
    alone = [p_values([first, other])[1] for other in others]
    assert p_values([first, *others])[1:] == pytest.approx(alone)


def test_many_rows_leave_small_p_values_small():
    classes = np.arange(40).repeat(2)
    first, other = _sums(np.zeros(80), classes), _sums(np.ones(80), classes)
    adjusted = holm(p_values([first, *[other] * 29]))
    assert (adjusted[1:] < 0.001).all()


def test_told_apart_by_classes_and_by_seeds():
    rows = pd.DataFrame(
        [
            (np.nan, np.nan, np.nan),
            (-0.1, 0.04, 0.04),
            (0.1, 0.04, 0.04),
            (0.1, 0.04, 0.06),
            (0.1, 0.06, 0.0),
            (0.1, np.nan, 0.0),
        ],
        columns=["difference", "difference_error", "p_holm"],
    )
    assert told_apart(rows).tolist() == [False, True, True, False, False, False]


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
