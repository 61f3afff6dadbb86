"""VGGFace2."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from dml.data.dataset import RetrievalDataset
from dml.data.files import read_list

_LISTS = {"train": "train_list.txt", "test": "test_list.txt"}
_BOXES = {"train": "bb_landmark/loose_bb_train.csv", "test": "bb_landmark/loose_bb_test.csv"}
_IDENTITIES = "identity_meta.csv"
_EXTENT = 1.3
_MIN_ASPECT = 112 / 128


class VGGFace2(RetrievalDataset):
    """3.31 million loosely cropped faces of 9,131 people, of many poses and ages.

    Cao et al., "VGGFace2: A Dataset for Recognising Faces across Pose and Age", FG 2018. The people of train (8,631)
    and test (500) are disjoint; every test image is both query and gallery. The root holds the two archives unpacked,
    and the lists of the folder meta::

        root/train_list.txt       one image per line, no header, as n000002/0001_01.jpg
        root/test_list.txt
        root/identity_meta.csv    if it is there: "Class_ID, Name, Sample_Num, Flag, Gender", one header line
        root/train/n000002/0001_01.jpg
        root/test/n000001/0001_01.jpg

    ``gender`` (f or m) is a further column of the index if identity_meta.csv is there. Its names hold commas, in quotes
    that stand after a blank, over which CSV readers stumble.

    These are the images as released, twice as wide as the face. :class:`VGGFace2Tight` crops them.

    For research only.
    """

    levels = ("identity",)
    files: ClassVar = tuple(_LISTS.values())
    more_files = (_IDENTITIES,)
    origin = "https://github.com/ox-vgg/vgg_face2"
    published: ClassVar = {"train": (None, 8_631), "test": (169_396, 500)}

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        row, form = r"(?P<path>(?P<identity>n\d{6})/\d+_\d+\.jpg)", "n000001/0001_01.jpg"
        splits = {split: read_list(root / name, row, form) for split, name in _LISTS.items()}
        splits = {split: images.assign(path=f"{split}/" + images["path"]) for split, images in splits.items()}
        index = pd.concat(splits, names=["split"]).reset_index("split").assign(role="both")
        if (root / _IDENTITIES).is_file():
            index["gender"] = index["identity"].map(_read_genders(root / _IDENTITIES))
            unknown = index["gender"].isna()
            if unknown.any():
                raise ValueError(f"{root / _IDENTITIES} has no row of {index['identity'][unknown].iloc[0]!r}")
        return index


class VGGFace2Tight(VGGFace2):
    """:class:`VGGFace2`, cropped to the face as its authors do for training and evaluation.

    The box around the face, found by MTCNN, is made 1.3 times as high, and as wide, but at least 7/8 of its height; the
    part outside of the image is cut off. The boxes are those of bb_landmark.tar.gz, unpacked::

        root/bb_landmark/loose_bb_train.csv    "NAME_ID,X,Y,W,H", one header line; in pixels of the loose crop
        root/bb_landmark/loose_bb_test.csv
    """

    files: ClassVar = (*_LISTS.values(), *_BOXES.values())

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        boxes = pd.concat([_read_boxes(root / name, split) for split, name in _BOXES.items()], ignore_index=True)
        index = VGGFace2.read_index(root).reset_index(drop=True)
        row = pc.index_in(pa.array(index["path"]), value_set=pa.array(boxes["path"]))
        if row.null_count:
            first = index["path"][pc.index(pc.is_null(row), True).as_py()]
            raise ValueError(f"{' and '.join(str(root / name) for name in _BOXES.values())} have no box of {first!r}")
        left, top, width, height = boxes[["X", "Y", "W", "H"]].to_numpy(np.float64)[row.to_numpy()].T
        half_height = _EXTENT * height / 2
        half_width = half_height * np.maximum(width / height, _MIN_ASPECT)
        across, down = left + width / 2, top + height / 2
        sides = {"left": across - half_width, "top": down - half_height}
        return index.assign(**sides, right=across + half_width, bottom=down + half_height)


def _read_genders(file: Path) -> pd.Series:
    people = read_list(
        file,
        # Names may hold commas, hence the fields after them are those at the end.
        r"(?P<identity>n\d{6}),.*, *\d+, *[01], *(?P<gender>[fm]) *",
        "Class_ID, Name, Sample_Num, Flag, Gender",
        header=True,
    )
    return people.set_index("identity")["gender"]


def _read_boxes(file: Path, split: str) -> pd.DataFrame:
    place, size = r"-?\d+(?:\.\d+)?", r"[1-9]\d*(?:\.\d+)?"
    row = rf'"?(?P<path>n\d{{6}}/\d+_\d+)"?,(?P<X>{place}),(?P<Y>{place}),(?P<W>{size}),(?P<H>{size})'
    boxes = read_list(file, row, "NAME_ID,X,Y,W,H", header=True)
    return boxes.assign(path=f"{split}/" + boxes["path"] + ".jpg")
