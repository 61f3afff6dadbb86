"""Things that go wrong during a run, to be named on the command line."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from dml.losses import SmoothAPLoss


class SignalAt(Callback):
    """Send the process a signal before a step."""

    def __init__(self, step: int, name: str) -> None:
        self.step = step
        self.signal = signal.Signals[name]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signal)


class FullDiskAt(Callback):
    """Write to a disk that is full, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            Path("/dev/full").write_text("a line of a log")


class NaNAt(nn.Module):
    """Smooth-AP that turns NaN at one step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.loss = SmoothAPLoss(0.1)
        self.steps_left = step

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        self.steps_left -= 1
        value: Tensor = self.loss(embeddings, labels)
        return value if self.steps_left >= 0 else value * torch.nan
