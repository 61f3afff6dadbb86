"""Commands that stand for ``dml fit`` in the tests of the runner: importable by the processes it starts."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import torch


def folder_of(words):
    return Path(next(word for word in words if word.startswith("--folder=")).partition("=")[2])


def option(words, name):
    return next((word.partition("=")[2] for word in words if word.startswith(f"--{name}=")), None)


def command(words):
    """Do as ``--do`` says, and leave a trace of each call, but for those that refuse their words, as a parser does."""
    folder = folder_of(words)
    if option(words, "do") == "misread":
        sys.exit(2)
    with (folder / "calls.txt").open("a") as file:
        file.write(f"{os.getpid()} {torch.get_num_threads()} {os.environ.get('CUDA_VISIBLE_DEVICES')} {words}\n")
    sys.stdout.write("working\n")
    do = option(words, "do")
    if do == "fail":
        raise RuntimeError("out of luck")
    if do == "refuse":
        sys.stderr.write("dml: error: no such loss\n")
        sys.exit(2)
    if do == "once" and len((folder / "calls.txt").read_text().splitlines()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "wait":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        (folder / "waiting").touch()
        time.sleep(60)
    if do == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    (folder / "metrics.csv").write_text("epoch,step,val/AP\n0,10,0.25\n1,20,0.75\n2,30,0.5\n")
    if do == "test":
        (folder / "metrics.csv").write_text("epoch,step,val/AP,test/AP\n0,10,0.25,\n1,20,0.5,\n1,20,,0.125\n")


def command_that_stops_the_sweep(words):
    """Tell the runner to stop, as the end of a job does, then wait to be told."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.kill(multiprocessing.parent_process().pid, signal.SIGTERM)
    time.sleep(60)
