"""What training has brought: the untrained and the best model, side by side."""

import copy
import os
import shutil
import sys
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from dml.callbacks.metrics import LogRetrievalMetrics
from dml.callbacks.picture import RetrievalPicture
from dml.data import RetrievalDataModule


def print_report(
    trainer: Trainer, data: RetrievalDataModule, *, untrained: LightningModule, trained: LightningModule
) -> None:
    """Evaluate both models on the validation and the test split; print a table, the picture and what to do next.

    Args:
        trainer: Of the run, after ``fit``.
        data: Of the run.
        untrained: The model before its first step.
        trained: The model of the run; the weights of its best epoch are loaded into it.
    """
    best = best_checkpoint(trainer)
    evaluator = _evaluator(trainer)
    rows = {
        "untrained": _validate(evaluator, data, untrained, None) | _test(evaluator, data, untrained, None),
        # Tested by the trainer of the run: its loggers keep the metrics, and its pictures are drawn.
        "trained": _validate(evaluator, data, trained, best) | _test(trainer, data, trained, best),
    }
    if not trainer.is_global_zero:
        return
    console = Console()
    console.print(_table(rows))
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # a property the stubs do not show
        if isinstance(callback, RetrievalPicture):
            console.print(f"retrievals: {callback.last_path}", soft_wrap=True, highlight=False)
    if best is not None:
        checkpoint = os.path.relpath(best)
        console.print(f"next:       {_command()} predict --ckpt_path {checkpoint}", soft_wrap=True, highlight=False)


def best_checkpoint(trainer: Trainer) -> str | None:
    """The path of the best epoch's; None if the trainer keeps none, and the model is what the last epoch left."""
    return getattr(trainer.checkpoint_callback, "best_model_path", "") or None


def _command() -> str:
    """How to call ``dml`` from here: the environment of ``make quickstart`` is not on the path."""
    script = Path(sys.executable).with_name("dml")
    return "dml" if shutil.which("dml") or not script.exists() else os.path.relpath(script)


def _evaluator(trainer: Trainer) -> Trainer:
    """A trainer without loggers: the curves of the run stay as they are."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # a property the stubs do not show
    metrics = next(callback.metrics for callback in callbacks if isinstance(callback, LogRetrievalMetrics))
    return Trainer(
        accelerator=trainer.accelerator.name(),
        devices=trainer.num_devices,
        precision=trainer.precision,
        default_root_dir=trainer.default_root_dir,
        logger=False,
        callbacks=[LogRetrievalMetrics(copy.deepcopy(metrics))],
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _validate(
    trainer: Trainer, data: RetrievalDataModule, model: LightningModule, checkpoint: str | None
) -> dict[str, float]:
    trainer.validate(model, datamodule=data, ckpt_path=checkpoint, verbose=False, weights_only=True)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _test(
    trainer: Trainer, data: RetrievalDataModule, model: LightningModule, checkpoint: str | None
) -> dict[str, float]:
    trainer.test(model, datamodule=data, ckpt_path=checkpoint, verbose=False, weights_only=True)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _table(rows: dict[str, dict[str, float]]) -> Table:
    columns = [f"{stage}/{name}" for stage in ("val", "test") for name in ("AP", "R@1")]
    columns = [column for column in columns if column in rows["trained"]]
    table = Table(title="before and after training (best epoch by validation)")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for model, metrics in rows.items():
        table.add_row(model, *(f"{metrics[column]:.4f}" for column in columns))
    return table
