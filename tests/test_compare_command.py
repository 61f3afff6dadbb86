"""``dml compare`` from the shell."""

import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from jsonargparse import ArgumentParser

from dml import compare_command
from dml.compare import read_kept
from tests.compare.made import config, make_run


@pytest.fixture
def runs(tmp_path):
    for loss, mean in (("A", 0.5), ("B", 0.6)):
        for seed in (0, 1):
            values = np.clip(np.random.default_rng(seed).normal(mean, 0.1, 40), 0, 1)
            make_run(tmp_path / "runs" / f"{loss}{seed}", config(f"{loss}Loss", seed), values=values)
    make_run(tmp_path / "runs" / "running", config("CLoss"), is_tested=False)
    return tmp_path / "runs"


def _run(*words):
    return compare_command.run([str(word) for word in words], ArgumentParser)


def test_a_table(runs, capsys):
    assert _run(runs) == 0
    printed = capsys.readouterr().out
    assert printed.index("BLoss") < printed.index("ALoss")
    assert "1 run has not been tested" in printed


def test_csv_is_only_csv_and_notes_go_elsewhere(runs, capsys):
    _run(runs, "--format", "csv", "--first", "ALoss")
    printed = capsys.readouterr()
    assert pd.read_csv(io.StringIO(printed.out))["loss"].tolist() == ["ALoss", "BLoss"]
    assert "1 run has not been tested" in printed.err


@pytest.mark.parametrize(
    ("kind", "beginning"),
    [("table", "Omniglot"), ("csv", "comparison,"), ("latex", "% Omniglot"), ("markdown", "**Omni")],
)
def test_files(runs, tmp_path, capsys, kind, beginning):
    _run(runs, "--format", kind, "--out", tmp_path / "table")
    assert (tmp_path / "table").read_text().startswith(beginning)
    assert capsys.readouterr().out == ""


def test_a_page_and_logs_to_keep(runs, tmp_path):
    _run(runs, "--html", tmp_path / "page.html", "--keep", tmp_path / "kept", "--out", tmp_path / "table")
    page = (tmp_path / "page.html").read_text()
    assert "ALoss" in page
    assert f"dml compare {runs}" in page
    assert len(read_kept(tmp_path / "kept").runs) == 5
    _run(tmp_path / "kept", "--out", tmp_path / "again")
    assert (tmp_path / "again").read_text() == (tmp_path / "table").read_text()


def test_folders_of_kept_logs_are_read_by_the_folder_above_them(runs, tmp_path):
    _run(runs, "--keep", tmp_path / "logs" / "losses", "--out", tmp_path / "table")
    _run(tmp_path / "logs", "--out", tmp_path / "again")
    assert (tmp_path / "again").read_text() == (tmp_path / "table").read_text()
    (tmp_path / "logs" / "losses" / "classes.parquet").unlink()
    with pytest.raises(ValueError, match=r"holds no run: no folder with config.yaml .*, and none with what --keep"):
        _run(tmp_path / "logs")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "paths is empty: dml compare needs folders with runs, or --wandb entity/project"),
        (["{runs}", "--wandb", "me/metric"], "wandb is 'me/metric', but folders are given, too"),
        (["{runs}/none"], "paths has '.*none', which is no folder"),
        (["{runs}", "--measure", "test/none"], "measure is 'test/none'; the runs have"),
        (["{runs}", "--out", "{runs}"], "out is '.*runs', which cannot be written: it is a folder"),
        (["{runs}", "--html", "{runs}"], "html is '.*runs', which cannot be written: it is a folder; give a file"),
        (
            ["{runs}", "--html", "{runs}/none/page"],
            "html is '.*page', which cannot .*: there is no folder .*none",
        ),
        (
            ["{runs}", "--keep", "{runs}/A0/metrics.csv"],
            "keep is '.*metrics.csv', which .*metrics.csv is no folder",
        ),
        (["{runs}", "--keep", "{runs}/A0/metrics.csv/deep"], "keep is '.*deep', which .*: .*metrics.csv is no folder"),
    ],
)
def test_what_cannot_be(runs, words, message):
    with pytest.raises(ValueError, match=message):
        _run(*(word.format(runs=runs) for word in words))


@pytest.mark.parametrize("option", ["--out", "--html"])
def test_files_are_looked_at_before_runs_are_read(tmp_path, option):
    with pytest.raises(ValueError, match=f"{option[2:]} is .* cannot be written"):
        _run(tmp_path / "no runs", option, tmp_path)


def test_from_the_shell(runs):
    run = subprocess.run(
        [sys.executable, "-m", "dml", "compare", str(runs), "--format", "markdown"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("**Omniglot**\n\n| loss | seeds | test/AP |")
