"""The examples of CONTRIBUTING.md and README.md do what they say."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from dml.__main__ import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.fixture
def my_losses(tmp_path, monkeypatch):
    (source,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    (tmp_path / "my_losses.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    return importlib.import_module("my_losses")


def test_the_slope_is_the_derivative(my_losses):
    step = my_losses.Arctan(0.3)
    difference = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(step(difference).sum(), difference)
    torch.testing.assert_close(step.slope(difference.detach()), derivative)


def test_the_loss_learns(my_losses):
    generator = torch.Generator().manual_seed(0)
    embeddings = normalize(torch.randn(24, 16, generator=generator), dim=1).requires_grad_()
    labels = torch.arange(24) % 6
    loss = my_losses.ArctanAPLoss(scale=0.1)
    before = loss(embeddings, labels)
    (gradient,) = torch.autograd.grad(before, embeddings)
    assert loss(normalize(embeddings - 0.5 * gradient, dim=1), labels) < before


def test_the_command_trains_with_it(my_losses, glyphs_root):
    (command,) = re.findall(r"^dml (fit .*my_losses.*)$", TEXT, flags=re.MULTILINE)
    words = [word.replace("experiments/", f"{ROOT}/experiments/") for word in shlex.split(command)]
    small = {
        "data.root": glyphs_root,
        "data.classes_per_batch": 4,
        "data.num_workers": 0,
        "trainer.fast_dev_run": "true",
        "trainer.enable_progress_bar": "false",
    }
    main([*words, *(f"--{key}={value}" for key, value in small.items())])


def test_the_parts_stand_alone():
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    labels, index = torch.arange(24) % 6, torch.arange(24)
    names = {"embeddings": normalize(torch.eye(6)[labels], dim=1), "labels": labels, "index": index}
    exec(source, names)
    assert names["loss"] < 0.6
    assert names["metrics"].compute()["R@1"] == 1
