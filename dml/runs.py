"""The folders of runs, and which of them a command goes on with."""

import atexit
import contextlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_only

from dml.callbacks.run import WATCHED

_JOBS = "jobs.txt"


def of_logger(logger: Any) -> Path:
    """Where a CSV logger keeps the folders of its runs."""
    return Path(logger.save_dir) / (logger.name or "")


def of_run(logger: Any) -> Path:
    """The folder of the run that a CSV logger logs, once its version is settled."""
    return of_logger(logger) / str(logger.version)


def place(folder: Path, loggers: list[Any]) -> None:
    """Have a run keep everything in a folder of the user's choice, which need not be there yet.

    Args:
        folder: Of the run.
        loggers: Its CSV loggers; the first one is set to log there.

    Raises:
        ValueError: If there is no CSV logger, or the folder is a file.
    """
    if not loggers:
        raise ValueError(f"folder is {str(folder)!r}, but trainer.logger has no CSVLogger, which makes the folder")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder is {str(folder)!r}, which is a file; name a folder, which need not be there yet")
    loggers[0].save_dir, loggers[0].name, loggers[0].version = str(folder.parent), "", folder.name


def checkpoint_in(folder: Path, path: str | None) -> str | None:
    """The checkpoint that a fit in a folder of the user's choice goes on from: with 'last', its own if it has one.

    Raises:
        ValueError: If there is a run in the folder, and the new one is not told to go on with it.
    """
    if path is None:
        _check_is_free(folder)
    last = folder / "checkpoints" / "last.ckpt"
    if path == "last":
        return str(last) if last.is_file() else None
    return path


@rank_zero_only  # the others start when the first has made it
def _check_is_free(folder: Path) -> None:
    if (folder / "metrics.csv").exists():
        raise ValueError(f"folder is {str(folder)!r}, where a run is; add --ckpt_path last to go on, or name another")


def checkpoint_to_resume(path: Path, loggers: list[Any]) -> Path:
    """The checkpoint to go on from, once the CSV loggers are set to go on with its run.

    Raises:
        ValueError: If there is none.
    """
    if str(path) == "last":
        found = [run for logger in loggers for run in of_logger(logger).glob("*/checkpoints/last.ckpt")]
        if not found:
            where = [str(of_logger(logger)) for logger in loggers]
            raise ValueError(f"ckpt_path is 'last', but no run in {where} has checkpoints/last.ckpt; start without it")
        path = max(found, key=lambda candidate: candidate.stat().st_mtime)
    if not path.is_file():
        raise ValueError(f"ckpt_path is {str(path)!r}; there is no such file")
    run = path.resolve().parent.parent
    for logger in loggers:
        if run.parent == of_logger(logger).resolve():
            logger.version = run.name
    return path


def watch_again(run: Path, checkpoint: Path, loggers: list[Any]) -> None:
    """Have a run of Weights & Biases go on too, if the checkpoint to go on from is in the folder of the run itself.

    What the user has set stays: an id of the logger's, or of the environment.

    Args:
        run: Folder of the run.
        checkpoint: That a fit goes on from.
        loggers: Those of Weights & Biases; their ids are set to those that ``DescribeRun`` has noted.
    """
    noted = run / WATCHED
    if "WANDB_RUN_ID" in os.environ or not noted.exists() or not checkpoint.resolve().is_relative_to(run.resolve()):
        return
    for logger, watched in zip(loggers, noted.read_text().split(), strict=False):
        if logger.id is None and logger.version is None:
            logger.id = watched


@rank_zero_only
def reserve(runs: Path, job: str | None) -> str:
    """Make the folder of a new run: two runs started at once would otherwise both take the next free number.

    Args:
        runs: Where it is made.
        job: The SLURM job, which is then in its name.
    """
    for number in itertools.count():
        name = f"version_{number}" if job is None else f"job_{job}" + (f"_{number}" if number else "")
        with contextlib.suppress(FileExistsError):
            (runs / name).mkdir(parents=True)
            atexit.register(_remove_if_empty, runs / name)
            return name
    raise AssertionError


def _remove_if_empty(folder: Path) -> None:
    """Leave nothing behind of a run that ended before it began."""
    with contextlib.suppress(OSError):
        folder.rmdir()


@rank_zero_only
def set_aside(metrics: Path) -> None:
    """Rename the metrics of the run so far, which the CSV logger would delete, to ``metrics.1.csv`` and so on."""
    if metrics.exists():
        number = 1 + len(list(metrics.parent.glob("metrics.*.csv")))
        metrics.rename(metrics.with_suffix(f".{number}.csv"))


def slurm_job() -> str | None:
    """The SLURM job that Lightning takes this process to be of; None in an interactive one."""
    if "SLURM_JOB_ID" not in os.environ or not SLURMEnvironment.detect() or SLURMEnvironment.job_id() is None:
        return None
    return os.environ["SLURM_JOB_ID"]


def checkpoint_of_job(job: str, words: list[str], loggers: list[Any]) -> Path | None:
    """The last checkpoint of this command in this job: there is one if SLURM has put the job back into its queue.

    A job may hold several commands, each of which goes on with its own run.
    """
    for logger in loggers:
        for jobs in of_logger(logger).glob(f"*/{_JOBS}"):
            last = jobs.parent / "checkpoints" / "last.ckpt"
            if last.is_file() and _line(job, words) in jobs.read_text().splitlines():
                return last
    return None


@rank_zero_only
def remember_job(run: Path, job: str, words: list[str]) -> None:
    """Note in the folder of a run which job and command it is of, for :func:`checkpoint_of_job`."""
    line = _line(job, words)
    jobs = run / _JOBS
    if not jobs.exists() or line not in jobs.read_text().splitlines():
        with jobs.open("a") as file:
            file.write(f"{line}\n")


def _line(job: str, words: list[str]) -> str:
    return json.dumps([job, *words])
