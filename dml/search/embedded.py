"""Images and their embeddings, from a data set or from what ``dml predict`` wrote."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dml.data import RetrievalDataset
from dml.data.index import BOX, ROLES
from dml.search.index import unit_norm
from dml.search.kinds import Embeddings


@dataclass(frozen=True)
class Embedded:
    """Images and their embeddings.

    Args:
        images: A row per image: ``path``, ``role``, labels, and a box if images are cropped.
        embeddings: ``[N, D]`` of unit norm.
        levels: Columns of the labels, finest first.
        root: Folder of the images.
        split: That they are of, if known.
        checkpoint: That embedded them, if known.
        sha256: Of that file.
    """

    images: pd.DataFrame
    embeddings: Embeddings
    levels: list[str]
    root: Path
    split: str | None = None
    checkpoint: str | None = None
    sha256: str | None = None


def of_dataset(dataset: RetrievalDataset, embeddings: Embeddings, rows: npt.NDArray[np.int64]) -> Embedded:
    """Images of a data set, with the names that its own lists have for the labels, and with its boxes.

    Args:
        dataset: Whose images they are.
        embeddings: ``[N, D]`` of unit norm.
        rows: ``[N]``, of the data set's index.
    """
    index = dataset.index.iloc[rows]
    raw = type(dataset).read_index(dataset.root)
    names = {level: pd.factorize(raw[level], sort=True)[1] for level in dataset.levels}  # as they were coded
    labels = {level: [str(names[level][code]) for code in index[level]] for level in dataset.levels}
    boxes = {side: index[side].to_numpy(dtype=np.float64) for side in BOX if side in index}
    described = {name: index[name].astype(str).to_numpy() for name in ("path", "role")}
    root = dataset.root.parent if dataset.root.is_file() else dataset.root
    images = pd.DataFrame({**described, **labels, **boxes})
    return Embedded(images, embeddings, list(dataset.levels), root.resolve(), dataset.split)


def read_embeddings(file: Path, root: Path, split: str | None = None) -> Embedded:
    """What ``dml predict`` has written.

    Args:
        file: Parquet, with the columns ``path``, ``role``, ``split``, ``embedding``, and labels.
        root: Folder that paths are relative to.
        split: Which rows to take; by default all.

    Raises:
        ValueError: If it is not such a file, or the first image is not in the folder.
    """
    frame = _of_split(_frame(file), split)
    images = frame.drop(columns=["embedding", "split"]).astype({"path": str, "role": str})
    if not (root / images["path"].iloc[0]).is_file():
        raise ValueError(f"root is {str(root)!r}, where there is no image {images['path'].iloc[0]!r}")
    lengths = frame["embedding"].map(len)
    if lengths.nunique() > 1:
        raise ValueError(f"embeddings have {lengths.min()} to {lengths.max()} numbers; all must have as many")
    levels = [str(name) for name in images.columns if name not in ("path", "role")]
    images = images[["path", "role", *levels]]
    return Embedded(images, unit_norm(np.stack(frame["embedding"].tolist())), levels, root.resolve(), split)


def _frame(file: Path) -> pd.DataFrame:
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"embeddings is {str(file)!r}, which cannot be read as Parquet: {reason}") from error
    missing = [name for name in ("path", "split", "role", "embedding") if name not in table.column_names]
    if missing:
        raise ValueError(f"embeddings is {str(file)!r}, which lacks the columns {missing} that dml predict writes")
    frame: pd.DataFrame = table.to_pandas()
    unknown = sorted(set(frame["role"].astype(str)) - set(ROLES))
    if unknown:
        raise ValueError(f"role must be one of {list(ROLES)}; embeddings have {unknown}")
    return frame


def _of_split(frame: pd.DataFrame, split: str | None) -> pd.DataFrame:
    if split is not None:
        splits = sorted(map(str, frame["split"].unique()))
        frame = frame[frame["split"] == split].reset_index(drop=True)
        if frame.empty:
            raise ValueError(f"split is {split!r}; the embeddings are of {splits}")
    if frame.empty:
        raise ValueError("embeddings have no rows")
    repeated = frame["path"].duplicated()
    if repeated.any():
        raise ValueError(f"embeddings have {frame['path'][repeated].iloc[0]!r} more than once; take one --split")
    return frame
