"""The examples of CONTRIBUTING.md and README.md do what they say."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from dml.__main__ import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def my_file(name, folder, monkeypatch):
    """The file that the text asks to save under this name, imported from a folder outside the package."""
    (source,) = re.findall(rf"`{name}.py`.*?```python\n(.*?)```", TEXT, flags=re.DOTALL)
    (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(folder)
    importlib.invalidate_caches()
    sys.modules.pop(name, None)
    return importlib.import_module(name)


@pytest.fixture
def my_losses(tmp_path, monkeypatch):
    return my_file("my_losses", tmp_path, monkeypatch)


@pytest.fixture
def my_measures(tmp_path, monkeypatch):
    return my_file("my_measures", tmp_path, monkeypatch)


def test_the_slope_is_the_derivative(my_losses):
    step = my_losses.Arctan(0.3)
    difference = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(step(difference).sum(), difference)
    torch.testing.assert_close(step.slope(difference.detach()), derivative)


@pytest.mark.parametrize("name", ["my_losses.ArctanAPLoss", "my_measures.ReciprocalRankLoss"])
def test_the_loss_learns(name, my_losses, my_measures):
    generator = torch.Generator().manual_seed(0)
    embeddings = normalize(torch.randn(24, 16, generator=generator), dim=1).requires_grad_()
    labels = torch.arange(24) % 6
    module, _, cls = name.partition(".")
    loss = getattr(sys.modules[module], cls)(0.1)
    before = loss(embeddings, labels)
    (gradient,) = torch.autograd.grad(before, embeddings)
    assert loss(normalize(embeddings - 0.5 * gradient, dim=1), labels) < before


def test_the_measure_is_a_metric_too(my_measures):
    embeddings = normalize(torch.tensor([[1.0, 0.1], [1.0, 0.3], [1.0, 0.0], [0.3, 1.0]]), dim=1)
    metric = my_measures.ReciprocalRankMetrics(recall_at=[1])
    metric.update(embeddings, labels=torch.tensor([[0], [0], [1], [1]]), index=torch.arange(4))
    found = metric.compute()
    ranks = [2, 1, 3, 3]
    assert found["MRR"].item() == pytest.approx(sum(1 / rank for rank in ranks) / 4)
    assert set(found) > {"AP", "R@1"}


@pytest.mark.parametrize("name", ["my_losses", "my_measures"])
def test_the_command_trains_with_it(name, my_losses, my_measures, glyphs_root):
    (command,) = re.findall(rf"^dml (fit .*{name}.*)$", TEXT, flags=re.MULTILINE)
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
    labels = torch.arange(24) % 6
    embeddings = normalize(torch.eye(6)[labels], dim=1)
    names = {"embeddings": embeddings, "labels": labels, "gallery": embeddings[:12], "gallery_labels": labels[:12]}
    names |= {"queries": embeddings[12:], "query_labels": labels[12:]}
    exec(source, names)
    assert names["loss"] < 0.6
    assert [*names["found"]] == ["AP", "mAP@R", "RP", "R@1", "R@10", "MRR", "nDCG@100"]
    assert all(value == pytest.approx(1) for value in [*names["found"].values(), *names["apart"].values()])
