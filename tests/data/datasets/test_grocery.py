import zipfile

import pandas as pd
import pytest
import torch

from dml.data.datasets.grocery import GroceryStore
from tests.data.datasets.miniatures import make_grocery


@pytest.fixture
def root(tmp_path):
    return make_grocery(tmp_path / "grocery96", categories_per_group=4, images_per_product=6)


def test_lists_become_splits_and_levels(root):
    train, test = GroceryStore(root, "train"), GroceryStore(root, "test")
    assert GroceryStore.levels == ("product", "category", "group")
    assert len(train) == len(test) == 9 * 6
    for dataset, parity in ((train, 0), (test, 1)):
        assert dataset.labels[:, 1].unique().tolist() == list(range(parity, 12, 2))
        assert len(dataset.labels[:, 0].unique()) == 9
        assert dataset.labels[:, 2].unique().tolist() == [0, 1, 2]
        assert dataset.index["role"].eq("both").all()


def test_images_are_where_the_index_says(root):
    dataset = GroceryStore(root, "test")
    assert {dataset[row]["image"].shape for row in range(len(dataset))} == {(3, 64, 80), (3, 80, 64)}


def test_labels_are_those_of_the_folders(root):
    index = GroceryStore(root).index
    folder = index["path"].str.extract(r"^\w+/(\w+)/(Category-\d+)/(?:[^/]+/)?(.+)_\d+\.jpg$")
    assert folder.notna().all(axis=None)
    for level, name in (("group", 0), ("category", 1), ("product", 2)):
        pairs = pd.DataFrame({"label": index[level], "name": folder[name]}).drop_duplicates()
        assert pairs["label"].is_unique
        assert pairs["name"].is_unique


def test_classes_of_the_miniature_can_be_told_apart(root):
    dataset = GroceryStore(root)
    pixels = [torch.nn.functional.adaptive_avg_pool2d(dataset.load(row).float(), 4) for row in range(len(dataset))]
    pixels = torch.stack(pixels).flatten(1)
    nearest = (torch.cdist(pixels, pixels) + torch.eye(len(pixels)) * 1e9).argmin(1)
    assert (dataset.labels[nearest, 0] == dataset.labels[:, 0]).float().mean() > 0.9


def test_split_of_the_labels_is_used(root):
    text = (root / "labels.csv").read_text()
    (root / "labels.csv").write_text(text.replace(",train\n", ",swap\n").replace(",test\n", ",train\n"))
    assert GroceryStore(root, "train").labels[:, 1].unique().tolist() == list(range(1, 12, 2))


def test_folder_of_the_authors_has_no_labels_but_the_same_split(tmp_path, root):
    official = make_grocery(tmp_path / "dataset", categories_per_group=4, images_per_product=6, labels=False)
    assert not (official / "labels.csv").exists()
    ours, theirs = (
        GroceryStore.read_index(folder).sort_values("path", ignore_index=True) for folder in (root, official)
    )
    pd.testing.assert_frame_equal(ours, theirs, check_like=True, check_dtype=False)


@pytest.mark.parametrize(
    ("file", "line", "row"),
    [
        ("labels.csv", 1, "path,fine_id,coarse_id,macro"),
        ("labels.csv", 3, "train/Fruit/Apple/1.jpg,0,0,Fruit,train"),
        ("labels.csv", 3, "train/Fruit/Apple/1.jpg,zero,0,Fruit,train,train"),
        ("labels.csv", 4, "train/Fruit/Apple/1.jpg,0,0,Fruit,train,train,more"),
        ("labels.csv", 4, ""),
        ("val.txt", 2, "val/Fruit/Apple/1.jpg 0 0"),
        ("val.txt", 2, "val/Fruit/Apple/1.jpg, 0"),
        ("val.txt", 2, "1.jpg, 0, 0"),
    ],
)
def test_malformed_row_is_named(root, file, line, row):
    if file != "labels.csv":
        (root / "labels.csv").unlink()
    rows = (root / file).read_text().split("\n")
    rows[line - 1] = row
    (root / file).write_text("\n".join(rows))
    with pytest.raises(ValueError, match="is not") as error:
        GroceryStore(root)
    assert str(error.value).startswith(f"{root / file}, line {line}: {row!r} is not ")


def test_root_that_is_the_parent(root):
    with pytest.raises(FileNotFoundError) as error:
        GroceryStore(root.parent)
    assert f"those are in {str(root)!r}: point root there" in str(error.value)


def test_root_without_lists(tmp_path):
    (tmp_path / "train.txt").write_text("")
    with pytest.raises(FileNotFoundError) as error:
        GroceryStore(tmp_path)
    assert str(error.value) == (
        f"root is {str(tmp_path)!r}, which must be a folder with train.txt, val.txt and test.txt, but it lacks val.txt "
        "and test.txt: it holds ['train.txt']; the data can be had from "
        "https://github.com/marcusklasson/GroceryStoreDataset (folder dataset)"
    )


@pytest.fixture(scope="module")
def real_root(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grocery")
    with zipfile.ZipFile(real_data / "grocery" / "grocery96.zip") as archive:
        archive.extractall(folder)
    return folder / "grocery96"


@pytest.mark.parametrize(
    ("split", "num_images", "num_classes"), [("train", 2642, [41, 21, 3]), ("test", 2779, [40, 22, 3])]
)
def test_real_data(real_root, split, num_images, num_classes):
    dataset = GroceryStore(real_root, split)
    assert len(dataset) == num_images
    assert [len(column.unique()) for column in dataset.labels.T] == num_classes
    assert all(dataset.path(row).is_file() for row in range(len(dataset)))
    assert min(dataset[0]["image"].shape[1:]) == 96


def test_real_split_is_the_one_dealt_out(real_root, tmp_path):
    for name in ("train.txt", "val.txt", "test.txt"):
        (tmp_path / name).write_bytes((real_root / name).read_bytes())
    ours, dealt = (
        GroceryStore.read_index(folder).sort_values("path", ignore_index=True) for folder in (real_root, tmp_path)
    )
    pd.testing.assert_frame_equal(ours, dealt, check_like=True, check_dtype=False)
