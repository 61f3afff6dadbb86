import gzip

import pytest
import torch

from dml.data.datasets.sop import StanfordOnlineProducts
from tests.data.datasets.miniatures import make_sop


@pytest.fixture
def root(tmp_path):
    return make_sop(
        tmp_path / "Stanford_Online_Products", num_categories=2, products_per_category=3, images_per_product=4
    )


def test_lists_become_splits_and_levels(root):
    train, test = StanfordOnlineProducts(root, "train"), StanfordOnlineProducts(root, "test")
    assert StanfordOnlineProducts.levels == ("product", "category")
    assert train.labels.tolist() == [[row // 4, row // 12] for row in range(24)]
    assert test.labels.tolist() == [[6 + row // 4, row // 12] for row in range(24)]
    assert train.index["path"][13] == "cabinet_final/110000000004_1.JPG"
    assert train.index["role"].eq("both").all()
    assert test.index["role"].eq("both").all()


def test_images_are_where_the_index_says(root):
    dataset = StanfordOnlineProducts(root, "test")
    assert {dataset[row]["image"].shape for row in range(len(dataset))} == {(3, 64, 80), (3, 80, 64)}


def test_classes_of_the_miniature_can_be_told_apart(root):
    dataset = StanfordOnlineProducts(root)
    pixels = [torch.nn.functional.adaptive_avg_pool2d(dataset.load(row).float(), 4) for row in range(len(dataset))]
    pixels = torch.stack(pixels).flatten(1)
    nearest = (torch.cdist(pixels, pixels) + torch.eye(len(pixels)) * 1e9).argmin(1)
    assert (dataset.labels[nearest, 0] == dataset.labels[:, 0]).float().mean() > 0.9


def test_lines_may_end_as_on_windows(root):
    for split in ("train", "test"):
        file = root / f"Ebay_{split}.txt"
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert len(StanfordOnlineProducts(root)) == 24
    assert StanfordOnlineProducts(root)[23]["image"].shape[0] == 3


@pytest.mark.parametrize(
    "row",
    [
        "7 2 1",
        "7 2 1 bicycle_final/1.JPG more",
        "7 2 one bicycle_final/1.JPG",
        "7  2 1 bicycle_final/1.JPG",
        "7,2,1,bicycle_final/1.JPG",
        "-7 2 1 bicycle_final/1.JPG",
        "",
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_malformed_row_is_named(root, split, row):
    file = root / f"Ebay_{split}.txt"
    lines = file.read_text().split("\n")
    lines[7] = row
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="is not written") as error:
        StanfordOnlineProducts(root)
    assert str(error.value) == f"{file}, line 8: {row!r} is not written 'image_id class_id super_class_id path'"


def test_list_without_its_header_loses_no_row_in_silence(root):
    file = root / "Ebay_train.txt"
    file.write_text(file.read_text().split("\n", 1)[1])
    with pytest.raises(
        ValueError, match=r"Ebay_train.txt, line 1: '1 1 1 bicycle_final/\S+' is not the header 'image_id"
    ):
        StanfordOnlineProducts(root)


def test_missing_list_is_named_with_its_origin(root):
    (root / "Ebay_test.txt").unlink()
    with pytest.raises(FileNotFoundError) as error:
        StanfordOnlineProducts(root)
    assert str(error.value) == (
        f"root is {str(root)!r}, which must be a folder with Ebay_train.txt and Ebay_test.txt, but it lacks "
        "Ebay_test.txt: it holds ['Ebay_info.txt', 'Ebay_train.txt', 'bicycle_final', 'cabinet_final']; the data can "
        "be had from https://cvgl.stanford.edu/projects/lifted_struct/"
    )


def test_root_that_is_the_parent(root):
    with pytest.raises(FileNotFoundError) as error:
        StanfordOnlineProducts(root.parent)
    assert f"those are in {str(root)!r}: point root there" in str(error.value)


@pytest.fixture(scope="module")
def real_root(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sop")
    for name in ("Ebay_train.txt", "Ebay_test.txt"):
        (folder / name).write_bytes(gzip.decompress((real_data / "sop_lists" / f"{name}.gz").read_bytes()))
    return folder


@pytest.mark.parametrize(("split", "num_images", "num_products"), [("train", 59551, 11318), ("test", 60502, 11316)])
def test_real_lists(real_root, split, num_images, num_products):
    dataset = StanfordOnlineProducts(real_root, split)
    assert len(dataset) == num_images
    assert [len(column.unique()) for column in dataset.labels.T] == [num_products, 12]
    # Ids are contiguous and sorted as numbers, so our codes are the authors' ids less one.
    assert dataset.labels[0].tolist() == [0 if split == "train" else 11318, 0]
    assert dataset.labels[-1].tolist() == [11317 if split == "train" else 22633, 11]
