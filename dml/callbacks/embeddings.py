"""Embeddings of ``dml predict``, in a Parquet file."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from dml.data.dataset import RetrievalDataset


class WriteEmbeddings(Callback):
    """Write what ``predict`` embeds to one Parquet file, batch by batch.

    A row per image: ``path`` (relative to the root of the dataset), ``split``, ``role``, the label of each level as an
    integer code, and ``embedding``, a list of D float32. To read it back::

        frame = pd.read_parquet("embeddings.parquet")
        embeddings = np.stack(frame["embedding"])  # [n, D]

    A run that fails leaves no half of a file, and what was at ``path`` before stays until the new file is whole.

    Args:
        path: Of the file; by default ``embeddings.parquet`` in the log folder.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self._target = Path()
        self._temporary: Path | None = None
        self._writer: pq.ParquetWriter | None = None
        self._num_rows = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out before the embedding whether the file can be written.

        Raises:
            ValueError: If there are several processes, or ``path`` is a folder.
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
        records = _records(dataset, outputs)
        if self._writer is None:
            self._writer = self._open(records.schema)
        self._writer.write_batch(records)
        self._num_rows += records.num_rows

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._writer is None or self._temporary is None:
            return
        dimension = self._writer.schema.field("embedding").type.list_size
        self._writer.close()
        self._temporary.replace(self._target)
        self._writer = self._temporary = None
        pl_module.print(f"{self._target}: {self._num_rows} embeddings of dimension {dimension}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        writer, temporary = self._writer, self._temporary
        self._writer = self._temporary = None
        try:
            if writer is not None:
                writer.close()
        finally:  # on a full disk, closing fails as well
            if temporary is not None:
                temporary.unlink(missing_ok=True)

    def _open(self, schema: pa.Schema) -> pq.ParquetWriter:
        self._target.parent.mkdir(parents=True, exist_ok=True)
        # A sibling, so that the rename stays on one file system, where it is atomic.
        self._temporary = self._target.with_name(f"{self._target.name}.{uuid.uuid4().hex[:8]}.partial")
        # Embeddings do not repeat: a dictionary of them would be built and thrown away.
        repetitive = [name for name in schema.names if name not in ("path", "embedding")]
        return pq.ParquetWriter(self._temporary, schema, use_dictionary=repetitive)


def _records(dataset: RetrievalDataset, outputs: Mapping[str, Tensor]) -> pa.RecordBatch:
    """The rows of a batch, in its order."""
    embeddings = outputs["embeddings"].detach().float().cpu()
    rows = dataset.index.iloc[outputs["index"].cpu().numpy()]
    columns = {name: pa.array(rows[name].astype(str), pa.string()) for name in ("path", "split", "role")}
    columns |= {level: pa.array(rows[level], pa.int64()) for level in dataset.levels}
    flat = pa.array(embeddings.numpy().reshape(-1), pa.float32())
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
    return pa.RecordBatch.from_pydict(columns)
