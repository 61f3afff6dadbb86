import gzip
from importlib.resources import files

import pandas as pd
import pytest

from dml.data.datasets.cub200 import CUB200
from tests.data.datasets.miniatures import make_cub200


@pytest.fixture
def root(tmp_path):
    return make_cub200(tmp_path / "CUB_200_2011", images_per_species=3)


def test_list_becomes_splits_and_levels(root):
    train, test = CUB200(root, "train"), CUB200(root, "test")
    assert CUB200.levels == ("species", "family", "order")
    assert train.labels[:, 0].tolist() == [row // 3 for row in range(24)]
    assert test.labels[:, 0].tolist() == [8 + row // 3 for row in range(24)]
    # Families and orders in alphabetical order.
    families = ["Alcidae", "Bombycillidae", "Diomedeidae", "Hirundinidae", "Icteridae", "Laniidae", "Pelecanidae"]
    families.append("Phalacrocoracidae")
    of_train = ["Diomedeidae", "Alcidae", "Icteridae", "Phalacrocoracidae"]
    of_test = ["Pelecanidae", "Laniidae", "Hirundinidae", "Bombycillidae"]
    assert [families[label] for label in train.labels[::6, 1]] == of_train
    assert [families[label] for label in test.labels[::6, 1]] == of_test
    orders = ["Charadriiformes", "Passeriformes", "Pelecaniformes", "Procellariiformes", "Suliformes"]
    of_train = ["Procellariiformes", "Charadriiformes", "Passeriformes", "Suliformes"]
    of_test = ["Pelecaniformes", "Passeriformes", "Passeriformes", "Passeriformes"]
    assert [orders[label] for label in train.labels[::6, 2]] == of_train
    assert [orders[label] for label in test.labels[::6, 2]] == of_test
    for dataset in (train, test):
        assert dataset.index["role"].eq("both").all()


def test_images_are_where_the_index_says(root):
    dataset = CUB200(root, "test")
    assert dataset.index["path"][0] == "images/100.Brown_Pelican/Brown_Pelican_0000_25.jpg"
    assert {dataset[row]["image"].shape for row in range(len(dataset))} == {(3, 64, 80), (3, 80, 64)}


def test_split_follows_from_the_species_and_not_from_the_order_of_the_list(root):
    file = root / "images.txt"
    paths = [set(CUB200(root, split).index["path"]) for split in ("train", "test")]
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    assert [set(CUB200(root, split).index["path"]) for split in ("train", "test")] == paths


def test_lines_may_end_as_on_windows(root):
    file = root / "images.txt"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    dataset = CUB200(root)
    assert len(dataset) == 24
    assert dataset[23]["image"].shape[0] == 3


@pytest.mark.parametrize(
    "row",
    [
        "3",
        "001.Black_footed_Albatross/1.jpg",
        "3 001.Black_footed_Albatross/1.jpg more",
        "3 Black_footed_Albatross/1.jpg",
        "3 001.Black_footed_Albatross/more/1.jpg",
        "3 1.jpg",
        "3,001.Black_footed_Albatross/1.jpg",
        "",
    ],
)
def test_malformed_row_is_named(root, row):
    file = root / "images.txt"
    lines = file.read_text().split("\n")
    lines[2] = row
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="is not written") as error:
        CUB200(root)
    assert str(error.value) == f"{file}, line 3: {row!r} is not written 'image_id species/name.jpg'"


def test_species_of_no_family_is_named(root):
    file = root / "images.txt"
    file.write_text(file.read_text().replace(" 005.Crested_Auklet/", " 005.Dodo/"))
    with pytest.raises(ValueError, match=r"images.txt has species '005.Dodo', whose family is not known: .*cub200.csv"):
        CUB200(root)


def test_missing_list_is_named_with_its_origin(root):
    (root / "images.txt").unlink()
    with pytest.raises(FileNotFoundError) as error:
        CUB200(root)
    assert str(error.value).startswith(f"root is {str(root)!r}, which must be a folder with images.txt, but it lacks ")
    assert str(error.value).endswith("can be had from https://www.vision.caltech.edu/datasets/cub_200_2011/")


def test_root_that_is_the_parent(root):
    with pytest.raises(FileNotFoundError) as error:
        CUB200(root.parent)
    assert f"those are in {str(root)!r}: point root there" in str(error.value)


@pytest.fixture
def families():
    return pd.read_csv(files("dml.data.datasets") / "cub200.csv")


def test_table_of_families(families):
    assert families["species"].str[:3].astype(int).tolist() == list(range(1, 201))
    assert families["family"].nunique() == 38
    assert families["order"].nunique() == 13
    assert families.groupby("family")["order"].nunique().eq(1).all()


def test_table_is_the_published_one(families, real_data):
    published = pd.read_csv(real_data / "cub_lists" / "cub_hierarchy.csv")
    for ours, theirs in (("family", "family_id"), ("order", "order_id")):
        pairs = pd.DataFrame({"ours": families[ours], "theirs": published[theirs]}).drop_duplicates()
        assert pairs["ours"].is_unique
        assert pairs["theirs"].is_unique
    classes = (real_data / "cub_lists" / "classes.txt").read_text().splitlines()
    assert families["species"].tolist() == [line.partition(" ")[2] for line in classes]


@pytest.fixture(scope="module")
def real_root(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cub200")
    for name in ("images.txt", "image_class_labels.txt"):
        (folder / name).write_bytes(gzip.decompress((real_data / "cub_lists" / f"{name}.gz").read_bytes()))
    return folder


@pytest.mark.parametrize(
    ("split", "num_images", "num_classes"), [("train", 5864, [100, 30, 13]), ("test", 5924, [100, 20, 6])]
)
def test_real_list(real_root, split, num_images, num_classes):
    dataset = CUB200(real_root, split)
    assert len(dataset) == num_images
    assert [len(column.unique()) for column in dataset.labels.T] == num_classes
    # Our codes are the authors' ids less one.
    ids = [int(line.split()[1]) - 1 for line in (real_root / "image_class_labels.txt").read_text().splitlines()]
    assert dataset.labels[:, 0].tolist() == [label for label in ids if (label < 100) == (split == "train")]
