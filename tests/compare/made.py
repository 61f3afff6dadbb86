"""Folders of runs that were never run."""

import json
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

MEASURES = ("AP", "R@1")


def config(loss="SmoothAPLoss", seed=0, **settings):
    """As ``dml`` resolves it, as far as anything depends on it.

    Args:
        settings: ``image_size``, ``temperature``, ``lr``, ``ties`` and others, see below.
    """
    given = {"image_size": 64, "temperature": 0.01, "lr": 0.001, "ties": "pessimistic", "max_epochs": 4}
    given |= {"monitor": "val/AP", "root": "data", "backbone": "resnet10t", "split": "test", "num_workers": 1}
    given |= settings
    search = {"ties": given["ties"], "precision": "float32", "keep_on": "device", "distractors": None}
    search |= {"stages": [], "reranker": None}
    metrics = {"class_path": "dml.metrics.RetrievalMetrics", "init_args": {"recall_at": [1], "level": 0}}
    checkpoint = {"monitor": given["monitor"], "mode": "max", "filename": "best"}
    return {
        "seed_everything": seed,
        "trainer": {
            "max_epochs": given["max_epochs"],
            "precision": "32-true",
            "logger": {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": given["root"]}},
            "callbacks": [
                {"class_path": "dml.callbacks.LogRetrievalMetrics", "init_args": {"metrics": metrics}},
                {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": checkpoint},
            ],
        },
        "model": {
            "embedder": {
                "class_path": "dml.models.TimmEmbedder",
                "init_args": {"name": given["backbone"], "image_size": given["image_size"], "pretrained": False},
            },
            "loss": {"class_path": f"dml.losses.{loss}", "init_args": {"temperature": given["temperature"]}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": given["lr"]}},
        },
        "data": {
            "dataset": "dml.data.datasets.Omniglot",
            "root": given["root"],
            "test_split": given["split"],
            "val_classes": 0.25,
            "classes_per_batch": 16,
            "num_workers": given["num_workers"],
            "eval_transforms": None,
        },
        "search": search,
        "ckpt_path": None,
    }


def make_run(
    folder, of=None, *, val=(0.2, 0.4, 0.5, 0.3), values=None, started=0, first_epoch=0, is_tested=True, per_query=True
):
    """Write what a run leaves behind.

    Args:
        folder: Of the run.
        of: Its configuration.
        val: Of each epoch.
        values: AP of each query, of which there are four for each class; R@1 is 1 where it is above 0.5.
        started: Seconds since the epoch.
    """
    values = np.linspace(0, 1, 40) if values is None else np.asarray(values)
    rows = []
    for epoch, value in enumerate(val, start=first_epoch):
        step = 10 * (epoch + 1) - 1
        rows.append({"epoch": epoch, "step": step - 5, "train/loss": 1 / (epoch + 1)})
        rows.append({"epoch": epoch, "step": step, "val/AP": value, "val/R@1": 1 - value})
        rows.append({"epoch": epoch, "step": step, "epoch/images_per_second": 100.0, "epoch/peak_memory_gib": 2.0})
    if is_tested:
        if val:
            rows.append({"step": 10 * len(val), "fit_minutes": 1.5})
        tested = {"test/AP": values.mean(), "test/AP_low": 0.0, "test/AP_high": 1.0, "test/R@1": (values > 0.5).mean()}
        rows.append({"epoch": len(val), "step": 10 * len(val), **tested})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config() if of is None else of))
    os.utime(folder / "config.yaml", (started, started))
    pd.DataFrame(rows).to_csv(folder / "metrics.csv", index=False)
    if is_tested and per_query:
        write_per_query(folder, values)
    return folder


def write_per_query(folder, values, classes=None, num_gallery=None):
    classes = np.arange(len(values)) // 4 if classes is None else classes
    table = pa.table({"character": classes, "AP": values, "R@1": (values > 0.5).astype(float)})
    num_gallery = len(values) if num_gallery is None else num_gallery
    facts = {"level": "character", "measures": list(MEASURES), "num_gallery": num_gallery}
    file = folder / "per_query" / "test.parquet"
    file.parent.mkdir(exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"PANDAS_ATTRS": json.dumps(facts)}), file)
