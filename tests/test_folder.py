"""A run in a folder of the user's choice, and its test."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import wandb
import yaml

from dml import runs
from dml.__main__ import main

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "experiments" / "quickstart.yaml")


@pytest.fixture(autouse=True)
def in_empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    yield
    wandb.finish()  # or the next test's logger would go on with this run


@pytest.fixture
def small(glyphs_root):
    return [
        f"--data.root={glyphs_root}",
        "--data.classes_per_batch=4",
        "--data.samples_per_class=2",
        "--data.num_workers=0",
        "--model.embedder.name=test_resnet",
        "--model.embedder.embedding_dim=8",
        "--trainer.max_epochs=2",
        "--trainer.limit_train_batches=2",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--report=false",
    ]


def fit(*words):
    main(["fit", f"-c={QUICKSTART}", *words])


def test_a_run_keeps_everything_in_its_folder_and_is_tested(small, tmp_path, capsys):
    folder = tmp_path / "mine" / "first"
    fit(*small, f"--folder={folder}", "--test=true")
    assert {"config.yaml", "metrics.csv", "checkpoints", "pictures", "per_query"} <= set(os.listdir(folder))
    assert not (tmp_path / "runs" / "quickstart").exists()
    metrics = pd.read_csv(folder / "metrics.csv")
    assert metrics["test/AP"].count() == 1
    # The configuration is that of the experiment: a run that starts from it has another folder.
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["folder"] is None
    assert config["trainer"]["logger"][0]["init_args"]["save_dir"] == "runs"
    assert config["trainer"]["logger"][0]["init_args"]["name"] == "quickstart"
    assert config["trainer"]["logger"][0]["init_args"]["version"] is None
    with pytest.raises(SystemExit, match="2"):
        fit(*small, f"--folder={folder}")
    assert "where a run is; add --ckpt_path last to go on" in capsys.readouterr().err


def test_last_goes_on_in_the_folder_or_starts_there(small, tmp_path):
    folder = tmp_path / "mine"
    shorter = [word.replace("max_epochs=2", "max_epochs=1") for word in small]
    fit(*shorter, f"--folder={folder}", "--ckpt_path=last")
    assert pd.read_csv(folder / "metrics.csv")["epoch"].max() == 0
    fit(*small, f"--folder={folder}", "--ckpt_path=last")
    assert pd.read_csv(folder / "metrics.1.csv")["epoch"].max() == 0
    assert pd.read_csv(folder / "metrics.csv")["epoch"].dropna().min() == 1


def test_a_run_that_goes_on_is_one_run_of_weights_and_biases(small, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_RUN_ID", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    wandb.teardown()  # its service, if a test has started it, would write to the folder of that test
    ids = []
    for epochs, *words in ((1, "--folder=mine"), (2, "--folder=mine", "--ckpt_path=last"), (1, "--folder=other")):
        fit(*small, f"--trainer.max_epochs={epochs}", *words)
        ids.append(wandb.run.id)
        wandb.finish()
    assert ids[0] == ids[1] != ids[2]
    assert (tmp_path / "mine" / "wandb.txt").read_text().split() == ids[:1]
    assert len(list(tmp_path.glob(f"runs/wandb/offline-run-*-{ids[0]}"))) == 2


def test_a_sweep_trains_tests_and_is_done(small, tmp_path):
    sweep = tmp_path / "pair.yaml"
    command = ["dml", "fit", f"-c={QUICKSTART}", *small, "--test=true", "${args}"]
    losses = [str(ROOT / "experiments" / "losses" / f"{name}.yaml") for name in ("smooth_ap", "multi_similarity")]
    parameters = {"config": {"values": losses}}
    sweep.write_text(yaml.safe_dump({"method": "grid", "command": command, "parameters": parameters}))
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    words = [sys.executable, "-m", "dml", "sweep", str(sweep), "--jobs=2"]
    for _ in range(2):
        result = subprocess.run(
            words,
            env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", "COLUMNS": "120"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert "pair: 2 done" in result.stdout
    assert "running" not in result.stdout  # the second time
    folders = sorted((tmp_path / "runs" / "pair").iterdir())
    assert [folder.name.rpartition("-")[0] for folder in folders] == ["multi_similarity", "smooth_ap"]
    assert all(pd.read_csv(folder / "metrics.csv")["test/AP"].count() == 1 for folder in folders)


def test_a_folder_needs_a_csv_logger_and_must_not_be_a_file(tmp_path):
    with pytest.raises(ValueError, match="has no CSVLogger"):
        runs.place(tmp_path / "new", [])
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="which is a file"):
        runs.place(tmp_path / "file", [SimpleNamespace(save_dir="runs", name="sop", version=None)])
