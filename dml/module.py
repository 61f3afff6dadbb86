"""The one LightningModule: embed, gather, loss, log."""

import contextlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypedDict

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dml.data import Batch
from dml.memory import CrossBatchMemory
from dml.models import TimmEmbedder
from dml.optimization import ParameterGroups, Schedule
from dml.random_state import gather_random_state, restore_random_state
from dml.ranking import shared_queries


class Trained(TypedDict):
    """What a training step hands to the callbacks: the global batch."""

    loss: Tensor
    embeddings: Tensor  # [B, D], without gradient
    labels: Tensor  # [B, L]


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

    Metrics and pictures are callbacks: they read what the steps return.

    Args:
        embedder: From images to embeddings.
        loss: Called as ``loss(embeddings [B, D], labels [B, L])``.
        optimizer: From parameters, or groups of them, to an optimizer.
        schedule: From the share of training that is done, in [0, 1], to a factor of the learning rate; see
            :mod:`dml.schedules`. By default the rate is constant.
        schedule_every: Whether the rate changes with each step, or with each epoch.
        groups: Learning rate, weight decay and schedule of backbone, head and loss where they differ.
        memory: Embeddings of earlier batches to rank with those of the batch.

    Raises:
        ValueError: If a memory meets a loss without references, or a schedule by epochs starts at a rate of 0.
    """

    def __init__(
        self,
        embedder: TimmEmbedder,
        loss: nn.Module,
        optimizer: Callable[[Iterable[Any]], Optimizer] = torch.optim.AdamW,
        schedule: Schedule | None = None,
        schedule_every: Literal["step", "epoch"] = "step",
        groups: ParameterGroups = ParameterGroups(),  # noqa: B008  # frozen
        memory: CrossBatchMemory | None = None,
    ) -> None:
        super().__init__()
        if memory is not None and "include_batch" not in inspect.signature(loss.forward).parameters:
            raise ValueError(
                f"memory needs a loss that ranks other embeddings with the batch; forward of {type(loss).__name__} "
                "takes no ref_emb, ref_labels and include_batch"
            )
        self.groups, self.schedule, self.schedule_every = groups, schedule, schedule_every
        if schedule_every == "epoch":
            groups.check_start(schedule)
        self.embedder, self.loss, self.memory, self.optimizer = embedder, loss, memory, optimizer
        self._random_state: dict[str, Any] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """From ``[B, C, H, W]`` uint8 to unit-norm embeddings ``[B, D]``."""
        embeddings: Tensor = self.embedder(images)
        return embeddings

    def training_step(self, batch: Batch, batch_idx: int) -> Trained:
        """The loss of the global batch.

        Raises:
            NonFiniteError: If it is NaN or infinite, or an embedding is.
        """
        embeddings, labels, index = self._over_processes(self(batch["images"]), batch["labels"], batch["index"])
        self._check_finite("an embedding", embeddings)
        loss = self._loss(embeddings, labels, index)
        self._check_finite("the loss", loss)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(embeddings))
        for name, value in getattr(self.loss, "logged", {}).items():
            self.log(f"train/{name}", value, batch_size=len(embeddings))
        return Trained(loss=loss, embeddings=embeddings.detach(), labels=labels)

    def validation_step(self, batch: Batch, batch_idx: int) -> Evaluated:
        return self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Evaluated:
        return self._evaluate(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Evaluated:
        return self._evaluate(batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.groups.optimizer(self.optimizer, self.embedder, self.loss)
        schedules = self.groups.schedules(optimizer, self.schedule)
        if not any(schedules):
            return optimizer
        scheduler = LambdaLR(optimizer, [self._factor(schedule) for schedule in schedules])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_after_backward(self) -> None:
        self.groups.freeze(self.trainer.optimizers[0], self._progress(self.global_step))

    def on_fit_start(self) -> None:
        # Or all processes would drop the same units and the same layers.
        if self.global_rank:
            torch.manual_seed(torch.initial_seed() + self.global_rank)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Dropout and stochastic depth draw from these: a resumed run must go on where the killed one was.
        checkpoint["random_state"] = gather_random_state(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._random_state = checkpoint.get("random_state")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Not when the checkpoint is loaded: building loaders and loggers draws random numbers after that.
        if self._random_state is not None:
            restore_random_state(self._random_state, self)
            self._random_state = None

    def _factor(self, schedule: Schedule | None) -> Callable[[int], float]:
        return lambda step: 1.0 if schedule is None else schedule(self._progress(step))

    def _progress(self, step: int) -> float:
        """The share of training that is done."""
        # Lightning counts the steps by setting up the loaders: before a checkpoint is restored, that starts it over.
        if step == 0:
            return 0.0
        if self.schedule_every == "epoch":
            per_epoch = -(-self.trainer.num_training_batches // self.trainer.accumulate_grad_batches)
            step -= step % int(per_epoch)
        return min(1.0, step / self.trainer.estimated_stepping_batches)

    def _evaluate(self, batch: Batch) -> Evaluated:
        return Evaluated(
            embeddings=self(batch["images"]),
            labels=batch["labels"],
            index=batch["index"],
            is_query=batch["is_query"],
            is_gallery=batch["is_gallery"],
        )

    def _over_processes(self, embeddings: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings ``[B, D]``, labels ``[B, L]`` and index ``[B]`` of the global batch, with gradient.

        Every process has the loss of the whole batch. The gather's backward sums over processes what each one wants of
        an embedding, and averaging the parameters' gradients divides by their number: the gradient is that of one
        process on the global batch, for any loss.
        """
        if self.trainer.world_size == 1:
            return embeddings, labels, index
        gathered: Any = self.all_gather(embeddings, sync_grads=True)
        others: Any = self.all_gather((labels, index))
        # Each process has every n-th image: put back into the order of one process, a loss draws the same numbers.
        in_order = [rows.transpose(0, 1).flatten(0, 1) for rows in (gathered, *others)]
        return in_order[0], in_order[1], in_order[2]

    def _loss(self, embeddings: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        memory = None if self.memory is None else self.memory.recall(index)
        with shared_queries() if self.trainer.world_size > 1 else contextlib.nullcontext():
            loss: Tensor = (
                self.loss(embeddings, labels)
                if memory is None
                else self.loss(
                    embeddings, labels, ref_emb=memory.embeddings, ref_labels=memory.labels, include_batch=True
                )
            )
        if self.memory is not None:
            self.memory.remember(embeddings, labels, index)
        return loss

    def _check_finite(self, what: str, value: Tensor) -> None:
        if not value.detach().isfinite().all():
            raise NonFiniteError(
                f"{what} is not finite at step {self.global_step}; the last checkpoint is kept. A lower learning rate, "
                "gradient clipping (trainer.gradient_clip_val) or float32 (trainer.precision) may help"
            )
