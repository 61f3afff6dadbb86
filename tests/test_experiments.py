"""Every experiment, with every loss, trains for a batch on a miniature of its data; every evaluation is made."""

from pathlib import Path

import pytest
import yaml

from dml.__main__ import main
from tests.data.datasets.miniatures import MINIATURES

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
BASES = sorted(EXPERIMENTS.glob("*.yaml"))
LOSSES = sorted((EXPERIMENTS / "losses").glob("*.yaml"))
EVALUATIONS = sorted((EXPERIMENTS / "evaluation").glob("*.yaml"))
REPORTED = {
    "GoogleLandmarkMetrics": "test/mAP@100",
    "LandmarkMetrics": "test/mAP_M",
    "ReidentificationMetrics": "test/CMC@1",
    "TemplateMetrics": "test/TAR@FAR",
}

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


@pytest.mark.parametrize("overlay", EVALUATIONS, ids=lambda path: path.stem)
def test_evaluation_runs(overlay, roots, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(overlay.read_text())
    name = config["data"]["dataset"].rpartition(".")[2]
    small = {**SMALL, "data.root": roots[name], "trainer.fast_dev_run": "false", "trainer.logger": "false"}
    overrides = [f"--{key}={value}" for key, value in small.items() if key != "report"]
    main(["test", f"-c={EXPERIMENTS / 'sop.yaml'}", f"-c={overlay}", *overrides])
    metrics = config["trainer"]["callbacks"][0]["init_args"]["metrics"]["class_path"].rpartition(".")[2]
    assert REPORTED[metrics] in capsys.readouterr().out
