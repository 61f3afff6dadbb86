"""Google Landmarks v2."""

from pathlib import Path
from typing import ClassVar

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from dml.data.dataset import RetrievalDataset
from dml.data.files import read_list, strings

_ID = "[0-9a-f]{16}"
_FIELD = r'(?:(?:"[^"]*")+|[^,"]*)'
_SOLUTION = "retrieval_solution_v2.1.csv"
_HIERARCHICAL = ["hierarchical_label", "natural_or_human_made"]
_HIERARCHIES = ("train_label_to_hierarchical.csv", "index_label_to_hierarchical.csv")


class GoogleLandmarksV2(RetrievalDataset):
    """Photos of landmarks from Wikimedia Commons: 1,580,470 of 81,313 landmarks to train (the cleaned list).

    Weyand et al., "Google Landmarks Dataset v2: A Large-Scale Benchmark for Instance-Level Recognition and Retrieval",
    CVPR 2020. The release, in its version 2.1::

        root/train_clean.csv                      "landmark_id,images"
        root/index_image_to_landmark.csv          "id,landmark_id"
        root/test.csv                             "id"
        root/retrieval_solution_v2.1.csv          "id,images,Usage"
        root/train_label_to_hierarchical.csv      optional: "landmark_id,category,supercategory,hierarchical_label,
        root/index_label_to_hierarchical.csv      natural_or_human_made"
        root/train/0/0/0/000<13 digits>.jpg       likewise index/ and test/

    Split ``train`` is the cleaned list; ``train.csv``, which also has what was cleaned away, is not read. In split
    ``test`` the gallery is the authors' index set (761,757 images), the queries are their test set (117,577), few of
    which show a landmark of the index.

    What is relevant to a query is listed, and is :meth:`judgements`: ``public`` or ``private``, after the part of the
    challenge. Ignored queries have none. For metrics that go by labels, a query has the landmark of the first image
    that is listed for it, as in published code; a query without has a label that no other image has a share in.
    Landmarks of train and index are numbered apart, and are different classes here.

    With both lists of the hierarchy (Ramzi et al., "Optimization of Rank Losses for Image Retrieval") there are the
    columns ``hierarchical_label`` and ``natural_or_human_made``, to be asked for by ``levels``; and splits
    ``train_hierarchical`` and ``test_hierarchical`` of the images whose landmark has both labels, as in published code.
    In the other splits a landmark without is alone at these levels too.

    Annotations are CC BY 4.0; each image has its own licence.
    """

    levels = ("landmark",)
    files = ("train_clean.csv", "index_image_to_landmark.csv", "test.csv", _SOLUTION)
    more_files = _HIERARCHIES
    origin = "https://github.com/cvdfoundation/google-landmark"
    published: ClassVar = {
        "train": (1_580_470, 81_313),
        "train_hierarchical": (970_981, 46_593),
        "test": (761_757 + 117_577, None),
    }

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        train, test = _read_train(root), _read_test(root)
        first_of_index = train["landmark"].max() + 1
        test["landmark"] = test["landmark"].mask(test["landmark"] >= 0, test["landmark"] + first_of_index)
        index = pd.concat([train, test], ignore_index=True)
        if all((root / name).is_file() for name in _HIERARCHIES):
            return _with_hierarchy(index, [_read_hierarchy(root / name) for name in _HIERARCHIES], first_of_index)
        return index

    @staticmethod
    def read_judgements(root: Path) -> pd.DataFrame:
        listed = _one_row_each(_read_solution(root))
        return pd.DataFrame(
            {
                "query": _paths("test", listed["id"]),
                "item": _paths("index", listed["images"]),
                "judgement": listed["usage"].str.lower(),
            }
        )


def _read_train(root: Path) -> pd.DataFrame:
    rows = read_list(
        root / "train_clean.csv",
        rf"(?P<landmark>\d+),(?P<images>{_ID}(?: {_ID})*)",
        "landmark_id,images",
        header=True,
    ).astype({"landmark": int})
    rows = _one_row_each(rows)
    paths = _paths("train", rows["images"])
    return pd.DataFrame({"path": paths, "split": "train", "role": "both", "landmark": rows["landmark"]})


def _read_test(root: Path) -> pd.DataFrame:
    """Landmarks are numbers of the index set, -1 for queries without."""
    gallery = read_list(
        root / "index_image_to_landmark.csv", rf"(?P<id>{_ID}),(?P<landmark>\d+)", "id,landmark_id", header=True
    ).astype({"landmark": int})
    queries = read_list(root / "test.csv", rf"(?P<id>{_ID})", "id", header=True)
    solution = _read_solution(root)
    first = _looked_up(solution["images"].str.slice(0, 16), gallery["id"], gallery["landmark"])
    queries["landmark"] = _looked_up(queries["id"], solution["id"], first)
    parts = {"index": gallery.assign(role="gallery"), "test": queries.assign(role="query")}
    rows = pd.concat([part.assign(path=_paths(folder, part["id"])) for folder, part in parts.items()])
    return rows.drop(columns="id").assign(split="test")


def _read_solution(root: Path) -> pd.DataFrame:
    """Queries that are not ignored, with the images that are relevant to them, separated by spaces."""
    rows = read_list(
        root / _SOLUTION,
        rf"(?P<id>{_ID}),(?P<images>None|{_ID}(?: {_ID})*),(?P<usage>Public|Private|Ignored)",
        "id,images,Usage",
        header=True,
    )
    answered: pd.DataFrame = rows[(rows["images"] != "None") & (rows["usage"] != "Ignored")]
    return answered.reset_index(drop=True)


def _read_hierarchy(file: Path) -> pd.DataFrame:
    """Both labels of the landmarks that have both."""
    rows = read_list(
        file,
        rf"(?P<landmark>\d+),{_FIELD},{_FIELD},(?P<hierarchical_label>{_FIELD}),(?P<natural_or_human_made>{_FIELD})",
        "landmark_id,category,supercategory,hierarchical_label,natural_or_human_made",
        header=True,
    )
    labels = rows[_HIERARCHICAL].apply(lambda column: column.str.strip('"'))
    known: pd.DataFrame = rows.assign(**labels)[(labels != "").all(axis=1)]
    return known.astype({"landmark": int})


def _with_hierarchy(index: pd.DataFrame, hierarchies: list[pd.DataFrame], first_of_index: int) -> pd.DataFrame:
    train, test = hierarchies
    known = pd.concat([train, test.assign(landmark=test["landmark"] + first_of_index)]).set_index("landmark")
    place = known.index.get_indexer(pd.Index(index["landmark"]))
    alone = strings(pa.array(index["landmark"])).radd("landmark ")
    for name in _HIERARCHICAL:
        index[name] = known[name].take(place).reset_index(drop=True).mask(place < 0, alone)
    hierarchical = index[(place >= 0) & index["split"].isin(["train", "test"])]
    return pd.concat([index, hierarchical.assign(split=hierarchical["split"] + "_hierarchical")])


def _one_row_each(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each of several ``images`` that are separated by spaces."""
    images = pc.split_pattern(pa.array(rows["images"]), " ")
    others: pd.DataFrame = rows.drop(columns="images").iloc[pc.list_parent_indices(images).to_numpy()]
    return others.reset_index(drop=True).assign(images=strings(images.flatten()))


def _looked_up(keys: pd.Series, names: pd.Series, values: pd.Series) -> pd.Series:
    """The value of each key, -1 of those that have no name."""
    place = pc.index_in(pa.array(keys), value_set=pa.array(names))
    return pd.Series(pa.array(values).take(place).fill_null(-1).to_numpy())


def _paths(folder: str, ids: pd.Series) -> pd.Series:
    letters = [ids.str.slice(place, place + 1) for place in range(3)]
    return folder + "/" + letters[0] + "/" + letters[1] + "/" + letters[2] + "/" + ids + ".jpg"
