import pytest

from dml.data.datasets import ImageFolderDataset
from tests.data.datasets.miniatures.drawing import photo, save


def make(root, *paths):
    for number, path in enumerate(paths):
        save(photo(0, number, 0), root / path)
    return root


def test_one_folder_per_class(tmp_path):
    dataset = ImageFolderDataset(make(tmp_path, "b/1.jpg", "b/2.JPEG", "a/1.jpg"))
    assert dataset.levels == ("class",)
    assert dataset.index["path"].tolist() == ["a/1.jpg", "b/1.jpg", "b/2.JPEG"]
    assert dataset.labels.tolist() == [[0], [1], [1]]
    assert dataset.index["role"].eq("both").all()
    assert dataset[2]["image"].shape == (3, 64, 80)


def test_splits_roles_and_nested_labels(tmp_path):
    root = make(
        tmp_path,
        "train/shoes/red/1.jpg",
        "train/hats/red/1.jpg",
        "val/shoes/blue/1.jpg",
        "test/query/shoes/green/1.jpg",
        "test/gallery/shoes/green/2.jpg",
    )
    train, val, test = (ImageFolderDataset(root, split) for split in ("train", "val", "test"))
    assert train.levels == ("class", "parent")
    # Classes of one name in two parents are two: hats/red, shoes/blue, shoes/green, shoes/red.
    assert train.labels.tolist() == [[0, 0], [3, 1]]
    assert val.labels.tolist() == [[1, 1]]
    assert test.labels.tolist() == [[2, 1], [2, 1]]
    assert dict(zip(test.index["path"], test.index["role"], strict=True)) == {
        "test/query/shoes/green/1.jpg": "query",
        "test/gallery/shoes/green/2.jpg": "gallery",
    }


def test_other_files_are_passed_over(tmp_path):
    root = make(tmp_path, "a/1.jpg", ".thumbnails/a/1.jpg", "a/.2.jpg")
    (root / "a" / "notes.txt").write_text("")
    (root / "README.md").write_text("")
    assert ImageFolderDataset(root).index["path"].tolist() == ["a/1.jpg"]


def test_unequal_depths_are_named(tmp_path):
    root = make(tmp_path, "a/1.jpg", "b/c/1.jpg", "b/c/2.jpg")
    with pytest.raises(ValueError, match=r"equally many; 'a/1.jpg' lies in 1, 'b/c/2.jpg' lies in 2"):
        ImageFolderDataset(root)


def test_image_without_a_class_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"'1.jpg' lies in 0"):
        ImageFolderDataset(make(tmp_path, "1.jpg"))


def test_folder_without_images(tmp_path):
    with pytest.raises(ValueError, match="holds no image"):
        ImageFolderDataset(tmp_path)


@pytest.mark.parametrize(("name", "found"), [("nowhere", "does not exist"), ("file", "is a file")])
def test_root_that_is_no_folder(tmp_path, name, found):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match=f"root is .*{name}.* but it {found}"):
        ImageFolderDataset(tmp_path / name)
