"""The study: what it plans, and that its pages say what its logs say."""

import inspect
import itertools
import re
from pathlib import Path

import pytest
import yaml

import dml.losses
from benchmarks import study, study_figures, study_tables
from dml.compare import keep, read_kept
from dml.compare.logs import no_logs
from tests.compare.drawn import drawn

ROOT = Path(__file__).parents[1]


@pytest.fixture
def asked(monkeypatch):
    """What each part would run, with the logs of none."""
    found = {}

    def run(part, runs, jobs):
        found.setdefault(part, []).extend(runs)
        return no_logs()

    monkeypatch.setattr(study, "run", run)
    for part in study.PARTS.values():
        part(1)
    return found


def test_every_part_has_runs_of_different_names(asked):
    assert list(asked) == list(study.PARTS)
    for runs in asked.values():
        assert len({run.name for run in runs}) == len(runs) > 0
    assert sum(map(len, asked.values())) > 200


def test_the_files_of_every_run_are_there(asked):
    words = {word for run in itertools.chain(*asked.values()) for word in run.words if word.endswith(".yaml")}
    assert {"experiments/study/glyphs.yaml", "experiments/study/levels.yaml"} <= words
    assert all((ROOT / word).is_file() for word in words)


def test_every_loss_is_in_the_study(asked):
    overlays = {Path(word) for run in itertools.chain(*asked.values()) for word in run.words if "losses/" in word}
    named = " ".join((ROOT / overlay).read_text() for overlay in overlays)
    losses = [name for name, each in vars(dml.losses).items() if inspect.isclass(each)]
    assert [name for name in losses if name != "RankLoss" and not re.search(rf"\b{name}\b", named)] == []


def test_one_recipe_for_all_data_sets():
    configs = [yaml.safe_load((ROOT / f"experiments/study/{data}.yaml").read_text()) for data in study_tables.DATA]
    first = configs[0]
    for config in configs[1:]:
        assert config["model"]["optimizer"] == first["model"]["optimizer"]
        assert config["model"]["schedule"] == first["model"]["schedule"]
        for key in ("name", "pretrained", "embedding_dim", "channels_last"):
            assert config["model"]["embedder"][key] == first["model"]["embedder"][key]
    assert {each["data"]["classes_per_batch"] * each["data"]["samples_per_class"] for each in configs} == {128}


def test_what_is_kept_is_not_run_again(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(study, "OUT", tmp_path / "out")
    logs, _ = drawn(2, 1, with_retrievals=False)
    keep(logs, study.KEPT / "part")
    begun = []
    monkeypatch.setattr(study, "watched", lambda command, plan, out, jobs: begun.extend(plan.runs))
    kept = [study.Planned(Path(path).name, ["fit"]) for path in logs.runs.index]
    found = study.run("part", kept, 1)
    assert begun == []
    assert list(found.runs.index) == list(logs.runs.index)


def test_pages_and_figures_are_those_of_the_logs(capsys):
    assert study_tables.main(["--check"]) == 0, capsys.readouterr().out


def test_every_table_of_the_page_is_filled():
    page = (ROOT / "docs" / "study.md").read_text()
    marks = set(re.findall(r"<!-- study: (\w+) -->", page))
    assert marks == set(study_tables.TABLES) - {"summary"}
    figures = {path.name for path in study_figures.figures()}
    shown = {path.name for path in study_figures.FIGURES.glob("*.svg")}
    assert shown == figures
    assert all(f"study/{name}" in page for name in figures)


def test_logs_that_are_kept_are_whole():
    folders = sorted(study.KEPT.iterdir())
    assert folders
    for folder in folders:
        logs = read_kept(folder)
        assert logs.runs["finished"].all()
        assert set(logs.classes["run"]) == set(logs.runs.index)
