"""Rows are of what may be compared, and their numbers are those of the runs."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dml.compare import compare, read
from dml.metrics.uncertainty import bootstrap, paired_test
from tests.compare.made import config, make_run, write_per_query

CLASSES = np.arange(40) // 4


def _values(mean, seed):
    return np.clip(np.random.default_rng(seed).normal(mean, 0.1, 40), 0, 1)


def _only(tmp_path, **options):
    (found,) = compare(read(tmp_path), **options)
    return found


def test_means_over_seeds(tmp_path):
    values = {("A", 0): 0.5, ("A", 1): 0.7, ("B", 0): 0.8}
    for (loss, seed), value in values.items():
        make_run(tmp_path / f"{loss}{seed}", config(f"{loss}Loss", seed), values=np.full(40, value))
    rows = _only(tmp_path).rows
    assert rows["loss"].tolist() == ["BLoss", "ALoss"]
    assert rows["seeds"].tolist() == [1, 2]
    assert rows["test/AP"].tolist() == pytest.approx([0.8, 0.6])
    assert rows["test/AP_std"][1] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert np.isnan(rows["test/AP_std"][0])
    assert rows["test/R@1"].tolist() == [1, 0.5]
    assert rows["val"].tolist() == [0.5, 0.5]
    assert rows["best_epoch"].tolist() == [2, 2]
    assert rows[["minutes", "images_per_second", "peak_memory"]].to_numpy().tolist() == [[1.5, 100, 2 * 2**30]] * 2
    assert rows["runs"].tolist() == [[str(tmp_path / "B0")], [str(tmp_path / "A0"), str(tmp_path / "A1")]]
    assert not any(name.endswith("_low") for name in rows.columns)


def test_intervals_and_tests_are_of_queries_averaged_over_seeds(tmp_path):
    values = {(loss, seed): _values(mean, [seed, 9]) for loss, mean in (("A", 0.6), ("B", 0.5)) for seed in (0, 1)}
    for (loss, seed), value in values.items():
        make_run(tmp_path / f"{loss}{seed}", config(f"{loss}Loss", seed), values=value)
    rows = _only(tmp_path).rows
    averaged = {loss: (values[loss, 0] + values[loss, 1]) / 2 for loss in "AB"}
    for row, loss in enumerate("AB"):
        assert rows[["low", "high"]].iloc[row].tolist() == pytest.approx(bootstrap(averaged[loss], CLASSES)[:2])
    frames = [pd.DataFrame({"path": np.arange(40), "AP": averaged[loss], "class": CLASSES}) for loss in "AB"]
    expected = paired_test(*frames, level="class")
    assert rows["p_classes"][1] == pytest.approx(expected.p_value)
    assert rows["difference"][1] == pytest.approx(expected.difference)
    assert rows[["p_classes", "p_seeds", "p_holm", "difference", "difference_error"]].iloc[0].isna().all()
    seeds = [np.mean([values[loss, 0].mean(), values[loss, 1].mean()]) for loss in "AB"]
    errors = [np.std([values[loss, seed].mean() for seed in (0, 1)], ddof=1) / 2**0.5 for loss in "AB"]
    assert rows["difference"][1] == pytest.approx(seeds[1] - seeds[0])
    assert rows["difference_error"][1] == pytest.approx(np.hypot(*errors))
    of_seeds = [[values[loss, seed].mean() for seed in (0, 1)] for loss in "AB"]
    assert rows["p_seeds"][1] == pytest.approx(stats.ttest_ind(*of_seeds, equal_var=False).pvalue)
    assert rows["p_holm"][1] == max(rows["p_classes"][1], rows["p_seeds"][1])


def test_one_seed_says_nothing_of_other_seeds(tmp_path):
    for loss, seed in (("A", 0), ("A", 1), ("B", 0), ("C", 0), ("C", 1)):
        values = _values({"A": 0.6, "B": 0.5, "C": 0.4}[loss], seed)
        make_run(tmp_path / f"{loss}{seed}", config(f"{loss}Loss", seed), values=values)
    found = _only(tmp_path)
    assert found.rows["difference_error"].isna().tolist() == [True, True, False]
    assert "one seed of BLoss: p is of the test classes only, and has no star" in found.notes
    found = _only(tmp_path, first="BLoss")
    assert found.rows["difference_error"].isna().all()
    assert found.notes == ("one seed of BLoss: p is of the test classes only, and has no star",)


def test_confidence_is_that_of_the_intervals(tmp_path):
    make_run(tmp_path / "a", values=_values(0.5, 0))
    widths = [float((found := _only(tmp_path, confidence=c).rows)["high"][0] - found["low"][0]) for c in (0.5, 0.99)]
    assert widths[0] < widths[1]


def test_p_values_allow_for_the_number_of_rows(tmp_path):
    for number, mean in enumerate((0.7, 0.66, 0.64, 0.3)):
        make_run(tmp_path / f"{number}", config(f"L{number}Loss"), values=_values(mean, number))
    rows = _only(tmp_path).rows
    p_values = rows["p_classes"].to_numpy()[1:]
    order = np.argsort(p_values)
    expected = np.maximum.accumulate(np.minimum(p_values[order] * [3, 2, 1], 1))
    assert rows["p_holm"].to_numpy()[1:][order] == pytest.approx(expected)


def test_the_first_row_is_the_reference(tmp_path):
    for loss, mean in (("A", 0.6), ("B", 0.5), ("C", 0.7)):
        make_run(tmp_path / loss, config(f"{loss}Loss"), values=_values(mean, 3))
    rows = _only(tmp_path, first="BLoss").rows
    assert rows["loss"].tolist() == ["BLoss", "CLoss", "ALoss"]
    assert (rows["difference"][1:] > 0).all()


def test_the_reference_is_the_best_on_validation(tmp_path):
    for loss, mean, val in (("A", 0.6, 0.3), ("B", 0.5, 0.8), ("C", 0.7, 0.4)):
        make_run(tmp_path / loss, config(f"{loss}Loss"), values=_values(mean, 3), val=(val,))
    found = _only(tmp_path)
    assert found.rows["loss"].tolist() == ["BLoss", "CLoss", "ALoss"]
    assert found.notes[0] == "first row: best on validation, by val/AP"
    rows = _only(tmp_path, monitor="val/R@1").rows  # which is one less val/AP
    assert rows["loss"].tolist() == ["ALoss", "CLoss", "BLoss"]


def test_without_validation_the_reference_is_the_best_on_the_test(tmp_path):
    for loss, mean in (("A", 0.6), ("B", 0.7)):
        make_run(tmp_path / loss, config(f"{loss}Loss"), values=_values(mean, 3), val=())
    found = _only(tmp_path)
    assert found.rows["loss"].tolist() == ["BLoss", "ALoss"]
    told = "first row: best on the test, as no run has validated, so p-values are too small"
    assert told in found.notes


def test_of_a_loss_the_lowest_is_the_best_on_validation(tmp_path):
    for temperature, value in ((0.1, 0.2), (0.2, 0.9)):
        folder = make_run(tmp_path / f"{temperature}", config(temperature=temperature), val=(value,))
        metrics = pd.read_csv(folder / "metrics.csv").rename(columns={"val/R@1": "val/loss"})
        metrics.to_csv(folder / "metrics.csv", index=False)
    assert _only(tmp_path, monitor="val/loss").rows["variant"].tolist() == ["temperature=0.2", "temperature=0.1"]
    rows = _only(tmp_path, monitor="val/loss", best_of_variants=True).rows
    assert rows["variant"].tolist() == ["temperature=0.2"]


def test_a_reference_that_is_in_another_table_only(tmp_path):
    make_run(tmp_path / "a", config("ALoss"), started=1)
    for loss in "BC":
        make_run(tmp_path / loss, config(f"{loss}Loss", image_size=48), started=2)
    notes = compare(read(tmp_path), first="ALoss")[1].notes
    assert notes[1:3] == ("no run of ALoss is here", "first row: best on validation, by val/AP")


def test_the_reference_of_a_loss_is_its_best_on_validation(tmp_path):
    for rate, validated, tested in ((0.1, 0.5, 0.9), (0.2, 0.6, 0.4)):
        make_run(tmp_path / str(rate), config("ALoss", lr=rate), values=_values(tested, 0), val=[validated])
    make_run(tmp_path / "b", config("BLoss"), values=_values(0.5, 1), val=[0.9])
    found = _only(tmp_path, first="ALoss")
    assert found.rows["variant"].tolist()[0] == "lr=0.2"
    assert found.notes[0] == "first row: best on validation of ALoss, by val/AP"


def test_values_of_different_validations_are_not_compared(tmp_path):
    for rate, batches, validated in ((0.1, 1.0, 0.5), (0.2, 1.0, 0.6), (0.3, 1, 0.9)):
        run = config("ALoss", lr=rate)
        run["trainer"]["limit_val_batches"] = batches
        make_run(tmp_path / str(rate), run, values=_values(0.5, 0), val=[validated])
    found = _only(tmp_path)
    assert "lr=0.2" in found.rows["variant"][0]
    told = [note for note in found.notes if "not of one validation" in note]
    assert len(told) == 2
    assert "limit_val_batches=1: ALoss (lr=0.3" in told[1]
    best = _only(tmp_path, best_of_variants=True).rows["variant"]
    assert [rate for rate in (0.1, 0.2, 0.3) if best.str.contains(f"lr={rate}").any()] == [0.2, 0.3]


def test_settings_make_variants(tmp_path):
    for name, settings in {"a": {"temperature": 0.1}, "b": {"lr": 0.1}, "c": {}}.items():
        make_run(tmp_path / name, config(**settings))
    make_run(tmp_path / "other", config("OtherLoss"))
    rows = _only(tmp_path).rows.set_index("loss")
    assert sorted(rows.loc["SmoothAPLoss", "variant"]) == [
        "temperature=0.01, lr=0.001",
        "temperature=0.01, lr=0.1",
        "temperature=0.1, lr=0.001",
    ]
    assert rows.loc["OtherLoss", "variant"] == ""


def test_what_changes_no_number_makes_no_variant(tmp_path):
    make_run(tmp_path / "a", config(seed=0, root="here", num_workers=1))
    make_run(tmp_path / "b", config(seed=1, root="there", num_workers=8))
    found = _only(tmp_path)
    assert found.rows["seeds"].tolist() == [2]
    assert found.notes == ("the data were read from 2 folders, taken to hold the same: here, there",)


def test_the_best_variant_is_chosen_by_validation_not_by_test(tmp_path):
    make_run(tmp_path / "good_on_test", config(temperature=0.1), val=(0.3,), values=np.full(40, 0.9))
    make_run(tmp_path / "good_on_val", config(temperature=0.2), val=(0.8,), values=np.full(40, 0.4))
    found = _only(tmp_path, best_of_variants=True)
    assert found.rows["test/AP"].tolist() == pytest.approx([0.4])
    assert found.rows["variant"].tolist() == ["temperature=0.2"]
    assert "of 2 variants of SmoothAPLoss, validation chose temperature=0.2" in found.notes


def test_variants_are_compared_on_the_seeds_they_share(tmp_path):
    make_run(tmp_path / "tried", config(temperature=0.1), val=(0.55,))
    for seed, value in enumerate((0.6, 0.5, 0.5)):  # chosen on seed 0, then repeated
        make_run(tmp_path / f"chosen{seed}", config(seed=seed, temperature=0.2), val=(value,))
    rows = _only(tmp_path, best_of_variants=True).rows
    assert rows["seeds"].tolist() == [3]
    assert rows["val"].tolist() == pytest.approx([1.6 / 3])


def test_the_latest_run_of_a_seed_counts(tmp_path):
    make_run(tmp_path / "z_old", values=np.full(40, 0.3), started=1)
    make_run(tmp_path / "a_new", values=np.full(40, 0.6), started=2)
    found = _only(tmp_path)
    assert found.rows["test/AP"].tolist() == pytest.approx([0.6])
    note = (
        f"seed 0 of SmoothAPLoss was run 2 times: {tmp_path / 'a_new'} counts, the latest, and not {tmp_path / 'z_old'}"
    )
    assert found.notes == (note,)


def test_a_run_that_is_not_finished_does_not_replace_one_that_is(tmp_path):
    make_run(tmp_path / "done", started=1)
    make_run(tmp_path / "running", started=2, is_tested=False)
    found = _only(tmp_path)
    assert found.rows["runs"].tolist() == [[str(tmp_path / "done")]]
    assert found.notes == (f"1 run has not been tested, and so not in a table: {tmp_path / 'running'}",)


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("image_size", {"image_size": 48}),
        ("test_split", {"split": "seen"}),
        ("search.ties", {"ties": "optimistic"}),
    ],
)
def test_protocols_are_split_with_a_note(tmp_path, key, settings):
    usual = config("ALoss")
    make_run(tmp_path / "a", usual, started=1)
    make_run(tmp_path / "b", config("BLoss", **settings), started=2)
    found = compare(read(tmp_path))
    before, after = {"image_size": 64, "test_split": "test", "search.ties": "pessimistic"}[key], *settings.values()
    assert [comparison.name for comparison in found] == [f"Omniglot, {key} {before}", f"Omniglot, {key} {after}"]
    assert [comparison.rows["loss"].tolist() for comparison in found] == [["ALoss"], ["BLoss"]]
    told = f"1 run is in another table, of another protocol: {key} is {after} here and {before} there"
    assert found[1].notes == (told,)


def test_galleries_of_other_sizes_are_split(tmp_path):
    for name, size in (("a", 40), ("b", 5000)):
        write_per_query(make_run(tmp_path / name, config(f"{name}Loss")), np.linspace(0, 1, 40), num_gallery=size)
    found = compare(read(tmp_path))
    assert [comparison.name for comparison in found] == ["Omniglot, num_gallery 40", "Omniglot, num_gallery 5000"]


def test_a_run_without_queries_is_in_the_table_without_an_interval(tmp_path):
    make_run(tmp_path / "a", config("ALoss"), values=_values(0.6, 0))
    make_run(tmp_path / "b", config("BLoss"), values=_values(0.5, 0), per_query=False)
    found = _only(tmp_path)
    assert found.rows["low"].isna().tolist() == [False, True]
    assert found.rows["p_classes"].isna().all()
    told = "no interval and no test without per_query/test.parquet of the same queries: BLoss"
    assert found.notes == ("first row: best on validation, by val/AP", told)


def test_other_queries_are_not_tested_against(tmp_path):
    make_run(tmp_path / "a", config("ALoss"), values=_values(0.6, 0))
    folder = make_run(tmp_path / "b", config("BLoss"), values=_values(0.5, 0))
    write_per_query(folder, _values(0.5, 0), classes=np.arange(40) // 5)
    found = _only(tmp_path)
    assert found.rows["low"].notna().all()
    assert found.rows["p_classes"].isna().all()
    told = "not tested against ALoss, whose test queries are others: BLoss"
    assert found.notes == ("first row: best on validation, by val/AP", told)


def test_a_test_at_another_epoch_than_the_best(tmp_path):
    make_run(tmp_path / "a", config(monitor=None))  # the last checkpoint is the one that is tested
    found = _only(tmp_path)
    assert found.notes == (f"tested at another epoch than the best by val/AP: {tmp_path / 'a'} (tested 3, best 2)",)


def test_of_a_loss_less_is_better(tmp_path):
    folder = make_run(tmp_path / "a")
    metrics = pd.read_csv(folder / "metrics.csv").rename(columns={"val/R@1": "val/loss"})
    metrics.to_csv(folder / "metrics.csv", index=False)
    rows = _only(tmp_path, monitor="val/loss").rows
    assert rows[["val", "best_epoch"]].to_numpy().tolist() == [[0.5, 2]]


def test_a_measure_that_some_seeds_lack_has_no_mean(tmp_path):
    make_run(tmp_path / "a", config(seed=0))
    folder = make_run(tmp_path / "b", config(seed=1))
    metrics = pd.read_csv(folder / "metrics.csv").drop(columns="test/R@1")
    metrics.to_csv(folder / "metrics.csv", index=False)
    rows = _only(tmp_path).rows
    assert rows["seeds"].tolist() == [2]
    assert rows["test/R@1"].isna().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "test/mAP"}, r"measure is 'test/mAP'; the runs have \['test/AP', 'test/R@1'\]"),
        ({"monitor": "val/mAP"}, r"monitor is 'val/mAP', .* the runs have \['val/AP', 'val/R@1'\]"),
        ({"monitor": "test/AP"}, "monitor is 'test/AP', which must be a validation metric"),
        ({"first": "Smooth"}, r"first is 'Smooth'; the losses are \['SmoothAPLoss'\]"),
        ({"confidence": 95}, "confidence is 95; it must be between 0 and 1"),
    ],
)
def test_what_is_not_there(tmp_path, options, message):
    make_run(tmp_path / "a")
    with pytest.raises(ValueError, match=message):
        compare(read(tmp_path), **options)


def test_nothing_has_been_tested(tmp_path):
    make_run(tmp_path / "a", is_tested=False)
    with pytest.raises(ValueError, match="no run of 1 has been tested; dml test"):
        compare(read(tmp_path))


def test_nothing_to_choose_the_best_variant_by(tmp_path):
    run = make_run(tmp_path / "a", is_tested=False)
    make_run(tmp_path / "test" / "b", {**config(), "ckpt_path": str(run / "checkpoints" / "best.ckpt")}, val=())
    with pytest.raises(ValueError, match="best_of_variants is set, but no run of SmoothAPLoss has validated"):
        compare(read(tmp_path / "test"), best_of_variants=True)


def test_of_two_checkpoints_of_an_epoch_the_reference_is_the_one_that_validation_chose(tmp_path):
    run = make_run(tmp_path / "run", config("ALoss"), values=_values(0.4, 0))
    whitened = {**config("ALoss"), "ckpt_path": str(run / "checkpoints" / "whitened.ckpt")}
    make_run(tmp_path / "test", whitened, val=(), values=_values(0.6, 1))
    rows = _only(tmp_path).rows
    assert rows["variant"].tolist() == ["other_checkpoint=none", "other_checkpoint=whitened"]
    assert rows["val"].tolist() == [0.5, 0.5]
