"""Folders of runs are read as they are left behind: whole, in parts, tested elsewhere, or damaged."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dml.compare import keep, read, read_folders
from tests.compare.made import config, make_run, write_per_query


def test_what_is_known_of_a_run(tmp_path):
    folder = make_run(tmp_path / "deep" / "down" / "version_0", config(seed=3))
    logs = read_folders([tmp_path])
    run = logs.runs.loc[str(folder)]
    assert run[["data", "loss", "backbone", "seed"]].tolist() == ["Omniglot", "SmoothAPLoss", "resnet10t", 3]
    assert run[["epochs", "best_epoch", "minutes", "images_per_second"]].tolist() == [4, 2, 1.5, 100]
    assert run["peak_memory"] == 2 * 2**30
    assert run["finished"]
    assert logs.notes == ()


def test_curves_are_of_all_numbers_and_keep_their_epoch(tmp_path):
    make_run(tmp_path / "a")
    curves = read_folders([tmp_path]).curves
    validated = curves[curves["metric"] == "val/AP"]
    assert validated["epoch"].tolist() == [0, 1, 2, 3]
    assert validated["step"].tolist() == [9, 19, 29, 39]
    assert validated["value"].tolist() == [0.2, 0.4, 0.5, 0.3]
    assert not curves["metric"].isin(["epoch", "step", "fit_minutes"]).any()


def test_sums_of_classes_are_of_the_queries_that_have_the_measure(tmp_path):
    values = np.array([1.0, 0.5, np.nan, 0.25, 0.0, 0.1, 0.2, 0.3])
    make_run(tmp_path / "a", values=values)
    classes = read_folders([tmp_path]).classes
    of_measure = classes[classes["measure"] == "test/AP"]
    assert of_measure["label"].tolist() == [0, 1]
    assert of_measure["sum"].tolist() == pytest.approx([1.75, 0.6])
    assert of_measure["count"].tolist() == [3, 4]


def test_a_resumed_run_is_one_run(tmp_path):
    folder = make_run(tmp_path / "a", val=(0.1, 0.2, 0.6), is_tested=False)
    (folder / "metrics.csv").rename(folder / "metrics.1.csv")
    make_run(folder, val=(0.3, 0.5), first_epoch=2)  # the third epoch is trained again
    logs = read_folders([tmp_path])
    validated = logs.curves[logs.curves["metric"] == "val/AP"]
    assert validated["value"].tolist() == [0.1, 0.2, 0.3, 0.5]
    run = logs.runs.loc[str(folder)]
    assert run["best_epoch"] == 3
    assert run["minutes"] == 1.5  # which are of both parts, though the first was killed before it could say


def test_minutes_are_not_known_if_the_last_part_was_killed(tmp_path):
    folder = make_run(tmp_path / "a")
    (folder / "metrics.csv").rename(folder / "metrics.1.csv")
    make_run(folder, val=(0.7,), first_epoch=4, is_tested=False)
    assert read_folders([tmp_path]).runs["minutes"].isna().all()


def test_minutes_of_the_last_part_are_of_all(tmp_path):
    folder = make_run(tmp_path / "a")
    (folder / "metrics.csv").rename(folder / "metrics.10.csv")
    make_run(folder, val=(0.7,), first_epoch=4)
    (folder / "metrics.csv").rename(folder / "metrics.11.csv")
    make_run(folder, val=(), values=np.full(40, 0.25))  # tested again, without training
    logs = read_folders([tmp_path])
    assert logs.runs.loc[str(folder), "minutes"] == 1.5
    assert logs.curves[logs.curves["metric"] == "test/AP"]["value"].iloc[-1] == 0.25


def test_a_run_that_has_just_begun(tmp_path):
    folder = make_run(tmp_path / "a", is_tested=False)
    make_run(tmp_path / "b")
    (folder / "metrics.csv").write_text("")
    logs = read_folders([tmp_path])
    assert logs.runs.index.tolist() == [str(tmp_path / "b")]  # nothing is known of the other


def test_runs_are_in_the_order_in_which_they_were_started(tmp_path):
    for name, started in (("a", 30), ("b", 10), ("c", 20)):
        make_run(tmp_path / name, started=started)
    assert [run[-1] for run in read_folders([tmp_path]).runs.index] == ["b", "c", "a"]


def test_a_folder_that_is_given_twice_is_read_once(tmp_path):
    make_run(tmp_path / "a")
    logs = read(tmp_path, tmp_path / "a")
    assert len(logs.runs) == 1
    assert not logs.curves.duplicated().any()


@pytest.mark.parametrize("text", ["model: [", "just words", "trainer: {}\nmodel: {}\ndata: {}\n", "\tno"])
def test_a_folder_with_another_configuration_is_left_out_with_a_note(tmp_path, text):
    make_run(tmp_path / "good")
    bad = make_run(tmp_path / "bad")
    (bad / "config.yaml").write_text(text)
    logs = read_folders([tmp_path])
    assert logs.runs.index.tolist() == [str(tmp_path / "good")]
    assert logs.notes[0].startswith(f"{bad} is left out: config.yaml is no ")


def test_a_damaged_file_of_queries_leaves_the_run(tmp_path):
    folder = make_run(tmp_path / "a")
    (folder / "per_query" / "test.parquet").write_bytes(b"PAR1 but no more")
    logs = read_folders([tmp_path])
    assert len(logs.runs) == 1
    assert logs.classes.empty
    assert "test.parquet cannot be read as queries of a test" in logs.notes[0]


def test_retrievals_are_read_where_they_are(tmp_path):
    picture = io.BytesIO()
    Image.new("L", (4, 4)).save(picture, "PNG")
    folder = make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    (folder / "retrievals").mkdir()
    row = {"section": "random", "query": 3, "query_path": "q.png", "query_image": picture.getvalue()}
    row |= {"average_precision": 0.5, "place": 0, "path": "n.png", "image": picture.getvalue(), "similarity": 0.9}
    pd.DataFrame([row | {"is_right": True}]).to_parquet(folder / "retrievals" / "test.parquet")
    found = read_folders([tmp_path]).retrievals
    assert found[["run", "query", "is_right"]].to_numpy().tolist() == [[str(folder), 3, True]]
    assert found["image"].iloc[0] == picture.getvalue()
    assert read_folders([tmp_path], with_retrievals=False).retrievals.empty


def test_the_size_of_the_gallery_is_part_of_the_protocol(tmp_path):
    folder = make_run(tmp_path / "a")
    write_per_query(folder, np.linspace(0, 1, 40), num_gallery=5000)
    assert '"num_gallery": 5000' in read_folders([tmp_path]).runs["protocol"].iloc[0]


def test_kept_logs_are_found_at_any_depth_and_beside_runs(tmp_path):
    old, new = make_run(tmp_path / "old" / "a", config("ALoss")), make_run(tmp_path / "all" / "b", config("BLoss"))
    keep(read_folders([old.parent]), tmp_path / "all" / "deep" / "down")
    keep(read_folders([old.parent]), tmp_path / "other")
    assert read_folders([tmp_path / "all" / "deep"]).runs.index.tolist() == [str(old)]
    logs = read_folders([tmp_path / "all"])
    assert logs.runs.index.tolist() == [str(old), str(new)]
    assert set(logs.classes["run"]) == {str(old), str(new)}
    keep(read_folders([old.parent]), tmp_path / "all")  # a folder with both
    assert read_folders([tmp_path / "all"]).runs.index.tolist() == [str(old), str(new)]
    assert logs.notes == ()


def test_a_run_counts_and_not_what_was_kept_of_it(tmp_path):
    run = make_run(tmp_path / "a", is_tested=False)
    keep(read_folders([tmp_path]), tmp_path / "kept")
    make_run(tmp_path / "a")
    logs = read_folders([tmp_path])
    assert logs.runs["finished"].tolist() == [True]
    assert logs.notes == (f"what {tmp_path / 'kept'} keeps is left out where there is a folder of that name: {run}",)


@pytest.mark.parametrize("what", ["a file", "nothing", "an empty folder"])
def test_where_no_runs_are(tmp_path, what):
    path = tmp_path / "runs"
    if what == "a file":
        path.write_text("")
    if what == "an empty folder":
        path.mkdir()
    with pytest.raises(ValueError, match=f"paths has '{path}', which"):
        read_folders([path])
