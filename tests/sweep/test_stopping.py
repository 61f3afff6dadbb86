"""Sweeps that are told to stop: at once, whole, and without a trace of how."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import yaml

from dml.sweep.state import read_state
from tests.sweep.running import run_them, runs, wait_for

ROOT = Path(__file__).parents[2]


def test_ctrl_c_has_the_runs_stop(tmp_path):
    waiting, later = runs("wait", "work")

    def watch(outcomes):
        if (tmp_path / waiting.name / "waiting").exists():
            raise KeyboardInterrupt

    outcomes = run_them([waiting, later], tmp_path, watch=watch)
    assert [outcome.state for outcome in outcomes] == ["stopped", "waiting"]
    assert read_state(tmp_path / waiting.name)["exit_code"] == 128 + signal.SIGTERM
    assert not (tmp_path / later.name).exists()


@pytest.fixture
def ctrl_c():
    """The signal, as a shell leaves it to a program that it does not start in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.SIGINT
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_a_run_is_being_started_has_it_stop_too(tmp_path, monkeypatch, ctrl_c):
    (asked,) = runs("wait")
    started = []
    start = BaseProcess.start

    def interrupted(process):
        start(process)
        started.append(process)
        if len(started) == 2:  # the first is to wait for what runs are forked from
            signal.raise_signal(ctrl_c)

    monkeypatch.setattr(BaseProcess, "start", interrupted)
    assert [outcome.state for outcome in run_them([asked], tmp_path)] == ["stopped"]
    assert [process.is_alive() for process in started] == [False, False]


def test_ctrl_c_during_a_run_is_an_interrupt_of_its_command(tmp_path, ctrl_c):
    (asked,) = runs("interrupt")
    assert [outcome.state for outcome in run_them([asked], tmp_path)] == ["stopped"]
    assert read_state(tmp_path / asked.name)["exit_code"] == 130


SLOW = """
import os
import sys
import time
from pathlib import Path

if sys.argv[0] == "-c":  # the process that runs are forked from
    Path("importing").write_text(str(os.getpid()))
    time.sleep(300)


def command(words):
    Path("called").touch()
"""

MAIN = """
import signal
import sys

import slow
from jsonargparse import ArgumentParser

from dml.sweep_command import run

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run(["two.yaml"], ArgumentParser, slow.command))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_sweep_can_be_stopped_before_its_first_run(number, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "main.py").write_text(MAIN)
    parameters = {"seed_everything": {"values": [0, 1]}}
    content = {"method": "grid", "command": ["dml", "fit", "${args}"], "parameters": parameters}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(content))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    process = subprocess.Popen(
        [sys.executable, "main.py"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for((tmp_path / "importing").exists, 200)
        time.sleep(0.5)  # for the sweep to come to wait for it
        if number == signal.SIGINT:  # which comes to all processes of a terminal, the other one before the sweep
            os.kill(int((tmp_path / "importing").read_text()), number)
            time.sleep(0.5)
        os.kill(process.pid, number)
        printed = process.communicate(timeout=100)  # until the last process that may print has ended
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert printed == ("2 of 2 are not done; the same command goes on with them\n", "")
    assert list((tmp_path / "runs" / "two").iterdir()) == []
    assert not (tmp_path / "called").exists()
