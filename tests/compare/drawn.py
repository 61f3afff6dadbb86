"""Logs of runs that were never run, and the comparison of them."""

import io
import json

import numpy as np
import pandas as pd
from PIL import Image

from dml.compare.logs import RunLogs
from dml.compare.table import Comparison

LOSSES = ("SmoothAPLoss", "SupAPLoss", "MultiSimilarityLoss", "TripletMarginLoss with TripletMarginMiner", "FastAPLoss")
LOSSES += ("SmoothRecallLoss", "RecallAtKLoss", "BlackboxAPLoss", "QuantizedAPLoss", "SupAPLoss+CalibrationLoss")
MEASURES = ("test/AP", "test/mAP@R", "test/R@1")


def drawn(num_rows=3, num_seeds=2, *, with_retrievals=True, data="Omniglot", num_epochs=6):
    """Logs and their comparison, of losses that are the better the earlier they are."""
    names = [f"{LOSSES[row % len(LOSSES)]}{'' if row < len(LOSSES) else row}" for row in range(num_rows)]
    runs, curves, retrievals = [], [], []
    for row, loss in enumerate(names):
        for seed in range(num_seeds):
            run = f"runs/{data}/{row}-{seed}"
            runs.append({"run": run} | _run(data, loss, seed, num_epochs))
            curves += _curves(run, row, seed, num_epochs)
            if with_retrievals and seed == 0:
                retrievals += _retrievals(run, row)
    columns = ["run", "section", "query", "query_path", "query_image", "average_precision", "place", "path", "image"]
    columns += ["similarity", "is_right"]
    logs = RunLogs(
        pd.DataFrame(runs).set_index("run"),
        pd.DataFrame(curves, columns=["run", "epoch", "step", "metric", "value"]).astype({"epoch": "Int64"}),
        pd.DataFrame({"run": [], "measure": [], "label": [], "sum": [], "count": []}),
        pd.DataFrame(retrievals, columns=columns).astype({"section": "string"}),
    )
    return logs, Comparison({"dataset": data, "image_size": 28}, data, _rows(logs), ("one run was not tested",))


def drawn_classes(logs):
    """Sums over ten queries of each of twelve classes, which go with the values of the runs."""
    values = logs.curves[logs.curves["metric"] == "test/AP"].set_index("run")["value"]
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        [
            (run, "test/AP", label, 10 * (value + noise), 10)
            for run, value in values.items()
            for label, noise in enumerate(generator.normal(0, 0.02, 12))
        ],
        columns=["run", "measure", "label", "sum", "count"],
    )


def _run(data, loss, seed, num_epochs):
    config = {
        "seed_everything": seed,
        "trainer": {"max_epochs": num_epochs, "callbacks": []},
        "model": {
            "loss": {"class_path": f"dml.losses.{loss}", "init_args": {"temperature": 0.01}},
            "embedder": {"name": "resnet10t"},
        },
        "data": {"dataset": f"dml.data.datasets.{data}", "classes_per_batch": 64},
    }
    found = {"data": data, "loss": loss, "backbone": "resnet10t", "seed": seed, "config": json.dumps(config)}
    found |= {
        "protocol": json.dumps({"dataset": data, "image_size": 28, "num_gallery": 120}),
        "epochs": num_epochs,
        "best_epoch": num_epochs - 2,
        "minutes": 3.25 + seed,
    }
    return found | {"images_per_second": 1234.5, "peak_memory": 1.5 * 2**30, "finished": True}


def _curves(run, row, seed, num_epochs):
    height = 0.7 * 0.97**row + 0.004 * seed
    epochs = range(num_epochs)
    found = [(run, each, 50 * (each + 1), "val/AP", height * (1 - 0.5 ** (each + 1))) for each in epochs]
    last = num_epochs, 50 * num_epochs
    return found + [(run, *last, name, height - 0.1 * place) for place, name in enumerate(MEASURES)]


def _retrievals(run, row):
    found = []
    for query in range(3):
        for place in range(8):
            is_right = (place + row + query) % 4 > 0
            path, similarity = f"class{query}/{place}.png", 0.9 - 0.05 * place
            asked = f"class{query}/query.png", png(query), 0.75 - 0.01 * row
            found.append((run, "random", query, *asked, place, path, png(place), similarity, is_right))
    return found


def png(number, side=28):
    pixels = np.random.default_rng(number).integers(0, 2, (side // 4, side // 4), dtype=np.uint8) * 255
    buffer = io.BytesIO()
    Image.fromarray(pixels.repeat(4, 0).repeat(4, 1)).save(buffer, format="PNG")
    return buffer.getvalue()


def _rows(logs):
    rows = []
    for loss, runs in logs.runs.groupby("loss", sort=False):
        values = logs.curves[logs.curves["run"].isin(runs.index)]
        row = {"data": runs["data"].iloc[0], "loss": loss, "backbone": runs["backbone"].iloc[0], "variant": ""}
        row |= {"seeds": len(runs), "runs": list(runs.index)}
        for name in MEASURES:
            of_name = values[values["metric"] == name]["value"]
            row |= {name: of_name.mean(), f"{name}_std": of_name.std()}
        mean = row["test/AP"]
        difference = mean - rows[0]["test/AP"] if rows else np.nan
        row |= {"low": mean - 0.02, "high": mean + 0.02, "difference": difference}
        row["difference_error"] = row["test/AP_std"] * (2 / len(runs)) ** 0.5 if rows else np.nan
        p_value = 0.04 / (1 + len(rows)) if rows else np.nan
        row |= {
            "p_classes": p_value,
            "p_seeds": p_value,
            "p_holm": p_value,
            "val": values[values["metric"] == "val/AP"]["value"].max(),
        }
        rows.append(row | {"best_epoch": runs["best_epoch"].mean()} | _costs(runs))
    return pd.DataFrame(rows)


def _costs(runs):
    return {name: runs[name].mean() for name in ("minutes", "images_per_second", "peak_memory")}
