"""What a logger keeps about a run besides its curves."""

import subprocess
import time
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_info

from dml import __version__
from dml.callbacks.diagnostics import GAP

CONFIG_KEY = "config"
"""Where a checkpoint keeps the configuration of its run, as YAML: ``dml test --ckpt_path`` needs nothing else."""

VERSION_KEY = "dml_version"
"""Where a checkpoint keeps the version of ``dml`` that made it; the first version did not."""

WATCHED = "wandb.txt"
"""Where a run's folder keeps its ids on Weights & Biases, a line for each logger."""

CONFIGURED = ("seed_everything", "trainer", "model", "data", "search")
"""The parts of the configuration that are kept."""

_MINUTES = "minutes"


class LogConfig(SaveConfigCallback):
    """Put the resolved configuration into the run's folder, its loggers and its checkpoints."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = self._resolved()
        for logger in trainer.loggers:
            logger.log_hyperparams(config)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        config = {key: value for key, value in self._resolved().items() if key in CONFIGURED}
        checkpoint[CONFIG_KEY] = yaml.safe_dump(config)
        checkpoint[VERSION_KEY] = __version__

    def _resolved(self) -> dict[str, Any]:
        resolved: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        return resolved


class DescribeRun(Callback):
    """Send the git commit, the data set and its sizes, and the metrics of the best epoch to Weights & Biases.

    The best epoch is that of the checkpoint: by the ``monitor`` and the ``mode`` of the trainer's ``ModelCheckpoint``.
    Without them, it is that of the highest ``val/AP``. The run's folder notes the id that it has there, so that a fit
    that goes on is the same run there too.
    """

    def __init__(self) -> None:
        self._best: dict[str, float] = {}
        self._started, self._minutes_before = 0.0, 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()
        watched = _wandb_runs(trainer)
        folders = [logger.log_dir for logger in trainer.loggers if isinstance(logger, CSVLogger)]
        if watched and folders:
            Path(folders[0]).mkdir(parents=True, exist_ok=True)
            (Path(folders[0]) / WATCHED).write_text("".join(f"{run.id}\n" for run in watched))
        for run in watched:
            run.config.update(_facts(trainer), allow_val_change=True)
            # No pattern such as val/*: its summary would be put in place of the parts of tables and pictures, too.
            monitor, mode = _choice(trainer)
            for name, better in {"train/loss": "min", f"val/{GAP}": "min", monitor: mode}.items():
                run.define_metric(name, step_metric="trainer/global_step", summary=better)
            if run.offline:
                rank_zero_info(f"W&B is offline: the run is kept here; upload it by: wandb sync {_parts(run)}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        monitor, mode = _choice(trainer)
        if trainer.sanity_checking or monitor not in trainer.callback_metrics:
            return
        found = trainer.callback_metrics
        kept = {f"best/{name}": float(found[name]) for name in found if name.startswith("val/") or name == monitor}
        sign, best = -1 if mode == "min" else 1, f"best/{monitor}"
        if sign * kept[best] > sign * self._best.get(best, sign * float("-inf")):
            self._best = kept
            self._best["best/epoch"] = trainer.current_epoch
            for run in _wandb_runs(trainer):
                run.summary.update(self._best)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics({"fit_minutes": self._minutes()}, trainer.global_step)

    def _minutes(self) -> float:
        """Of training up to now, with what was before the checkpoint that the run goes on from."""
        return self._minutes_before + (time.monotonic() - self._started) / 60

    def state_dict(self) -> dict[str, float]:
        return {**self._best, _MINUTES: self._minutes()}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._minutes_before = state_dict.get(_MINUTES, 0.0)
        self._best = {name: value for name, value in state_dict.items() if name != _MINUTES}


def _choice(trainer: Trainer) -> tuple[str, str]:
    """The metric by which the best epoch is chosen, and whether the best is its ``max`` or its ``min``."""
    checkpoint = trainer.checkpoint_callback
    if isinstance(checkpoint, ModelCheckpoint) and checkpoint.monitor is not None:
        return checkpoint.monitor, checkpoint.mode
    return "val/AP", "max"


def _wandb_runs(trainer: Trainer) -> list[Any]:
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def _parts(run: Any) -> Path:
    """A pattern of the folders of an offline run: it has one for each time that it went on."""
    folder = Path(run.dir).parent  # offline-run-<time>-<id>; it holds ``files``
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return folder.with_name(f"offline-run-*-{run.id}")


def _facts(trainer: Trainer) -> dict[str, Any]:
    datasets: dict[str, Any] = getattr(trainer, "datamodule").datasets  # noqa: B009
    sizes: dict[str, Any] = {}
    for stage, dataset in datasets.items():
        index: pd.DataFrame = dataset.index
        sizes[stage] = {
            "images": len(index),
            **{f"{level} classes": index[level].nunique() for level in dataset.levels},
        }
    name = next(iter(type(dataset).__name__ for dataset in datasets.values()))
    return {"git_commit": _git_commit(), "dataset": name, "sizes": sizes}


def _git_commit() -> str | None:
    """Of the working directory, marked ``-dirty`` if it holds changes; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
