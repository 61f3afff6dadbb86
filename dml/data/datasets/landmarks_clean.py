"""Landmarks-clean."""

from pathlib import Path
from typing import ClassVar

import pandas as pd

from dml.data.dataset import RetrievalDataset
from dml.data.files import read_list

_LISTS = {split: f"annotations/annotation_clean_{split}.txt" for split in ("train", "val")}


class LandmarksClean(RetrievalDataset):
    """48,792 web photos of 586 landmarks, cleaned automatically.

    Gordo et al., "Deep Image Retrieval: Learning Global Representations for Image Search", ECCV 2016. The authors'
    lists are train (42,410 images) and val (6,382); they share landmarks. There is no test: models that were trained on
    it are tested on :class:`RevisitedOxford` and :class:`RevisitedParis`::

        root/annotations/annotation_clean_train.txt    "path label", no header; likewise annotation_clean_val.txt
        root/<path>                                    any path without spaces

    The images are offered as addresses to download from. Copies of the lists that hold those addresses in place of
    paths are refused: write them anew with the paths the images were saved to.
    """

    levels = ("landmark",)
    files = tuple(_LISTS.values())
    origin = "https://github.com/naver/deep-image-retrieval"
    published: ClassVar = {"train": (42_410, None), "val": (6_382, None)}

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        # A path has no colon, an address has.
        row, form = r"(?P<path>[^\s:]+) (?P<landmark>\S+)", "path label"
        splits = {split: read_list(root / name, row, form) for split, name in _LISTS.items()}
        return pd.concat(splits, names=["split"]).reset_index("split").assign(role="both")
