"""The command line, from the first epoch to a run that was killed."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from dml.__main__ import main
from dml.module import RetrievalModule

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "experiments" / "quickstart.yaml")


def small(glyphs_root, **changes):
    """Arguments of a run of seconds: 3 epochs of 6 steps."""
    arguments = {
        "data.root": glyphs_root,
        "data.classes_per_batch": 4,
        "data.samples_per_class": 2,
        "data.num_workers": 0,
        "model.embedder.name": "test_resnet",
        "model.embedder.embedding_dim": 8,
        "model.embedder.drop_path_rate": 0.2,  # draws random numbers, which a resumed run must draw again
        "trainer.max_epochs": 3,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "last.every_n_steps": 4,
        "report": "false",
        **changes,
    }
    return [f"--{key}={value}" for key, value in arguments.items()]


def fit(*arguments):
    main(["fit", f"-c={QUICKSTART}", *arguments])


def environment_of_a_process():
    """That of this one, without the service that wandb has started here: it writes to this process's folders."""
    return {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"} | {"PYTHONPATH": str(ROOT)}


def losses(folder):
    """Training loss of each step that a run's folder has logged."""
    logged = pd.concat([pd.read_csv(path) for path in sorted(folder.glob("metrics*.csv"))])
    logged = logged.dropna(subset="train/loss").drop_duplicates("step", keep="last")
    return logged.set_index("step")["train/loss"].sort_index()


def runs(folder=Path("runs/quickstart")):
    return sorted(folder.iterdir())


@pytest.fixture(autouse=True)
def in_empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.fixture(scope="module")
def finished(glyphs_root, tmp_path_factory):
    """Folder of a run of 3 epochs that nothing has disturbed, started as a user would."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = small(glyphs_root, report="true")
    environment = environment_of_a_process()
    environment.pop("WANDB_MODE", None)
    environment["WANDB_CONFIG_DIR"] = environment["HOME"] = str(folder)
    result = subprocess.run(
        [sys.executable, "-m", "dml", "fit", f"-c={QUICKSTART}", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    (folder / "stdout.txt").write_text(result.stdout)
    (folder / "stderr.txt").write_text(result.stderr)
    return folder / "runs" / "quickstart" / "version_0"


def test_a_run_says_what_it_has_brought(finished):
    printed = (finished.parents[2] / "stdout.txt").read_text()
    assert "before and after training" in printed
    assert "untrained" in printed
    assert "validation, epoch 2, step 18" in printed
    assert "retrievals: runs/quickstart/version_0/pictures/test-epoch" in printed
    assert "dml predict --ckpt_path runs/quickstart/version_0/checkpoints/best.ckpt" in printed
    assert len(list((finished / "pictures").glob("*.png"))) == 4  # three of validation, one of test


def test_a_run_without_an_account_is_offline_and_says_so_in_one_line(finished):
    said = [line for line in (finished.parents[2] / "stderr.txt").read_text().splitlines() if "wandb sync" in line]
    assert len(said) == 1
    folder = finished.parents[2] / said[0].rpartition(" ")[2]
    assert list(folder.glob("*.wandb"))


def test_the_folder_of_a_run_is_complete(finished):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["trainer"]["logger"][0]["init_args"]["version"] is None  # or a second run would take this folder
    assert config["model"]["embedder"]["init_args"]["name"] == "test_resnet"
    metrics = pd.read_csv(finished / "metrics.csv")
    assert {"train/loss", "val/AP", "val/mAP@R", "val/RP", "val/R@1", "test/AP"} <= set(metrics.columns)
    assert metrics["val/AP"].count() == 3
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_checkpoint_rebuilds_the_model(finished):
    module = RetrievalModule.load_from_checkpoint(finished / "checkpoints" / "best.ckpt", weights_only=True)
    assert module.embedder.embedding_dim == 8
    assert module.loss.step.temperature == 0.02


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_needs_the_checkpoint_alone(command, finished, monkeypatch):
    monkeypatch.chdir(finished.parents[2])
    before = (finished / "metrics.csv").read_bytes(), (finished / "config.yaml").read_bytes()
    main([command, "--ckpt_path=runs/quickstart/version_0/checkpoints/best.ckpt"])
    assert ((finished / "metrics.csv").read_bytes(), (finished / "config.yaml").read_bytes()) == before
    stage = {"validate": "val", "test": "test"}[command]
    best = pd.read_csv(finished / "metrics.csv")[f"{stage}/AP"].max()
    again = pd.read_csv(max(runs()) / "metrics.csv")[f"{stage}/AP"].dropna()
    assert again.tolist() == pytest.approx([best], abs=1e-6)


def test_predict_writes_embeddings_labels_and_paths(finished):
    main(["predict", f"--ckpt_path={finished / 'checkpoints' / 'best.ckpt'}", "--embeddings.path=out.parquet"])
    table = pd.read_parquet("out.parquet")
    assert len(table) == 24
    assert {"path", "split", "character", "base", "script", "embedding"} <= set(table.columns)
    assert table["split"].unique().tolist() == ["test"]
    assert torch.tensor(table["embedding"].tolist()).norm(dim=1).tolist() == pytest.approx([1] * 24)


@pytest.mark.parametrize("step", [10, 12], ids=["mid-epoch", "epoch boundary"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(step, finished, glyphs_root, tmp_path):
    """Checkpoints are at steps 4, 6, 8, 12, 16, 18: a run killed at 10 goes on from 8, in the middle of an epoch."""
    arguments = [sys.executable, "-m", "dml", "fit", f"-c={QUICKSTART}", *small(glyphs_root)]
    kill = ["--trainer.callbacks+=tests.faulty.SignalAt", f"--trainer.callbacks.step={step}"]
    environment = environment_of_a_process()
    killed = subprocess.run(
        [*arguments, *kill, "--trainer.callbacks.name=SIGKILL"], env=environment, check=False, timeout=300
    )
    assert killed.returncode == -9
    fit(*small(glyphs_root), "--ckpt_path=last")
    assert [path.name for path in runs()] == ["version_0"]  # it has gone on in its own folder
    resumed, expected = losses(runs()[0]), losses(finished)
    first = {10: 8, 12: 12}[step]
    assert set(range(first, 18)) <= set(resumed.index)
    assert resumed.loc[first:].tolist() == expected.loc[first:].tolist()
    best = [torch.load(run / "checkpoints" / "best.ckpt", weights_only=True) for run in (runs()[0], finished)]
    assert best[0]["global_step"] == best[1]["global_step"]
    for ours, theirs in zip(best[0]["state_dict"].values(), best[1]["state_dict"].values(), strict=True):
        assert torch.equal(ours, theirs)


HAPPIER = """
model:
  loss:
    class_path: dml.losses.WeightedSum
    init_args:
      losses:
        - class_path: dml.losses.SupHAPLoss
        - class_path: dml.losses.NormSoftmaxLoss
          init_args: {num_classes: 12, embedding_dim: 8}
      weights: [0.9, 0.1]
  loss_learning_rate: 0.1
"""


@pytest.mark.parametrize("overlay", ["", HAPPIER], ids=["SmoothAP", "HAPPIER"])
def test_two_processes_train_as_one(overlay, glyphs_root, tmp_path):
    """The same batches, losses, proxies and metrics. A ViT: batch normalisation would see half of a batch on each."""
    (tmp_path / "overlay.yaml").write_text(overlay)
    vit = {"model.embedder.name": "test_vit", "model.embedder.drop_path_rate": 0}
    small_run = small(glyphs_root, **vit, **{"trainer.accelerator": "cpu", "trainer.max_epochs": 2})
    arguments = ["-c=overlay.yaml", *small_run] if overlay else small_run
    fit(*arguments)
    command = [sys.executable, "-m", "dml", "fit", f"-c={QUICKSTART}", *arguments]
    environment = environment_of_a_process()
    subprocess.run(
        [*command, "--trainer.devices=2", "--trainer.strategy=ddp"], env=environment, check=True, timeout=300
    )
    alone, both = runs()
    assert losses(both).tolist() == pytest.approx(losses(alone).tolist(), abs=1e-4)
    metrics = [pd.read_csv(run / "metrics.csv")["val/AP"].dropna().tolist() for run in (both, alone)]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-3)
    weights = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (both, alone)]
    for name in weights[0]:
        if name.startswith("loss."):
            torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-3, atol=1e-3)


def test_ctrl_c_saves_and_exits(glyphs_root, finished):
    interrupt = ["--trainer.callbacks+=tests.faulty.SignalAt", "--trainer.callbacks.step=9"]
    with pytest.raises(SystemExit):
        fit(*small(glyphs_root), *interrupt, "--trainer.callbacks.name=SIGINT")
    assert torch.load(runs()[0] / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 10
    fit(*small(glyphs_root), "--ckpt_path=last")
    assert losses(runs()[0]).loc[10:].tolist() == losses(finished).loc[10:].tolist()


def test_a_loss_that_is_not_finite_stops_the_run_at_that_step(glyphs_root, capsys):
    faulty = ["--model.loss=tests.faulty.NaNAt", "--model.loss.step=9"]
    with pytest.raises(SystemExit) as stopped:
        fit(*small(glyphs_root), *faulty)
    assert stopped.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("dml: error: the loss is not finite at step 9;")
    checkpoint = torch.load(runs()[0] / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.loss.init_args.temprature=1"], "temprature"),
        (["--data.clases_per_batch=3"], "clases_per_batch"),
        (["--trainer.max_epoch=3"], "max_epoch"),
        (["--model.loss=dml.losses.SmothAPLoss"], "SmothAPLoss"),
        (["--model.loss.init_args.temperature=-1"], "temperature is -1.0; it must be above 0"),
        (["--data.classes_per_batch=13"], "classes_per_batch is 13; the split has 12 classes"),
        (["--data.val_split=nothing"], "Glyphs has splits ['test', 'train', 'val'], not 'nothing'"),
        (["--model.embedder.name=resnet51"], "timm has no model 'resnet51'"),
        (["--data.dataset=dml.data.datasets.Omniglot", "--data.root=nowhere"], "nowhere"),
        (["--ckpt_path=last"], "ckpt_path is 'last'"),
        (["--ckpt_path=nowhere.ckpt"], "ckpt_path is 'nowhere.ckpt'; there is no such file"),
    ],
    ids=lambda value: value[-1].lstrip("-") if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(arguments, message, glyphs_root, capsys):
    with pytest.raises(SystemExit) as stopped:
        fit(*small(glyphs_root), *arguments)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dml: error: ")
    assert message in last


def test_a_missing_config_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "-c", "nowhere.yaml"])
    assert stopped.value.code == 2
    assert "nowhere.yaml" in capsys.readouterr().err.splitlines()[-1]
