"""Embeddings of ``dml predict``, in a Parquet file or a NumPy array."""

import struct
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from dml.data.dataset import RetrievalDataset


class WriteEmbeddings(Callback):
    """Write what ``predict`` embeds to one file, batch by batch.

    To a ``.parquet`` goes a row per image: ``path`` (relative to the root of the dataset), ``split``, ``role``, the
    label of each level as an integer code, and ``embedding``, a list of D float32. To read it back::

        frame = pd.read_parquet("embeddings.parquet")
        embeddings = np.stack(frame["embedding"])  # [n, D]

    To a ``.npy`` go the embeddings alone, float32 ``[n, D]``. It need not fit into memory to be read::

        embeddings = np.load("embeddings.npy", mmap_mode="r")

    The distractors of :class:`~dml.metrics.Search` are such a file. A run that fails leaves no half of a file, and what
    was at ``path`` before stays until the new file is whole.

    Args:
        path: Of the file, which ends in ``.parquet`` or ``.npy``; by default ``embeddings.parquet`` in the log folder.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self.last_path: Path | None = None
        """The last file written."""
        self._target = Path()
        self._temporary: Path | None = None
        self._writer: _Writer | None = None
        self._num_rows = 0
        self._dimension = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out before the embedding whether the file can be written.

        Raises:
            ValueError: If there are several processes, or ``path`` is a folder or ends in something else.
        """
        if stage != "predict":
            return
        if trainer.world_size > 1:
            raise ValueError(
                f"WriteEmbeddings writes one file from one process, not {trainer.world_size}: predict on one device "
                "(trainer.devices=1)"
            )
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        self._target = folder / "embeddings.parquet" if self.path is None else Path(self.path).expanduser()
        if self._target.is_dir():
            raise ValueError(f"path is {str(self.path)!r}, a folder; it must be the name of a file")
        if self._target.suffix not in _WRITERS:
            raise ValueError(f"path is {str(self.path)!r}; its name must end in {' or '.join(_WRITERS)}")
        self._num_rows = 0

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        dataset = trainer.datamodule.datasets["predict"]  # type: ignore[attr-defined]  # untyped in Lightning
        embeddings = outputs["embeddings"].detach().float().cpu()
        if self._writer is None:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            # A sibling, so that the rename stays on one file system, where it is atomic.
            self._temporary = self._target.with_name(f"{self._target.name}.{uuid.uuid4().hex[:8]}.partial")
            self._writer = _WRITERS[self._target.suffix](self._temporary)
        self._writer.write(dataset, outputs["index"].cpu(), embeddings)
        self._num_rows += len(embeddings)
        self._dimension = embeddings.shape[1]

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._writer is None or self._temporary is None:
            return
        self._writer.close()
        self._temporary.replace(self._target)
        self.last_path = self._target
        self._writer = self._temporary = None
        pl_module.print(f"{self._target}: {self._num_rows} embeddings of dimension {self._dimension}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        writer, temporary = self._writer, self._temporary
        self._writer = self._temporary = None
        try:
            if writer is not None:
                writer.close()
        finally:  # on a full disk, closing fails as well
            if temporary is not None:
                temporary.unlink(missing_ok=True)


class _Writer(Protocol):
    """A file that grows by a batch at a time."""

    def write(self, dataset: RetrievalDataset, index: Tensor, embeddings: Tensor) -> None:
        """Add the images ``[B]`` and their embeddings ``[B, D]``."""

    def close(self) -> None:
        """Make the file whole."""


class _ParquetWriter:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: pq.ParquetWriter | None = None

    def write(self, dataset: RetrievalDataset, index: Tensor, embeddings: Tensor) -> None:
        records = _records(dataset, index, embeddings)
        if self._file is None:
            # Embeddings do not repeat: a dictionary of them would be built and thrown away.
            repetitive = [name for name in records.schema.names if name not in ("path", "embedding")]
            self._file = pq.ParquetWriter(self._path, records.schema, use_dictionary=repetitive)
        self._file.write_batch(records)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _ArrayWriter:
    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._shape = (0, 0)

    def write(self, dataset: RetrievalDataset, index: Tensor, embeddings: Tensor) -> None:
        if self._shape[0] == 0:
            self._file.write(_header(self._shape))
        self._file.write(embeddings.numpy().astype("<f4", copy=False).tobytes())
        self._shape = self._shape[0] + embeddings.shape[0], embeddings.shape[1]

    def close(self) -> None:
        if self._file.closed:  # which failed, on a full disk
            return
        with self._file:
            self._file.seek(0)
            self._file.write(_header(self._shape))


_WRITERS: dict[str, Callable[[Path], _Writer]] = {".parquet": _ParquetWriter, ".npy": _ArrayWriter}


def _header(shape: tuple[int, int]) -> bytes:
    """What a ``.npy`` of version 1.0 begins with: 128 bytes whatever the shape, so that it can be put in later."""
    text = str({"descr": "<f4", "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("ascii")


def _records(dataset: RetrievalDataset, index: Tensor, embeddings: Tensor) -> pa.RecordBatch:
    """The rows of a batch, in its order."""
    rows = dataset.index.iloc[index.numpy()]
    columns = {name: pa.array(rows[name].astype(str), pa.string()) for name in ("path", "split", "role")}
    columns |= {level: pa.array(rows[level], pa.int64()) for level in dataset.levels}
    flat = pa.array(embeddings.numpy().reshape(-1), pa.float32())
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
    return pa.RecordBatch.from_pydict(columns)
