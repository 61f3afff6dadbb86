"""The tables and figures of docs/study.md and of the README, from the logs of ``python -m benchmarks.study``.

``python -m benchmarks.study_tables`` writes them between the marks of each page, and the figures to docs/study; with
``--check`` it says which would change, and writes nothing.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.study import KEPT
from benchmarks.study_figures import figures
from benchmarks.study_results import (
    DATA,
    HIERARCHICAL,
    batch_sizes,
    called,
    hierarchies_on,
    losses_on,
    settings_on,
    with_settings,
)
from dml.compare import read_kept
from dml.compare.kept import is_kept

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "docs" / "study.md", ROOT / "README.md")
_MARKED = re.compile(r"(<!-- study: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_NOT_RUN = "Not run yet.\n"


def main(words: Sequence[str] | None = None) -> int:
    """Write or check the pages and figures.

    Returns:
        Exit code: 1 if something would change.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study_tables", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    stale = []
    contents = {page: _MARKED.sub(_filled, page.read_text()) for page in PAGES} | figures()
    checks = parser.parse_args(words).check
    for path, content in contents.items():
        if path.exists() and path.read_text() == content:
            continue
        stale.append(path.relative_to(ROOT))
        if not checks:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    sys.stdout.write("".join(f"{'stale' if checks else 'written'}: {path}\n" for path in stale))
    return int(checks and bool(stale))


def _filled(mark: re.Match[str]) -> str:
    return f"{mark[1]}{TABLES[mark[2]]()}{mark[3]}"


def losses(data: str) -> str:
    """Each loss at the setting that validation chose, best first."""
    found = losses_on(data)
    if found is None:
        return _NOT_RUN
    rows, tried = found.rows, settings_on(data)
    return _markdown(
        {
            "loss": [called(loss) for loss in rows["loss"]],
            "chosen": [_with_edge(text, tried[loss]) for loss, text in zip(rows["loss"], rows["variant"], strict=True)],
            "seeds": rows["seeds"].astype(str),
            "AP": _means(rows, "test/AP", interval=True),
            "difference": _differences(rows),
            "p": [_chance(value) for value in rows["p_holm"]],
            "mAP@R": _means(rows, "test/mAP@R"),
            "R@1": _means(rows, "test/R@1"),
            "validation AP": [f"{value:.3f}" for value in rows["val"]],
        }
    )


def summary() -> str:
    """Test AP of each loss on each data set, for the README."""
    columns = {}
    for data, name in DATA.items():
        found = losses_on(data)
        if found is not None:
            columns[name] = pd.Series(_means(found.rows, "test/AP"), found.rows["loss"])
    if not columns:
        return _NOT_RUN
    table = pd.DataFrame(columns)
    table = table.loc[next(iter(columns.values())).index].fillna("not run")
    return _markdown({"loss": [called(loss) for loss in table.index], **{name: table[name] for name in table}})


def calibration() -> str:
    """AP and the decomposability gap against the weight of the calibration term."""
    runs = with_settings("calibration", weight=lambda config: config["model"]["loss"]["init_args"]["weights"][1])
    if runs is None:
        return _NOT_RUN
    return _grouped(runs, ["weight"], {"test AP": "test/AP", "test R@1": "test/R@1", "gap": "val/decomposability_gap"})


def include_self() -> str:
    """AP with and without the query in its own gallery."""
    runs = with_settings(
        "include_self",
        kept=lambda config: config["model"]["loss"]["init_args"]["include_self"],
        setting=lambda config: _setting(config["model"]["loss"]["init_args"]),
    )
    if runs is None:
        return _NOT_RUN
    runs["query"] = np.where(runs["kept"], "kept", "left out")
    return _grouped(runs, ["loss", "setting", "query"], {"test AP": "test/AP", "test R@1": "test/R@1"})


def _setting(arguments: dict[str, Any]) -> str:
    """What is tuned of a rank loss."""
    names = ("num_bins", "temperature", "offset")
    return ", ".join(f"{name}={arguments[name]:g}" for name in names if arguments.get(name) is not None)


def samples_per_class() -> str:
    """AP against the number of drawings of a class in a batch."""
    runs = with_settings("samples_per_class", m=lambda config: config["data"]["samples_per_class"])
    if runs is None:
        return _NOT_RUN
    return _grouped(runs, ["loss", "m"], {"test AP": "test/AP", "test R@1": "test/R@1"})


def batch_size() -> str:
    """AP against the batch size, for the same number of drawings and of steps."""
    runs = batch_sizes()
    if runs is None:
        return _NOT_RUN
    return _grouped(runs, ["budget", "batch", "steps"], {"test AP": "test/AP", "test R@1": "test/R@1"})


def hierarchical(data: str) -> str:
    """Losses by hierarchical AP."""
    found = hierarchies_on(data)
    if found is None:
        return _NOT_RUN
    rows = found.rows
    shown = [name for name in ("test/nDCG", "test/AP", "test/R@1") if name in rows]
    coarser = [name for name in rows if name.startswith("test/AP_") and f"{name}_std" in rows]
    return _markdown(
        {
            "loss": [called(loss) for loss in rows["loss"]],
            "seeds": rows["seeds"].astype(str),
            "H-AP": _means(rows, "test/H-AP", interval=True),
            "difference": _differences(rows),
            "p": [_chance(value) for value in rows["p_holm"]],
            **{name.removeprefix("test/"): _means(rows, name) for name in (*shown, *coarser)},
        }
    )


def extent() -> str:
    """How many runs the study has, and what they cost."""
    rows = {}
    for part in sorted(path.name for path in KEPT.iterdir() if is_kept(path)) if KEPT.is_dir() else ():
        runs = read_kept(KEPT / part).runs
        minutes = runs["minutes"]
        rows[part] = (f"{len(runs)}", f"{minutes.median():.1f}", f"{minutes.max():.1f}", f"{minutes.sum() / 60:.1f}")
    parts, columns = list(rows), list(zip(*rows.values(), strict=True))
    titles = ("runs", "median minutes", "longest", "hours in all")
    return _markdown({"part": parts, **dict(zip(titles, columns, strict=True))}) if rows else _NOT_RUN


TABLES: dict[str, Callable[[], str]] = {
    "summary": summary,
    "calibration": calibration,
    "include_self": include_self,
    "samples_per_class": samples_per_class,
    "batch_size": batch_size,
    "extent": extent,
    **{f"losses_{data}": lambda data=data: losses(data) for data in DATA},
    **{f"hierarchical_{data}": lambda data=data: hierarchical(data) for data in HIERARCHICAL},
}


def _grouped(runs: pd.DataFrame, by: list[str], values: dict[str, str]) -> str:
    """Mean and standard deviation over seeds of each group."""
    groups = runs.groupby(by, sort=True)
    keys = groups.size().reset_index()
    table: dict[str, Sequence[str]] = {name: [_plain(value) for value in keys[name]] for name in by}
    table["seeds"] = groups["seed"].nunique().astype(str).tolist()
    for title, name in values.items():
        table[title] = _spread(groups[name].mean(), groups[name].std())
    return _markdown(table)


def _means(rows: pd.DataFrame, name: str, *, interval: bool = False) -> list[str]:
    cells = _spread(rows[name], rows[f"{name}_std"])
    if not interval:
        return cells
    ends = zip(cells, rows["low"], rows["high"], strict=True)
    return [cell if np.isnan(low) else f"{cell} [{low:.3f}, {high:.3f}]" for cell, low, high in ends]


def _spread(means: pd.Series, deviations: pd.Series) -> list[str]:
    pairs = zip(means, deviations, strict=True)
    return [f"{mean:.3f}" if np.isnan(deviation) else f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in pairs]


def _markdown(columns: dict[str, Any]) -> str:
    head = [list(columns), ["---"] * len(columns)]
    rows = zip(*columns.values(), strict=True)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (*head, *rows)) + "\n"


def _with_edge(chosen: str, tried: Sequence[str]) -> str:
    """A setting, with an arrow if it is the highest or the lowest of those that were tried."""
    values = [_last_number(text) for text in tried]
    arrow = {max(values): " ↑", min(values): " ↓"}.get(_last_number(chosen), "")
    shown = [part for part in chosen.split(", ") if not part.startswith("offset")]
    return f"{', '.join(shown)}{arrow}"


def _last_number(text: str) -> float:
    return float(re.findall(r"[\d.]+", text)[-1])


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _differences(rows: pd.DataFrame) -> list[str]:
    """From the first row, with the standard error over seeds."""
    pairs = zip(rows["difference"], rows["difference_error"], strict=True)
    return ["" if np.isnan(value) else f"{value:+.3f} ± {error:.3f}" for value, error in pairs]


def _chance(value: float) -> str:
    return "" if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main())
