import gzip

import pytest
import torch

from dml.data.datasets.inshop import InShop
from tests.data.datasets.miniatures import make_inshop

FORM = "img/gender/category/item/name.jpg item_id train|query|gallery"


@pytest.fixture
def root(tmp_path):
    return make_inshop(tmp_path / "In-shop", items_per_category=3, images_per_item=4)


def test_list_becomes_splits_roles_and_levels(root):
    train, test = InShop(root, "train"), InShop(root, "test")
    assert InShop.levels == ("item", "category", "gender")
    labels = torch.tensor([[row // 4, row // 12, row // 24] for row in range(48)])
    assert train.labels.tolist() == labels.tolist()
    assert test.labels.tolist() == (labels + torch.tensor([12, 0, 0])).tolist()
    assert train.index["role"].eq("both").all()
    assert test.index["role"].tolist() == ["query", "gallery"] * 24
    assert [test[row]["is_query"] for row in range(4)] == [True, False, True, False]
    assert [test[row]["is_gallery"] for row in range(4)] == [False, True, False, True]


def test_category_of_an_item_is_that_of_most_of_its_images(root):
    index = InShop(root).index
    astray = index["path"].str.contains("WOMEN/Pants/id_00000009")
    assert astray.sum() == 1
    assert index["category"][astray].tolist() == [2]
    assert index["category"][index["item"] == 8].tolist() == [2] * 4


def test_trousers_of_men_and_women_are_two_categories(root):
    index = InShop(root, "test").index
    pants = index[index["path"].str.contains("/Pants/")]
    assert pants.groupby("gender", observed=True)["category"].unique().str.len().tolist() == [1, 1]
    assert pants["category"].nunique() == 2


@pytest.mark.parametrize("list_moved", [False, True])
@pytest.mark.parametrize("images_moved", [False, True])
def test_images_are_where_the_index_says_as_published_and_as_moved(root, list_moved, images_moved):
    if list_moved:
        (root / "Eval" / "list_eval_partition.txt").rename(root / "list_eval_partition.txt")
    if images_moved:
        (root / "Img" / "img").rename(root / "img")
    dataset = InShop(root, "test")
    folder = "img" if images_moved else "Img/img"
    assert dataset.index["path"][0] == f"{folder}/MEN/Denim/id_00000013/01_1_front.jpg"
    assert {dataset[row]["image"].shape for row in range(len(dataset))} == {(3, 64, 80), (3, 80, 64)}


def test_images_may_come_after_the_list(root):
    (root / "Img").rename(root / "elsewhere")
    assert InShop(root, "test").index["path"][0].startswith("img/")
    (root / "elsewhere").rename(root / "Img")
    assert InShop(root, "test").index["path"][0].startswith("Img/img/")


def test_lines_may_end_as_on_windows(root):
    file = root / "Eval" / "list_eval_partition.txt"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    dataset = InShop(root)
    assert len(dataset) == 48
    assert dataset[47]["image"].shape[0] == 3


def test_padding_may_be_lost(root):
    file = root / "Eval" / "list_eval_partition.txt"
    file.write_text("\n".join(" ".join(line.split()) for line in file.read_text().splitlines()))
    assert len(InShop(root)) == 48


@pytest.mark.parametrize(
    "row",
    [
        "img/MEN/Denim/id_00000001/01_1_front.jpg id_00000001",
        "img/MEN/Denim/id_00000001/01_1_front.jpg id_00000001 val",
        "img/MEN/Denim/id_00000001/01_1_front.jpg id_00000001 train more",
        "img/MEN/Denim/id_00000001/01_1_front.jpg 00000001 train",
        "img/MEN/id_00000001/01_1_front.jpg id_00000001 train",
        "MEN/Denim/id_00000001/01_1_front.jpg id_00000001 train",
        "img/MEN/Denim/id_00000001/01_1_front.jpg,id_00000001,train",
        "",
    ],
)
def test_malformed_row_is_named(root, row):
    file = root / "Eval" / "list_eval_partition.txt"
    lines = file.read_text().split("\n")
    lines[6] = row
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="is not written") as error:
        InShop(root)
    assert str(error.value) == f"{file}, line 7: {row!r} is not written {FORM!r}"


@pytest.mark.parametrize("first", [0, 1, 2, 98])
def test_list_without_its_header_loses_no_row_in_silence(root, first):
    file = root / "Eval" / "list_eval_partition.txt"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[first:]) if first else "many\n\n")
    with pytest.raises(
        ValueError, match=r"list_eval_partition.txt, lines 1 and 2: \[.*\] are not the number of images"
    ):
        InShop(root)


def test_list_that_was_cut_short(root):
    file = root / "Eval" / "list_eval_partition.txt"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(ValueError, match="is it whole") as error:
        InShop(root)
    assert str(error.value) == f"{file}, line 1: '96' images, but 94 are listed: is it whole?"


def test_missing_list_is_named_with_its_origin(root):
    (root / "Eval" / "list_eval_partition.txt").unlink()
    with pytest.raises(FileNotFoundError) as error:
        InShop(root)
    assert str(error.value) == (
        f"root is {str(root)!r}, which must be a folder with Eval/list_eval_partition.txt, but it lacks "
        "Eval/list_eval_partition.txt: it holds ['Eval', 'Img']; the data can be had from "
        "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html"
    )


def test_root_that_is_the_parent(root):
    with pytest.raises(FileNotFoundError) as error:
        InShop(root.parent)
    assert f"those are in {str(root)!r}: point root there" in str(error.value)


@pytest.fixture(scope="module")
def real_root(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inshop")
    content = (real_data / "inshop_lists" / "list_eval_partition.rebuilt.txt.gz").read_bytes()
    (folder / "list_eval_partition.txt").write_bytes(gzip.decompress(content))
    return folder


def test_real_list(real_root):
    train, test = InShop(real_root, "train"), InShop(real_root, "test")
    assert len(train) == 25882
    assert test.index["role"].value_counts().to_dict() == {"query": 14218, "gallery": 12612, "both": 0}
    assert [len(column.unique()) for column in train.labels.T] == [3997, 23, 2]
    assert [len(column.unique()) for column in test.labels.T] == [3985, 23, 2]
    items = {role: set(test.index["item"][test.index["role"] == role]) for role in ("query", "gallery")}
    assert items["query"] == items["gallery"]
    assert not items["query"] & set(train.index["item"])


def test_real_items_of_two_categories(real_root):
    index = InShop.read_index(real_root)
    folder = index["path"].str.extract(r"^img/(\w+/\w+)/")[0]
    assert (folder.groupby(index["item"]).nunique() > 1).sum() == 99
    most = folder.groupby(index["item"]).agg(lambda names: names.value_counts().sort_index().idxmax())
    assert index["category"].equals(index["item"].map(most).astype(index["category"].dtype))
