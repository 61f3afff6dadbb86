"""IARPA Janus Benchmarks B and C."""

import re
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pyarrow as pa
import pyarrow.csv

from dml.data.dataset import RetrievalDataset
from dml.data.files import parse_lines, read_list

POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
"""What the columns of the index with points in pixels are called, each followed by ``_x`` or ``_y``."""


def _lists(benchmark: str, gallery: str) -> tuple[str, ...]:
    names = ("face_tid_mid.txt", "name_5pts_score.txt", "template_pair_label.txt")
    protocols = (f"1N_gallery_{gallery}1.csv", f"1N_gallery_{gallery}2.csv", "1N_probe_mixed.csv")
    return tuple(f"meta/{benchmark}_{name}" for name in (*names, *protocols))


class IJBC(RetrievalDataset):
    """Faces of photos and videos, in templates: sets of faces of one person, which are compared as a whole.

    Maze et al., "IARPA Janus Benchmark - C: Face Dataset and Protocol", ICB 2018; there is only the split ``test``. The
    files are those in which InsightFace packs the benchmark, one crop for each face of each template::

        root/meta/ijbc_face_tid_mid.txt           "image template media", no header, as 1.jpg 1 69544
        root/meta/ijbc_name_5pts_score.txt        "image x y x y x y x y x y score", no header, in the same order
        root/meta/ijbc_template_pair_label.txt    "template template same", no header
        root/meta/ijbc_1N_gallery_G1.csv          TEMPLATE_ID,SUBJECT_ID,FILENAME,..., one header line; likewise
        root/meta/ijbc_1N_gallery_G2.csv          and ijbc_1N_probe_mixed.csv
        root/loose_crop/1.jpg

    Images of templates in a gallery have the role ``gallery``, those of probes ``query``. Beside the label ``subject``
    the index has ``template``, ``media`` (faces of one video share it), ``gallery`` (1, 2, and 0 for probes),
    ``score`` of the detector and :data:`POINTS` to align the crop by.

    The published numbers are of templates, not of images: :class:`dml.metrics.TemplateMetrics` averages the faces of a
    medium, then the media of a template, and compares the pairs of :meth:`read_pairs` (1:1, TAR at FAR) and probes with
    galleries (1:N). For research only.
    """

    levels = ("subject",)
    files: ClassVar = _lists("ijbc", "G")
    origin = "https://github.com/deepinsight/insightface/tree/master/recognition/_evaluation_/ijb"
    published: ClassVar = {"test": (None, None)}

    @classmethod
    def read_index(cls, root: Path) -> pd.DataFrame:
        faces_list, points_list, _, *protocols = (root / name for name in cls.files)
        row = r"(?P<path>\d+\.jpg) (?P<template>\d+) (?P<media>\d+)"
        index = read_list(faces_list, row, "image template media").astype({"template": int, "media": int})
        templates = _read_templates(protocols, index["template"])
        index = index.join(_read_points(points_list, index["path"])).join(templates, on="template")
        role = index["gallery"].map({0: "query", 1: "gallery", 2: "gallery"})
        return index.assign(path="loose_crop/" + index["path"], split="test", role=role)

    @classmethod
    def read_pairs(cls, root: Path) -> pd.DataFrame:
        """Read the pairs of templates of 1:1 verification.

        Returns:
            One row per pair: columns ``template_a`` and ``template_b`` (int32, as in the index) and ``same`` (bool),
            whether they show one person.
        """
        file = root / cls.files[2]
        columns = {"template_a": pa.int32(), "template_b": pa.int32(), "same": pa.bool_()}
        try:
            table = pyarrow.csv.read_csv(
                file,
                pyarrow.csv.ReadOptions(column_names=list(columns)),
                pyarrow.csv.ParseOptions(delimiter=" ", quote_char=False, ignore_empty_lines=False),
                pyarrow.csv.ConvertOptions(column_types=columns, null_values=[], true_values=["1"], false_values=["0"]),
            )
        except pa.ArrowInvalid:
            # Arrow is fast, but does not say where.
            with file.open(encoding="utf-8-sig") as lines:
                for number, line in enumerate(lines, start=1):
                    if not re.fullmatch(r"\d+ \d+ [01]\n?", line):
                        message = f"{file}, line {number}: {line.rstrip()!r} is not written 'template template 0 or 1'"
                        raise ValueError(message) from None
            raise
        pairs: pd.DataFrame = table.to_pandas()
        return pairs


class IJBB(IJBC):
    """:class:`IJBC`'s forerunner, of the same files and protocols: 227,630 faces in 12,115 templates.

    Whitelam et al., "IARPA Janus Benchmark-B Face Dataset", CVPR Workshops 2017. Its lists begin with ``ijbb``, and its
    galleries are called S1 and S2::

        root/meta/ijbb_face_tid_mid.txt
        root/meta/ijbb_1N_gallery_S1.csv
        root/loose_crop/1.jpg
    """

    files: ClassVar = _lists("ijbb", "S")
    published: ClassVar = {"test": (227_630, None)}


def _read_points(file: Path, images: pd.Series) -> pd.DataFrame:
    number = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
    columns = [*(f"{point}_{axis}" for point in POINTS for axis in "xy"), "score"]
    row = r"(?P<path>\d+\.jpg) " + " ".join(rf"(?P<{column}>{number})" for column in columns)
    points = read_list(file, row, "image x y x y x y x y x y score")
    if len(points) != len(images):
        raise ValueError(f"{file} has {len(points)} lines; the list of faces has {len(images)}")
    differ = (points["path"] != images).to_numpy()
    if differ.any():
        first = differ.argmax()
        raise ValueError(f"{file}, line {first + 1}: image {points['path'][first]!r} should be {images[first]!r}")
    return points[columns].astype("float32")


def _read_templates(lists: list[Path], of_faces: pd.Series) -> pd.DataFrame:
    """Subject and gallery of each template, which is the row's name."""
    rows = [_read_protocol(file).assign(gallery=gallery) for file, gallery in zip(lists, (1, 2, 0), strict=True)]
    # The lists have a row for each face.
    templates = pd.concat(rows).drop_duplicates().set_index("template")
    names = ", ".join(file.name for file in lists)
    repeated = templates.index.duplicated()
    if repeated.any():
        raise ValueError(
            f"template {templates.index[repeated][0]} has several subjects, or is in several lists of {names}"
        )
    unmatched = templates.index.symmetric_difference(pd.Index(of_faces))
    if len(unmatched):
        listed = unmatched[0] in templates.index
        raise ValueError(
            f"template {unmatched[0]} has no face" if listed else f"template {unmatched[0]} is in none of {names}"
        )
    return templates


def _read_protocol(file: Path) -> pd.DataFrame:
    lines = file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    form = "TEMPLATE_ID,SUBJECT_ID,FILENAME,..."
    if not lines[0].startswith("TEMPLATE_ID,SUBJECT_ID,"):
        raise ValueError(f"{file}, line 1: {lines[0]!r} is not the header {form!r}")
    rows = parse_lines(file, lines[1:], r"(?P<template>\d+),(?P<subject>\d+),.*", form, first_line=2)
    return rows.astype(int)
