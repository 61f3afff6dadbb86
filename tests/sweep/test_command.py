"""``dml sweep``: what it prints, and its exit code."""

import shlex
import signal

import pytest
import yaml

from dml.__main__ import OneLineErrors
from dml.sweep_command import STOPPED, run
from tests.sweep.commands import command, command_that_stops_the_sweep


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A file of three runs, the last of which fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    previous = signal.getsignal(signal.SIGTERM)
    content = {
        "name": "three",
        "method": "grid",
        "command": ["dml", "fit", "${args}"],
        "metric": {"name": "val/AP", "goal": "maximize"},
        "parameters": {"do": {"values": ["work", "once", "fail"]}},
    }
    path = tmp_path / "three.yaml"
    path.write_text(yaml.safe_dump(content))
    yield str(path)
    signal.signal(signal.SIGTERM, previous)


def test_it_runs_all_and_says_what_is_missing(sweep, tmp_path, capsys):
    assert run([sweep], OneLineErrors, command) == 1
    printed = capsys.readouterr().out
    assert "three: 2 failed, 1 done" in printed
    assert "output.log: RuntimeError: out of luck" in printed
    assert "2 of 3 are not done; the same command goes on with them" in printed
    assert run([sweep, "--jobs=2"], OneLineErrors, command) == 1
    assert "1 of 3 are not done" in capsys.readouterr().out
    assert len(list((tmp_path / "runs" / "three").iterdir())) == 3


def test_the_table_has_the_best_first(sweep, tmp_path, capsys):
    assert run([sweep, "--count=1", "--out=here"], OneLineErrors, command) == 0
    printed = capsys.readouterr().out
    (row,) = [line for line in printed.splitlines() if line.startswith("│")]
    assert "do=work-" in row
    assert "0.7500" in row  # the best of three, not the last
    assert " 2 " in row  # epochs
    assert "compare them: dml compare here" in printed
    assert (tmp_path / "here").is_dir()


def test_a_dry_run_prints_commands_that_a_shell_takes(sweep, tmp_path, capsys):
    assert run([sweep, "--dry_run"], OneLineErrors, command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [shlex.split(line) for line in printed] == [["dml", "fit", f"--do={do}"] for do in ("work", "once", "fail")]
    assert not (tmp_path / "runs").exists()


def test_what_is_told_to_stop_says_so_by_its_exit_code(sweep, capsys):
    assert run([sweep], OneLineErrors, command_that_stops_the_sweep) == STOPPED == 130
    assert "3 of 3 are not done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--jobs=-1"], "jobs is -1; it is a number of runs at a time"), (["--count=0"], "count is 0")],
    ids=["jobs", "count"],
)
def test_wrong_numbers_are_refused(words, message, sweep):
    with pytest.raises(ValueError, match=message):
        run([sweep, *words], OneLineErrors, command)
