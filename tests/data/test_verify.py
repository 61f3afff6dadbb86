"""Images that are missing, damaged, or in two splits are found; no others."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dml.data import verify as module
from dml.data.datasets import DataFrameDataset, GroceryStore
from dml.data.verify import verify
from tests.data.datasets.miniatures import make_grocery


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def splits(root, rows, **columns):
    """A data set of (path, split, content or None)."""
    for path, _, content in rows:
        if content is not None:
            (root / path).write_bytes(content)
    paths, names, _ = zip(*rows, strict=True)
    pd.DataFrame({"path": paths, "split": names, "label": 0, **columns}).to_csv(root / "index.csv", index=False)
    return [DataFrameDataset(root, split, levels=["label"]) for split in sorted(set(names))]


def problems(datasets, num_workers=1):
    found = verify(datasets, num_workers=num_workers, progress=False)
    assert found.columns.tolist() == ["path", "split", "problem", "detail"]
    return sorted(tuple(row) for row in found.to_numpy().tolist())


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_kind_of_problem(tmp_path, num_workers):
    rows = [(f"{row:03}.jpg", "train", jpeg(row)) for row in range(150)]  # more than a process takes at a time
    rows += [
        ("cut.jpg", "train", jpeg(1000)[:400]),
        ("gone.jpg", "train", None),
        ("same.jpg", "test", jpeg(3)),
        ("text.jpg", "test", b"<html>404</html>"),
        ("whole.jpg", "test", jpeg(2000)),
    ]
    found = problems(splits(tmp_path, rows), num_workers)
    assert [row[:3] for row in found] == [
        ("003.jpg", "train", "duplicate"),
        ("cut.jpg", "train", "unreadable"),
        ("gone.jpg", "train", "missing"),
        ("same.jpg", "test", "duplicate"),
        ("text.jpg", "test", "unreadable"),
    ]
    assert [found[0][3], found[3][3]] == ["same.jpg of test", "003.jpg of train"]
    assert all(row[3] for row in found if row[2] == "unreadable")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_intact_data_set_has_no_row(tmp_path, num_workers):
    root = make_grocery(tmp_path)
    found = problems([GroceryStore(root, split) for split in ("test", "train")], num_workers)
    assert found == []


def test_box_outside_of_the_image(tmp_path):
    rows = [("in.jpg", "train", jpeg(0)), ("out.jpg", "train", jpeg(1)), ("none.jpg", "train", jpeg(2))]
    box = {"left": [0, 60, None], "top": [0, 0, None], "right": [61, 80, None], "bottom": [41, 20, None]}
    ((path, _, problem, detail),) = problems(splits(tmp_path, rows, **box))
    assert (path, problem) == ("out.jpg", "unreadable")
    assert detail == "box (60.0, 0.0, 80.0, 20.0) lies outside of its 60 x 40 pixels"


def test_twice_in_one_split_is_no_problem(tmp_path):
    rows = [("a.jpg", "train", jpeg(0)), ("b.jpg", "train", jpeg(0)), ("c.jpg", "test", jpeg(1))]
    assert problems(splits(tmp_path, rows)) == []


def test_each_of_three_duplicates_names_one_of_another_split(tmp_path):
    rows = [("a.jpg", "train", jpeg(0)), ("b.jpg", "train", jpeg(0)), ("c.jpg", "test", jpeg(0))]
    assert problems(splits(tmp_path, rows)) == [
        ("a.jpg", "train", "duplicate", "c.jpg of test"),
        ("b.jpg", "train", "duplicate", "c.jpg of test"),
        ("c.jpg", "test", "duplicate", "a.jpg of train"),
    ]


def test_unreadable_files_of_equal_content_are_not_duplicates(tmp_path):
    found = problems(splits(tmp_path, [("a.jpg", "train", b""), ("b.jpg", "test", b"")]))
    assert [row[2] for row in found] == ["unreadable", "unreadable"]


def test_one_path_in_two_splits_is_one_image_opened_once(tmp_path, monkeypatch):
    opened = tmp_path / "opened.txt"

    def noted(content, *arguments):
        with opened.open("a") as file:  # of other processes, too
            file.write("x")
        return decode(content, *arguments)

    decode = module.decode_image
    monkeypatch.setattr(module, "decode_image", noted)
    rows = [("a.jpg", "train", jpeg(0)), ("b.jpg", "train", jpeg(1)), ("a.jpg", "test", None)]
    assert problems(splits(tmp_path, rows)) == []
    assert opened.read_text() == "xx"


def test_folder_in_place_of_an_image(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    ((path, _, problem, _),) = problems(splits(tmp_path, [("a.jpg", "train", None), ("b.jpg", "train", jpeg(0))]))
    assert (path, problem) == ("a.jpg", "unreadable")
