"""Stanford Online Products."""

from pathlib import Path
from typing import ClassVar

import pandas as pd

from dml.data.dataset import RetrievalDataset
from dml.data.files import read_list

_LISTS = {"train": "Ebay_train.txt", "test": "Ebay_test.txt"}


class StanfordOnlineProducts(RetrievalDataset):
    """120,053 product photos: 22,634 products in 12 categories.

    Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016. The products of train
    (11,318) and test (11,316) are disjoint; every test image is both query and gallery::

        root/Ebay_train.txt    "image_id class_id super_class_id path", one header line
        root/Ebay_test.txt
        root/bicycle_final/111085122871_0.JPG
    """

    levels = ("product", "category")
    files = tuple(_LISTS.values())
    origin = "https://cvgl.stanford.edu/projects/lifted_struct/"
    published: ClassVar = {"train": (59_551, 11_318, 12), "test": (60_502, 11_316, 12)}

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        splits = {
            split: read_list(
                root / name,
                r"\d+ (?P<product>\d+) (?P<category>\d+) (?P<path>\S+)",
                "image_id class_id super_class_id path",
                header=True,
            )
            for split, name in _LISTS.items()
        }
        index = pd.concat(splits, names=["split"]).reset_index("split")
        return index.astype({"product": int, "category": int}).assign(role="both")
