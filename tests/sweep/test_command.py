"""``dml sweep``: what it prints, and its exit code."""

import io
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from rich.console import Console

from dml.__main__ import OneLineErrors
from dml.sweep import Outcome, Plan, Planned
from dml.sweep_command import STOPPED, _reason, _View, run
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
    assert "output.log: killed by signal 9 (SIGKILL)" in printed
    assert "2 of 3 are not done; the same command goes on with them" in printed
    assert run([sweep, "--jobs=2"], OneLineErrors, command) == 1
    assert "1 of 3 are not done" in capsys.readouterr().out
    assert len(list((tmp_path / "runs" / "three").iterdir())) == 3


def test_runs_made_with_other_files_are_named(sweep, tmp_path, capsys):
    base, path = tmp_path / "base.yaml", tmp_path / "three.yaml"
    base.write_text("lr: 0.1")
    path.write_text(path.read_text().replace("- fit", f"- fit\n- -c\n- {base}"))
    assert run([sweep, "--count=1"], OneLineErrors, command) == 0
    base.write_text("lr: 0.2")
    capsys.readouterr()
    assert run([sweep, "--count=1"], OneLineErrors, command) == 1
    printed = capsys.readouterr().out
    (folder,) = (tmp_path / "runs" / "three").iterdir()
    assert f"made with other files: delete {folder.relative_to(tmp_path)}, or give another --out" in printed
    assert "1 of 1 are not done\n" in printed
    assert run([sweep], OneLineErrors, command) == 1
    assert "3 of 3 are not done; the same command goes on with 2 of them" in capsys.readouterr().out


def test_a_run_that_said_nothing_says_so(tmp_path):
    silent = Outcome(Planned("silent", ["fit"]), tmp_path / "silent", "failed", exit_code=3)
    assert _reason(silent) == "exit code 3; it has printed nothing"
    assert _reason(silent._replace(exit_code=-60)) == "killed by signal 60 (of no name)"


@pytest.mark.parametrize("out", ["file", "file/folder"])
def test_a_folder_that_cannot_be_made_is_refused_before_anything_starts(out, sweep, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"out is '{out}', a folder that cannot be written: .*; give another"):
        run([sweep, f"--out={out}"], OneLineErrors, command)


def test_the_table_has_the_best_first(sweep, tmp_path, capsys):
    assert run([sweep, "--count=1", "--out=here"], OneLineErrors, command) == 0
    printed = capsys.readouterr().out
    (row,) = [line for line in printed.splitlines() if line.startswith("│")]
    assert "do=work-" in row
    assert "0.7500" in row  # the best of three, not the last
    assert " 2 " in row  # epochs
    assert (tmp_path / "here").is_dir()


def sweep_of(path, *actions):
    content = {**yaml.safe_load(path.read_text()), "parameters": {"do": {"values": list(actions)}}}
    path.write_text(yaml.safe_dump(content))


def test_what_is_tested_can_be_compared(sweep, tmp_path, capsys):
    sweep_of(tmp_path / "three.yaml", "work", "test")
    assert run([sweep, "--out=over here"], OneLineErrors, command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "compare them: dml compare 'over here'"


def test_of_what_is_not_tested_the_best_is_named_and_how_to_test_it(sweep, tmp_path, capsys):
    sweep_of(tmp_path / "three.yaml", "work", "once")
    run([sweep], OneLineErrors, command)  # one of the two is killed
    capsys.readouterr()
    best, worse = sorted((tmp_path / "runs" / "three").iterdir(), reverse=True)
    (worse / "metrics.csv").write_text("epoch,step,val/AP\n0,10,0.625\n")
    kept = best / "checkpoints"
    kept.mkdir()
    for name in ("ap=0.75.ckpt", "ap=0.5.ckpt"):
        (kept / name).touch()
    checkpoint = ModelCheckpoint(kept, monitor="val/AP", mode="max", save_top_k=2)
    checkpoint.best_model_path = f"/where/it/was/made/{kept.name}/ap=0.75.ckpt"
    state = {"DescribeRun": {"minutes": 1.0}, checkpoint.state_key: checkpoint.state_dict()}
    torch.save({"state_dict": {}, "callbacks": state}, kept / "last.ckpt")
    end = [
        f"best by val/AP, 0.7500: {best.name}",
        f"test it: dml test --ckpt_path runs/three/{best.name}/checkpoints/ap=0.75.ckpt",
    ]
    for _ in range(2):  # when the last of them is done, and later
        assert run([sweep], OneLineErrors, command) == 0
        (worse / "metrics.csv").write_text("epoch,step,val/AP\n0,10,0.625\n")
        assert capsys.readouterr().out.splitlines()[-2:] == end
    (kept / "last.ckpt").write_text("damaged")
    assert run([sweep], OneLineErrors, command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == end[0]


def test_the_best_is_the_lowest_of_what_is_minimised(sweep, tmp_path, capsys):
    path = tmp_path / "three.yaml"
    sweep_of(path, "work", "work")
    path.write_text(path.read_text().replace("maximize", "minimize"))
    assert run([sweep], OneLineErrors, command) == 0
    assert "best by val/AP, 0.2500: do=work-" in capsys.readouterr().out


def test_a_metric_that_no_run_has_logged_is_named(sweep, tmp_path, capsys):
    path = tmp_path / "three.yaml"
    sweep_of(path, "work")
    path.write_text(path.read_text().replace("val/AP", "best/val/APP"))
    assert run([sweep], OneLineErrors, command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "they are not tested, and none has logged val/APP"


def test_the_table_of_a_terminal_follows_the_runs(tmp_path):
    plan = Plan("two", "val/AP", False, [Planned(name, ["fit"]) for name in ("first", "second")])
    view = _View(plan, Console(width=100))
    first, second = (Outcome(run, tmp_path / run.name, "waiting") for run in plan.runs)

    def rows(*outcomes):
        console = Console(width=100, file=io.StringIO())
        console.print(view.table(outcomes, 5))
        return [line for line in console.file.getvalue().splitlines() if line.startswith("│")]

    assert [row.split()[3] for row in rows(first, second)] == ["waiting", "waiting"]
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "metrics.csv").write_text("epoch,step,val/AP\n0,10,0.25\n")
    now = rows(first, second._replace(state="running", started=time.monotonic()))
    assert "second" in now[0]
    assert "0.2500" in now[0]
    (tmp_path / "second" / "metrics.csv").write_text("epoch,step,val/AP\n0,10,0.25\n1,20,0.75\n")
    later = rows(first._replace(state="running", started=time.monotonic()), second._replace(state="done"))
    assert "first" in later[0]
    assert "0.7500" in later[1]  # what it had logged when it ended


def test_ctrl_c_before_anything_is_started_is_no_traceback(sweep, capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("dml.sweep_command.num_devices", interrupted)
    assert run([sweep], OneLineErrors, command) == STOPPED
    assert capsys.readouterr().err == "stopped; the same command goes on\n"


def test_a_dry_run_prints_commands_that_a_shell_takes(sweep, tmp_path, capsys):
    assert run([sweep, "--dry_run"], OneLineErrors, command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [shlex.split(line) for line in printed] == [["dml", "fit", f"--do={do}"] for do in ("work", "once", "fail")]
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_ends_quietly_where_nobody_reads_on(sweep):
    program = "import sys; from dml.__main__ import OneLineErrors; from dml.sweep_command import run; "
    program += f"sys.exit(run([{sweep!r}, '--dry_run'], OneLineErrors, print))"
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=300
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_is_told_to_stop_says_so_by_its_exit_code(sweep, capsys):
    assert run([sweep], OneLineErrors, command_that_stops_the_sweep) == STOPPED == 130
    assert "3 of 3 are not done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs=-1"], "jobs is -1; it is a number of runs at a time"),
        (["--count=0"], "count is 0"),
        (["--seed=-1"], "seed is -1; it is an integer, at least 0"),
    ],
    ids=["jobs", "count", "seed"],
)
def test_wrong_numbers_are_refused(words, message, sweep):
    with pytest.raises(ValueError, match=message):
        run([sweep, *words], OneLineErrors, command)
