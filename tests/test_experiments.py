"""Every experiment, with every loss, trains for a batch on a miniature of its data."""

from pathlib import Path

import pytest
import yaml

from dml.__main__ import main
from tests.data.datasets.miniatures import make_grocery, make_omniglot, make_sop

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
MINIATURES = {"GroceryStore": make_grocery, "Omniglot": make_omniglot, "StanfordOnlineProducts": make_sop}
BASES = sorted(EXPERIMENTS.glob("*.yaml"))
LOSSES = sorted((EXPERIMENTS / "losses").glob("*.yaml"))

SMALL = {
    "data.classes_per_batch": 4,
    "data.samples_per_class": 2,
    "data.num_workers": 0,
    "model.embedder.name": "test_resnet",
    "model.embedder.pretrained": "false",
    "model.embedder.image_size": 64,
    "report": "false",
    "trainer.fast_dev_run": "true",
    "trainer.precision": "32-true",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
}


@pytest.fixture(scope="session")
def roots(tmp_path_factory, glyphs_root):
    """A miniature of each dataset, by the name of its class."""
    folders = {name: tmp_path_factory.mktemp(name) for name in MINIATURES}
    for name, make in MINIATURES.items():
        make(folders[name])
    return {**folders, "Glyphs": glyphs_root}


def run(roots, base, *overlays):
    name = yaml.safe_load(base.read_text())["data"]["dataset"].rpartition(".")[2]
    overrides = [f"--{key}={value}" for key, value in {**SMALL, "data.root": roots[name]}.items()]
    main(["fit", f"-c={base}", *(f"-c={overlay}" for overlay in overlays), *overrides])


@pytest.mark.parametrize("base", BASES, ids=lambda path: path.stem)
def test_experiment_runs(base, roots, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run(roots, base)


@pytest.mark.parametrize("overlay", LOSSES, ids=lambda path: path.stem)
def test_loss_runs(overlay, roots, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run(roots, EXPERIMENTS / "sop.yaml", overlay)
