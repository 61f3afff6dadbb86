"""Grocery Store Dataset."""

from collections.abc import Hashable
from pathlib import Path
from typing import ClassVar

import pandas as pd

from dml.data.dataset import RetrievalDataset
from dml.data.files import read_list, require

_LISTS = ("train.txt", "val.txt", "test.txt")


class GroceryStore(RetrievalDataset):
    """5,421 photos taken in shops: 81 products in 43 categories in 3 groups (fruit, vegetables, packages).

    Klasson et al., "A Hierarchical Grocery Store Image Dataset with Visual and Semantic Labels", WACV 2019. The
    authors' splits share all products. Ours share no category: train has 41 products (2,642 images), test 40 (2,779),
    and every test image is both query and gallery. The root is the folder ``dataset`` of
    https://github.com/marcusklasson/GroceryStoreDataset, or a copy of it with the splits written out::

        root/train.txt     "path, product, category", no header; likewise val.txt and test.txt
        root/labels.csv    if there is one: path,fine_id,coarse_id,macro,official_split,dml_split
        root/train/Fruit/Apple/Golden-Delicious/Golden-Delicious_001.jpg
    """

    levels = ("product", "category", "group")
    origin = "https://github.com/marcusklasson/GroceryStoreDataset (folder dataset)"
    published: ClassVar = {"train": (2_642, 41, 21, None), "test": (2_779, 40, 22, None)}

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        if (root / "labels.csv").is_file():
            index = read_list(
                root / "labels.csv",
                r"(?P<path>[^,]+),(?P<product>\d+),(?P<category>\d+),(?P<group>[^,]+),\w+,(?P<split>\w+)",
                "path,fine_id,coarse_id,macro,official_split,dml_split",
                header=True,
            )
        else:
            index = _read_official(root)
        index = index.astype({"product": int, "category": int})
        if "split" not in index:
            index["split"] = index["category"].map(_deal(index))
        return index.assign(role="both")


def _read_official(root: Path) -> pd.DataFrame:
    require(root, _LISTS, GroceryStore.origin)
    row = r"(?P<path>[^,/]+/(?P<group>[^,/]+)/[^,]+), (?P<product>\d+), (?P<category>\d+)"
    return pd.concat([read_list(root / name, row, "split/Group/.../name.jpg, product, category") for name in _LISTS])


def _deal(index: pd.DataFrame) -> dict[Hashable, str]:
    """Deal categories out, those with most products first, to the side that has fewer products; ``train`` if even.

    This is how ``dml_split`` of ``labels.csv`` came about.
    """
    num_products = index.groupby("category")["product"].nunique().sort_values(ascending=False, kind="stable")
    total = {"train": 0, "test": 0}
    side: dict[Hashable, str] = {}
    for category, size in num_products.to_dict().items():
        side[category] = "train" if total["train"] <= total["test"] else "test"
        total[side[category]] += size
    return side
