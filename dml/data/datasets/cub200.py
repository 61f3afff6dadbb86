"""CUB-200-2011."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from dml.data.dataset import RetrievalDataset
from dml.data.files import read_list

_FAMILIES = Path(__file__).with_name("cub200.csv")


class CUB200(RetrievalDataset):
    """11,788 photos of birds: 200 species in 38 families in 13 orders.

    Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", Caltech technical report CNS-TR-2011-001, 2011; for research
    and education only. As metric learning splits it, the first half of the species is train, the other half test, and
    every test image is both query and gallery; images are whole, not cropped to the birds. The authors' own
    ``train_test_split.txt`` shares all species and is not read::

        root/images.txt    "image_id path", no header
        root/images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg

    Families and orders are none of the download: ``cub200.csv``, beside this file, has those of SupRank. They file
    species 084, a gull, in the order of the kingfishers, as a family of its own. It is kept so, for the sake of the
    published numbers; it is a training species.
    """

    levels = ("species", "family", "order")
    files = ("images.txt",)
    more_files = (str(_FAMILIES),)  # not in the root, but what was read is out of date when it changes
    origin = "https://www.vision.caltech.edu/datasets/cub_200_2011/"
    published: ClassVar = {"train": (5_864, 100, 30, 13), "test": (5_924, 100, 20, 6)}

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        file = root / "images.txt"
        index = read_list(file, r"\d+ (?P<path>(?P<species>\d+\.[^/\s]+)/[^/\s]+)", "image_id species/name.jpg")
        families = pd.read_csv(_FAMILIES, index_col="species")
        species = sorted(index["species"].unique())
        unknown = [name for name in species if name not in families.index]
        if unknown:
            raise ValueError(f"{file} has species {unknown[0]!r}, whose family is not known: it is not in {_FAMILIES}")
        is_train = index["species"].isin(species[: len(species) // 2])
        index = index.join(families, on="species")
        return index.assign(path="images/" + index["path"], split=np.where(is_train, "train", "test"), role="both")
