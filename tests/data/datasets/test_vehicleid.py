import gzip

import pytest

from dml.data.datasets.vehicleid import VehicleID
from tests.data.datasets.miniatures import make_vehicleid


@pytest.fixture
def root(tmp_path):
    return make_vehicleid(tmp_path / "VehicleID_V1.0", num_vehicles=6, images_per_vehicle=4)


def test_lists_become_splits(root):
    train, test = VehicleID(root, "train"), VehicleID(root, "test_800")
    assert VehicleID.levels == ("vehicle",)
    # Ids fall as images rise, and labels are in the order of ids, over all splits.
    assert train.labels[:, 0].tolist() == [11 - row // 4 for row in range(24)]
    assert test.labels[:, 0].tolist() == [label for label in (5, 4, 2, 1) for _ in range(4)]
    assert train.index["path"][5] == "image/0000012.jpg"
    for dataset in (train, test):
        assert dataset.index["role"].eq("both").all()


def test_an_image_may_be_in_several_test_lists(root):
    small, medium = (set(VehicleID(root, split).index["path"]) for split in ("test_800", "test_1600"))
    assert small & medium
    assert small - medium
    assert medium - small


def test_further_test_lists_are_read_if_there(root):
    with pytest.raises(ValueError, match=r"has splits \['test_1600', 'test_2400', 'test_800', 'train'\]"):
        VehicleID(root, "test_3200")
    lists = root / "train_test_split"
    (lists / "test_list_3200.txt").write_bytes((lists / "test_list_800.txt").read_bytes())
    assert len(VehicleID(root, "test_3200")) == 16


def test_images_are_where_the_index_says(root):
    for split in ("train", "test_1600"):
        dataset = VehicleID(root, split)
        assert {dataset[row]["image"].shape for row in range(len(dataset))} == {(3, 64, 80), (3, 80, 64)}


def test_models_and_colours_are_further_columns(root):
    index = VehicleID(root).index
    model, color = (index.groupby("vehicle", sort=False)[column].unique().map(list) for column in ("model", "color"))
    assert model.tolist() == [["0"], ["unknown"], ["2"], ["unknown"], ["4"], ["unknown"]]
    assert color.tolist() == [["0"], ["unknown"], ["unknown"], ["3"], ["unknown"], ["unknown"]]
    assert VehicleID(root, "test_800").index[["model", "color"]].eq("unknown").all(axis=None)


def test_model_is_a_level_for_those_who_ask(root):
    labels = VehicleID(root, levels=("vehicle", "model")).labels
    assert labels[::4, 1].tolist() == [0, 3, 1, 3, 2, 3]


def test_release_without_attributes(root):
    (root / "attribute" / "model_attr.txt").unlink()
    assert "model" not in VehicleID(root).index
    assert "color" in VehicleID(root).index
    with pytest.raises(ValueError, match=r"index lacks columns \['model'\]"):
        VehicleID(root, levels=("vehicle", "model"))


def test_ids_that_lost_their_zeros(root):
    file = root / "train_test_split" / "train_list.txt"
    before = VehicleID(root).index
    file.write_text("".join(line.lstrip("0") for line in file.read_text().splitlines(keepends=True)))
    assert VehicleID(root).index["path"].tolist() == before["path"].tolist()


def test_lines_may_end_as_on_windows(root):
    before = VehicleID(root).index
    for file in (*root.glob("train_test_split/*.txt"), *root.glob("attribute/*.txt")):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert VehicleID(root).index.equals(before)


@pytest.mark.parametrize("row", ["0000012", "0000012 23 4", "0000012,23", "0000012.jpg 23", "00000012 23", ""])
@pytest.mark.parametrize("name", ["train_list", "test_list_800", "test_list_2400"])
def test_malformed_row_is_named(root, name, row):
    file = root / "train_test_split" / f"{name}.txt"
    lines = file.read_text().split("\n")
    lines[7] = row
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="is not written") as error:
        VehicleID(root)
    assert str(error.value) == f"{file}, line 8: {row!r} is not written 'image_id vehicle_id'"


@pytest.mark.parametrize("column", ["model", "color"])
def test_malformed_attribute_is_named(root, column):
    file = root / "attribute" / f"{column}_attr.txt"
    lines = file.read_text().split("\n")
    lines[1] = "26314 red"
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="is not written") as error:
        VehicleID(root)
    assert str(error.value) == f"{file}, line 2: '26314 red' is not written 'vehicle_id {column}'"


def test_missing_list_is_named_with_its_origin(root):
    (root / "train_test_split" / "test_list_2400.txt").unlink()
    with pytest.raises(FileNotFoundError) as error:
        VehicleID(root)
    assert "it lacks train_test_split/test_list_2400.txt: it holds" in str(error.value)
    assert str(error.value).endswith("the data can be had from https://www.pkuml.org/resources/pku-vehicleid.html")


def test_root_that_is_the_parent(root):
    with pytest.raises(FileNotFoundError) as error:
        VehicleID(root.parent)
    assert f"those are in {str(root)!r}: point root there" in str(error.value)


@pytest.fixture(scope="module")
def real_root(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vehicleid")
    source = real_data / "vehicleid_lists"
    (folder / "train_test_split").mkdir()
    (folder / "attribute").mkdir()
    for size in (800, 1600, 3200):
        name = f"train_test_split/test_list_{size}.txt"
        (folder / name).write_bytes(gzip.decompress((source / f"{name}.gz").read_bytes()))
    for name in ("attribute/model_attr.txt", "attribute/color_attr.txt"):
        (folder / name).write_bytes(gzip.decompress((source / f"{name}.gz").read_bytes()))
    lists = folder / "train_test_split"
    # Stand-ins for the two lists that are not there: an excerpt, and another list's rows.
    (lists / "train_list.txt").write_bytes((source / "train_test_split" / "train_list.excerpt.txt").read_bytes())
    (lists / "test_list_2400.txt").write_bytes((lists / "test_list_800.txt").read_bytes())
    return folder


@pytest.mark.parametrize("split", ["test_800", "test_1600", "test_3200"])
def test_real_lists(real_root, split):
    dataset = VehicleID(real_root, split)
    assert (len(dataset), len(dataset.labels.unique())) == VehicleID.published[split]
    assert dataset.index["path"].str.fullmatch(r"image/\d{7}\.jpg").all()


def test_real_attributes(real_root):
    index = VehicleID.read_index(real_root)
    assert len(index[index["split"] == "train"]) == 3000
    for column, num_classes in (("model", 128), ("color", 7)):
        known = index[index[column] != "unknown"]
        assert set(known["split"]) == {"train"}
        assert known["vehicle"].nunique() == index["vehicle"][index["split"] == "train"].nunique() == 382
        assert known[column].nunique() == num_classes
    # The first line of the list, looked up by hand.
    assert index.iloc[0][["path", "vehicle", "model"]].tolist() == ["image/0265099.jpg", 22551, "116"]
