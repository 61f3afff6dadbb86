"""Run the runs of a sweep side by side, and go on where an earlier call stopped."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from dml.sweep.plan import Planned
from dml.sweep.state import standing
from dml.sweep.worker import CHANGED, ELSEWHERE, Command, work

_PAUSE = 0.2  # seconds between two looks at the processes
State = Literal["waiting", "running", "done", "failed", "stopped", "elsewhere", "changed"]


class Outcome(NamedTuple):
    """Where a run stands."""

    run: Planned
    folder: Path
    state: State
    started: float | None = None
    """By ``time.monotonic``; None of a run that was not started by this call."""
    exit_code: int | None = None
    """Of its process; negative, the signal that killed it."""


Watch = Callable[[Sequence[Outcome]], None]


def run_all(command: Command, runs: Sequence[Planned], out: Path, *, jobs: int, watch: Watch) -> list[Outcome]:
    """Run each run that is not done yet, each in a process and a folder of its own.

    A run that failed or was stopped is tried again by the next call, and goes on from its last checkpoint. On Ctrl-C,
    the runs under way are told to save and stop, and the others are left waiting. One whose files were changed since is
    left as it is.

    Args:
        command: What takes the words of a run, in another process: it must be importable there.
        runs: With different names.
        out: Folder of their folders.
        jobs: How many at a time. With GPUs, each gets one, by turns; on CPUs, each gets its share of torch's threads.
        watch: Called with how things stand, several times a second.

    Returns:
        The outcome of each run.
    """
    pool = _Pool(command, jobs)
    outcomes = [Outcome(run, out / run.name, standing(out / run.name, run.words)) for run in runs]
    waiting = [row for row, outcome in enumerate(outcomes) if outcome.state == "waiting"]
    try:
        if waiting:
            pool.prepare()
        while waiting or pool.slots:
            while waiting and (slot := pool.free_slot()) is not None:
                row = waiting.pop(0)
                pool.start(slot, row, outcomes[row])
                outcomes[row] = outcomes[row]._replace(state="running", started=time.monotonic())
            for row, exit_code in pool.ended():
                outcomes[row] = outcomes[row]._replace(state=_state(exit_code), exit_code=exit_code)
            watch(outcomes)
            time.sleep(_PAUSE)
    except KeyboardInterrupt:
        for row in pool.stop():
            outcomes[row] = outcomes[row]._replace(state="stopped")
    return outcomes


class _Pool:
    """Processes in slots: a slot is a GPU, or a share of the cores."""

    def __init__(self, command: Command, jobs: int) -> None:
        # Forked from a process that has imported everything, a run starts at once, and that process holds no thread
        # or GPU that a fork would break.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self.context = multiprocessing.get_context(method)
        self.context.set_forkserver_preload([command.__module__, __name__])
        self.command, self.jobs = command, jobs
        self.gpus, self.num_threads = _gpus(), max(1, torch.get_num_threads() // jobs)
        self.slots: dict[int, tuple[int, BaseProcess]] = {}

    def prepare(self) -> None:
        """Wait for the process that runs are forked from: what it imports takes seconds.

        Ctrl-C ends the wait, and comes to that process too, as to all of a terminal. It would die of it with a long
        traceback of its imports; so it leaves Ctrl-C alone, and is ended here. What it is asked for until then is
        nothing, as it may do it yet: a run would be one that nobody waits for.
        """
        if self.context.get_start_method() != "forkserver":
            return
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which a new process takes over, unlike a function
        try:
            forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, before)
        try:
            process: BaseProcess = self.context.Process(target=_do_nothing)  # type: ignore[attr-defined]
            process.start()
            process.join()
        except KeyboardInterrupt:
            # By itself it would end once it has imported everything, and hold the terminal until then.
            server: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
            os.kill(server, signal.SIGTERM)
            raise

    def free_slot(self) -> int | None:
        return next((slot for slot in range(self.jobs) if slot not in self.slots), None)

    def start(self, slot: int, row: int, outcome: Outcome) -> None:
        environment = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
        start_method = multiprocessing.get_start_method()
        arguments = self.command, outcome.run.words, outcome.folder, environment, self.num_threads, start_method
        process: BaseProcess = self.context.Process(target=work, args=arguments)  # type: ignore[attr-defined]
        with _whole():  # or there would be a run that is in no slot, and is not told to stop
            process.start()
            self.slots[slot] = row, process

    def ended(self) -> list[tuple[int, int]]:
        """Row and exit code of each run that has ended since the last look."""
        found = {slot: (row, end.exitcode) for slot, (row, end) in self.slots.items() if end.exitcode is not None}
        for slot in found:
            del self.slots[slot]
        return list(found.values())

    def stop(self) -> list[int]:
        """Have the runs save and end; a second Ctrl-C does not wait for them."""
        processes = [process for _, process in self.slots.values()]
        try:
            for process in processes:
                process.terminate()
            for process in processes:
                process.join()
        except KeyboardInterrupt:
            for process in processes:
                process.kill()
        return [row for row, _ in self.slots.values()]


def _do_nothing() -> None:
    """What a process is asked for to see whether it can be had."""


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """Not to be broken off: a signal to stop that comes meanwhile is heard of afterwards."""
    heard: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {each: signal.signal(each, lambda number, _: heard.append(number)) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if heard:
            signal.raise_signal(heard[0])


def num_devices() -> int:
    """How many GPUs there are."""
    return len(_gpus())


def _gpus() -> list[str]:
    """Names of the GPUs, as CUDA takes them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    return names if torch.cuda.is_available() else []


def _state(exit_code: int) -> State:
    stopped = (130, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)
    ended: dict[int, State] = {0: "done", ELSEWHERE: "elsewhere", CHANGED: "changed"}
    states: dict[int, State] = {**ended, **dict.fromkeys(stopped, "stopped")}
    return states.get(exit_code, "failed")
