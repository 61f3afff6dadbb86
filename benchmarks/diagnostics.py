"""What LogDiagnostics costs: ``python -m benchmarks.diagnostics``.

The training of the quickstart, on Glyphs from images to optimizer steps, with and without the callback by turns in one
process. Two figures, each of an epoch's time in steps and in waiting for data:

- ratio: the median time of an epoch with the callback over that without, which takes in whatever disturbs either;
- own time: the share that is spent in the hooks of the callback, and what each of them takes.

Then the time of the decomposability gap, as a share of the validation it belongs to.
"""

import argparse
import functools
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from datetime import date
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from dml.callbacks import LogDiagnostics, LogRetrievalMetrics
from dml.data import RetrievalDataModule
from dml.data.datasets import Glyphs
from dml.losses import SmoothAPLoss
from dml.metrics import RetrievalMetrics
from dml.models import TimmEmbedder
from dml.module import RetrievalModule

OF_TRAINING = (
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_train_epoch_end",
)
OF_VALIDATION = ("on_validation_epoch_end",)


class Epoch(Callback):
    """Seconds of the training part of an epoch and of the validation after it."""

    def __init__(self) -> None:
        self.started = self.training = self.validation_started = self.validation = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.is_last_batch:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self.training = time.perf_counter() - self.started

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation = time.perf_counter() - self.validation_started


def main() -> None:
    """Measure, and print the table in Markdown."""
    parser = argparse.ArgumentParser(description="What LogDiagnostics costs.")
    parser.add_argument("--root", default="data/glyphs", help="Of Glyphs, drawn on first use.")
    parser.add_argument("--model", default="resnet10t")
    parser.add_argument("--batch", type=int, nargs=2, default=[64, 4], help="Classes, and images of each.")
    parser.add_argument("--steps", type=int, default=20, help="Of an epoch.")
    parser.add_argument("--turns", type=int, default=5, help="Epochs with and without the callback.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    epoch(arguments, [])  # the first is a warm-up
    runs: dict[str, list[Epoch]] = {"without": [], "with": []}
    hooks: dict[str, list[float]] = {name: [] for name in (*OF_TRAINING, *OF_VALIDATION)}
    for _ in range(arguments.turns):
        runs["without"].append(epoch(arguments, []))
        runs["with"].append(epoch(arguments, [timed(LogDiagnostics(), hooks)]))
    report(runs, hooks, arguments)


def epoch(arguments: argparse.Namespace, callbacks: list[Callback]) -> Epoch:
    """One epoch of a new model, and its validation."""
    torch.manual_seed(0)
    embedder = TimmEmbedder(arguments.model, 64, pretrained=False, channels=1, image_size=32, channels_last=True)
    module = RetrievalModule(embedder, SmoothAPLoss(0.02), functools.partial(torch.optim.AdamW, lr=2e-3))
    data = RetrievalDataModule(
        Glyphs,
        arguments.root,
        *arguments.batch,
        image_size=32,
        channels=1,
        num_workers=0,
        train_transforms=[],
        eval_transforms=[],
    )
    measured = Epoch()
    metrics = LogRetrievalMetrics(RetrievalMetrics(recall_at=[1, 10]))
    trainer = Trainer(
        accelerator=arguments.device,
        devices=1,
        max_epochs=1,
        limit_train_batches=arguments.steps,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[metrics, *callbacks, measured],
    )
    trainer.fit(module, datamodule=data)
    return measured


def timed(callback: Callback, hooks: dict[str, list[float]]) -> Callback:
    """The callback, whose hooks add the seconds that each of their calls takes to a list."""
    for name, seconds in hooks.items():
        setattr(callback, name, _timed(getattr(callback, name), seconds))
    return callback


def _timed(hook: Callable[..., None], seconds: list[float]) -> Callable[..., None]:
    def call(*args: Any, **kwargs: Any) -> None:
        start = time.perf_counter()
        hook(*args, **kwargs)
        seconds.append(time.perf_counter() - start)

    return call


def report(runs: dict[str, list[Epoch]], hooks: dict[str, list[float]], arguments: argparse.Namespace) -> None:
    """Print what an epoch takes, and the share of the hooks."""
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {arguments.threads} threads"
    of_batch = " x ".join(map(str, arguments.batch))
    print(f"{device}, torch {torch.__version__}, {date.today()}, {arguments.model}, batches of {of_batch}\n")
    seconds = {name: [run.training for run in of_name] for name, of_name in runs.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    whole = sum(seconds["with"])
    own = sum(sum(hooks[name]) for name in OF_TRAINING)
    validation = sum(run.validation for run in runs["with"])
    print(
        "| with, ms a step | without, ms a step | ratio | own time | gap, of validation |",
        "|---|---|---|---|---|",
        sep="\n",
    )
    print(
        f"| {medians['with'] / arguments.steps * 1e3:.1f} | {medians['without'] / arguments.steps * 1e3:.1f} "
        f"| {medians['with'] / medians['without']:.3f} | {own / whole:.2%} "
        f"| {sum(hooks['on_validation_epoch_end']) / validation:.2%} |\n"
    )
    print("| hook | calls | median ms | largest ms | of the epoch |", "|---|---|---|---|---|", sep="\n")
    for name in OF_TRAINING:
        calls = hooks[name]
        print(
            f"| {name} | {len(calls)} | {statistics.median(calls) * 1e3:.3f} | {max(calls) * 1e3:.3f} "
            f"| {sum(calls) / whole:.2%} |"
        )


if __name__ == "__main__":
    main()
