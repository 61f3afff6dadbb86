"""Whitening that is learned of other embeddings."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from dml.models.whitening import Whitening
from dml.stages.base import Stage, check


class PCAWhitening(Stage):
    """Turn queries and gallery to the principal axes of other embeddings, and shrink the axes that vary much.

    The others are those of images that the model may know, as of the training split: ``dml predict`` writes them with
    ``--data.predict_split train``. See :class:`~dml.models.Whitening`.

    Args:
        embeddings: File of them: Parquet with a column ``embedding``, as ``dml predict`` writes it, or a NumPy array
            ``[n, D]``. It is read at once.
        dim: Axes to keep; by default all ``D``.
        power: Of the eigenvalues: 0.5 whitens, Revaud et al. take 0.25, 0 only turns.

    Raises:
        ValueError: If there is no such file, it is of another kind, no whitening can be learned of it, or an argument
            is out of range.
    """

    def __init__(self, embeddings: str, dim: int | None = None, power: float = 0.5) -> None:
        known = _read(Path(embeddings).expanduser())
        self.path, self.dim = embeddings, known.shape[1] if dim is None else dim
        if not 1 <= self.dim <= known.shape[1]:
            raise ValueError(f"dim is {dim}; it must be from 1 to {known.shape[1]}, that of {embeddings!r}")
        if not 0 <= power <= 1:
            raise ValueError(f"power is {power}; it must be from 0 (rotate only) to 1; 0.5 whitens")
        self.whitening = Whitening(known.shape[1], self.dim, power)
        try:
            self.whitening.learn(known)
        except ValueError as error:
            raise ValueError(f"embeddings is {embeddings!r} and dim is {self.dim}: {error}") from error

    @torch.no_grad()
    def __call__(self, queries: Tensor, gallery: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Both change."""
        check(queries, gallery, own)
        if queries.shape[1] != len(self.whitening.mean):
            raise ValueError(
                f"embeddings is {self.path!r}, of dimension {len(self.whitening.mean)}; the queries have "
                f"{queries.shape[1]}: predict with the model that is evaluated"
            )
        whitening = self.whitening.to(queries.device)
        return whitening(queries), whitening(gallery)


def _read(path: Path) -> Tensor:
    """``[n, D]`` float32."""
    if not path.is_file():
        raise ValueError(f"embeddings is {str(path)!r}, which is no file; dml predict writes one")
    readers = {".npy": _read_array, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise ValueError(f"embeddings is {str(path)!r}; its name must end in {' or '.join(readers)}")
    try:
        array = readers[path.suffix](path)
    except (OSError, EOFError, pa.ArrowException) as error:
        raise ValueError(f"embeddings is {str(path)!r}, which cannot be read: {error}") from error
    if array.ndim != 2 or array.dtype.kind != "f" or array.size == 0:
        raise ValueError(
            f"embeddings is {str(path)!r}, of shape {list(array.shape)} and type {array.dtype}; it must be [n, D], "
            "floating"
        )
    return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))


def _read_array(path: Path) -> np.ndarray:
    # An array of objects is a pickle, which can execute anything.
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"embeddings is {str(path)!r}, which holds no plain array: {error}") from error
    return array


def _read_parquet(path: Path) -> np.ndarray:
    schema = pq.read_schema(path)
    kind = schema.field("embedding").type if "embedding" in schema.names else None
    if kind is None or not pa.types.is_fixed_size_list(kind):
        raise ValueError(
            f"embeddings is {str(path)!r}, whose columns are {schema.names}; it must have a column embedding, of lists "
            "of one size, as dml predict writes it"
        )
    column = pq.read_table(path, columns=["embedding"])["embedding"].combine_chunks()
    flat: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, kind.list_size)
