"""The project holds its own promises: cheap import, one list of dependencies, files where they belong."""

import configparser
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import dml.losses
import dml.stages
from dml.losses import RankLoss
from dml.stages import Reranker, Stage

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_importing_dml_is_cheap():
    command = "import sys, dml; print(sorted({'torch', 'timm', 'pandas', 'numpy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_environment_yml_equals_setup_cfg():
    declared = setup_cfg()["options"]["install_requires"].split("\n")
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert environment[0] == f"python {setup_cfg()['options']['python_requires']}"
    assert environment[-1]["pip"] == [*filter(None, declared), "-e ."]


def test_every_loss_has_an_experiment():
    overlays = [yaml.safe_load(path.read_text()) for path in (EXPERIMENTS / "losses").glob("*.yaml")]
    used = {overlay["model"]["loss"]["class_path"] for overlay in overlays}
    exported = {
        f"dml.losses.{name}"
        for name, loss in vars(dml.losses).items()
        if inspect.isclass(loss) and not inspect.isabstract(loss)
    }
    assert used == exported


def test_overlays_change_the_loss_and_nothing_else():
    for path in (EXPERIMENTS / "losses").glob("*.yaml"):
        overlay = yaml.safe_load(path.read_text())
        assert list(overlay) == ["model"], path
        assert set(overlay["model"]) <= {"loss", "groups"}, path


def test_every_stage_has_an_experiment():
    overlays = [yaml.safe_load(path.read_text()).get("search", {}) for path in (EXPERIMENTS / "stages").glob("*.yaml")]
    used = [stage for overlay in overlays for stage in [*overlay.get("stages+", ()), overlay.get("reranker")] if stage]
    exported = {
        f"dml.stages.{name}"
        for name, stage in vars(dml.stages).items()
        if inspect.isclass(stage) and issubclass(stage, (Stage, Reranker)) and not inspect.isabstract(stage)
    }
    assert {stage["class_path"] for stage in used} == exported


def test_overlays_of_stages_change_views_and_search_and_nothing_else():
    for path in (EXPERIMENTS / "stages").glob("*.yaml"):
        overlay = yaml.safe_load(path.read_text())
        assert set(overlay) <= {"model", "search"}, path
        assert set(overlay.get("search", {})) <= {"stages+", "reranker"}, path  # what is added goes with others
        assert set(overlay.get("model", {})) <= {"embedder"}, path
        assert set(overlay.get("model", {}).get("embedder", {})) <= {"scales", "flip", "view_power"}, path


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_says_what_it_is(path):
    assert path.read_text().startswith("# ")


def test_house_limits():
    for path in (ROOT / "dml").rglob("*.py"):
        lines = path.read_text().count("\n")
        assert lines <= (200 if path.name == "module.py" else 300), f"{path} has {lines} lines"


def test_rank_losses_measure_in_six_lines():
    for loss in vars(dml.losses).values():
        if inspect.isclass(loss) and issubclass(loss, RankLoss) and loss is not RankLoss:
            body = inspect.getsource(loss.measure).strip().split("\n")[1:]
            assert len(body) <= 6, loss
