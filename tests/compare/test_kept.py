"""Logs that are kept are the logs that were read."""

import pandas as pd
import pytest

from dml.compare import compare, keep, read, read_folders, read_kept
from tests.compare.made import config, make_run


def test_logs_come_back_as_they_were(tmp_path):
    for name, seed, is_tested in (("a", 0, True), ("b", 1, True), ("c", 2, False)):
        make_run(tmp_path / "runs" / name, config(seed=seed), is_tested=is_tested)
    logs = read_folders([tmp_path / "runs"])
    keep(logs, tmp_path / "deep" / "kept")
    kept = read_kept(tmp_path / "deep" / "kept")
    for before, after in zip(logs[:3], kept[:3], strict=True):
        pd.testing.assert_frame_equal(before, after)
    assert kept.retrievals.empty
    (before,), (after,) = compare(logs), compare(kept)
    pd.testing.assert_frame_equal(before.rows, after.rows)
    assert sorted(file.name for file in (tmp_path / "deep" / "kept").iterdir()) == [
        "classes.parquet",
        "curves.parquet",
        "runs.parquet",
    ]


def test_the_same_logs_make_the_same_files(tmp_path):
    make_run(tmp_path / "runs" / "a")
    for name in ("one", "two"):
        keep(read(tmp_path / "runs"), tmp_path / name)
    assert all(
        (tmp_path / "one" / f"{name}.parquet").read_bytes() == (tmp_path / "two" / f"{name}.parquet").read_bytes()
        for name in ("runs", "curves", "classes")
    )


def test_kept_logs_and_folders_together(tmp_path):
    make_run(tmp_path / "old" / "a", config("ALoss"))
    keep(read(tmp_path / "old"), tmp_path / "kept")
    make_run(tmp_path / "new" / "b", config("BLoss"))
    logs = read(tmp_path / "kept", tmp_path / "new")
    assert set(logs.runs["loss"]) == {"ALoss", "BLoss"}
    assert set(logs.curves["run"]) == set(logs.runs.index)
    again = read(tmp_path / "kept", tmp_path / "new", tmp_path / "old")
    assert len(again.runs) == 2  # one of them is in both
    assert len(again.curves) == len(logs.curves)


def test_a_damaged_file_is_named(tmp_path):
    make_run(tmp_path / "runs" / "a")
    keep(read(tmp_path / "runs"), tmp_path / "kept")
    (tmp_path / "kept" / "curves.parquet").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"whose curves.parquet is no logs of runs"):
        read(tmp_path / "kept")
    with pytest.raises(ValueError, match=r"it must hold runs.parquet, curves.parquet, classes.parquet"):
        read_kept(tmp_path / "runs")


def test_where_nothing_can_be_written(tmp_path):
    make_run(tmp_path / "runs" / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"keep is '.*file', which cannot be written"):
        keep(read(tmp_path / "runs"), tmp_path / "file")


def test_no_folder_at_all():
    with pytest.raises(ValueError, match="paths is empty; give one or more folders"):
        read()
