"""The benchmarks run, and measure what they say."""

import subprocess
import sys
from pathlib import Path

import pytest

import dml.losses
from benchmarks.losses import LOSSES, by_turns

ROOT = Path(__file__).parents[1]


def test_table_of_the_losses():
    command = [
        "-m",
        "benchmarks.losses",
        "--batch",
        "32",
        "64",
        "--budget",
        "0.01",
        "--losses",
        "SmoothAPLoss",
        "SupHAPLoss",
    ]
    run = subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True, text=True)
    rows = [line.strip("| ").split(" | ") for line in run.stdout.splitlines() if "APLoss" in line]
    assert [(row[0], int(row[1])) for row in rows] == [(n, b) for n in ("SmoothAPLoss", "SupHAPLoss") for b in (32, 64)]
    for row in rows:
        milliseconds, _, ratio, floor = map(float, row[2:6])
        assert ratio == pytest.approx(milliseconds / floor, rel=0.3)  # both are rounded
    assert all(float(row[7]) > 0 for row in rows[:2])
    assert all(row[6:] == ["-", "-"] for row in rows[2:])


def test_every_rank_loss_is_measured():
    ranked = {
        name
        for name, loss in vars(dml.losses).items()
        if isinstance(loss, type) and issubclass(loss, dml.losses.RankLoss) and loss is not dml.losses.RankLoss
    }
    assert set(LOSSES) == ranked | {"CalibrationLoss"}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_is_that_of_the_peak():
    """In a process of its own: another's allocator may have pages to spare."""
    command = """
import torch
from benchmarks.losses import memory_added

def one_by_one():
    torch.ones(2**24)
    torch.ones(2**23)

print(memory_added(one_by_one, "cpu"))
"""
    run = subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=True, capture_output=True, text=True)
    assert float(run.stdout) == pytest.approx(2**26, rel=0.2)


def test_calls_take_turns():
    calls = []
    seconds = by_turns([lambda: calls.append("a"), lambda: calls.append("b")], "cpu", budget=0)
    assert calls == ["a", "b"] * 4
    assert len(seconds) == 2


def test_table_of_the_loaders():
    small = {"images": 64, "batch": 16, "workers": 1, "turns": 1, "epochs": 1, "items": 2000}
    words = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.loading", *words]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line[:3] in ("| 0", "| 1")]
    assert len(rows) == 2
    for _, ours, *ratios, bare, peer in rows:
        for ratio, other in zip(ratios, (bare, peer), strict=True):
            assert float(ratio) == pytest.approx(float(ours) / float(other), rel=0.1)  # all are rounded
    assert "parent after 1 more epochs: " in printed
    assert "a worker of 2,000 images against one of 1,000: " in printed


def test_tables_of_training():
    small = {"models": "test_resnet", "image_size": 32, "batch": 16, "chunk_size": 4, "large_batch": 64, "turns": 2}
    more = {"images": 32, "workers": 0, "memory_sizes": 200, "threads": 1}
    words = [word for name, value in {**small, **more}.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.training", *words]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith(("| test_", "| 200"))]
    steps, memory, epoch, references = rows
    assert float(steps[3]) == pytest.approx(float(steps[5]) / float(steps[4]), rel=0.5)  # a median of ratios
    assert all(float(value) >= 0 for value in memory[3:])
    fitting, loading, stepping = map(float, epoch[3:])
    assert float(epoch[2]) == pytest.approx(fitting / min(loading, stepping), rel=0.1)  # of one turn
    assert float(references[3]) > 0
