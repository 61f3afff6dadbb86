"""What Weights & Biases is told, read back from the file of an offline run."""

import subprocess
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Trainer
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


@pytest.fixture
def told(glyphs_root, tmp_path, monkeypatch):
    """A run of two epochs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="dml", save_dir=str(tmp_path))
    torch.manual_seed(0)
    module = RetrievalModule(
        TimmEmbedder("test_resnet", 8, pretrained=False, channels=1, image_size=32), SmoothAPLoss()
    )
    data = RetrievalDataModule(Glyphs, str(glyphs_root), 4, image_size=32, channels=1, num_workers=0)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=logger,
        callbacks=[LogRetrievalMetrics(RetrievalMetrics(recall_at=[1])), DescribeRun()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, datamodule=data)
    return told_by(tmp_path), trainer


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
