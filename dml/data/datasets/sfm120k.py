"""Retrieval-SfM-120k."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.io import loadmat

from dml.data.dataset import RetrievalDataset
from dml.data.files import read_plain_pickle, require, strings

_PICKLE = "retrieval-SfM-120k.pkl"
_MAT = "retrieval-SfM-120k-imagenames-clusterids.mat"


class SfM120k(RetrievalDataset):
    """Photos of landmarks, each of a 3D model (cluster) that structure from motion has built of it.

    Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018. The authors' pickle has
    their splits train and val, of different clusters; where there is only their .mat, which names none, all images are
    train. There is no test: models are tested on the revisited Oxford and Paris. Every image of val is both query and
    gallery::

        root/retrieval-SfM-120k.pkl                          either
        root/retrieval-SfM-120k-imagenames-clusterids.mat    or
        root/ims/e9/1c/ab/0123456789ab1ce9                   a JPEG without extension, in folders of its last letters

    Images of one cluster are relevant to each other here, though they may show two sides of a building. The authors
    train and validate on pairs of images with points in common (``qidxs``, ``pidxs``), which are not read. Published
    code that reads the .mat trains on val too.
    """

    levels = ("cluster",)
    more_files = (_PICKLE, _MAT)
    origin = "http://cmp.felk.cvut.cz/cnnimageretrieval/"
    published: ClassVar = {"train": (None, None), "val": (None, None)}

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        file = root / _PICKLE
        if not file.is_file():
            require(root, (_MAT,), SfM120k.origin)
            file = root / _MAT
        index = pd.concat(_read_splits(file), names=["split"]).reset_index("split")
        name = index["name"]
        path = "ims/" + name.str[-2:] + "/" + name.str[-4:-2] + "/" + name.str[-6:-4] + "/" + name
        return index.drop(columns="name").assign(path=path, role="both")


def _read_splits(file: Path) -> dict[str, pd.DataFrame]:
    """Name and cluster of each image."""
    try:
        content = _read_mat(file) if file.suffix == ".mat" else _read_pickle(file)
        splits = {split: _to_frame(content[split]) for split in content}
    except Exception as error:  # of a damaged file, whatever the parser stumbles on
        raise ValueError(f"{file} does not hold the image names and clusters of SfM-120k: {error!r}") from error
    for split, images in splits.items():
        wrong = ~images["name"].str.fullmatch(r"[^/\\\s]{6,}").to_numpy(dtype=bool, na_value=False)
        if wrong.any():
            row = int(wrong.argmax())
            name = images["name"][row]
            raise ValueError(f"{file}, image {row + 1} of {split}: {name!r} is not a name of 6 letters or more")
    return splits


def _read_mat(file: Path) -> dict[str, Any]:
    return {"train": loadmat(file, squeeze_me=True)}


def _read_pickle(file: Path) -> dict[str, Any]:
    content = read_plain_pickle(file)
    return {split: content[split] for split in ("train", "val")}


def _to_frame(part: Any) -> pd.DataFrame:
    # A table, unlike a frame, does not fill up columns of two lengths; of an array, unlike a list, no fraction is lost.
    clusters = pa.array(np.asarray(part["cluster"]), pa.int64())
    table = pa.table({"name": pa.array(part["cids"], pa.string()), "cluster": clusters})
    return pd.DataFrame({"name": strings(table["name"]), "cluster": table["cluster"].to_numpy()})
