"""PKU VehicleID."""

from pathlib import Path
from typing import ClassVar

import pandas as pd

from dml.data.dataset import RetrievalDataset
from dml.data.files import read_list

_LISTS = {
    "train": "train_test_split/train_list.txt",
    **{f"test_{size}": f"train_test_split/test_list_{size}.txt" for size in (800, 1600, 2400, 3200, 6000, 13164)},
}
_REQUIRED = ("train", "test_800", "test_1600", "test_2400")
_ATTRIBUTES = {"model": "attribute/model_attr.txt", "color": "attribute/color_attr.txt"}


class VehicleID(RetrievalDataset):
    """221,567 photos of 26,328 vehicles by surveillance cameras in daytime, from the front or the back.

    Liu et al., "Deep Relative Distance Learning: Tell the Difference Between Similar Vehicles", CVPR 2016. The vehicles
    of train are in no test list; there are test lists of 800 (small), 1,600 (medium) and 2,400 vehicles (large), and in
    the release three more. They are splits of their own, which overlap without being nested::

        root/train_test_split/train_list.txt       "image_id vehicle_id", no header, as 0279029 23781
        root/train_test_split/test_list_800.txt    likewise 1600, 2400, and if they are there 3200, 6000, 13164
        root/attribute/model_attr.txt              if it is there: "vehicle_id model", no header
        root/attribute/color_attr.txt              if it is there: "vehicle_id color", no header
        root/image/0279029.jpg

    Here every test image is both query and gallery (leave one out), as in Smooth-AP, FastAP and Recall@k. The papers of
    re-identification draw one gallery image of each vehicle instead, query with all others, and average ten draws:
    that is :class:`dml.metrics.ReidentificationMetrics`. It is much the harder: a model with a recall at 1 of 95 by the
    first has about 77 by the second. Never compare numbers of the two.

    ``model`` (228) and ``color`` (7) are further columns of the index, for ``levels=("vehicle", "model")``. They are
    given for 10,309 and 10,086 vehicles, none of them in the test lists of 800, 1,600 and 3,200: they are of use in
    training alone. All other vehicles are of one class ``unknown``, as in FastAP, and so count as alike at that level.

    For research only.
    """

    levels = ("vehicle",)
    files = tuple(_LISTS[split] for split in _REQUIRED)
    more_files = (*(_LISTS[split] for split in _LISTS if split not in _REQUIRED), *_ATTRIBUTES.values())
    origin = "https://www.pkuml.org/resources/pku-vehicleid.html"
    published: ClassVar = {
        "train": (None, 13_164),
        "test_800": (6_493, 800),
        "test_1600": (13_377, 1_600),
        "test_2400": (None, 2_400),
        "test_3200": (26_353, 3_200),
        "test_6000": (None, 6_000),
        "test_13164": (None, 13_164),
    }

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        splits = {
            split: read_list(root / name, r"(?P<image>\d{1,7}) (?P<vehicle>\d+)", "image_id vehicle_id")
            for split, name in _LISTS.items()
            if split in _REQUIRED or (root / name).is_file()
        }
        index = pd.concat(splits, names=["split"]).reset_index("split").astype({"vehicle": int})
        # Copies of the lists whose ids went through a number have lost their zeros.
        index["path"] = "image/" + index.pop("image").str.zfill(7) + ".jpg"
        for column, name in _ATTRIBUTES.items():
            if (root / name).is_file():
                of_vehicle = read_list(root / name, rf"(?P<vehicle>\d+) (?P<{column}>\d+)", f"vehicle_id {column}")
                of_vehicle = of_vehicle.astype({"vehicle": int}).set_index("vehicle")
                index[column] = index["vehicle"].map(of_vehicle[column]).fillna("unknown")
        return index.assign(role="both")
