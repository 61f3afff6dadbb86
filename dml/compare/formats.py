"""Comparisons for the terminal, for a spreadsheet, for a paper and for a page."""

import re
from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from dml.compare.cells import Cell, Column, columns, labels_of
from dml.compare.table import Comparison

_KEYS = 4  # seeds, the measure, its difference and its p-value are never left out
_KEPT_LONGEST = ("validation", "", "cost")  # kinds of columns; the empty one is of other measures
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "\N{EN DASH}": "--",
    "\N{MINUS SIGN}": "$-$",
}
_LATEX |= {"<": "$<$", ">": "$>$"} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


def print_tables(comparisons: Sequence[Comparison], measure: str, monitor: str, console: Console) -> None:
    """Tables with their notes, without the columns that the console has no room for: costs go first."""
    for comparison in comparisons:
        labels, found = labels_of(comparison.rows), columns(comparison.rows, measure, monitor)
        shown = list(found)
        droppable = sorted(found[_KEYS:], key=lambda column: _KEPT_LONGEST.index(column.kind))
        while not _fits(table := _table(comparison.name, labels, shown), console) and droppable:
            shown.remove(droppable.pop())
        if not _fits(table, console):
            table = _table(comparison.name, labels, shown, max_width=18)
        console.print(table)
        left_out = [column.title for column in found if column not in shown]
        notes = [f"not shown, for want of room: {', '.join(left_out)}"] if left_out else []
        for note in [*comparison.notes, *notes]:
            console.print(f"- {note}", soft_wrap=True, highlight=False, markup=False, emoji=False)


def to_csv(comparisons: Sequence[Comparison]) -> str:
    """All columns of all rows, with numbers as they are, and the name of the comparison before them."""
    frames = [
        comparison.rows.assign(comparison=comparison.name, runs=comparison.rows["runs"].map(";".join))
        for comparison in comparisons
    ]
    together = pd.concat(frames, ignore_index=True)
    first = together.pop("comparison")
    together.insert(0, "comparison", first)
    return together.to_csv(index=False)


def to_markdown(comparisons: Sequence[Comparison], measure: str, monitor: str) -> str:
    """A table under a heading each, the best values bold, and the notes as a list."""
    parts = []
    for comparison in comparisons:
        labels, found = labels_of(comparison.rows), columns(comparison.rows, measure, monitor)
        head = [*labels, *(column.title for column in found)]
        lines = [head, [*("---" for _ in labels), *("---:" for _ in found)]]
        for row, names in enumerate(zip(*labels.values(), strict=True)):
            cells = [_in_markdown(column.cells[row]) for column in found]
            lines.append([*map(_escaped_for_markdown, names), *cells])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = "\n".join(f"- {_escaped_for_markdown(note)}" for note in comparison.notes)
        parts.append("\n\n".join(filter(None, (f"**{_escaped_for_markdown(comparison.name)}**", table, notes))))
    return "\n\n".join(parts) + "\n"


def to_latex(comparisons: Sequence[Comparison], measure: str, monitor: str) -> str:
    """A tabular each, for the package booktabs, the best values bold; notes are comments."""
    parts = []
    for comparison in comparisons:
        labels, found = labels_of(comparison.rows), columns(comparison.rows, measure, monitor)
        head = " & ".join(_escaped_for_latex(title) for title in (*labels, *(column.title for column in found)))
        lines = [f"% {line}" for line in (comparison.name, *comparison.notes)]
        lines += [
            rf"\begin{{tabular}}{{{'l' * len(labels)}{'r' * len(found)}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
        ]
        for row, names in enumerate(zip(*labels.values(), strict=True)):
            cells = [*map(_escaped_for_latex, names), *(_in_latex(column.cells[row]) for column in found)]
            lines.append(rf"{' & '.join(cells)} \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def _table(title: str, labels: dict[str, list[str]], shown: Sequence[Column], max_width: int = 28) -> Table:
    # What comes from runs is text, never markup: a setting may be "[/x]".
    table = Table(title=Text(title, "table.title"), title_justify="left", box=SIMPLE_HEAD)
    for label in labels:
        table.add_column(label, max_width=max_width, overflow="fold")
    for column in shown:
        table.add_column(Text(column.title.replace(" ", "\n")), justify="right", no_wrap=True)
    for row, names in enumerate(zip(*labels.values(), strict=True)):
        table.add_row(*map(Text, names), *(_in_terminal(column.cells[row]) for column in shown))
    return table


def _fits(table: Table, console: Console) -> bool:
    unlimited = console.options.update(max_width=10_000)
    return Measurement.get(console, unlimited, table).maximum <= console.width


def _in_terminal(cell: Cell) -> Text:
    return Text("\n".join(filter(None, (cell.text, cell.detail))), "bold" if cell.is_best else "")


def _in_markdown(cell: Cell) -> str:
    text = _escaped_for_markdown(cell.text)
    text = f"**{text}**" if cell.is_best else text
    return " ".join(filter(None, (text, _escaped_for_markdown(cell.detail))))


def _escaped_for_markdown(text: str) -> str:
    return re.sub(r"([\\|*_<`])", r"\\\1", text)


def _in_latex(cell: Cell) -> str:
    number, star, marks = cell.text.partition(" *")
    text = _escaped_for_latex(number) + (rf"\textsuperscript{{*{marks}}}" if star else "")
    text = rf"\textbf{{{text}}}" if cell.is_best else text
    return " ".join(filter(None, (text, _escaped_for_latex(cell.detail))))


def _escaped_for_latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)
