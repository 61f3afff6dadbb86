"""Train with every loss for two steps, on as many processes as there are; run by ``torchrun``."""

import functools
import os
import sys
import warnings
from pathlib import Path

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners
from torch import nn

import dml.losses
from dml.data import RetrievalDataModule
from dml.data.datasets import Glyphs
from dml.losses import BlackboxAPLoss, CalibrationLoss, CSLLoss, NormSoftmaxLoss, PairLoss, RankLoss, SiMix, SupAPLoss
from dml.memory import CrossBatchMemory
from dml.models import TimmEmbedder
from dml.module import RetrievalModule

CLASSES, DIMENSION = 12, 8


def losses() -> dict[str, nn.Module]:
    """A fresh loss of every class, and of every way to use one that could differ between processes."""
    rank_losses = {
        name: cls()
        for name, cls in vars(dml.losses).items()
        if isinstance(cls, type) and issubclass(cls, RankLoss) and cls is not RankLoss
    }
    return {
        **rank_losses,
        "noise": BlackboxAPLoss(seed=3),
        "chunks": SupAPLoss(chunk_size=3),
        "CalibrationLoss": CalibrationLoss(),
        "fewer queries than processes": CalibrationLoss(chunk_size=1),
        "NormSoftmaxLoss": NormSoftmaxLoss(CLASSES, DIMENSION),
        "CSLLoss": CSLLoss(CLASSES, DIMENSION, margins=(0.25, 0.35, 0.45)),
        "SiMix": SiMix(SupAPLoss()),
        "WeightedSum": dml.losses.WeightedSum([SupAPLoss(), CalibrationLoss(), NormSoftmaxLoss(CLASSES, DIMENSION)]),
        "contrastive": PairLoss(pml.ContrastiveLoss()),
        "multi-similarity": PairLoss(pml.MultiSimilarityLoss(), miners.MultiSimilarityMiner()),
        "triplets": PairLoss(pml.TripletMarginLoss(), miners.TripletMarginMiner(type_of_triplets="semihard")),
        "embedded in chunks": SupAPLoss(),
        "memory": SupAPLoss(),
        "memory of pairs": PairLoss(pml.ContrastiveLoss()),
    }


def train(root: Path, name: str, processes: int) -> dict[str, torch.Tensor]:
    """The loss, and the gradient of every parameter, of two steps that hardly move."""
    torch.manual_seed(0)
    # A transformer: batch normalisation is of the images of a process.
    chunk_size = 3 if name == "embedded in chunks" else None
    embedder = TimmEmbedder("test_vit", DIMENSION, False, channels=1, image_size=32, chunk_size=chunk_size)
    module = RetrievalModule(
        embedder,
        losses()[name],
        functools.partial(torch.optim.SGD, lr=1e-6),
        memory=CrossBatchMemory(12) if name.startswith("memory") else None,
    )
    data = RetrievalDataModule(
        Glyphs, str(root), 4, 4, image_size=32, channels=1, num_workers=0, train_transforms=[], eval_transforms=[]
    )
    gradients: dict[str, torch.Tensor] = {}
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        strategy="ddp" if processes > 1 else "auto",
        devices=processes,
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=root,
        use_distributed_sampler=False,
    )

    class Record(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            at = trainer.global_step
            gradients[f"{at}.loss"] = trainer.callback_metrics["train/loss"]
            gradients.update({f"{at}.{key}": value.grad.clone() for key, value in pl_module.named_parameters()})

    trainer.callbacks.append(Record())
    trainer.fit(module, datamodule=data)
    return gradients


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    found = {name: train(Path(sys.argv[1]), name, world) for name in losses()}
    torch.save(found, Path(sys.argv[2]) / f"rank_{rank}.pt")
