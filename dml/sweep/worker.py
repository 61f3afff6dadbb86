"""One run of a sweep, in a process of its own."""

import contextlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOG = "output.log"
"""What the run has printed, in its folder."""

_STATE = "sweep.json"
ELSEWHERE = 75
"""Exit code of a process that found another one at work on its run: EX_TEMPFAIL of sysexits.h."""

Command = Callable[[list[str]], Any]


def work(
    command: Command,
    words: list[str],
    folder: Path,
    environment: dict[str, str],
    num_threads: int,
    start_method: str,
) -> None:
    """Run a command in its folder, unless another process does; everything it prints goes to a file there.

    Args:
        command: What takes the words.
        words: Of the command line.
        folder: Of the run.
        environment: Variables to set.
        num_threads: Of torch, on CPUs.
        start_method: Of processes that the command starts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder) as is_alone:
        if not is_alone or is_done(folder, words):  # by another sweep of the same file, meanwhile
            sys.exit(0 if is_alone else ELSEWHERE)
        # Python would have the processes of this one, its loaders, started as this one was.
        multiprocessing.set_start_method(start_method, force=True)
        os.environ.update(environment)
        torch.set_num_threads(num_threads)
        started = time.monotonic()
        with (folder / LOG).open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        code = _exit_code(command, [*words, f"--folder={folder}", "--ckpt_path=last"])
        state = {"words": words, "exit_code": code, "minutes": round((time.monotonic() - started) / 60, 3)}
        partial = folder / f"{_STATE}.partial"
        partial.write_text(json.dumps(state))
        partial.replace(folder / _STATE)
    sys.exit(code)


def is_done(folder: Path, words: list[str]) -> bool:
    """Whether a command has ended well in a folder."""
    state = read_state(folder)
    return state.get("exit_code") == 0 and state.get("words") == words


def read_state(folder: Path) -> dict[str, Any]:
    """What the last process in a folder has left: ``words``, ``exit_code`` and ``minutes``; empty if none has ended."""
    try:
        state = json.loads((folder / _STATE).read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether this process has the folder; the lock is gone with the process, however it ends."""
    if fcntl is None:
        yield True
        return
    with (folder / "sweep.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _exit_code(command: Command, words: list[str]) -> int:
    try:
        command(words)
    except KeyboardInterrupt:
        return 130
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:  # the process ends with it, and the file has to say why
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
