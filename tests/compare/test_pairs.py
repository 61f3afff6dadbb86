"""Tests by ``dml test`` belong to the runs whose checkpoints they are of, each to its own."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dml.compare import compare, read_folders
from tests.compare.made import config, make_run


def _test_of(run, folder, name="best", *, value=0.5, started=100, filename="best", **settings):
    checkpoint = str(run / "checkpoints" / f"{name}.ckpt")
    of = {**_config(filename, **settings), "ckpt_path": checkpoint}
    return make_run(folder, of, val=(), values=np.full(40, value), started=started)


def _config(filename="best", **settings):
    """With such names of the checkpoints that validation chooses."""
    found = config(**settings)
    found["trainer"]["callbacks"][1]["init_args"]["filename"] = filename
    return found


def _tested(logs):
    """AP of each run by the name of its folder."""
    rows = logs.curves[logs.curves["metric"] == "test/AP"]
    return {run.rpartition("/")[2]: value for run, value in zip(rows["run"], rows["value"], strict=True)}


def _best_epochs(logs):
    return {run.rpartition("/")[2]: epoch for run, epoch in logs.runs["best_epoch"].astype(object).items()}


def test_a_test_belongs_to_the_run_that_made_the_checkpoint(tmp_path):
    run = make_run(tmp_path / "a", config(seed=1), is_tested=False)
    _test_of(run, tmp_path / "tests" / "version_0", seed=1)
    logs = read_folders([tmp_path])
    assert logs.runs.index.tolist() == [str(run)]
    assert logs.runs["finished"].all()
    assert logs.runs["minutes"].isna().all()  # it was not finished when it was tested
    assert set(logs.classes["run"]) == {str(run)}
    assert logs.curves["metric"].isin(["val/AP", "test/AP"]).any()


def test_a_test_of_another_protocol_is_another_run_with_the_same_training(tmp_path):
    run = make_run(tmp_path / "a")
    test = _test_of(run, tmp_path / "tests", ties="optimistic")
    logs = read_folders([tmp_path])
    assert logs.runs.index.tolist() == [str(run), str(test)]
    assert logs.runs["minutes"].tolist() == [1.5, 1.5]
    assert logs.runs["protocol"].nunique() == 2
    of_test = logs.curves[logs.curves["run"] == str(test)]
    assert of_test[of_test["metric"] == "val/AP"]["value"].tolist() == [0.2, 0.4, 0.5, 0.3]
    assert (of_test["metric"] == "test/AP").sum() == 1


def test_a_test_that_repeats_that_of_the_run_is_left_out_with_a_note(tmp_path):
    run = make_run(tmp_path / "a")
    test = _test_of(run, tmp_path / "tests")
    logs = read_folders([tmp_path])
    assert logs.runs.index.tolist() == [str(run)]
    assert logs.notes == (f"{test} repeats the test of {run} in {run}, and is left out",)


def test_the_last_epoch_is_tested_by_its_checkpoint(tmp_path):
    run = make_run(tmp_path / "a", is_tested=False)
    _test_of(run, tmp_path / "tests", name="last")
    assert read_folders([tmp_path]).runs["best_epoch"].tolist() == [3]


def test_a_test_without_its_run(tmp_path):
    run = make_run(tmp_path / "a", is_tested=False)
    test = _test_of(run, tmp_path / "tests")
    logs = read_folders([tmp_path / "tests"])
    assert logs.runs.index.tolist() == [str(test)]
    assert "whose run is not among these" in logs.notes[0]


def test_checkpoints_are_told_apart(tmp_path):
    make_run(tmp_path / "run", is_tested=False)
    for number, name in enumerate(["best", "whitened", "last", "epoch0", "epoch=1-step=20"]):
        _test_of(tmp_path / "run", tmp_path / name, name, value=number / 10, started=100 + number)
    logs = read_folders([tmp_path])
    assert _tested(logs) == {"run": 0, "whitened": 0.1, "last": 0.2, "epoch0": 0.3, "epoch=1-step=20": 0.4}
    assert _best_epochs(logs) == {"run": 2, "whitened": 2, "last": 3, "epoch0": pd.NA, "epoch=1-step=20": 1}
    assert logs.notes == ()
    (found,) = compare(logs)
    rows = {runs[0].rpartition("/")[2]: row for runs, row in zip(found.rows["runs"], found.rows.iloc, strict=True)}
    assert rows["whitened"]["variant"] == "other_checkpoint=whitened"
    assert rows["run"]["variant"] == "other_checkpoint=none"
    assert rows["run"]["val"] == rows["whitened"]["val"] == 0.5
    assert [rows[name]["val"] for name in ("last", "epoch=1-step=20")] == [0.3, 0.4]  # and not of the best epoch
    assert np.isnan(rows["epoch0"]["val"])
    assert found.rows["runs"][0][0].endswith(("run", "whitened"))  # validation prefers these
    assert not any("was run" in note for note in found.notes)


@pytest.mark.parametrize("name", ["whitened", "last", "epoch0"])
def test_a_test_after_training_is_of_the_best_and_leaves_those_of_others(tmp_path, name):
    run = make_run(tmp_path / "run")
    _test_of(run, tmp_path / "other", name, value=0.75)
    logs = read_folders([tmp_path])
    assert _tested(logs) == {"run": pytest.approx(0.5), "other": 0.75}
    assert logs.notes == ()


def test_seeds_of_another_checkpoint_are_of_one_row(tmp_path):
    for seed in (0, 1):
        run = make_run(tmp_path / f"run{seed}", config(seed=seed))
        _test_of(run, tmp_path / f"white{seed}", "whitened", seed=seed)
    (found,) = compare(read_folders([tmp_path]))
    assert found.rows["seeds"].tolist() == [2, 2]


def test_of_equal_tests_of_a_checkpoint_the_latest_counts(tmp_path):
    run = make_run(tmp_path / "run")
    early = _test_of(run, tmp_path / "early", "whitened", value=0.25, started=100)
    late = _test_of(run, tmp_path / "late", "whitened", value=0.75, started=200)
    logs = read_folders([tmp_path])
    assert _tested(logs) == {"run": pytest.approx(0.5), "late": 0.75}
    assert logs.notes == (f"{early} repeats the test of {run} in {late}, and is left out",)


def test_another_protocol_has_its_own_choice_of_checkpoints(tmp_path):
    run = make_run(tmp_path / "run")
    for name, value in (("last", 0.25), ("best", 0.75)):
        _test_of(run, tmp_path / name, name, value=value, ties="optimistic")
    logs = read_folders([tmp_path])
    assert _tested(logs) == {"run": pytest.approx(0.5), "best": 0.75, "last": 0.25}
    settings = [row for found in compare(logs) for row in found.rows["variant"]]
    assert sorted(settings) == ["", "other_checkpoint=last", "other_checkpoint=none"]


@pytest.mark.parametrize(
    ("filename", "chosen", "other"),
    [
        ("best", "best-v1", "best_by_loss"),
        ("top-{epoch}-{step:03d}", "top-epoch=2-step=030", "best"),
        (None, "epoch=2-step=30", "epoch=3-step=40"),
        (None, "best", "kept"),
    ],
    ids=["named", "with values", "by default", "by hand"],
)
def test_what_validation_chose_is_called_as_the_run_says(tmp_path, filename, chosen, other):
    run = make_run(tmp_path / "run", _config(filename), is_tested=False)
    _test_of(run, tmp_path / "chosen", chosen, value=0.25, filename=filename)
    _test_of(run, tmp_path / "other", other, value=0.75, filename=filename)
    assert _tested(read_folders([tmp_path])) == {"run": 0.25, "other": 0.75}


def test_the_last_one_is_the_choice_where_nothing_is_monitored(tmp_path):
    run = make_run(tmp_path / "run", config(monitor=None))
    test = _test_of(run, tmp_path / "test", "last", monitor=None)
    logs = read_folders([tmp_path])
    assert _best_epochs(logs) == {"run": 3}
    assert logs.notes == (f"{test} repeats the test of {run} in {run}, and is left out",)


def test_tests_without_their_run_are_told_apart_too(tmp_path):
    for name, value in (("best", 0.25), ("whitened", 0.75)):
        _test_of(tmp_path / "gone", tmp_path / name, name, value=value)
    logs = read_folders([tmp_path])
    assert len(logs.notes) == 2
    (found,) = compare(logs)
    assert found.rows["variant"].tolist() == ["other_checkpoint=whitened", "other_checkpoint=none"]


@pytest.fixture
def _elsewhere(tmp_path, monkeypatch):
    """Compare from a directory that is not the one in which runs and tests were started."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


def _finished(root):
    """The runs that are tested, and the number of notes."""
    logs = read_folders([root])
    return [run.removeprefix(f"{root}/") for run in logs.runs.index[logs.runs["finished"]]], len(logs.notes)


@pytest.mark.usefixtures("_elsewhere")
def test_a_relative_checkpoint_is_found_from_another_directory(tmp_path):
    for name in ("runs/sop/version_0", "runs/cub/version_0", "copy/runs/sop/version_0"):
        make_run(tmp_path / name, is_tested=False)
    _test_of(Path("runs/sop/version_0"), tmp_path / "runs/sop/version_1")
    assert _finished(tmp_path) == (["runs/sop/version_0"], 0)  # and not its copy
    _test_of(Path("runs/sop/version_0"), tmp_path / "copy/tests/version_0")
    assert sorted(_finished(tmp_path)[0]) == ["copy/runs/sop/version_0", "runs/sop/version_0"]


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize(
    ("written", "runs", "credited"),
    [
        ("runs/sop/version_0", ["a/runs/sop/version_0", "a/runs/cub/version_0"], "a/runs/sop/version_0"),
        ("../runs/sop/version_0", ["a/runs/sop/version_0"], "a/runs/sop/version_0"),
        ("runs/sop/version_0", ["a/runs/cub/version_0"], None),
        ("runs/sop/version_0", ["a/runs/sop/version_0", "b/runs/sop/version_0"], None),
        ("/cluster/me/runs/sop/version_0", ["a/runs/sop/version_0", "a/cub/version_0"], "a/runs/sop/version_0"),
        ("/cluster/me/runs/sop/version_0", ["a/runs/sop/version_0", "b/sop/version_0"], "a/runs/sop/version_0"),
        ("/cluster/me/runs/sop/version_0", ["a/sop/version_0"], "a/sop/version_0"),
        ("/cluster/me/runs/sop/version_0", ["a/runs/cub/version_0"], None),
        ("/cluster/me/runs/sop/version_0", ["a/sop/version_0", "b/sop/version_0"], None),
        (".", ["a/runs/sop/version_0"], None),
    ],
    ids=["end", "above", "other", "two", "copied", "longest", "moved", "other copied", "two copied", "nothing"],
)  # fmt: skip
def test_a_checkpoint_of_another_place_is_known_by_the_end_of_its_path(tmp_path, written, runs, credited):
    for name in runs:
        make_run(tmp_path / name, is_tested=False)
    _test_of(Path(written), tmp_path / "tests" / "version_0")
    assert _finished(tmp_path) == (([credited], 0) if credited else (["tests/version_0"], 1))


@pytest.mark.usefixtures("_elsewhere")
def test_a_run_of_another_loss_is_not_the_one_of_a_path_that_ends_alike(tmp_path):
    make_run(tmp_path / "runs" / "version_0", config("ALoss"), is_tested=False)
    _test_of(Path("/cluster/runs/version_0"), tmp_path / "tests" / "version_0", loss="BLoss")
    assert _finished(tmp_path) == (["tests/version_0"], 1)


def test_runs_may_be_copied_with_their_tests(tmp_path):
    run = make_run(tmp_path / "old" / "runs" / "sop" / "version_0", is_tested=False)
    _test_of(run, tmp_path / "old" / "runs" / "sop" / "version_1")
    shutil.copytree(tmp_path / "old", tmp_path / "copy" / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert sorted(_finished(tmp_path)[0]) == ["copy/old/runs/sop/version_0", "new/runs/sop/version_0"]


@pytest.mark.usefixtures("_elsewhere")
def test_a_folder_of_runs_may_be_copied_alone(tmp_path):
    for name in ("sop", "cub"):
        make_run(tmp_path / name / "version_0", is_tested=False)
    _test_of(Path("runs/sop/version_0"), tmp_path / "sop" / "version_1")
    assert _finished(tmp_path) == (["sop/version_0"], 0)


def test_the_path_as_it_is_written_comes_first(tmp_path):
    for name in ("runs", "tuned"):
        make_run(tmp_path / name / "sop" / "version_0", is_tested=False)
    _test_of(Path("runs/sop/version_0"), tmp_path / "tuned" / "sop" / "version_1")
    assert _finished(tmp_path) == (["runs/sop/version_0"], 0)
