"""Omniglot."""

import os
from glob import glob
from pathlib import Path
from typing import ClassVar

import pandas as pd

from dml.data.dataset import RetrievalDataset

_FOLDERS = {"train": "images_background", "test": "images_evaluation"}


class Omniglot(RetrievalDataset):
    """32,460 drawings: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people; black on white, 105 px.

    Lake et al., "Human-level concept learning through probabilistic program induction", Science 2015. The authors'
    background set (30 alphabets, 964 characters) is train, their evaluation set (20 alphabets, 659 characters) is test;
    every test image is both query and gallery. Both zips of https://github.com/brendenlake/omniglot, unpacked::

        root/images_background/<alphabet>/character01/0001_01.png
        root/images_evaluation/<alphabet>/character01/0965_01.png
    """

    levels = ("character", "alphabet")
    files = tuple(_FOLDERS.values())
    origin = "https://github.com/brendenlake/omniglot (folder python)"
    published: ClassVar = {"train": (19_280, 964, 30), "test": (13_180, 659, 20)}

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        return pd.concat([_drawings(root, split, folder) for split, folder in _FOLDERS.items()])


def _drawings(root: Path, split: str, folder: str) -> pd.DataFrame:
    # glob.glob scans folders without an object or a stat per file, which Path.glob does not. The file system's order is
    # arbitrary, hence the sort.
    places = [path.split(os.sep) for path in sorted(glob(f"{folder}/*/*/*.png", root_dir=root))]
    if not places:
        raise FileNotFoundError(
            f"root is {str(root)!r}, where {folder} must hold <alphabet>/character01/*.png, but does not"
        )
    return pd.DataFrame(
        {
            "path": ["/".join(place) for place in places],
            "split": split,
            "role": "both",
            # Numbers of characters start again in each alphabet.
            "character": ["/".join(place[1:3]) for place in places],
            "alphabet": [place[1] for place in places],
        }
    )
