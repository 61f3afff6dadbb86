import pytest

from dml.data.datasets import LandmarksClean
from tests.data.datasets.miniatures import make_landmarks_clean

LISTS = ["annotation_clean_train.txt", "annotation_clean_val.txt"]


@pytest.fixture
def root(tmp_path):
    return make_landmarks_clean(tmp_path / "landmarks")


def test_lists_become_splits_that_share_landmarks(root):
    train, val = LandmarksClean(root), LandmarksClean(root, "val")
    assert LandmarksClean.levels == ("landmark",)
    assert train.labels.tolist() == [[row // 4] for row in range(32)]
    assert val.labels.tolist() == [[row // 2] for row in range(16)]
    assert train.index["path"][5] == "landmark_1/001.jpg"
    assert train.index["role"].eq("both").all()
    assert val.index["role"].eq("both").all()


def test_landmarks_are_coded_jointly(root):
    file = root / "annotations" / LISTS[1]
    file.write_text("landmark_7/004.jpg 107\nlandmark_2/004.jpg tower\n")
    assert LandmarksClean(root, "val").labels.tolist() == [[7], [8]]


def test_images_are_where_the_index_says(root):
    for split in ("train", "val"):
        assert {item["image"].shape for item in LandmarksClean(root, split)} == {(3, 64, 80), (3, 80, 64)}


def test_lines_may_end_as_on_windows_after_a_mark(root):
    before = LandmarksClean.read_index(root)
    for name in LISTS:
        file = root / "annotations" / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert LandmarksClean.read_index(root).equals(before)


@pytest.mark.parametrize("row", ["a/1.jpg", "a/1.jpg 1 2", "a/1.jpg  1", "http://a.org/1.jpg 1", " 1", ""])
@pytest.mark.parametrize("name", LISTS)
def test_malformed_row_is_named(root, name, row):
    file = root / "annotations" / name
    lines = file.read_text().split("\n")
    lines[3] = row
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="is not written") as error:
        LandmarksClean(root)
    assert str(error.value) == f"{file}, line 4: {row!r} is not written 'path label'"


def test_missing_list_is_named(root):
    (root / "annotations" / LISTS[1]).unlink()
    with pytest.raises(FileNotFoundError, match=r"but it lacks annotations/annotation_clean_val.txt: it holds"):
        LandmarksClean(root)


def test_root_that_is_the_folder_of_the_lists(root):
    with pytest.raises(FileNotFoundError) as error:
        LandmarksClean(root / "annotations")
    assert f"those are in {str(root)!r}: point root there" in str(error.value)
