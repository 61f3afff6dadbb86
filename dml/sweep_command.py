"""The ``dml sweep`` command."""

import contextlib
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.live import Live
from rich.table import Table

from dml import checkpoints
from dml.sweep import Outcome, Plan, read_plan, run_all
from dml.sweep.runner import num_devices
from dml.sweep.state import LOG, read_state
from dml.sweep.worker import Command

STOPPED = 128 + signal.SIGINT
"""Exit code of a sweep that was told to stop."""

_EVERY = 2.0  # seconds between two looks at the metrics
_ROWS = 30
_NOTHING = pd.Series(dtype=float)


class _Logged(NamedTuple):
    """What a run has logged up to now."""

    epoch: int | None
    """That it has reached."""
    best: float | None
    """Of the values of the metric."""
    is_tested: bool


def run(words: list[str], parser_class: type[ArgumentParser], command: Command) -> int:
    """Run the command.

    Args:
        words: Of the command line, after ``dml sweep``.
        parser_class: How errors are reported.
        command: What runs a ``dml fit``.

    Returns:
        Exit code: that of :func:`watched`.

    Raises:
        ValueError: If an argument or the file is wrong.
    """
    arguments = _parser(parser_class).parse_args(words)
    plan = read_plan(arguments.file, count=arguments.count, seed=arguments.seed)
    out = Path(arguments.out) if arguments.out else Path("runs") / Path(arguments.file).stem
    if arguments.dry_run:
        _print([shlex.join(["dml", *planned.words]) for planned in plan.runs])
        return 0
    try:
        jobs = arguments.jobs or num_devices() or 1
        if jobs < 1:
            raise ValueError(f"jobs is {jobs}; it is a number of runs at a time, at least 1")
        return watched(command, plan, out, jobs)
    except KeyboardInterrupt:  # before the first run was started, or while what came of all is printed
        sys.stderr.write("stopped; the same command goes on\n")
        return STOPPED


def watched(command: Command, plan: Plan, out: Path, jobs: int) -> int:
    """Run a plan, and show a table of how it goes; where there is no terminal, a line for each event.

    Returns:
        Exit code: 0 if every run is done, 130 if runs were told to stop, 1 if others are missing.

    Raises:
        ValueError: If nothing can be written in ``out``.
    """
    _make(out)
    console = Console()
    view = _View(plan, console)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what ends a job has the runs save too
    with Live(console=console, auto_refresh=False, transient=True) as live:
        view.live = live if console.is_terminal else None
        outcomes = run_all(command, plan.runs, out, jobs=jobs, watch=view.show)
    if any(outcome.state != "waiting" for outcome in outcomes):
        console.print(view.table(outcomes, len(outcomes)))
    missing = [outcome for outcome in outcomes if outcome.state != "done"]
    for line in _explained(missing):
        console.print(line, soft_wrap=True, markup=False)
    for line in [_again(missing, len(outcomes))] if missing else view.ahead(outcomes, out):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    # Those that the sweep did not come to are waiting.
    return STOPPED if any(each.state in ("stopped", "waiting") for each in missing) else int(bool(missing))


class _View:
    """A table of the runs, which looks at their metrics now and then."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self.plan, self.console = plan, console
        self.live: Live | None = None
        self._looked = -_EVERY
        self._found: dict[Path, _Logged] = {}
        self._seen: dict[Path, str] = {}  # the state that a run was in when its metrics were read
        self._told: dict[Path, str] = {}

    def show(self, outcomes: Sequence[Outcome]) -> None:
        if self.live is None:
            self._tell(outcomes)
        elif time.monotonic() - self._looked > _EVERY:
            self._looked = time.monotonic()
            self.live.update(self.table(outcomes, min(_ROWS, max(self.console.height - 8, 5))), refresh=True)

    def table(self, outcomes: Sequence[Outcome], num_rows: int) -> Table:
        """Those under way first, then the best; the rest is counted."""
        for outcome in outcomes:
            if outcome.state == "running" or self._seen.get(outcome.folder) != outcome.state:
                self._seen[outcome.folder] = outcome.state
                self._found[outcome.folder] = _logged(outcome.folder, self.plan)
        number = pd.Series([outcome.state for outcome in outcomes]).value_counts()
        table = Table(title=f"{self.plan.name}: {', '.join(f'{count} {state}' for state, count in number.items())}")
        for column in ("run", "", "epoch", self.plan.metric, "minutes"):
            table.add_column(column, justify="left" if column in ("run", "") else "right", overflow="fold")
        for outcome in sorted(outcomes, key=self._order)[:num_rows]:
            epoch, value, _ = self._found[outcome.folder]
            minutes = _minutes(outcome)
            table.add_row(
                outcome.run.name,
                outcome.state,
                "" if epoch is None else str(epoch),
                "" if value is None else f"{value:.4f}",
                "" if minutes is None else f"{minutes:.1f}",
            )
        if len(outcomes) > num_rows:
            table.caption = f"and {len(outcomes) - num_rows} more"
        return table

    def ahead(self, outcomes: Sequence[Outcome], out: Path) -> list[str]:
        """What to do next with runs that are all done, once they are in a table: to compare, or to test, the best."""
        if any(self._found[outcome.folder].is_tested for outcome in outcomes):
            return [f"compare them: dml compare {shlex.quote(str(out))}"]
        best = min(outcomes, key=self._order)
        value = self._found[best.folder].best
        if value is None:
            return [f"they are not tested, and none has logged {self.plan.metric}"]
        checkpoint = _best_checkpoint(best.folder)
        test = [] if checkpoint is None else [f"test it: {shlex.join(['dml', 'test', '--ckpt_path', str(checkpoint)])}"]
        return [f"best by {self.plan.metric}, {value:.4f}: {best.run.name}", *test]

    def _order(self, outcome: Outcome) -> tuple[bool, float]:
        value = self._found[outcome.folder].best
        worst = float("inf")
        return outcome.state != "running", worst if value is None else value if self.plan.is_minimised else -value

    def _tell(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if self._told.get(outcome.folder, "waiting") != outcome.state:
                self._told[outcome.folder] = outcome.state
                number = sum(each.state == "done" for each in outcomes)
                self.console.print(f"{outcome.state} {outcome.run.name} ({number}/{len(outcomes)})", soft_wrap=True)


def _logged(folder: Path, plan: Plan) -> _Logged:
    epochs, values, is_tested = list[float](), list[float](), False
    for path in folder.glob("metrics*.csv"):
        try:
            metrics = pd.read_csv(path)
        except (OSError, ValueError):  # being written
            continue
        epochs.extend(metrics.get("epoch", _NOTHING).dropna())
        values.extend(metrics.get(plan.metric, _NOTHING).dropna())
        is_tested = is_tested or any(name.startswith("test/") for name in metrics.columns)
    best = min if plan.is_minimised else max
    return _Logged(int(max(epochs)) if epochs else None, best(values) if values else None, is_tested)


def _best_checkpoint(folder: Path) -> Path | None:
    """That of the best epoch, which the last checkpoint knows by the name that the run was told to give it."""
    kept = folder / "checkpoints"
    with contextlib.suppress(ValueError):  # there is none, or one of something else
        for state in checkpoints.read(str(kept / "last.ckpt")).get("callbacks", {}).values():
            if isinstance(state, dict) and (found := kept / Path(state.get("best_model_path", "")).name).is_file():
                return found
    return None


def _minutes(outcome: Outcome) -> float | None:
    if outcome.state == "running" and outcome.started is not None:
        return (time.monotonic() - outcome.started) / 60
    return read_state(outcome.folder).get("minutes")


def _again(missing: Sequence[Outcome], number_of_all: int) -> str:
    number = sum(outcome.state != "changed" for outcome in missing)
    ahead = f"; the same command goes on with {'them' if number == len(missing) else f'{number} of them'}"
    return f"{len(missing)} of {number_of_all} are not done{ahead if number else ''}"


def _explained(missing: Sequence[Outcome]) -> Iterator[str]:
    """Why runs are not done, of those that will not be by themselves."""
    for outcome in missing:
        if outcome.state == "changed":
            yield f"changed: made with other files: delete {outcome.folder}, or give another --out"
        if outcome.state == "failed":
            yield f"failed: {outcome.folder / LOG}: {_reason(outcome)}"


def _reason(outcome: Outcome) -> str:
    """The signal that killed a run, which its output does not know of, or the last line of it."""
    if outcome.exit_code is not None and outcome.exit_code < 0:
        names = {each.value: each.name for each in signal.Signals}
        return f"killed by signal {-outcome.exit_code} ({names.get(-outcome.exit_code, 'of no name')})"
    try:
        lines = (outcome.folder / LOG).read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else f"exit code {outcome.exit_code}; it has printed nothing"


def _print(lines: Sequence[str]) -> None:
    """Print, to a reader that may have had enough, such as ``head``."""
    try:
        sys.stdout.writelines(f"{line}\n" for line in lines)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"out is {str(out)!r}, a folder that cannot be written: {reason}; give another") from error


def _parser(parser_class: type[ArgumentParser]) -> ArgumentParser:
    parser = parser_class(
        prog="dml sweep",
        description="Run a sweep file of Weights & Biases (method grid or random) here: one run per GPU at a time, or "
        "--jobs of them on a CPU. The same command goes on where it was stopped.",
    )
    parser.add_argument("file", type=str, help="YAML, as wandb sweep takes it.")
    parser.add_argument("--jobs", type=int, default=0, help="Runs at a time; 0: as many as there are GPUs, or one.")
    parser.add_argument("--count", type=int | None, default=None, help="At most so many runs.")
    parser.add_argument("--seed", type=int, default=0, help="Of the draws of method random.")
    parser.add_argument("--out", type=str | None, default=None, help="Folder of the runs; by default runs/<file name>.")
    parser.add_argument("--dry_run", action="store_true", help="Print the commands and run nothing.")
    return parser
