"""One run of a sweep, in a process of its own."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dml.sweep.state import LOCK, LOG, digest, standing, write_state

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

ELSEWHERE = 75
"""Exit code of a process that found another one at work on its run: EX_TEMPFAIL of sysexits.h."""
CHANGED = 78
"""Exit code of a process that found its run made with other files: EX_CONFIG."""

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
        found = standing(folder, words) if is_alone else "elsewhere"
        if found != "waiting":  # by another sweep of the same file, or an editor, meanwhile
            sys.exit({"done": 0, "changed": CHANGED, "elsewhere": ELSEWHERE}[found])
        # Python would have the processes of this one, its loaders, started as this one was.
        multiprocessing.set_start_method(start_method, force=True)
        os.environ.update(environment)
        torch.set_num_threads(num_threads)
        files, started = digest(words), time.monotonic()
        write_state(folder, words, files)
        with (folder / LOG).open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        code = _exit_code(command, [*words, f"--folder={folder}", "--ckpt_path=last"])
        write_state(folder, words, files, code, round((time.monotonic() - started) / 60, 3))
    sys.exit(code)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether this process has the folder; the lock is gone with the process, however it ends."""
    if fcntl is None:
        yield True
        return
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _exit_code(command: Command, words: list[str]) -> int:
    try:
        # Ignored until here, as by the process that this one is forked from: there was nothing to end well.
        signal.signal(signal.SIGINT, signal.default_int_handler)
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
