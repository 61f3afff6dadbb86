"""Whitening of embeddings, learned when training has ended."""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.utilities.distributed import gather_all_tensors

from dml.callbacks.last import SaveLast
from dml.data import Batch, RetrievalDataModule
from dml.models import TimmEmbedder


class LearnWhitening(Callback):
    """Learn the whitening of the embedder from the training images, as evaluation sees them, and save the model.

    Nothing happens unless the embedder has a ``whitening_dim``. The weights are those of the best checkpoint, where
    there is one, else the last; the model keeps them, with the whitening. ``checkpoints/whitened.ckpt`` in the folder
    of the run holds both, for ``dml test --ckpt_path``.

    Each process embeds its share of the images, all get the embeddings of all, and learn the same from them.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out before training whether there are images enough.

        Raises:
            ValueError: If there are not.
        """
        embedder = _whitened(pl_module)
        if embedder is None or embedder.whitening is None:
            return
        embedder.whitening.learned.fill_(False)  # of other weights than those that will come
        embedder.whitening.check_number(len(_data(trainer).datasets["train"]))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not when training ends: a run that was killed after that has nothing left to train when it goes on.
        embedder = _whitened(pl_module)
        if embedder is None or embedder.whitening is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = self.path(trainer)
        checkpoint = _checkpoint(trainer, path)
        pl_module.load_state_dict(checkpoint["state_dict"])
        embedder.whitening.learned.fill_(False)
        embedder.whitening.learn(_embeddings(trainer, pl_module))
        if trainer.is_global_zero:
            learned = embedder.whitening.state_dict(prefix="embedder.whitening.")
            checkpoint["state_dict"].update({name: value.cpu() for name, value in learned.items()})
            trainer.strategy.checkpoint_io.save_checkpoint(checkpoint, path)
        trainer.strategy.barrier("whitened")
        rank_zero_info(f"Saved {path}: embeddings whitened to {embedder.whitening_dim} dimensions")

    @staticmethod
    def path(trainer: Trainer) -> Path:
        """Where the whitened model of a run is."""
        return SaveLast.path(trainer).with_name("whitened.ckpt")


def _whitened(pl_module: LightningModule) -> TimmEmbedder | None:
    embedder = getattr(pl_module, "embedder", None)
    return embedder if isinstance(embedder, TimmEmbedder) and embedder.whitening is not None else None


def _data(trainer: Trainer) -> RetrievalDataModule:
    data: RetrievalDataModule = trainer.datamodule  # type: ignore[attr-defined]  # untyped in Lightning
    return data


def _checkpoint(trainer: Trainer, path: Path) -> dict[str, Any]:
    """The best one, else the last one; that of the weights as they are if none was kept, which is put to ``path``.

    Where it is is broadcast, so that all processes learn of the same weights.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # untyped in Lightning
    last = SaveLast.path(trainer)
    is_kept = last.is_file() and any(isinstance(callback, SaveLast) for callback in callbacks)
    kept = getattr(trainer.checkpoint_callback, "best_model_path", "") or (str(last) if is_kept else "")
    kept = trainer.strategy.broadcast(kept)
    if not kept:
        trainer.save_checkpoint(path)
        kept = str(path)
    checkpoint: dict[str, Any] = torch.load(kept, map_location="cpu", weights_only=True)
    return checkpoint


@torch.no_grad()
def _embeddings(trainer: Trainer, pl_module: LightningModule) -> Tensor:
    """Of each training image, ``[N, D]``, on every process."""
    loader = _loader(trainer)
    rank_zero_info(f"Whitening: embedding {len(loader.dataset):,} training images")  # type: ignore[arg-type]
    training = pl_module.training
    pl_module.eval()
    embeddings, index = [], []
    with trainer.precision_plugin.val_step_context():
        for batch in loader:
            # What Lightning does in its own loops: stop at, or count, images that cannot be read.
            checked = _data(trainer).on_before_batch_transfer(batch, 0)
            embeddings.append(pl_module(checked["images"].to(pl_module.device)).float())
            index.append(checked["index"].to(pl_module.device))
    pl_module.train(training)
    return _over_processes(torch.cat(embeddings), torch.cat(index))


def _loader(trainer: Trainer) -> DataLoader[Batch]:
    """Of the training split, each image once, as evaluation loads it."""
    data = copy.copy(_data(trainer))
    data.splits = {**data.splits, "val": data.splits["train"]}
    data.datasets = {}
    data.setup("validate")
    return data.val_dataloader()


def _over_processes(embeddings: Tensor, index: Tensor) -> Tensor:
    """Of all processes, in the order of the index; images that several of them were given count once."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        embeddings = torch.cat(gather_all_tensors(embeddings))
        index = torch.cat(gather_all_tensors(index))
    _, position = torch.unique(index, return_inverse=True)
    once = embeddings.new_empty(int(position.max()) + 1, embeddings.shape[1])
    once[position] = embeddings
    return once
