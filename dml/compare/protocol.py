"""What a configuration says of a run: how it was tested, and what it was trained with."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

OTHER_CHECKPOINT = "other_checkpoint"
"""In the model of a configuration: which checkpoint of a run was tested, if not the one that validation chose."""

# Data sets that are whatever lies in their folder.
_OF_A_FOLDER = ("ImageFolderDataset", "DataFrameDataset", "PackedDataset")
_SEARCH: dict[str, Any] = {
    "ties": "pessimistic",
    "precision": "float32",
    "distractors": None,
    "stages": [],
    "reranker": None,
}
_NO_KEEPING = {"keep_on": "device"}  # which changes no value, but makes the search of the run another than the default
_FILES_OF_STAGES = ("embeddings",)
_VIEWS = {"scales": [1.0], "flip": False, "view_power": None}
# Of metrics: what they need, and what they report besides, changes no value.
_COSTS_OF_METRICS = ("block_size", "recall_at", "also", "only", "search")
# Of the sampler, whose seed is that of the data, and whose share is that of the process.
_SET_BY_THE_RUN = ("data.sampler.seed", "data.sampler.num_replicas", "data.sampler.rank")
_OF_TRAINING = (
    *("classes_per_batch", "samples_per_class", "sampler", "levels", "train_split", "val_split", "val_classes"),
    *("val_seed", "train_transforms", "skip_unreadable"),
)
_OF_TRAINER = (
    *("precision", "max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"),
    *("overfit_batches", "val_check_interval", "check_val_every_n_epoch"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "sync_batchnorm"),
)
_LIMITS = ("limit_train_batches", "limit_val_batches")
# Callbacks that watch. Any other may change the weights, as an average of them does.
_WATCHING = (
    *("ModelCheckpoint", "RichProgressBar", "TQDMProgressBar", "LearningRateMonitor", "DeviceStatsMonitor"),
    *("RichModelSummary", "ModelSummary"),
)


def protocol(config: Mapping[str, Any], num_gallery: int | None = None) -> dict[str, Any]:
    """What test values depend on besides the model: values of two protocols are not of one scale.

    Args:
        config: As resolved, of the run that was tested.
        num_gallery: Items of the gallery, where that is known.
    """
    data, embedder = config["data"], arguments(config["model"]["embedder"])
    metrics = _metrics(config)
    found = {
        "dataset": class_path(data["dataset"]),
        "test_split": data.get("test_split", "test"),
        "image_size": embedder.get("image_size", data.get("image_size", 224)),
        "levels": data.get("levels"),
        "eval_transforms": data.get("eval_transforms"),
        **{name: embedder.get(name, default) for name, default in _VIEWS.items()},
        "metrics": class_path(metrics),
        "metrics_arguments": {k: v for k, v in arguments(metrics).items() if k not in _COSTS_OF_METRICS},
        "search": _search(config, metrics),
        "limit_test_batches": _limit(_trainer(config).get("limit_test_batches")),
    }
    if found["dataset"].rpartition(".")[2] in _OF_A_FOLDER:
        found["root"] = Path(str(data.get("root"))).name
    if found["test_split"] == "val" or found["test_split"] == data.get("val_split"):
        found |= {name: data.get(name) for name in ("val_classes", "val_seed")}
    return {**found, "num_gallery": num_gallery}


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the model depends on besides the seed, by dotted name: runs of equal ones are repetitions.

    Where things are, how many processes there are, what is logged, and what belongs to :func:`protocol` is left out;
    so is what is None, which an older configuration does not have.
    """
    model = dict(config["model"])
    embedder = arguments(model.pop("embedder"))
    tested = (*_VIEWS, "image_size")
    trainer = _trainer(config)
    chosen = {
        "model": {**model, "embedder": {name: value for name, value in embedder.items() if name not in tested}},
        "data": {name: config["data"].get(name) for name in _OF_TRAINING},
        "trainer": {name: trainer.get(name) for name in _OF_TRAINER}
        | {name: _limit(trainer.get(name)) for name in _LIMITS},
        "callbacks": [callback for callback in _callbacks(config) if not _is_watching(callback)],
    }
    found = flat(chosen)
    return {name: value for name, value in found.items() if value is not None and name not in _SET_BY_THE_RUN}


def monitored(config: Mapping[str, Any]) -> tuple[str | None, bool]:
    """By which metric the checkpoint was chosen that was tested, and whether more is better; None for the last one."""
    keeping = keeping_checkpoints(config)
    return keeping.get("monitor"), not keeping or keeping.get("mode") == "max"


def keeping_checkpoints(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments of the first ``ModelCheckpoint``; none if there is none."""
    found = (callback for callback in _callbacks(config) if class_path(callback).endswith("ModelCheckpoint"))
    return arguments(next(found, None))


def flat(value: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted name, without the words ``class_path`` and ``init_args``; mappings in lists have numbers."""
    return dict(_flat(value, ()))


def class_path(value: Mapping[str, Any] | str | None) -> str:
    """Of a class, with arguments or without."""
    return str(value.get("class_path", "")) if isinstance(value, Mapping) else str(value or "")


def arguments(value: Mapping[str, Any] | str | None) -> Mapping[str, Any]:
    """Of a class."""
    given = value.get("init_args", {}) if isinstance(value, Mapping) else {}
    return given or {}


def _flat(value: Any, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, names if name in ("class_path", "init_args") else (*names, str(name)))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for number, inner in enumerate(value):
            yield from _flat(inner, (*names, str(number)))
    elif not isinstance(value, Mapping):
        yield ".".join(names), value


def _trainer(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("trainer") or {}


def _callbacks(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = _trainer(config).get("callbacks") or []
    return found if isinstance(found, list) else [found]


def _is_watching(callback: Mapping[str, Any]) -> bool:
    path = class_path(callback)
    return path.startswith("dml.callbacks.") or path.rpartition(".")[2] in _WATCHING


def _metrics(config: Mapping[str, Any]) -> Mapping[str, Any]:
    logging = (c for c in _callbacks(config) if class_path(c).endswith(".LogRetrievalMetrics"))
    found: Mapping[str, Any] = arguments(next(logging, None)).get("metrics") or {}
    return found


def _search(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """That of the run if it is not the default, else that of the metric, as the command has it."""
    given = config.get("search") or {}
    of_metric = arguments(metrics).get("search") or {}
    of_metric = arguments(of_metric) or of_metric
    is_default = all(given.get(name, default) == default for name, default in (_SEARCH | _NO_KEEPING).items())
    found = {name: (of_metric if is_default else given).get(name, default) for name, default in _SEARCH.items()}
    distractors = found["distractors"]
    stages = [_without_files(stage) for stage in found["stages"] or []]
    return {**found, "distractors": distractors and Path(distractors).name, "stages": stages}


def _without_files(stage: Any) -> Any:
    """A stage without the file of embeddings that it learns from, which each run has of its own model."""
    if not isinstance(stage, Mapping):
        return stage
    return {**stage, "init_args": {k: v for k, v in arguments(stage).items() if k not in _FILES_OF_STAGES}}


def _limit(batches: float | None) -> float | None:
    """None for a share of all of them, as where nothing is set; the integer 1 is one batch."""
    return None if isinstance(batches, float) and batches == 1 else batches
