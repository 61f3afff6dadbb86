"""Retrieval metrics of the whole split after each evaluation."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from dml.data import RetrievalDataModule
from dml.metrics import RetrievalMetrics
from dml.models import TimmEmbedder

UNANSWERABLE = "unanswerable"
"""Name under which the number of queries that have nothing to retrieve is logged, if there are any."""


class LogRetrievalMetrics(Callback):
    """Log AP, mAP@R, R-precision and Recall@k, or what else is measured, as ``val/*`` and ``test/*``.

    If queries have nothing to retrieve, ``val/unanswerable`` says how many; the metrics leave them out. What stages of
    the search and views of an image cost is printed.

    Args:
        metrics: What to measure. Before each evaluation it is told of the dataset, if the trainer has a
            :class:`~dml.data.RetrievalDataModule`.
    """

    def __init__(self, metrics: RetrievalMetrics) -> None:
        self.metrics = metrics
        self.per_query: tuple[Tensor, dict[str, Tensor]] | None = None
        """Of the last evaluation: index of each answerable query ``[Q]``, and each measure of theirs ``[Q]``."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module, "test")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.metrics.update(**outputs)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.metrics.update(**outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The sanity check sees two batches: too few to find anything in.
        if not trainer.sanity_checking:
            self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "test")

    def _start(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.metrics.to(pl_module.device).reset()
        _views(pl_module)  # what they have cost until now is of another evaluation
        data = trainer.datamodule  # type: ignore[attr-defined]  # untyped in Lightning
        self.metrics.begin(data.datasets[stage] if isinstance(data, RetrievalDataModule) else None)
        self.per_query = None

    def _log(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.log_dict({f"{stage}/{name}": value for name, value in self.metrics.compute().items()})
        self.per_query = self.metrics.last_per_query
        name = f"{stage}/{UNANSWERABLE}"
        if self.metrics.num_unanswerable or name in trainer.callback_metrics:  # or that of the epoch before would stay
            pl_module.log(name, float(self.metrics.num_unanswerable))
        seconds = {**(_views(pl_module) or {}), **self.metrics.search.seconds}
        if seconds:
            rank_zero_info(f"{stage}: " + ", ".join(f"{name} {spent:.1f} s" for name, spent in seconds.items()))


def _views(pl_module: LightningModule) -> dict[str, float] | None:
    """What each view of an image has cost, if there are several."""
    embedder = getattr(pl_module, "embedder", None)
    if not isinstance(embedder, TimmEmbedder):
        return None
    seconds = {f"view {name}": spent for name, spent in embedder.view_seconds.items()}
    embedder.reset_view_seconds()
    return seconds if len(seconds) > 1 else None
