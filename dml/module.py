"""The one LightningModule: embed, gather, loss, log."""

from collections.abc import Callable, Iterable
from typing import Any, TypedDict

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dml.data import Batch
from dml.models import TimmEmbedder


class Evaluated(TypedDict):
    """What a validation, test or prediction step hands to the callbacks."""

    embeddings: Tensor  # [B, D]
    labels: Tensor  # [B, L]
    index: Tensor  # [B]
    is_query: Tensor  # [B]
    is_gallery: Tensor  # [B]


class NonFiniteError(ValueError):
    """The loss or an embedding is not finite."""


class RetrievalModule(LightningModule):
    """An embedder trained with a loss on the embeddings of the whole batch, over all processes.

    Metrics and pictures are callbacks: they read what the evaluation steps return.

    Args:
        embedder: From images to embeddings.
        loss: Called as ``loss(embeddings [B, D], labels [B, L])``.
        optimizer: From parameters, or groups of them, to an optimizer.
        schedule: From the share of training that is done, in [0, 1], to a factor of the learning rate; see
            :mod:`dml.schedules`. By default the rate is constant.
        loss_learning_rate: Of the loss's own parameters, if it has any, such as proxies; they are not decayed. By
            default it is that of the optimizer.
    """

    def __init__(
        self,
        embedder: TimmEmbedder,
        loss: nn.Module,
        optimizer: Callable[[Iterable[Any]], Optimizer] = torch.optim.AdamW,
        schedule: Callable[[float], float] | None = None,
        loss_learning_rate: float | None = None,
    ) -> None:
        super().__init__()
        self.embedder = embedder
        self.loss = loss
        self.optimizer = optimizer
        self.schedule = schedule
        self.loss_learning_rate = loss_learning_rate
        self._random_state: dict[str, Any] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """From ``[B, C, H, W]`` uint8 to unit-norm embeddings ``[B, D]``."""
        embeddings: Tensor = self.embedder(images)
        return embeddings

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of the global batch.

        Raises:
            NonFiniteError: If it is NaN or infinite, or an embedding is.
        """
        embeddings, labels = self._over_processes(self(batch["images"]), batch["labels"])
        self._check_finite("an embedding", embeddings)
        loss: Tensor = self.loss(embeddings, labels)
        self._check_finite("the loss", loss)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(embeddings))
        for name, value in getattr(self.loss, "logged", {}).items():
            self.log(f"train/{name}", value, batch_size=len(embeddings))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Evaluated:
        return self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Evaluated:
        return self._evaluate(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Evaluated:
        return self._evaluate(batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self._parameter_groups())
        if self.schedule is None:
            return optimizer
        scheduler = LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Dropout and stochastic depth draw from these: a resumed run must go on where the killed one was.
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        checkpoint["random_state"] = {"cpu": torch.get_rng_state(), "cuda": cuda}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._random_state = checkpoint.get("random_state")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Not when the checkpoint is loaded: building loaders and loggers draws random numbers after that.
        if self._random_state is not None:
            torch.set_rng_state(self._random_state["cpu"].cpu())
            if len(self._random_state["cuda"]) == torch.cuda.device_count() > 0:
                torch.cuda.set_rng_state_all([state.cpu() for state in self._random_state["cuda"]])
            self._random_state = None

    def _parameter_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = [{"params": list(self.embedder.parameters())}]
        of_loss = list(self.loss.parameters())
        if of_loss:
            groups.append({"params": of_loss, "weight_decay": 0.0})
            if self.loss_learning_rate is not None:
                groups[-1]["lr"] = self.loss_learning_rate
        return groups

    def _learning_rate_factor(self, step: int) -> float:
        # Lightning counts the steps by setting up the loaders. Asked before the first step, it would do so before a
        # checkpoint is restored, and a resumed epoch would start over.
        progress = 0.0 if step == 0 else min(1.0, step / self.trainer.estimated_stepping_batches)
        return 1.0 if self.schedule is None else self.schedule(progress)

    def _evaluate(self, batch: Batch) -> Evaluated:
        return Evaluated(
            embeddings=self(batch["images"]),
            labels=batch["labels"],
            index=batch["index"],
            is_query=batch["is_query"],
            is_gallery=batch["is_gallery"],
        )

    def _over_processes(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings ``[B, D]`` and labels ``[B, L]`` of the global batch, with gradient.

        Every process computes the loss of the whole batch. The gather's backward sums over processes what each one
        wants of an embedding, and averaging the parameters' gradients divides by their number: the gradient is that of
        one process on the global batch, for any loss.
        """
        if self.trainer.world_size == 1:
            return embeddings, labels
        gathered: Any = self.all_gather(embeddings, sync_grads=True)
        gathered_labels: Any = self.all_gather(labels)
        return gathered.flatten(0, 1), gathered_labels.flatten(0, 1)

    def _check_finite(self, what: str, value: Tensor) -> None:
        if not value.detach().isfinite().all():
            raise NonFiniteError(
                f"{what} is not finite at step {self.global_step}; the last checkpoint is kept. A lower learning rate, "
                "gradient clipping (trainer.gradient_clip_val) or float32 (trainer.precision) may help"
            )
