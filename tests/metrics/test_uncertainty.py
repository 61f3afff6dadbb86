"""Intervals and the paired test against scipy, against what they promise, and against bad input."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from dml.metrics import uncertainty
from dml.metrics.uncertainty import bootstrap, bootstrap_all, paired_test


def queries(num_classes=40, seed=0, spread=0.25):
    """Values in [0, 1] that are alike within a class, and the classes, of 1 to 12 queries, in no order."""
    generator = np.random.default_rng(seed)
    classes = np.repeat(np.arange(num_classes), generator.integers(1, 13, num_classes))
    level = generator.uniform(spread, 1 - spread, num_classes)[classes]
    values = np.clip(level + generator.normal(0, 0.1, len(classes)), 0, 1)
    order = generator.permutation(len(classes))
    return values[order], classes[order]


def per_class(values, classes):
    groups = pd.Series(values).groupby(classes)
    return groups.sum().to_numpy(), groups.size().to_numpy()


def runs(num_classes=8, gain=0.05, seed=0):
    """Frames of two runs, the second in another order and better by about ``gain``."""
    values, classes = queries(num_classes, seed)
    generator = np.random.default_rng(seed + 1)
    by_class = generator.normal(gain, 0.1, num_classes)[classes]
    first = pd.DataFrame({"path": [f"{row}.png" for row in range(len(values))], "AP": values, "colour": classes})
    second = first.assign(AP=values + by_class + generator.normal(0, 0.05, len(values)))
    return first, second.sample(frac=1, random_state=seed)


@pytest.mark.parametrize("num_classes", [5, 30, 400])
def test_interval_is_that_of_scipy_at_the_widened_level(num_classes):
    values, classes = queries(num_classes)
    sums, counts = per_class(values, classes)
    ratio = np.sqrt(num_classes / (num_classes - 1))
    level = 2 * stats.norm.cdf(ratio * stats.t.ppf(0.95, num_classes - 1)) - 1
    theirs = stats.bootstrap(
        (sums, counts),
        lambda total, number, axis: total.sum(axis=axis) / number.sum(axis=axis),
        paired=True,
        n_resamples=20_000,
        batch=1000,
        confidence_level=level,
        method="percentile",
    )
    ours = bootstrap(values, classes, confidence=0.9, resamples=20_000)
    tolerance = 0.04 * (ours.high - ours.low)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=tolerance)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=tolerance)
    assert ours.standard_error == pytest.approx(ratio * theirs.standard_error, rel=0.03)
    assert ours.mean == pytest.approx(values.mean(), abs=1e-12)
    assert ours.num_classes == num_classes


def test_standard_error_is_that_of_a_mean_of_classes():
    generator = np.random.default_rng(0)
    means = generator.uniform(size=7)
    interval = bootstrap(np.repeat(means, 3), np.repeat(np.arange(7), 3), resamples=50_000)
    assert interval.standard_error == pytest.approx(means.std(ddof=1) / np.sqrt(7), rel=0.02)


def test_interval_covers_as_often_as_it_says_and_one_over_images_does_not():
    held = np.zeros(2)
    for seed in range(300):
        values, classes = queries(12, seed)  # the mean over all classes is 0.5
        for place, drawn in enumerate((classes, np.arange(len(classes)))):
            interval = bootstrap(values, drawn, resamples=400)
            held[place] += interval.low <= 0.5 <= interval.high
    by_class, by_image = held / 300
    assert 0.91 <= by_class <= 0.98
    assert by_image < 0.75


def test_measures_are_of_the_same_draws():
    values, classes = queries()
    found = bootstrap_all({"b": 2 * values + 1, "a": values}, classes)
    assert list(found) == ["b", "a"]
    for field in ("low", "high", "mean"):
        assert getattr(found["b"], field) == pytest.approx(2 * getattr(found["a"], field) + 1, abs=1e-9)
    assert found["a"] == pytest.approx(bootstrap(values, classes), abs=1e-12)


def test_queries_that_lack_a_measure_are_left_out_of_it():
    values, classes = queries()
    lacking = np.where((classes < 5) | (np.arange(len(values)) % 3 == 0), np.nan, values)
    has = ~np.isnan(lacking)
    found = bootstrap_all(
        {"all": values, "some": lacking, "none of one class": np.where(classes, values, np.nan)}, classes
    )
    assert found["some"] == pytest.approx(bootstrap(lacking[has], classes[has]), abs=1e-12)
    assert found["all"] == pytest.approx(bootstrap(values, classes), abs=1e-12)
    assert [interval.num_classes for interval in found.values()] == [40, len(set(classes[has])), 39]


def test_the_seed_says_which_classes_are_drawn():
    values, classes = queries()
    assert bootstrap(values, classes, seed=3) == bootstrap(values, classes, seed=3)
    assert bootstrap(values, classes, seed=3).low != bootstrap(values, classes, seed=4).low
    order = np.random.default_rng(0).permutation(len(values))
    assert bootstrap(values[order], classes[order], seed=3) == pytest.approx(
        bootstrap(values, classes, seed=3), abs=1e-12
    )


def test_any_kind_of_values_and_classes():
    values, classes = queries()
    expected = bootstrap(values, classes)
    names = pd.Series([f"class {label:02}" for label in classes], dtype="category")
    assert bootstrap(torch.tensor(values), names) == expected
    assert bootstrap(pd.Series(values), torch.tensor(classes)) == expected
    half = torch.tensor(values).bfloat16()
    assert bootstrap(half, classes) == bootstrap(half.double().numpy(), classes)
    assert bootstrap(values, classes, confidence=0.5).low > expected.low


def test_interval_stays_in_the_range_of_the_values():
    interval = bootstrap(np.array([0.0, 1.0, 1.0]), np.array([4, 7, 7]))
    assert interval[:3] == pytest.approx((0, 1, 2 / 3))
    alike = bootstrap(np.full(9, 0.3), np.arange(9) // 3)
    assert alike == pytest.approx((0.3, 0.3, 0.3, 0, 3), abs=1e-12)
    assert bootstrap_all({}, np.arange(3)) == {}


def test_memory_of_a_large_test_set():
    generator = np.random.default_rng(0)
    classes = generator.integers(11_316, size=60_502)
    values = {name: generator.uniform(size=60_502) for name in "abcdefg"}
    tracemalloc.start()
    try:
        found = bootstrap_all(values, classes, resamples=600)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6
    assert found["g"].standard_error == pytest.approx(np.sqrt(1 / 12 / 60_502), rel=0.15)


def test_blocks_do_not_matter_but_for_the_draws(monkeypatch):
    values, classes = queries()
    whole = bootstrap(values, classes, resamples=5000)
    monkeypatch.setattr(uncertainty, "_CELLS", 300)  # seven draws of the 40 classes at a time
    assert bootstrap(values, classes, resamples=5000) == pytest.approx(whole, rel=0.02)


@pytest.mark.parametrize(
    ("values", "classes", "options", "message"),
    [
        ([0.1, 0.2], [3, 3], {}, "values has queries of 1 classes"),
        ([], [], {}, "values has queries of 0 classes"),
        ([0.1, np.nan], [0, 1], {}, "values has queries of 1 classes"),
        ([0.1, 0.2], [0, 1, 2], {}, r"values has shape \[2\], but classes has \[3\]"),
        ([0.1, 0.2], ["a", None], {}, "classes has 1 missing values"),
        ([0.1, 0.2], [0, 1], {"confidence": 95}, "confidence is 95; it must be between 0 and 1"),
        ([0.1, 0.2], [0, 1], {"confidence": 1.0}, "confidence is 1.0"),
        ([0.1, 0.2], [0, 1], {"resamples": 0}, "resamples is 0"),
    ],
)
def test_rejects(values, classes, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(np.array(values), np.array(classes), **options)


def test_p_value_of_few_classes_is_that_of_all_flips():
    first, second = runs(num_classes=8)
    found = paired_test(first, second, level="colour")
    joined = first.merge(second, on="path", suffixes=("", "_second"))
    sums = (joined["AP_second"] - joined["AP"]).groupby(joined["colour"]).sum().to_numpy()
    theirs = stats.permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert found.p_value == pytest.approx(theirs.pvalue, abs=1e-12)
    assert 0.01 < found.p_value < 0.99
    assert found.difference == pytest.approx(second["AP"].mean() - first["AP"].mean(), abs=1e-12)
    assert (found.num_queries, found.num_classes) == (len(first), 8)
    interval = bootstrap(joined["AP_second"] - joined["AP"], joined["colour"], resamples=10_000)
    assert found[:3] == pytest.approx((interval.mean, interval.low, interval.high), abs=1e-12)


def test_p_value_of_many_classes_is_drawn():
    first, second = runs(num_classes=14, gain=0.03)
    exact = paired_test(first, second, level="colour", resamples=2**14).p_value
    drawn = paired_test(first, second, level="colour", resamples=2**14 - 1)
    assert exact * 2**14 == round(exact * 2**14)
    assert drawn.p_value != exact
    assert drawn.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 2**14))
    assert drawn == paired_test(first, second, level="colour", resamples=2**14 - 1)
    assert drawn.p_value != paired_test(first, second, level="colour", resamples=2**14 - 1, seed=1).p_value


def test_runs_that_are_equally_good_seldom_differ():
    values = [paired_test(*runs(20, 0, seed), level="colour", resamples=300).p_value for seed in range(200)]
    assert 0.01 <= np.mean(np.array(values) <= 0.05) <= 0.1
    assert 0.4 <= np.mean(values) <= 0.6
    better = [paired_test(*runs(20, 0.2, seed), level="colour", resamples=300).p_value for seed in range(20)]
    assert max(better) < 0.01


def test_the_other_way_round_is_the_negative():
    first, second = runs(30)
    there, back = paired_test(first, second, level="colour"), paired_test(second, first, level="colour")
    assert (back.difference, back.p_value) == pytest.approx((-there.difference, there.p_value), abs=1e-12)
    assert there.low < there.difference < there.high


def test_equal_runs():
    first, _ = runs(3)
    assert paired_test(first, first.copy(), level="colour")[:4] == (0, 0, 0, 1)


def test_all_classes_better_is_the_least_p_value():
    first, _ = runs(5)
    assert paired_test(first, first.assign(AP=first["AP"] + 0.1), level="colour").p_value == 2 / 2**5
    first, _ = runs(40)
    assert paired_test(first, first.assign(AP=first["AP"] + 0.1), level="colour", resamples=99).p_value == 1 / 100


def test_measures_that_some_queries_lack():
    first, second = runs(30)
    gone = first["path"][::4]
    lacking = [run.assign(AP=run["AP"].mask(run["path"].isin(gone))) for run in (first, second)]
    present = [run[~run["path"].isin(gone)] for run in (first, second)]
    assert paired_test(*lacking, level="colour") == pytest.approx(paired_test(*present, level="colour"), abs=1e-12)
    with pytest.raises(ValueError, match=f"{len(gone)} of {len(first)} queries have 'AP' in one run only"):
        paired_test(first, lacking[1], level="colour")


def test_files_say_what_their_level_and_protocol_are(tmp_path):
    first, second = runs(8)
    expected = paired_test(first, second, level="colour")
    for frame in (first, second):
        frame.attrs.update(level="colour", protocol="RetrievalMetrics", num_gallery=100)
    first.to_parquet(tmp_path / "first.parquet")
    second.to_parquet(tmp_path / "second.parquet")
    assert paired_test(tmp_path / "first.parquet", str(tmp_path / "second.parquet")) == expected
    second.attrs["num_gallery"] = 99
    with pytest.raises(ValueError, match="num_gallery is 100 in first and 99 in second; a paired test needs one"):
        paired_test(tmp_path / "first.parquet", second)


def changed(first, second, how):
    swapped = second["colour"].replace({0: 1})
    return {
        "fewer": (first, second.iloc[3:]),
        "more": (first[first["path"] != "5.png"], second),
        "classes": (first, second.assign(colour=swapped)),
        "measure": (first, second.drop(columns="AP")),
        "path": (first.drop(columns="path"), second),
        "repeated": (first, pd.concat([second, second.iloc[:2]])),
    }[how]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("fewer", r"first has 3 of \d+ queries that second lacks, such as '\d+.png'"),
        ("more", r"second has 1 of \d+ queries that first lacks, such as '5.png'"),
        ("classes", r"\d+ of \d+ queries, such as '\d+.png', have another colour in second"),
        ("measure", "second has no column 'AP'; it has .*'path', 'colour'"),
        ("path", "first has no column 'path'"),
        ("repeated", "second repeats 2 paths"),
    ],
)
def test_runs_that_cannot_be_compared(how, message):
    with pytest.raises(ValueError, match=message):
        paired_test(*changed(*runs(), how), level="colour")


def test_level_must_be_known():
    with pytest.raises(ValueError, match=r"level is None, and neither run says which it was; .*'colour'"):
        paired_test(*runs())
    with pytest.raises(ValueError, match="first has no column 'shape'"):
        paired_test(*runs(), level="shape")
    with pytest.raises(ValueError, match="resamples is 0"):
        paired_test(*runs(), level="colour", resamples=0)
