"""What the runs of the study have brought, from the logs that are kept."""

import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.study import KEPT, NUM_DRAWINGS
from dml.compare import Comparison, RunLogs, compare, read_kept
from dml.compare.kept import is_kept
from dml.compare.variants import variants

DATA = {"omniglot": "Omniglot", "grocery": "Grocery Store", "glyphs": "Glyphs"}
HIERARCHICAL = ("grocery", "glyphs")  # of several levels of classes


def logs_of(part: str) -> RunLogs | None:
    """What is kept of a part of the study; None if it was not run."""
    return read_kept(KEPT / part) if is_kept(KEPT / part) else None


@functools.cache  # a table, a figure and the README ask for the same, whose bootstrap takes the time
def compared(
    part: str, *, measure: str = "test/AP", monitor: str = "val/AP", best_of_variants: bool = False
) -> Comparison | None:
    """The one table of a part; None if it was not run."""
    logs = logs_of(part)
    if logs is None:
        return None
    (found,) = compare(logs, measure=measure, monitor=monitor, best_of_variants=best_of_variants)
    return found


def losses_on(data: str) -> Comparison | None:
    """Each loss at the setting that validation chose."""
    return compared(f"losses_{data}", best_of_variants=True)


def settings_on(data: str) -> dict[str, list[str]]:
    """What was tried of each loss, in the words of the tables."""
    logs = logs_of(f"losses_{data}")
    found: dict[str, list[str]] = {}
    for variant in [] if logs is None else variants(logs.runs)[0]:
        found.setdefault(variant.loss, []).append(variant.text)
    return found


def hierarchies_on(data: str) -> Comparison | None:
    """Losses of one level and of several, by hierarchical AP."""
    return compared(f"hierarchical_{data}", measure="test/H-AP", monitor="val/H-AP")


def with_settings(part: str, **settings: Callable[[dict[str, Any]], Any]) -> pd.DataFrame | None:
    """Runs of a part with what they were set to, their test values, and validation values at the best epoch."""
    logs = logs_of(part)
    if logs is None:
        return None
    last = logs.curves.sort_values("step", kind="stable").pivot_table(
        index="run", columns="metric", values="value", aggfunc="last"
    )
    configs = logs.runs["config"].map(json.loads)
    frame = logs.runs[["loss", "seed"]].join(last)
    frame["loss"] = [called(loss) for loss in frame["loss"]]
    gap = logs.curves[logs.curves["metric"] == "val/decomposability_gap"]
    gap = gap.merge(logs.runs["best_epoch"], left_on="run", right_index=True)
    gap = gap[gap["epoch"] == gap["best_epoch"]].drop_duplicates("run", keep="last").set_index("run")["value"]
    frame["val/decomposability_gap"] = gap.reindex(frame.index)
    return frame.assign(**{name: configs.map(setting) for name, setting in settings.items()})


def batch_sizes() -> pd.DataFrame | None:
    """Runs of the study of batch sizes, with what they have in common with others: drawings or steps."""
    runs = with_settings(
        "batch_size",
        batch=lambda config: config["data"]["classes_per_batch"] * config["data"]["samples_per_class"],
        steps=lambda config: config["trainer"]["max_steps"],
    )
    if runs is None:
        return None
    same = runs["batch"] * runs["steps"] == NUM_DRAWINGS // runs["batch"] * runs["batch"]
    runs["budget"] = np.where(same, f"{NUM_DRAWINGS:,} drawings", runs["steps"].astype(str) + " steps")
    return runs


def called(loss: str) -> str:
    """A loss without what all names of losses end in."""
    return loss.replace("Loss", "").replace(" with TripletMarginMiner", ", semi-hard")
