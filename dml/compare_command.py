"""The ``dml compare`` command: many runs in one table, or a page."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich.console import Console

from dml.compare import Comparison, RunLogs, compare, keep, read, read_wandb
from dml.compare.formats import print_tables, to_csv, to_latex, to_markdown
from dml.compare.report import write_html

_WIDTH_OF_FILES = 200


def run(words: list[str], parser_class: type[ArgumentParser]) -> int:
    """Run the command.

    Args:
        words: Of the command line, after ``dml compare``.
        parser_class: How errors are reported.

    Returns:
        Exit code: 0.

    Raises:
        ValueError: If an argument is wrong, there is nothing to compare, or a file cannot be written.
    """
    options = _parser(parser_class).parse_args(words)
    _check_files(options)
    logs = _read(options)
    if options.keep is not None:
        keep(logs, options.keep)
    comparisons = compare(
        logs,
        measure=options.measure,
        monitor=options.monitor,
        first=options.first,
        best_of_variants=options.best,
        confidence=options.confidence,
    )
    _write_table(comparisons, options)
    if options.html is not None:
        command = shlex.join(["dml", "compare", *words])
        shown = {"measure": options.measure, "monitor": options.monitor, "confidence": options.confidence}
        try:
            write_html(logs, comparisons, options.html, command=command, **shown)
        except OSError as error:
            raise ValueError(f"html is {options.html!r}, which cannot be written: {error.strerror}") from error
    return 0


def _parser(parser_class: type[ArgumentParser]) -> ArgumentParser:
    parser = parser_class(
        prog="dml compare",
        description="Compare runs: a row for each loss, backbone and setting, over seeds; a table for each protocol.",
        allow_abbrev=False,
    )
    parser.add_argument("paths", type=str, nargs="*", help="Folders with runs or logs kept by --keep, at any depth.")
    parser.add_argument("--wandb", type=str | None, default=None, help="In place of folders, entity/project of W&B.")
    parser.add_argument("--measure", type=str, default="test/AP", help="What runs are compared by.")
    parser.add_argument("--monitor", type=str, default="val/AP", help="What the best epoch is chosen by.")
    parser.add_argument("--first", type=str | None, default=None, help="The loss that the others are tested against.")
    parser.add_argument("--best", action="store_true", help="Of the settings of a loss, the best on validation only.")
    parser.add_argument("--confidence", type=float, default=0.95, help="Of the intervals.")
    parser.add_argument("--format", type=Literal["table", "csv", "latex", "markdown"], default="table")
    parser.add_argument("--out", type=str | None, default=None, help="File for the table, in place of the terminal.")
    parser.add_argument("--html", type=str | None, default=None, help="File for a page with curves and retrievals.")
    parser.add_argument("--keep", type=str | None, default=None, help="Folder for the logs as small Parquet files.")
    return parser


def _read(options: Any) -> RunLogs:
    if options.wandb is not None and options.paths:
        raise ValueError(f"wandb is {options.wandb!r}, but folders are given, too: {options.paths}; give one of both")
    if options.wandb is not None:
        return read_wandb(options.wandb)
    if not options.paths:
        raise ValueError("paths is empty: dml compare needs folders with runs, or --wandb entity/project")
    return read(*options.paths, with_retrievals=options.html is not None)


def _check_files(options: Any) -> None:
    """Before runs are read, which may take minutes."""
    for name in ("out", "html", "keep"):
        given = getattr(options, name)
        if given is None:
            continue
        path = Path(given).expanduser()
        if name == "keep":  # a folder, which is made
            place = next(each for each in (path, *path.absolute().parents) if each.exists())
            reason = "" if place.is_dir() else f"{place} is no folder"
        else:
            place = path if path.exists() else path.parent
            reason = "it is a folder; give a file" if path.is_dir() else ""
            reason = reason or ("" if path.parent.is_dir() else f"there is no folder {path.parent}")
        reason = reason or ("" if os.access(place, os.W_OK) else f"{place} may not be written to")
        if reason:
            raise ValueError(f"{name} is {given!r}, which cannot be written: {reason}")


def _write_table(comparisons: list[Comparison], options: Any) -> None:
    if options.out is None:
        if options.format == "csv":  # which has no place for them
            sys.stderr.writelines(f"{found.name}: {note}\n" for found in comparisons for note in found.notes)
        if options.format == "table":
            print_tables(comparisons, options.measure, options.monitor, Console())
        else:
            sys.stdout.write(_text(comparisons, options))
        return
    try:
        with Path(options.out).expanduser().open("w", encoding="utf-8") as file:
            if options.format == "table":
                console = Console(file=file, width=_WIDTH_OF_FILES)
                print_tables(comparisons, options.measure, options.monitor, console)
            else:
                file.write(_text(comparisons, options))
    except OSError as error:
        raise ValueError(f"out is {options.out!r}, which cannot be written: {error.strerror}") from error


def _text(comparisons: list[Comparison], options: Any) -> str:
    if options.format == "csv":
        return to_csv(comparisons)
    write = {"latex": to_latex, "markdown": to_markdown}[options.format]
    return write(comparisons, options.measure, options.monitor)
