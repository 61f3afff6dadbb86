"""DyML: vehicles, animals and products, each labelled at three levels."""

from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import pandas as pd

from dml.data.dataset import RetrievalDataset
from dml.data.files import parse_lines

_LEVELS = ("fine", "middle", "coarse")
_PARTS = tuple(f"bmk_{level}/{part}" for level in _LEVELS for part in ("query", "gallery"))


class _DyML(RetrievalDataset):
    levels = _LEVELS
    origin = "https://github.com/SupetZYK/DynamicMetricLearning"


class _WithBenchmarks(_DyML):
    files = ("train/label.csv", *(f"{part}.csv" for part in _PARTS))
    more_files = _PARTS  # which queries are in the gallery follows from the images

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        return pd.concat([_labelled(root, "train", "train"), *(_benchmark(root, level) for level in _LEVELS)])


class DyMLVehicle(_WithBenchmarks):
    """Vehicles: 39,491 fine classes in 93 middle classes in 5 coarse classes in train.

    Sun et al., "Dynamic Metric Learning: Towards a Scalable Metric Space to Accommodate Multiple Semantic Scales",
    CVPR 2021. There is one test for each level: ``test_fine``, ``test_middle`` and ``test_coarse`` have a query set, a
    gallery, and labels of that level only, which stand in all three label columns here, so that a metric finds them at
    whichever level it looks. The field reports the mean over the three. The numbers of one list mean nothing in
    another: classes of different splits are different classes::

        root/train/label.csv           "fname, coarse_id, middle_id, fine_id"
        root/train/imgs/0.jpg
        root/bmk_fine/query.csv        "fname, labels"; likewise gallery.csv, bmk_middle and bmk_coarse
        root/bmk_fine/query/0.jpg
        root/bmk_fine/gallery/0.jpg

    The lists as published lack the line end after the header, which glues the first record to it. Published code takes
    the two for one header and loses that image; here both forms of list are read whole. It also numbers the labels of
    query and gallery apart; here they are one numbering.

    Published code takes the galleries to hold the queries, and drops the first neighbour of each query unseen. Here a
    query whose file is, byte for byte, one of the gallery is one image in both roles, which no metric lets find itself;
    a copy that was encoded anew would count as a hit.

    By the authors' loader, red and blue are swapped in the stored images. They are read as they are stored, in training
    and in test; weights that were trained on other images expect otherwise. No licence is stated.
    """

    published: ClassVar = {"train": (None, 39_491, 93, 5)}


class DyMLAnimal(_WithBenchmarks):
    """Animals: 495 fine classes in 28 middle classes in 5 coarse classes in train.

    Paper, layout, tests and traps are those of :class:`DyMLVehicle`.
    """

    published: ClassVar = {"train": (None, 495, 28, 5)}


class DyMLProduct(_DyML):
    """Products: 1,639 fine classes in 171 middle classes in 36 coarse classes in train.

    Paper and traps are those of :class:`DyMLVehicle`, but there is one test, of all three levels, in which every image
    is both query and gallery::

        root/train/label.csv                "fname, coarse_id, middle_id, fine_id"
        root/train/imgs/0.jpg
        root/mini-bmk_all_in_one/label.csv
        root/mini-bmk_all_in_one/imgs/0.jpg
    """

    files = ("train/label.csv", "mini-bmk_all_in_one/label.csv")
    published: ClassVar = {"train": (None, 1_639, 171, 36)}

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        return pd.concat([_labelled(root, "train", "train"), _labelled(root, "mini-bmk_all_in_one", "test")])


def _labelled(root: Path, folder: str, split: str) -> pd.DataFrame:
    rows = _read(
        root / folder / "label.csv",
        "fname, coarse_id, middle_id, fine_id",
        r"(?P<path>[^,]+), (?P<coarse>\d+), (?P<middle>\d+), (?P<fine>\d+)",
    )
    labels = {level: f"{split} " + rows[level] for level in _LEVELS}
    return rows.assign(path=f"{folder}/imgs/" + rows["path"], split=split, role="both", **labels)


def _benchmark(root: Path, level: str) -> pd.DataFrame:
    folder, split = f"bmk_{level}", f"test_{level}"
    rows = _joined(root, _listed(root, folder, "query"), _listed(root, folder, "gallery"))
    label = f"{split} " + rows["label"]
    return rows.drop(columns="label").assign(split=split, fine=label, middle=label, coarse=label)


def _listed(root: Path, folder: str, part: str) -> pd.DataFrame:
    rows = _read(root / folder / f"{part}.csv", "fname, labels", r"(?P<path>[^,]+), (?P<label>\d+)")
    return rows.assign(path=f"{folder}/{part}/" + rows["path"], role=part)


def _joined(root: Path, query: pd.DataFrame, gallery: pd.DataFrame) -> pd.DataFrame:
    """Queries and gallery in one; of a query that is in the gallery, the row of the gallery stays, in both roles."""

    def size(path: str) -> int:
        file = root / path
        return file.stat().st_size if file.is_file() else -1

    def digest(path: str) -> bytes:
        return sha256((root / path).read_bytes()).digest()

    # Few files of the gallery have the size of a query, and only those are read. Of equal ones the first counts.
    # An image that is missing is reported when it is loaded.
    sizes = set(query["path"].map(size)) - {-1}
    alike = gallery["path"][gallery["path"].map(size).isin(sizes)]
    copies = {digest(path): path for path in reversed(alike.to_list())}
    copy = query["path"].map(lambda path: copies.get(digest(path)) if size(path) >= 0 else None)
    role = gallery["role"].mask(gallery["path"].isin(copy.dropna()), "both")
    return pd.concat([query[copy.isna()], gallery.assign(role=role)])


def _read(file: Path, header: str, row: str) -> pd.DataFrame:
    """Read a list to whose header the first record may be glued."""
    lines = file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    if not lines[0].startswith(header):
        raise ValueError(f"{file}, line 1: {lines[0]!r} does not begin with the header {header!r}")
    glued = lines[0].removeprefix(header)
    if glued:
        return parse_lines(file, [glued, *lines[1:]], row, header)
    return parse_lines(file, lines[1:], row, header, first_line=2)
