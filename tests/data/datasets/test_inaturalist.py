import gzip
import json

import pytest

from dml.data.datasets.inaturalist import INaturalist2018
from tests.data.datasets.miniatures import make_inaturalist

FULL = ("species", "genus", "family", "order", "class", "phylum", "kingdom")


@pytest.fixture
def root(tmp_path):
    return make_inaturalist(tmp_path / "Inaturalist", num_species=6, images_per_species=4)


def change(root, change):
    file = root / "train2018.json"
    published = json.loads(file.read_text())
    change(published)
    file.write_text(json.dumps(published))


def test_lists_become_splits_and_levels(root):
    train, test = INaturalist2018(root, "train"), INaturalist2018(root, "test")
    assert INaturalist2018.levels == ("species", "supercategory")
    assert train.labels[::4].tolist() == [[0, 0], [1, 1], [4, 1], [5, 1], [8, 1], [9, 0]]
    assert test.labels[::4].tolist() == [[2, 1], [3, 0], [6, 0], [7, 1], [10, 1], [11, 1]]
    for dataset in (train, test):
        assert len(dataset) == 24
        assert dataset.index["role"].eq("both").all()


def test_images_are_where_the_index_says(root):
    dataset = INaturalist2018(root, "test")
    assert {dataset[row]["image"].shape for row in range(len(dataset))} == {(3, 64, 80), (3, 80, 64)}


def test_taxonomy_is_seven_levels_for_those_who_ask(root):
    dataset = INaturalist2018(root, levels=FULL)
    # Each rank of the miniature joins two of the rank below.
    species = dataset.index["path"].str.split("/").str[2].astype(int).to_numpy()
    for level in range(7):
        names = dataset.labels[:, level].numpy()
        assert len(set(names)) == len(set(zip(names, species >> level, strict=True))) == len(set(species >> level))


def test_release_without_taxonomy(root):
    with_taxonomy = INaturalist2018(root)
    (root / "train2018.json").unlink()
    without = INaturalist2018(root)
    assert without.labels.equal(with_taxonomy.labels)
    assert "genus" not in without.index
    with pytest.raises(ValueError, match=r"index lacks columns \['genus', 'family', .*'species', 'split', 'superc"):
        INaturalist2018(root, levels=FULL)


def test_taxonomy_may_stand_anywhere_and_be_indented(root):
    before = INaturalist2018(root).index
    file = root / "train2018.json"
    published = json.loads(file.read_text())
    file.write_text(json.dumps({"categories": published.pop("categories"), **published}, indent=1))
    assert INaturalist2018(root).index.equals(before)


def test_species_that_is_not_in_the_taxonomy(root):
    change(root, lambda published: published["categories"].pop(4))
    with pytest.raises(
        ValueError, match=r"train2018.json has no category 4, that of 'train_val2018/Plantae/4/\w+.jpg'"
    ):
        INaturalist2018(root)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda published: published.pop("categories"), ": Expecting value: "),
        (lambda published: [category.pop("order") for category in published["categories"]], "['order'] not in index"),
        (lambda published: published.update(categories=[]), "\"None of ['id'] are in the columns\""),
    ],
    ids=["no categories", "no rank", "empty"],
)
def test_json_of_another_form_is_named(root, damage, says):
    change(root, damage)
    with pytest.raises(ValueError, match="must hold") as error:
        INaturalist2018(root)
    assert str(error.value).startswith(f"{root / 'train2018.json'} must hold \"categories\" with 'id' and ['genus', ")
    assert says in str(error.value)


def test_json_that_was_cut_off_is_named(root):
    file = root / "train2018.json"
    text = file.read_text()
    file.write_text(text[: text.index('"kingdom"')])
    with pytest.raises(ValueError, match="must hold") as error:
        INaturalist2018(root)
    assert str(error.value).startswith(f"{file} must hold")


def test_lines_may_end_as_on_windows(root):
    before = INaturalist2018(root).index
    for file in root.glob("Inat_dataset_splits/*.txt"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert INaturalist2018(root).index.equals(before)


@pytest.mark.parametrize(
    "row",
    [
        "train_val2018/Plantae/7291.jpg",
        "train_val2018/Plantae/rose/1.jpg",
        "train_val2018/Plantae/Rosa/7291/1.jpg",
        "train_val2017/Plantae/7291/1.jpg",
        "train_val2018/Plantae/7291/1.jpg 7291",
        "",
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_malformed_row_is_named(root, split, row):
    file = root / "Inat_dataset_splits" / f"Inaturalist_{split}_set1.txt"
    lines = file.read_text().split("\n")
    lines[7] = row
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="is not written") as error:
        INaturalist2018(root)
    form = "train_val2018/supercategory/category_id/name.jpg"
    assert str(error.value) == f"{file}, line 8: {row!r} is not written {form!r}"


def test_missing_list_is_named_with_its_origin(root):
    (root / "Inat_dataset_splits" / "Inaturalist_test_set1.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"it lacks Inat_dataset_splits/Inaturalist_test_set1.txt") as error:
        INaturalist2018(root)
    assert str(error.value).endswith("can be had from https://github.com/visipedia/inat_comp/tree/master/2018")


def test_root_that_is_the_parent(root):
    with pytest.raises(FileNotFoundError) as error:
        INaturalist2018(root.parent)
    assert f"those are in {str(root)!r}: point root there" in str(error.value)


@pytest.fixture(scope="module")
def real_root(real_data, tmp_path_factory):
    """The real taxonomy and real paths, three of every 14th species; the split's own lists are not there."""
    folder = tmp_path_factory.mktemp("inaturalist")
    source = real_data / "inat2018_lists"
    (folder / "Inat_dataset_splits").mkdir()
    for split in ("train", "test"):
        name = f"Inat_dataset_splits/Inaturalist_{split}_set1"
        (folder / f"{name}.txt").write_bytes((source / f"{name}.mini.txt").read_bytes())
    text = gzip.decompress((source / "train2018_categories.json.gz").read_bytes())
    (folder / "train2018.json").write_bytes(text)
    return folder


@pytest.mark.parametrize(("split", "num_images", "num_species"), [("train", 1224, 408), ("test", 522, 174)])
def test_real_paths(real_root, split, num_images, num_species):
    dataset = INaturalist2018(real_root, split)
    assert len(dataset) == num_images
    assert len(dataset.labels[:, 0].unique()) == num_species
    assert INaturalist2018(real_root, split, levels=FULL).labels[:, 0].equal(dataset.labels[:, 0])


def test_real_taxonomy(real_root, tmp_path):
    categories = json.loads((real_root / "train2018.json").read_text())["categories"]
    # An image of each species, so that the index holds the whole taxonomy.
    paths = [f"train_val2018/{category['supercategory']}/{category['id']}/1.jpg\n" for category in categories]
    (tmp_path / "Inat_dataset_splits").mkdir()
    for split, rows in (("train", paths[0::2]), ("test", paths[1::2])):
        (tmp_path / "Inat_dataset_splits" / f"Inaturalist_{split}_set1.txt").write_text("".join(rows))
    (tmp_path / "train2018.json").write_bytes((real_root / "train2018.json").read_bytes())
    index = INaturalist2018.read_index(tmp_path)
    num_classes = [index[level].nunique() for level in (*FULL, "supercategory")]
    assert num_classes == [8142, 4412, 1120, 273, 57, 25, 6, 14]
    last = index[index["species"] == 8133].iloc[0]
    names = ["Plantae", "JRIDJA", "WBFNIJ", "QHFAVB", "YIZOWL", "UPQJHC", "TBCSEQ"]
    assert last[["supercategory", *FULL[1:]]].tolist() == names
    INaturalist2018(tmp_path, levels=FULL)  # raises unless each level is nested in the next
