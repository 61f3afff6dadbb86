"""Revisited Oxford and Paris."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from dml.data.dataset import RetrievalDataset
from dml.data.files import read_list, read_plain_pickle
from dml.data.index import BOX

_JUDGEMENTS = ("easy", "hard", "junk")
_DISTRACTORS = "revisitop1m/revisitop1m.txt"


class _Revisited(RetrievalDataset):
    levels = ("landmark",)
    more_files = (_DISTRACTORS,)
    origin = "https://github.com/filipradenovic/revisitop"
    folder: ClassVar[str]

    @classmethod
    def read_index(cls, root: Path) -> pd.DataFrame:
        truth = _read_truth(root / cls.folder / f"gnd_{cls.folder}.pkl")
        boxes = pd.DataFrame([query["bbx"] for query in truth["gnd"]], columns=list(BOX), dtype=float)
        queries = boxes.assign(name=truth["qimlist"], role="query")
        gallery = pd.DataFrame({"name": truth["imlist"], "role": "gallery"})
        index = pd.concat([queries, gallery], ignore_index=True)
        index["landmark"] = index["name"].str.replace(r"_\d+$", "", regex=True)
        index = index.assign(path=cls._path(index["name"]), split="test").drop(columns="name")
        if not (root / _DISTRACTORS).is_file():
            return index
        names = read_list(root / _DISTRACTORS, r"(?P<path>\S+)", "name.jpg")
        distractors = names.assign(path="revisitop1m/jpg/" + names["path"], role="gallery", landmark="distractor")
        return pd.concat([index, pd.concat([index, distractors]).assign(split="test_with_distractors")])

    @classmethod
    def read_judgements(cls, root: Path) -> pd.DataFrame:
        truth = _read_truth(root / cls.folder / f"gnd_{cls.folder}.pkl")
        rows = [
            (query, item, judgement)
            for query, judged in enumerate(truth["gnd"])
            for judgement in _JUDGEMENTS
            for item in judged[judgement]
        ]
        judgements = pd.DataFrame(rows, columns=["query", "item", "judgement"])
        queries, items = (cls._path(pd.Series(truth[names], dtype=str)) for names in ("qimlist", "imlist"))
        return judgements.assign(query=judgements["query"].map(queries), item=judgements["item"].map(items))

    @classmethod
    def _path(cls, names: pd.Series) -> pd.Series:
        return f"{cls.folder}/jpg/" + names + ".jpg"


class RevisitedOxford(_Revisited):
    """4,993 photos of Oxford and 70 queries, which are cropped to a box; for test only.

    Radenovic et al., "Revisiting Oxford and Paris: Large-Scale Image Retrieval Benchmarking", CVPR 2018. What is easy,
    hard or junk is listed for each query: that is :meth:`judgements`, which ``dml.metrics.LandmarkMetrics`` takes. The
    label of an image is the first part of its name; it says which photos were searched for together, not what they
    show, so it serves for pictures and is no ground truth. No query is in the gallery::

        root/roxford5k/gnd_roxford5k.pkl
        root/roxford5k/jpg/all_souls_000013.jpg
        root/revisitop1m/revisitop1m.txt           optional: one name of a distractor, with its suffix, per line
        root/revisitop1m/jpg/

    With the distractors (R1M) there is a split ``test_with_distractors``, whose gallery holds those as well. The pickle
    is read by an unpickler that can make nothing but lists, dicts, strings and numbers.
    """

    folder = "roxford5k"
    files = ("roxford5k/gnd_roxford5k.pkl", "roxford5k/jpg")
    published: ClassVar = {"test": (4_993 + 70, None)}


class RevisitedParis(_Revisited):
    """6,322 photos of Paris and 70 queries; see :class:`RevisitedOxford`, of which this is the twin.

    ::

        root/rparis6k/gnd_rparis6k.pkl
        root/rparis6k/jpg/paris_defense_000605.jpg
    """

    folder = "rparis6k"
    files = ("rparis6k/gnd_rparis6k.pkl", "rparis6k/jpg")
    published: ClassVar = {"test": (6_322 + 70, None)}


def _read_truth(file: Path) -> dict[str, Any]:
    """Names of the gallery ``imlist`` and of the queries ``qimlist``, and ``gnd`` of each query.

    Raises:
        ValueError: If the pickle holds anything else; the message names the file and what is wrong.
    """
    truth = read_plain_pickle(file)
    keys = {"imlist": str, "qimlist": str, "gnd": dict}
    if not (isinstance(truth, dict) and all(_is_list(truth.get(key), kind) for key, kind in keys.items())):
        raise ValueError(f"{file} must hold a dict with lists imlist and qimlist of names, and gnd of dicts")
    if len(truth["gnd"]) != len(truth["qimlist"]):
        raise ValueError(f"{file} holds {len(truth['qimlist'])} queries in qimlist, but {len(truth['gnd'])} in gnd")
    for number, judged in enumerate(truth["gnd"]):
        box = judged.get("bbx")
        if not (_is_list(box, (int, float)) and len(box) == len(BOX) and np.isfinite(box).all()):
            raise ValueError(f"{file}: gnd[{number}]['bbx'] is {box!r}; it must be four numbers")
        for judgement in _JUDGEMENTS:
            items, num_items = judged.get(judgement), len(truth["imlist"])
            if not (_is_list(items, int) and all(0 <= item < num_items for item in items)):
                raise ValueError(
                    f"{file}: gnd[{number}][{judgement!r}] must be a list of places in imlist, 0 to {num_items - 1}; "
                    f"it is {items!r}"
                )
    return truth


def _is_list(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)
