"""A run of two processes that is killed goes on with the losses of one that was not."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]


def fit(root, folder, *more):
    folder.mkdir(exist_ok=True)
    options = {
        "data.root": root,
        "data.classes_per_batch": 4,
        "data.samples_per_class": 2,
        "data.num_workers": 0,
        "model.embedder.name": "test_vit",
        "model.embedder.drop_path_rate": 0.2,  # each process draws its own
        "model.embedder.dropout": 0.2,
        "model.embedder.chunk_size": 3,
        "model.memory": "CrossBatchMemory",
        "model.memory.size": 20,
        "trainer.accelerator": "cpu",
        "trainer.devices": 2,
        "trainer.strategy": "ddp",
        "trainer.max_epochs": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "last.every_n_steps": 4,
        "report": "false",
    }
    command = [sys.executable, "-m", "dml", "fit", f"-c={ROOT / 'experiments' / 'quickstart.yaml'}"]
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    return subprocess.run(
        [*command, *(f"--{name}={value}" for name, value in options.items()), *more],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def losses(folder):
    logged = pd.concat([pd.read_csv(path) for path in sorted(folder.glob("runs/quickstart/version_0/metrics*.csv"))])
    logged = logged.dropna(subset="train/loss").drop_duplicates("step", keep="last")
    return logged.set_index("step")["train/loss"].sort_index()


def test_two_processes_that_were_killed_go_on(glyphs_root, tmp_path):
    whole = fit(glyphs_root, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    kill = [
        "--trainer.callbacks+=tests.faulty.SignalAt",
        "--trainer.callbacks.step=9",
        "--trainer.callbacks.name=SIGKILL",
    ]
    assert fit(glyphs_root, tmp_path / "killed", *kill).returncode != 0
    resumed = fit(glyphs_root, tmp_path / "killed", "--ckpt_path=last")
    assert resumed.returncode == 0, resumed.stderr
    expected, found = losses(tmp_path / "whole"), losses(tmp_path / "killed")
    assert found.index.tolist()[-4:] == [8, 9, 10, 11]
    assert found.loc[8:].tolist() == expected.loc[8:].tolist()
