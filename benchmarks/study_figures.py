"""The figures of docs/study.md; ``python -m benchmarks.study_tables`` writes them."""

from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.study import BATCH_SIZES
from benchmarks.study_results import DATA, HIERARCHICAL, batch_sizes, called, hierarchies_on, losses_on, with_settings
from dml.compare import Comparison

FIGURES = Path(__file__).parents[1] / "docs" / "study"
_INK, _ACCENT, _SECOND = "#33475b", "#0072b2", "#d55e00"  # the last two of Okabe and Ito
_PROXY_OR_PAIR = ("MultiSimilarityLoss", "TripletMarginLoss", "ContrastiveLoss", "NTXentLoss", "Proxy", "CSLLoss")


def figures() -> dict[Path, str]:
    """The figures of what was run, as SVG."""
    drawn: dict[Path, Figure | None] = {FIGURES / "calibration.svg": _calibration_figure()}
    drawn[FIGURES / "batch_size.svg"] = _batch_size_figure()
    for data, name in DATA.items():
        drawn[FIGURES / f"losses_{data}.svg"] = _rows_figure(losses_on(data), "test/AP", f"test AP on {name}")
    for data in HIERARCHICAL:
        title = f"test H-AP on {DATA[data]}"
        drawn[FIGURES / f"hierarchical_{data}.svg"] = _rows_figure(hierarchies_on(data), "test/H-AP", title)
    return {path: _svg(figure) for path, figure in drawn.items() if figure is not None}


def _rows_figure(found: Comparison | None, measure: str, title: str) -> Figure | None:
    """A row for each loss: the mean over seeds, and its interval over classes."""
    if found is None:
        return None
    rows = found.rows[::-1].reset_index(drop=True)
    figure = Figure(figsize=(7, 0.28 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots()
    for row, of_row in rows.iterrows():
        colour = _SECOND if any(name in of_row["loss"] for name in _PROXY_OR_PAIR) else _ACCENT
        axes.plot([of_row["low"], of_row["high"]], [row, row], color=colour, linewidth=2, alpha=0.5)
        axes.plot(of_row[measure], row, "o", color=colour, markersize=5)
    axes.set_yticks(range(len(rows)), [called(loss) for loss in rows["loss"]])
    axes.set_xlabel(f"{title}, with 95 % intervals over classes")
    return _tidied(figure)


def _calibration_figure() -> Figure | None:
    runs = with_settings("calibration", weight=lambda config: config["model"]["loss"]["init_args"]["weights"][1])
    if runs is None:
        return None
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    pairs = (("test/AP", "test AP"), ("val/decomposability_gap", "decomposability gap"))
    for axes, (name, label) in zip(figure.subplots(1, 2), pairs, strict=True):
        weights = sorted(runs["weight"].unique())
        axes.errorbar(range(len(weights)), *_mean_and_spread(runs, "weight", name), color=_ACCENT, marker="o")
        axes.set_xticks(range(len(weights)), [f"{weight:g}" for weight in weights])
        axes.set_xlabel("weight of the calibration term")
        axes.set_ylabel(label)
    return _tidied(figure)


def _batch_size_figure() -> Figure | None:
    runs = batch_sizes()
    if runs is None:
        return None
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots()
    for (budget, part), colour in zip(runs.groupby("budget"), (_ACCENT, _SECOND), strict=False):
        sizes = sorted(part["batch"].unique())
        axes.errorbar(sizes, *_mean_and_spread(part, "batch", "test/AP"), color=colour, marker="o", label=budget)
    axes.set_xscale("log", base=2)
    axes.set_xticks(BATCH_SIZES, [str(size) for size in BATCH_SIZES])
    axes.set_xlabel("drawings in a batch")
    axes.set_ylabel("test AP")
    axes.legend(frameon=False)
    return _tidied(figure)


def _mean_and_spread(runs: pd.DataFrame, by: str, name: str) -> tuple[Any, Any]:
    grouped = runs.groupby(by)[name]
    return grouped.mean().to_numpy(), grouped.std().fillna(0).to_numpy()


def _tidied(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=_INK)
        axes.grid(alpha=0.25)
    return figure


def _svg(figure: Figure) -> str:
    """The same figure makes the same text."""
    buffer = StringIO()
    with mpl.rc_context({"svg.hashsalt": "dml", "svg.fonttype": "none", "font.size": 9}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    return buffer.getvalue()
