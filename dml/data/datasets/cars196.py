"""Cars196."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.io import loadmat

from dml.data.dataset import RetrievalDataset
from dml.data.files import strings

_TYPES = Path(__file__).with_name("cars196.csv")


class Cars196(RetrievalDataset):
    """16,185 photos of cars: 196 models, by make and year, of 9 body types.

    Krause et al., "3D Object Representations for Fine-Grained Categorization", 3dRR workshop of ICCV 2013; for
    non-commercial research only. As metric learning splits it, the first half of the models is train, the other half
    test, and every test image is both query and gallery; images are whole, not cropped to the cars. The authors' flag
    ``test`` shares all models and is not read::

        root/cars_annos.mat    annotations (relative_im_path, class, ...) and class_names
        root/car_ims/000001.jpg

    Later copies have ``cars_train``, ``cars_test`` and a ``devkit`` instead, with file names that start again: those
    are not the images that ``cars_annos.mat`` names. Body types are none of the download: ``cars196.csv``, beside this
    file, has those of SupRank.
    """

    levels = ("model", "type")
    files = ("cars_annos.mat",)
    more_files = (str(_TYPES),)  # not in the root, but what was read is out of date when it changes
    origin = "https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
    published: ClassVar = {"train": (8_054, 98, 9), "test": (8_131, 98, 9)}

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        file = root / "cars_annos.mat"
        paths, models, names = _read_annotations(file)
        types = pd.read_csv(_TYPES, index_col="model")["type"]
        unknown = [name for name in names if name not in types.index]
        if unknown:
            raise ValueError(f"{file} has model {unknown[0]!r}, whose body type is not known: it is not in {_TYPES}")
        is_train = models <= len(names) // 2
        return pd.DataFrame(
            {
                "path": paths,
                "split": np.where(is_train, "train", "test"),
                "role": "both",
                "model": models,
                "type": types[names].to_numpy()[models - 1],
            }
        )


def _read_annotations(file: Path) -> tuple[pd.Series, Any, list[str]]:
    """Path and class (from 1) of each image, and the name of each class."""
    try:
        content = loadmat(file, squeeze_me=True)
        annotations = content["annotations"]
        paths = strings(pa.array(annotations["relative_im_path"], pa.string()))
        # Stored in as few bits as hold each number.
        models = annotations["class"].astype(np.int64)
        names = [str(name) for name in content["class_names"]]
    except Exception as error:  # of a damaged file, whatever the parser stumbles on
        raise ValueError(f"{file} does not hold the annotations of Cars196: {error!r}") from error
    outside = (models < 1) | (models > len(names))
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(f"{file}, image {row + 1}: {paths[row]!r} has class {models[row]}, not 1 to {len(names)}")
    return paths, models, names
