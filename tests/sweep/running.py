"""Sweeps of the commands that stand for ``dml fit``."""

import time

import pytest

from dml.sweep import run_all
from dml.sweep.plan import planned
from tests.sweep.commands import command


def runs(*actions):
    return [
        planned(["fit", f"--number={number}", f"--do={do}"], {"do": do, "n": number})
        for number, do in enumerate(actions)
    ]


def ignore(outcomes):
    """Watch nothing."""


def run_them(planned_runs, out, jobs=1, watch=ignore):
    return run_all(command, planned_runs, out, jobs=jobs, watch=watch)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail("it did not happen")
        time.sleep(0.05)
