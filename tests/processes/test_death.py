"""A process that dies ends the run within a minute and with a message; it does not leave the others waiting."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIGHTNING = [sys.executable, "-m", "dml"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dml"]


def training(folder: Path) -> dict[int, int]:
    """Processes of a run in a folder that train, by rank; not what only launches them."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            environment = dict(line.partition(b"=")[::2] for line in (process / "environ").read_bytes().split(b"\0"))
            here = (process / "cwd").resolve() == folder
        except OSError:  # it has ended
            continue
        if here and b"fit" in words and b"torch.distributed.run" not in words:
            found[int(environment.get(b"LOCAL_RANK", b"0"))] = int(process.name)
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
@pytest.mark.parametrize("launcher", [LIGHTNING, TORCHRUN], ids=["lightning", "torchrun"])
@pytest.mark.parametrize("victim", [0, 1])
def test_the_run_ends(launcher, victim, glyphs_root, tmp_path):
    arguments = [
        f"-c={ROOT / 'experiments' / 'quickstart.yaml'}",
        f"--data.root={glyphs_root}",
        "--data.classes_per_batch=4",
        "--data.samples_per_class=2",
        "--data.num_workers=0",
        "--model.embedder.name=test_vit",
        "--trainer.accelerator=cpu",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--trainer.max_epochs=100000",
        "--trainer.enable_progress_bar=false",
        "--trainer.limit_val_batches=0",
    ]
    environment = {
        **{key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"},
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "disabled",
    }
    log = tmp_path / "log"
    with log.open("w") as output:
        run = subprocess.Popen(
            [*launcher, "fit", *arguments], cwd=tmp_path, env=environment, stdout=output, stderr=output
        )
    try:
        metrics = tmp_path / "runs" / "quickstart" / "version_0" / "metrics.csv"
        deadline = time.monotonic() + 180
        while not metrics.exists():  # it trains
            assert run.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        processes = training(tmp_path)
        assert sorted(processes) == [0, 1]
        killed = time.monotonic()
        os.kill(processes[victim], signal.SIGKILL)
        run.wait(timeout=60)
        survivor = processes[1 - victim]
        while Path(f"/proc/{survivor}").exists():
            assert time.monotonic() - killed < 60, log.read_text()[-3000:]
            time.sleep(0.5)
    finally:
        run.kill()
        for process in training(tmp_path).values():
            os.kill(process, signal.SIGKILL)
    assert run.returncode != 0
    said = log.read_text()
    assert "another process of the run has ended" in said or "Signal 9 (SIGKILL) received by PID" in said
