"""DeepFashion In-Shop."""

from pathlib import Path
from typing import ClassVar

import pandas as pd

from dml.data.dataset import RetrievalDataset
from dml.data.files import parse_lines, require
from dml.data.index import majority_label

_LISTS = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
_HEADER = "image_name item_id evaluation_status"


class InShop(RetrievalDataset):
    """52,712 photos of clothes: 7,982 items in 23 categories of men's and women's wear.

    Liu et al., "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich Annotations", CVPR 2016; for
    non-commercial research only. The items of train (3,997) and test (3,985) are disjoint; of each test item, some
    images are queries (14,218) and the others gallery (12,612), and queries are ranked against the gallery alone. The
    root is as published, or with ``img`` or the list moved up into it::

        root/Eval/list_eval_partition.txt    number of images; "image_name item_id evaluation_status"; then the images
        root/Img/img/WOMEN/Dresses/id_00000002/02_1_front.jpg

    A category is one of men or of women: their trousers are two. The folders file 99 items under two categories; here
    an item has the one that most of its images have, so that each level is nested in the next. Published code
    numbers the categories of each split anew, in no fixed order; here they mean the same in all.
    """

    levels = ("item", "category", "gender")
    more_files = (*_LISTS, "Img/img")  # where the images are says how paths begin
    origin = "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html"
    published: ClassVar = {"train": (25_882, 3_997, None, None), "test": (26_830, 3_985, None, None)}

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        lists = [root / name for name in _LISTS if (root / name).is_file()]
        if not lists:
            require(root, _LISTS[:1], InShop.origin)
        index = _read_partition(lists[0])
        if (root / "Img" / "img").is_dir():
            index["path"] = "Img/" + index["path"]
        index["category"] = majority_label(index, "item", "category")
        status = index["status"]
        is_train = status == "train"
        return index.drop(columns="status").assign(
            split=is_train.map({True: "train", False: "test"}), role=status.mask(is_train, "both")
        )


def _read_partition(file: Path) -> pd.DataFrame:
    lines = file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    if not lines[0].strip().isdecimal() or "".join(lines[1:2]).split() != _HEADER.split():
        raise ValueError(f"{file}, lines 1 and 2: {lines[:2]} are not the number of images and {_HEADER!r}")
    # Columns are padded with spaces.
    row = (
        r"(?P<path>img/(?P<category>(?P<gender>[^/\s]+)/[^/\s]+)/[^/\s]+/[^/\s]+) +(?P<item>id_\d+) +"
        r"(?P<status>train|query|gallery) *"
    )
    form = "img/gender/category/item/name.jpg item_id train|query|gallery"
    index = parse_lines(file, lines[2:], row, form, first_line=3)
    if len(index) != int(lines[0]):
        raise ValueError(f"{file}, line 1: {lines[0]!r} images, but {len(index)} are listed: is it whole?")
    return index
