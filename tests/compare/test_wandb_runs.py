"""Runs of Weights & Biases are read by its public interface; here by what has the same."""

import shutil

import numpy as np
import pandas as pd
import pytest
import wandb
import yaml

from dml.compare import compare, read, read_wandb
from tests.compare.made import config, make_run


class Api:
    """What ``wandb.Api()`` has of ``runs``."""

    def __init__(self, *runs):
        self._runs = runs

    def runs(self, path, order):
        assert order == "+created_at"
        if path != "me/metric":
            raise ValueError(f"Could not find project {path}")
        return iter(self._runs)


class Run:
    """A run with what a folder holds, as the server gives it."""

    def __init__(self, identifier, folder, *, as_artifact=False, with_files=True):
        self.path = ["me", "metric", identifier]
        self.config = yaml.safe_load((folder / "config.yaml").read_text()) | {"git_commit": "abc", "sizes": {}}
        self._folder, self._as_artifact, self._with_files = folder, as_artifact, with_files

    def scan_history(self):
        rows = pd.read_csv(self._folder / "metrics.csv").rename(columns={"step": "trainer/global_step"})
        for number, row in enumerate(rows.to_dict("records")):
            found = {name: value for name, value in row.items() if not pd.isna(value)}
            yield found | {"_step": number, "val/pictures": {"_type": "images/separated", "count": 3}}

    def files(self, names):
        assert names == ["per_query/test.parquet"]
        return [File(self._folder / names[0], names[0])] if self._with_files and not self._as_artifact else []

    def logged_artifacts(self):
        return [Artifact(self._folder, "model"), Artifact(self._folder, "per_query")] if self._as_artifact else []


class File:
    def __init__(self, path, name):
        self._path, self.name = path, name

    def download(self, root, replace=True):
        return open(shutil.copy(self._path, f"{root}/test.parquet"))  # as wandb does


class Artifact:
    def __init__(self, folder, kind):
        self.type, self.manifest, self._folder = kind, self, folder
        self.entries = {"test.parquet": self} if kind == "per_query" else {"best.ckpt": None}

    def get_entry(self, name):
        return self.entries[name]

    def download(self, root):
        return shutil.copy(self._folder / "per_query" / "test.parquet", f"{root}/test.parquet")


def _values(mean):
    return np.clip(np.random.default_rng(0).normal(mean, 0.1, 40), 0, 1)


@pytest.mark.parametrize("as_artifact", [False, True], ids=["a file", "an artifact"])
def test_what_a_project_says_is_what_the_folders_say(tmp_path, as_artifact):
    folders = [
        make_run(tmp_path / f"{loss}{seed}", config(f"{loss}Loss", seed), values=_values(mean), started=seed)
        for loss, mean in (("A", 0.5), ("B", 0.6))
        for seed in (0, 1)
    ]
    runs = [Run(folder.name, folder, as_artifact=as_artifact) for folder in folders]
    logs = read_wandb("me/metric", Api(*runs))
    assert logs.runs.index.tolist() == ["me/metric/A0", "me/metric/A1", "me/metric/B0", "me/metric/B1"]
    (found,), (expected,) = compare(logs), compare(read(tmp_path))
    pd.testing.assert_frame_equal(found.rows.drop(columns="runs"), expected.rows.drop(columns="runs"))
    assert found.protocol == expected.protocol
    assert found.rows["low"].notna().all()
    assert not logs.curves["metric"].str.contains("pictures").any()


def test_without_queries_there_are_no_intervals(tmp_path):
    run = Run("a", make_run(tmp_path / "a"), with_files=False)
    (found,) = compare(read_wandb("me/metric", Api(run)))
    assert found.rows["test/AP"].notna().all()
    assert found.rows["low"].isna().all()


def test_runs_of_something_else_and_runs_that_have_logged_nothing(tmp_path):
    other = Run("other", make_run(tmp_path / "a"))
    other.config = {"learning_rate": 1}
    empty = Run("empty", make_run(tmp_path / "b"))
    empty.scan_history = lambda: iter([])
    done = Run("done", make_run(tmp_path / "c"))
    logs = read_wandb("me/metric", Api(other, empty, done))
    assert logs.runs["finished"].to_dict() == {"me/metric/empty": False, "me/metric/done": True}
    assert logs.notes == ("me/metric/other is left out: its configuration is not one of dml",)
    with pytest.raises(ValueError, match="wandb is 'me/metric', which holds no run of dml"):
        read_wandb("me/metric", Api(other))


def test_minutes_that_were_logged_last_are_of_all_parts(tmp_path):
    run = Run("a", make_run(tmp_path / "a"))
    history = list(run.scan_history())
    run.scan_history = lambda: iter([{"fit_minutes": 0.5, "trainer/global_step": 1, "_step": 0}, *history])
    assert read_wandb("me/metric", Api(run)).runs["minutes"].tolist() == [1.5]


def test_no_such_project():
    with pytest.raises(ValueError, match="wandb is 'me/none', which cannot be read: Could not find project"):
        read_wandb("me/none", Api())


def test_no_connection(monkeypatch):
    api = Api()

    def fail(path, order):
        raise wandb.errors.CommError("no route\nto host")

    monkeypatch.setattr(api, "runs", fail)
    with pytest.raises(ValueError, match="wandb is 'me/metric', which cannot be read: no route to host"):
        read_wandb("me/metric", api)
