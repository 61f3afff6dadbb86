from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat, savemat

from dml.data.datasets.cars196 import Cars196
from tests.data.datasets.miniatures import make_cars196
from tests.data.datasets.miniatures.cars196 import FIELDS, MODELS, save_annotations


@pytest.fixture
def root(tmp_path):
    return make_cars196(tmp_path / "cars196", images_per_model=3)


def test_annotations_become_splits_and_levels(root):
    train, test = Cars196(root, "train"), Cars196(root, "test")
    assert Cars196.levels == ("model", "type")
    assert train.labels[:, 0].tolist() == [row // 3 for row in range(24)]
    assert test.labels[:, 0].tolist() == [8 + row // 3 for row in range(24)]
    types = ["SUV", "convertible", "coupe", "hatchback", "minivan", "sedan"]
    of_train = ["SUV", "sedan", "sedan", "coupe", "coupe", "SUV", "convertible", "sedan"]
    of_test = ["SUV", "coupe", "coupe", "minivan", "SUV", "sedan", "sedan", "hatchback"]
    assert [types[label] for label in train.labels[::3, 1]] == of_train
    assert [types[label] for label in test.labels[::3, 1]] == of_test
    for dataset in (train, test):
        assert dataset.index["role"].eq("both").all()


def test_images_are_where_the_index_says(root):
    dataset = Cars196(root, "test")
    assert dataset.index["path"][0] == "car_ims/000025.jpg"
    assert {dataset[row]["image"].shape for row in range(len(dataset))} == {(3, 64, 80), (3, 80, 64)}


def test_split_follows_from_the_model_and_not_from_the_order_of_the_images(root):
    rows = [(f"car_ims/{number}.jpg", 1, 1, 2, 2, model, 0) for number, model in enumerate([16, 1, 9, 8])]
    save_annotations(root / "cars_annos.mat", rows, MODELS)
    assert Cars196(root, "train").index["path"].tolist() == ["car_ims/1.jpg", "car_ims/3.jpg"]
    assert Cars196(root, "test").index["path"].tolist() == ["car_ims/0.jpg", "car_ims/2.jpg"]


@pytest.mark.parametrize("model", [0, 17])
def test_class_without_a_name_is_named(root, model):
    rows = [(f"car_ims/{number}.jpg", 1, 1, 2, 2, number, 0) for number in (1, 2, 16)]
    rows[1] = ("car_ims/2.jpg", 1, 1, 2, 2, np.uint8(model), 0)
    save_annotations(root / "cars_annos.mat", rows, MODELS)
    with pytest.raises(ValueError, match="has class") as error:
        Cars196(root)
    expected = f"{root / 'cars_annos.mat'}, image 2: 'car_ims/2.jpg' has class {model}, not 1 to 16"
    assert str(error.value) == expected


def test_model_of_no_type_is_named(root):
    rows = [(f"car_ims/{number}.jpg", 1, 1, 2, 2, number, 0) for number in range(1, 17)]
    save_annotations(root / "cars_annos.mat", rows, (*MODELS[:15], "Ford Model T 1908"))
    with pytest.raises(ValueError, match=r"has model 'Ford Model T 1908', whose body type is not known: .*cars196.csv"):
        Cars196(root)


def broken(file, how):
    if how == "text":
        file.write_text("1 car_ims/000001.jpg\n")
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "cut short":
        file.write_bytes(file.read_bytes()[:600])
    elif how == "other variables":
        savemat(file, {"labels": np.arange(3)})
    elif how == "other fields":
        rows = np.array([[("car_ims/1.jpg", 1), ("car_ims/2.jpg", 2)]], dtype=[("fname", object), ("class", object)])
        savemat(file, {"annotations": rows, "class_names": np.array([MODELS], dtype=object)})
    elif how == "a path that is no string":
        rows = [(name, 1, 1, 2, 2, 1, 0) for name in ("car_ims/1.jpg", 2)]
        save_annotations(file, rows, MODELS)


@pytest.mark.parametrize(
    "how", ["text", "empty", "cut short", "other variables", "other fields", "a path that is no string"]
)
def test_file_that_is_another_is_named(root, how):
    broken(root / "cars_annos.mat", how)
    with pytest.raises(ValueError, match=r"cars_annos.mat does not hold the annotations of Cars196: \w+\(") as error:
        Cars196(root)
    assert "\n" not in str(error.value)


def test_missing_file_is_named_with_its_origin(root):
    (root / "cars_annos.mat").unlink()
    with pytest.raises(FileNotFoundError) as error:
        Cars196(root)
    assert str(error.value).startswith(f"root is {str(root)!r}, which must be a folder with cars_annos.mat, but it ")
    assert str(error.value).endswith("can be had from https://ai.stanford.edu/~jkrause/cars/car_dataset.html")


def test_root_that_is_the_parent(root):
    with pytest.raises(FileNotFoundError) as error:
        Cars196(root.parent)
    assert f"those are in {str(root)!r}: point root there" in str(error.value)


def test_table_of_types_is_the_published_one(real_data):
    types = pd.read_csv(files("dml.data.datasets") / "cars196.csv")
    published = pd.read_csv(real_data / "cars196_lists" / "cars_hierarchy.csv")
    pairs = pd.DataFrame({"ours": types["type"], "theirs": published["type_id"]}).drop_duplicates()
    assert len(pairs) == 9
    assert pairs["ours"].is_unique
    assert pairs["theirs"].is_unique
    names = loadmat(real_data / "cars196_lists" / "cars_annos.mat", squeeze_me=True)["class_names"]
    assert types["model"].tolist() == names.tolist()


@pytest.mark.parametrize(("split", "num_images"), [("train", 8054), ("test", 8131)])
def test_real_annotations(real_data, split, num_images):
    dataset = Cars196(real_data / "cars196_lists", split)
    assert len(dataset) == num_images
    assert [len(column.unique()) for column in dataset.labels.T] == [98, 9]
    assert dataset.labels[:, 0].aminmax() == ((0, 97) if split == "train" else (98, 195))
    assert dataset.index["path"].str.fullmatch(r"car_ims/\d{6}\.jpg").all()


def test_miniature_has_the_fields_of_the_real_annotations(real_data):
    assert loadmat(real_data / "cars196_lists" / "cars_annos.mat")["annotations"].dtype.names == FIELDS
