"""Retrieval metrics of the whole split after each evaluation."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from dml.metrics import RetrievalMetrics


class LogRetrievalMetrics(Callback):
    """Log AP, mAP@R, R-precision and Recall@k as ``val/*`` and ``test/*``.

    Args:
        metrics: What to measure.
    """

    def __init__(self, metrics: RetrievalMetrics) -> None:
        self.metrics = metrics
        self.per_query: tuple[Tensor, dict[str, Tensor]] | None = None
        """Of the last evaluation: index of each answerable query ``[Q]``, and each measure of theirs ``[Q]``."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(pl_module)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.metrics.update(**outputs)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.metrics.update(**outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The sanity check sees two batches: too few to find anything in.
        if not trainer.sanity_checking:
            self._log(pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(pl_module, "test")

    def _start(self, pl_module: LightningModule) -> None:
        self.metrics.to(pl_module.device).reset()
        self.per_query = None

    def _log(self, pl_module: LightningModule, stage: str) -> None:
        pl_module.log_dict({f"{stage}/{name}": value for name, value in self.metrics.compute().items()})
        self.per_query = self.metrics.last_per_query
