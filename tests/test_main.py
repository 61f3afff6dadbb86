"""The command line, from the first epoch to a run that was killed."""

import copy
import os
import random
import re
import resource
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from dml import __version__
from dml.__main__ import main
from dml.callbacks.run import CONFIG_KEY, VERSION_KEY
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


def command(*arguments):
    """That of a process of its own."""
    return [sys.executable, "-m", "dml", "fit", f"-c={QUICKSTART}", *arguments]


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
    parts = said[0].rpartition(" ")[2]  # a pattern: a run that went on has several
    assert len(list(finished.parents[2].glob(f"{parts}/*.wandb"))) == 1


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


def test_predict_writes_an_array_of_distractors_for_a_test(finished):
    checkpoint = f"--ckpt_path={finished / 'checkpoints' / 'best.ckpt'}"
    main(["predict", checkpoint, "--embeddings.path=distractors.npy"])
    main(["test", checkpoint, "--search.distractors=distractors.npy"])
    found = pd.read_parquet(runs()[-1] / "per_query" / "test.parquet")
    assert found.attrs["distractors"] == "distractors.npy"
    assert (found["R@1"] == 0).all()  # each query is a distractor, and relevant to none
    assert found["first_wrong_score"].tolist() == pytest.approx([1] * len(found), abs=1e-5)


def test_a_test_says_how_sure_it_is_and_what_each_query_got(finished, capsys):
    main(["test", f"--ckpt_path={finished / 'checkpoints' / 'best.ckpt'}"])
    logged = pd.read_csv(runs()[0] / "metrics.csv").iloc[-1]
    printed = capsys.readouterr().out
    for name in ("AP", "R@1"):
        mean, low, high = (logged[f"test/{name}{end}"] for end in ("", "_low", "_high"))
        assert low <= mean <= high
        assert f"{name} {mean:.3f} [{low:.3f}, {high:.3f}] (95 %, " in printed
    found = pd.read_parquet(runs()[0] / "per_query" / "test.parquet")
    assert found["AP"].mean() == pytest.approx(logged["test/AP"], abs=1e-6)


STAGES = ROOT / "experiments" / "stages"


@pytest.fixture(scope="module")
def searched(glyphs_root, tmp_path_factory):
    """Checkpoint of a run of an epoch that was fitted with a stage."""
    folder = tmp_path_factory.mktemp("searched")
    name = {"trainer.max_epochs": 1, "trainer.default_root_dir": folder, "trainer.logger": "false"}
    fit(f"-c={STAGES / 'query_expansion.yaml'}", *small(glyphs_root, **name))
    return next(folder.rglob("best.ckpt"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["1. QueryExpansion"]),
        ([f"-c={STAGES / 'database_augmentation.yaml'}"], ["1. QueryExpansion", "2. DatabaseAugmentation"]),
        ([f"-c={STAGES / 'k_reciprocal.yaml'}"], ["1. QueryExpansion", "KReciprocal"]),
        (["--search.stages=[]"], []),
    ],
    ids=["none", "another stage", "a reranker", "no stages"],
)
def test_a_checkpoint_is_searched_as_its_run_was(words, expected, searched, caplog):
    caplog.clear()
    main(["test", f"--ckpt_path={searched}", *words])
    said = [record.message for record in caplog.records if record.message.startswith("test: ")]
    assert [re.sub(r" \d+\.\d s$", "", part) for line in said for part in line[6:].split(", ")] == expected


@pytest.mark.parametrize("words", [[], ["--search.ties=expected"]], ids=["by default", "from the command line"])
def test_what_is_set_for_the_metric_stays_unless_the_command_says_otherwise(words, finished):
    (Path.cwd() / "metric.yaml").write_text(METRIC)
    main(["test", f"--ckpt_path={finished / 'checkpoints' / 'best.ckpt'}", "-c=metric.yaml", *words])
    assert pd.read_parquet(runs()[0] / "per_query" / "test.parquet").attrs["ties"] == (
        "expected" if words else "optimistic"
    )


METRIC = """
trainer:
  callbacks:
    - class_path: dml.callbacks.LogRetrievalMetrics
      init_args:
        metrics:
          class_path: dml.metrics.RetrievalMetrics
          init_args: {search: {ties: optimistic}}
"""


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
  groups:
    loss: {learning_rate: 0.1}
"""

EVERYTHING = f"""{HAPPIER}
    backbone: {{frozen: 0.2, weight_decay: 0.01}}
  memory:
    class_path: dml.memory.CrossBatchMemory
    init_args: {{size: 20, start_after: 2}}
  embedder:
    chunk_size: 3
    freeze_batch_norm: statistics
"""


@pytest.fixture(scope="module")
def finished_with_everything(glyphs_root, tmp_path_factory):
    """Losses of an undisturbed run with random numbers, proxies, a memory and chunks."""
    folder = tmp_path_factory.mktemp("everything")
    (folder / "overlay.yaml").write_text(EVERYTHING)
    arguments = command("-c=overlay.yaml", *small(glyphs_root))
    environment = environment_of_a_process() | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    subprocess.run(arguments, cwd=folder, env=environment, check=True, timeout=300)
    return losses(folder / "runs" / "quickstart" / "version_0")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_with_everything_goes_on_wherever_it_was_killed(workers, finished_with_everything, glyphs_root, tmp_path):
    step = random.SystemRandom().randrange(5, 18)  # not fixed by a seed that another test has set
    print(f"killed at step {step}")
    (tmp_path / "overlay.yaml").write_text(EVERYTHING)
    arguments = command("-c=overlay.yaml", *small(glyphs_root, **{"data.num_workers": workers}))
    kill = ["--trainer.callbacks+=tests.faulty.SignalAt", f"--trainer.callbacks.step={step}"]
    environment = environment_of_a_process()
    killed = subprocess.run(
        [*arguments, *kill, "--trainer.callbacks.name=SIGKILL"], env=environment, check=False, timeout=300
    )
    assert killed.returncode == -9
    fit("-c=overlay.yaml", *small(glyphs_root, **{"data.num_workers": workers}), "--ckpt_path=last")
    resumed = losses(runs()[0])
    first = max(checkpoint for checkpoint in (4, 6, 8, 12, 16) if checkpoint <= step)
    assert set(range(first, 18)) <= set(resumed.index)
    assert resumed.tolist() == finished_with_everything.loc[resumed.index].tolist()


def test_a_job_that_slurm_puts_back_into_its_queue_goes_on(finished, glyphs_root, tmp_path):
    """The same command twice, with the signal in the middle of an epoch."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\n')
    scontrol.chmod(0o755)
    job = {"JOB_ID": 77, "JOB_NAME": "train", "NTASKS": 1, "NTASKS_PER_NODE": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0}
    environment = environment_of_a_process() | {f"SLURM_{name}": str(value) for name, value in job.items()}
    environment["PATH"] = f"{scontrol.parent}:{environment['PATH']}"
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"of another job")
    signal = ["--trainer.callbacks+=tests.faulty.SignalAt", "--trainer.callbacks.step=9"]
    arguments = command(*small(glyphs_root), *signal, "--trainer.callbacks.name=SIGUSR1")
    codes = [subprocess.run(arguments, env=environment, check=False, timeout=300).returncode for _ in range(2)]
    assert codes == [128 + 10, 0]
    assert (tmp_path / "said").read_text() == "requeue 77\n"
    assert [path.name for path in runs()] == ["job_77"]
    config = yaml.safe_load((runs()[0] / "config.yaml").read_text())
    assert config["trainer"]["default_root_dir"] is None  # or a run from this configuration would share the folder
    resumed = losses(runs()[0])
    assert resumed.index[-1] == 17
    assert set(range(10, 18)) <= set(resumed.index)
    assert resumed.tolist() == losses(finished).loc[resumed.index].tolist()


def test_a_full_disk_ends_a_run_with_one_line_and_keeps_the_last_checkpoint(glyphs_root):
    fit(*small(glyphs_root, **{"trainer.max_epochs": 1}))
    last = runs()[0] / "checkpoints" / "last.ckpt"
    before = last.read_bytes()

    def fill_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))

    stopped = subprocess.run(
        command(*small(glyphs_root), "--ckpt_path=last"),
        env=environment_of_a_process(),
        preexec_fn=fill_disk,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert stopped.returncode == 1
    assert "Traceback" not in stopped.stderr
    said = [line for line in stopped.stderr.splitlines() if line.startswith("dml: error: ")]
    assert said == [stopped.stderr.splitlines()[-1]]
    assert f"{last} could not be written: File too large" in said[0]
    assert "--ckpt_path last" in said[0]
    assert last.read_bytes() == before
    assert [path.name for path in last.parent.iterdir() if path.suffix == ".partial"] == []


def test_a_log_that_cannot_be_written_is_one_line(glyphs_root, capsys):
    full = ["--trainer.callbacks+=tests.faulty.FullDiskAt", "--trainer.callbacks.step=2"]
    with pytest.raises(SystemExit) as stopped:
        fit(*small(glyphs_root), *full)
    assert stopped.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dml: error: a file of the run could not be written: No space left on device; ")


def of_first_version(path, target):
    """A checkpoint as the first version made it, as far as this one can tell."""
    checkpoint = torch.load(path, weights_only=True)
    config = yaml.safe_load(checkpoint[CONFIG_KEY])
    config["model"] = {key: config["model"][key] for key in ("embedder", "loss", "optimizer", "schedule")}
    options = ("name", "embedding_dim", "pretrained", "weights", "channels", "image_size", "drop_path_rate")
    embedder = config["model"]["embedder"]
    embedder["init_args"] = {key: embedder["init_args"][key] for key in options}
    config["model"]["loss_learning_rate"] = 0.1
    checkpoint[CONFIG_KEY] = yaml.safe_dump(config)
    del checkpoint[VERSION_KEY]
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    groups.append(copy.deepcopy(groups[0]))
    torch.save(checkpoint, target)


def test_a_checkpoint_of_the_first_version_can_be_evaluated_and_says_why_it_cannot_go_on(finished, glyphs_root, capsys):
    of_first_version(finished / "checkpoints" / "best.ckpt", "old.ckpt")
    main(["validate", "--ckpt_path=old.ckpt"])
    best = pd.read_csv(finished / "metrics.csv")["val/AP"].max()
    assert pd.read_csv(runs()[0] / "metrics.csv")["val/AP"].tolist() == pytest.approx([best], abs=1e-6)
    with pytest.raises(SystemExit) as stopped:
        fit(*small(glyphs_root), "--ckpt_path=old.ckpt")
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "ckpt_path is 'old.ckpt', which does not fit this run (loaded state dict has a different number" in last
    assert f"made by dml 0.1.0, and this is {__version__}; its weights still serve dml test and dml predict" in last


def test_weights_that_do_not_fit_are_one_line(finished, capsys):
    path = str(finished / "checkpoints" / "best.ckpt")
    with pytest.raises(SystemExit) as stopped:
        main(["test", f"--ckpt_path={path}", "--model.embedder.embedding_dim=9"])
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"dml: error: ckpt_path is {path!r}, which does not fit this run (")
    assert last.endswith("is the configuration that of its run, which is in its folder as config.yaml?")


@pytest.mark.parametrize("overlay", ["", HAPPIER], ids=["SmoothAP", "HAPPIER"])
def test_two_processes_train_as_one(overlay, glyphs_root, tmp_path):
    """The same batches, losses, proxies and metrics. A ViT: batch normalisation would see half of a batch on each.

    In double precision, or what rounding has changed in the first step would have grown a thousandfold by the last.
    """
    (tmp_path / "overlay.yaml").write_text(overlay)
    vit = {"model.embedder.name": "test_vit", "model.embedder.drop_path_rate": 0}
    double = {"trainer.accelerator": "cpu", "trainer.max_epochs": 2, "trainer.precision": "64-true"}
    small_run = small(glyphs_root, **vit, **double)
    arguments = ["-c=overlay.yaml", *small_run] if overlay else small_run
    fit(*arguments)
    command = [sys.executable, "-m", "dml", "fit", f"-c={QUICKSTART}", *arguments]
    environment = environment_of_a_process()
    subprocess.run(
        [*command, "--trainer.devices=2", "--trainer.strategy=ddp"], env=environment, check=True, timeout=300
    )
    alone, both = runs()
    assert losses(both).tolist() == pytest.approx(losses(alone).tolist(), abs=1e-6)
    metrics = [pd.read_csv(run / "metrics.csv")["val/AP"].dropna().tolist() for run in (both, alone)]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-6)
    weights = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (both, alone)]
    for name in weights[0]:
        if name.startswith("loss."):
            torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-6, atol=1e-6)


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
