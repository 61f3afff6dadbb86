"""A user's own images, listed in a table."""

import csv
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from dml.data.dataset import RetrievalDataset
from dml.data.index import BOX

_NAMES = ("index.parquet", "index.csv")


class DataFrameDataset(RetrievalDataset):
    """Images listed in a Parquet or CSV file, with any number of label levels.

    A DataFrame becomes one by ``frame.to_parquet("photos/index.parquet")``. The columns are ``path`` (relative to the
    folder of the file) and the labels, finest first; every other column is a label too, unless ``levels`` says which
    are. Optional are ``split`` (otherwise all images are of the split train, of which ``val_classes`` can hold out
    classes as the split val), ``role`` (query, gallery or both; otherwise both), and ``left, top, right, bottom``, the
    box in pixels that an image is cropped to::

        root/index.parquet or root/index.csv, or root is a file of either kind
            path,split,role,product,category
            photos/1.jpg,train,both,sneaker 17,shoes
    """

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        file = _find(root)
        try:
            index: pd.DataFrame = (_read_csv if file.suffix == ".csv" else pa.parquet.read_table)(file).to_pandas()
        except pa.ArrowInvalid as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
        missing = {column: default for column, default in (("split", "train"), ("role", "both")) if column not in index}
        index = index.assign(**missing)
        if not set(index.columns) - {"path", "split", "role", *BOX}:
            raise ValueError(
                f"{file} has columns {index.columns.tolist()}; it needs a path and one column per label level"
            )
        return index


def _find(root: Path) -> Path:
    found = [file for file in (root, *(root / name for name in _NAMES)) if file.is_file()]
    if not found or found[0].suffix not in (".csv", ".parquet"):
        found_instead = "is another file" if root.is_file() else "holds neither" if root.exists() else "does not exist"
        raise FileNotFoundError(
            f"root is {str(root)!r}, which must be a .parquet or .csv file, or a folder with {' or '.join(_NAMES)}, "
            f"but {found_instead}"
        )
    return found[0]


def _read_csv(file: Path) -> pa.Table:
    with file.open(newline="", encoding="utf-8-sig") as lines:
        names = next(csv.reader(lines), [])
    types = {name: pa.float64() if name in BOX else pa.string() for name in names}
    # As they are written: "007" and "7" are two labels, and "NA" is one.
    as_written = pa.csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True)
    in_order = pa.csv.ReadOptions(use_threads=False)  # or an error could not tell which row it is about
    return pa.csv.read_csv(file, read_options=in_order, convert_options=as_written)
