import numpy as np
import pandas as pd
import pytest

from dml.data.datasets import DataFrameDataset
from tests.data.datasets.miniatures.drawing import photo, save


@pytest.fixture
def frame(tmp_path):
    """Four photos of 64 x 80 px (number 1) or 80 x 64."""
    for number in range(4):
        save(photo(0, number, number), tmp_path / f"photos/{number}.jpg")
    return pd.DataFrame(
        {
            "path": [f"photos/{number}.jpg" for number in range(4)],
            "split": ["train", "train", "test", "test"],
            "role": ["both", "both", "query", "gallery"],
            "product": ["7", "007", "9", "9"],
            "category": ["NA", "NA", "shoes", "shoes"],
        }
    )


@pytest.fixture(params=["index.csv", "index.parquet", "other.csv", "other.parquet"])
def write(request, tmp_path):
    """Writes a table to a file, and says what its root is."""

    def to_root(frame):
        file = tmp_path / request.param
        frame.to_csv(file, index=False) if file.suffix == ".csv" else frame.to_parquet(file)
        return tmp_path if file.stem == "index" else file

    return to_root


def test_columns_become_splits_roles_and_levels(frame, write):
    root = write(frame)
    train, test = DataFrameDataset(root, "train"), DataFrameDataset(root, "test")
    assert train.levels == ("product", "category")
    assert train.labels.tolist() == [[1, 0], [0, 0]]
    assert test.labels.tolist() == [[2, 1], [2, 1]]
    assert test.index["role"].tolist() == ["query", "gallery"]
    assert train[1]["image"].shape == (3, 80, 64)


def test_split_and_role_are_optional(frame, write):
    dataset = DataFrameDataset(write(frame.drop(columns=["split", "role", "category"])))
    assert len(dataset) == 4
    assert dataset.levels == ("product",)
    assert dataset.index["role"].eq("both").all()


def test_levels_can_be_chosen(frame, write):
    frame["note"] = ["", "x", "x", "x"]
    dataset = DataFrameDataset(write(frame), levels=["category"])
    assert dataset.levels == ("category",)
    assert dataset.labels.tolist() == [[0], [0]]
    assert "note" in dataset.index


def test_box_crops(frame, write):
    boxes = pd.DataFrame({"left": [2.4, np.nan], "top": [3.6, np.nan], "right": [12.0, np.nan], "bottom": [10, np.nan]})
    dataset = DataFrameDataset(write(pd.concat([frame[:2], boxes], axis=1)))
    assert dataset.levels == ("product", "category")
    whole = DataFrameDataset(write(frame[:2]))
    assert dataset.load(0).equal(whole.load(0)[:, 4:10, 2:12])
    assert dataset.load(1).equal(whole.load(1))


def test_missing_label_is_named(frame, write):
    frame.loc[2, "category"] = None
    with pytest.raises(ValueError, match="index has no 'category' in 1 rows, first row 2"):
        DataFrameDataset(write(frame))


def test_labels_that_do_not_nest_are_named(frame, write):
    frame["category"] = ["a", "a", "a", "b"]
    with pytest.raises(
        ValueError, match=r"level 'product' is not nested in 'category': product '9' is in \['a', 'b'\]"
    ):
        DataFrameDataset(write(frame))


def test_table_without_labels(frame, write):
    with pytest.raises(
        ValueError, match=r"has columns \['path', 'split', 'role'\]; it needs a path and one column per"
    ):
        DataFrameDataset(write(frame[["path", "split"]]))


def test_table_without_paths(frame, write):
    with pytest.raises(ValueError, match=r"index lacks columns \['path'\]"):
        DataFrameDataset(write(frame.drop(columns="path")))


def test_row_of_wrong_length_is_named(frame, tmp_path):
    frame.to_csv(tmp_path / "index.csv", index=False)
    with (tmp_path / "index.csv").open("a") as file:
        file.write("photos/4.jpg,train\n")
    with pytest.raises(
        ValueError, match=r"index\.csv cannot be read: .*Row #6: Expected 5 columns, got 2: photos/4\.jpg"
    ):
        DataFrameDataset(tmp_path)


def test_file_that_is_no_parquet(tmp_path):
    (tmp_path / "index.parquet").write_text("path,product")
    with pytest.raises(ValueError, match=r"index\.parquet cannot be read"):
        DataFrameDataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "found"), [("nowhere", "does not exist"), ("file.txt", "is another file"), (".", "holds")]
)
def test_no_table(tmp_path, name, found):
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=f"a folder with index.parquet or index.csv, but {found}"):
        DataFrameDataset(tmp_path / name)


def test_table_as_a_spreadsheet_writes_it(frame, tmp_path):
    frame["path"] = frame["path"].str.replace("photos/", "my, photos/")
    text = frame.to_csv(index=False, lineterminator="\r\n")
    (tmp_path / "index.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    dataset = DataFrameDataset(tmp_path)
    assert dataset.index["path"].tolist() == ["my, photos/0.jpg", "my, photos/1.jpg"]
    assert dataset.levels == ("product", "category")
