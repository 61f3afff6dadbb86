"""On several processes every loss is that of one process on the same global batches, in value and in gradient."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def on_processes(number, root, out):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    script = [str(Path(__file__).with_name("every_loss.py")), str(root), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *script], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"rank_{rank}.pt", weights_only=True) for rank in range(number)]


@pytest.fixture(scope="module")
def alone(glyphs_root, tmp_path_factory):
    return on_processes(1, glyphs_root, tmp_path_factory.mktemp("alone"))[0]


@pytest.mark.parametrize("number", [2, 4])
def test_every_loss_is_that_of_one_process(number, alone, glyphs_root, tmp_path):
    of_each = on_processes(number, glyphs_root, tmp_path)
    assert len(of_each) == number
    assert all(found.keys() == alone.keys() for found in of_each)
    for name, expected in alone.items():
        largest = max(value.abs().max() for key, value in expected.items() if not key.endswith("loss"))
        assert largest > 1e-3, f"{name} has no gradient"
        for key, value in expected.items():
            scale = 1 if key.endswith("loss") else largest
            for found in of_each:
                assert (found[name][key] - value).abs().max() <= 1e-7 * scale, (name, key)
