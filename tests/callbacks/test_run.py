"""What Weights & Biases is told, read back from the file of an offline run."""

import subprocess
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger

from dml.callbacks import DescribeRun, LogRetrievalMetrics
from dml.callbacks.run import _git_commit
from dml.data import RetrievalDataModule
from dml.data.datasets import Glyphs
from dml.losses import SmoothAPLoss
from dml.metrics import RetrievalMetrics
from dml.models import TimmEmbedder
from dml.module import RetrievalModule

from .offline import told_by


def fit(root, epochs, callbacks, logger=False):
    torch.manual_seed(0)
    module = RetrievalModule(
        TimmEmbedder("test_resnet", 8, pretrained=False, channels=1, image_size=32), SmoothAPLoss()
    )
    data = RetrievalDataModule(Glyphs, str(root), 4, image_size=32, channels=1, num_workers=0)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, datamodule=data)
    return trainer


@pytest.fixture
def wandb_logger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return WandbLogger(project="dml", save_dir=str(tmp_path))


@pytest.fixture
def told(glyphs_root, tmp_path, wandb_logger):
    """A run of two epochs."""
    callbacks = [LogRetrievalMetrics(RetrievalMetrics(recall_at=[1])), DescribeRun()]
    trainer = fit(glyphs_root, 2, callbacks, wandb_logger)
    return told_by(tmp_path), trainer


class Scripted(Callback):
    """Log values that are given, one for each epoch, in place of metrics."""

    def __init__(self, **values):
        self.values = {f"val/{name}": numbers for name, numbers in values.items()}

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log_dict({name: numbers[trainer.current_epoch] for name, numbers in self.values.items()})


def test_the_data_and_the_commit_are_in_the_config(told):
    config = told[0].config
    assert config["dataset"] == "Glyphs"
    assert config["sizes"]["train"]["images"] == 48
    assert config["sizes"]["train"]["character classes"] == 12
    assert "git_commit" in config


def test_the_best_epoch_is_in_the_summary(told):
    summary, trainer = told[0].summary, told[1]
    assert summary["best/val/AP"] >= float(trainer.callback_metrics["val/AP"]) > 0
    assert summary["best/epoch"] in (0, 1)


def test_the_better_direction_is_marked(told):
    metrics = told[0].metrics
    assert metrics["val/AP"].summary.max
    assert metrics["train/loss"].summary.min


def best_of(callback):
    return {name: value for name, value in callback.state_dict().items() if name.startswith("best/")}


@pytest.mark.parametrize(
    ("monitor", "mode", "epoch"),
    [("val/graded", "max", 1), ("val/loss", "min", 2), ("val/AP", "max", 0)],
    ids=["other", "lower_is_better", "default"],
)
def test_the_best_epoch_is_that_of_the_checkpoint(monitor, mode, epoch, glyphs_root, tmp_path):
    values = Scripted(AP=[0.5, 0.25, 0.125], graded=[0.25, 0.5, 0.375], loss=[3.0, 2.0, 1.0])
    describe, checkpoint = DescribeRun(), ModelCheckpoint(tmp_path, monitor=monitor, mode=mode)
    fit(glyphs_root, 3, [values, describe, checkpoint])
    assert torch.load(checkpoint.best_model_path, weights_only=True)["epoch"] == epoch
    logged = {f"best/{name}": numbers[epoch] for name, numbers in values.values.items()}
    assert best_of(describe) == {**logged, "best/epoch": epoch}


def test_the_best_epoch_is_that_of_the_highest_ap_if_no_checkpoint_is_chosen(glyphs_root, tmp_path):
    describe = DescribeRun()
    fit(glyphs_root, 2, [Scripted(AP=[0.5, 0.25]), describe, ModelCheckpoint(tmp_path)])
    assert best_of(describe) == {"best/val/AP": 0.5, "best/epoch": 0}


def test_what_is_not_a_number_is_never_the_best(glyphs_root, tmp_path):
    for mode in ("max", "min"):
        describe = DescribeRun()
        checkpoint = ModelCheckpoint(tmp_path / mode, monitor="val/loss", mode=mode)
        fit(glyphs_root, 2, [Scripted(loss=[float("nan"), 0.5]), describe, checkpoint])
        assert best_of(describe) == {"best/val/loss": 0.5, "best/epoch": 1}


def test_the_metric_that_chooses_the_checkpoint_is_marked_with_its_direction(glyphs_root, tmp_path, wandb_logger):
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/loss", mode="min")
    fit(glyphs_root, 2, [Scripted(loss=[0.25, 0.5]), DescribeRun(), checkpoint], wandb_logger)
    told = told_by(tmp_path)
    assert told.metrics["val/loss"].summary.min
    assert not told.metrics["val/loss"].summary.max
    assert "val/AP" not in told.metrics
    assert (told.summary["best/val/loss"], told.summary["best/epoch"]) == (0.25, 0)


def test_a_run_goes_on_from_the_best_that_its_checkpoint_holds():
    state = {"best/val/AP": 0.5, "best/epoch": 3, "minutes": 2.0}
    describe = DescribeRun()
    describe.load_state_dict(state)
    trainer = SimpleNamespace(sanity_checking=False, loggers=[], is_global_zero=True, current_epoch=4)
    trainer.checkpoint_callback = None
    for value, best in ((0.25, {"best/val/AP": 0.5, "best/epoch": 3}), (0.75, {"best/val/AP": 0.75, "best/epoch": 4})):
        trainer.callback_metrics = {"val/AP": torch.tensor(value), "train/loss": torch.tensor(1.0)}
        describe.on_validation_end(trainer, None)
        assert best_of(describe) == best


def test_the_commit_is_that_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert _git_commit() is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *command], check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert _git_commit() == commit


def test_minutes_of_a_run_that_goes_on_are_those_of_all_its_parts(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("dml.callbacks.run.time.monotonic", lambda: clock[0])
    trainer = SimpleNamespace(loggers=[], is_global_zero=True)
    logged = []
    trainer.loggers.append(SimpleNamespace(log_metrics=lambda metrics, step: logged.append(metrics)))
    trainer.global_step = 3
    first = DescribeRun()
    clock[0] = 60.0
    first.on_fit_start(trainer, None)
    clock[0] = 240.0
    saved = first.state_dict()  # and then it was killed
    second = DescribeRun()
    second.load_state_dict(saved)
    clock[0] = 1000.0
    second.on_fit_start(trainer, None)
    clock[0] = 1060.0
    second.on_fit_end(trainer, None)
    assert logged == [{"fit_minutes": pytest.approx(3 + 1)}]
