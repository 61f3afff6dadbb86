"""What a run is called, from its configuration: data set, loss, backbone and seed."""

import os
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

_LONGEST_TAG = 64  # that Weights & Biases takes
_VARIABLES = {"name": "WANDB_NAME", "group": "WANDB_RUN_GROUP", "job_type": "WANDB_JOB_TYPE", "tags": "WANDB_TAGS"}


def run_name(config: Mapping[str, Any]) -> str:
    """All that distinguishes runs of one recipe, such as ``Omniglot SmoothAPLoss resnet10t seed 0``.

    Args:
        config: As resolved: ``seed_everything``, ``data`` and ``model``, of plain values or with classes in place of
            their paths.
    """
    return f"{data_name(config)} {loss_name(config)} {backbone_name(config)} seed {seed(config)}"


def data_name(config: Mapping[str, Any]) -> str:
    """The class of the data set."""
    return _class_name(config["data"]["dataset"])


def loss_name(config: Mapping[str, Any]) -> str:
    """The class of the loss.

    ``PairLoss`` is called by the loss it holds, with its miner if it has one, as in ``TripletMarginLoss with
    TripletMarginMiner``; ``WeightedSum`` by its terms, ``SupAPLoss+CalibrationLoss``; another that holds one loss as in
    ``RecallAtKLoss with SiMix``.
    """
    return _loss_name(config["model"]["loss"])


def backbone_name(config: Mapping[str, Any]) -> str:
    """The name of timm; the class of an embedder that has none."""
    embedder = config["model"]["embedder"]
    name = _arguments(embedder).get("name") if isinstance(embedder, Mapping) else None
    return str(name) if name else _class_name(embedder)


def seed(config: Mapping[str, Any]) -> int:
    """The seed of everything; 0 stands for one that was not set."""
    return int(config.get("seed_everything") or 0)


def label(loggers: Sequence[MutableMapping[str, Any]], config: Mapping[str, Any]) -> None:
    """Have Weights & Biases name a run, group it by loss, and tag it with data set, loss and backbone.

    What is set already stays, by an argument or by a variable of the environment; tags are added to those of the
    argument.

    Args:
        loggers: Arguments of each ``WandbLogger``, which are changed.
        config: As of :func:`run_name`.
    """
    tags = [data_name(config), loss_name(config), backbone_name(config)]
    labels = {"name": run_name(config), "group": loss_name(config), "job_type": data_name(config)}
    for arguments in loggers:
        for key, value in labels.items():
            if arguments[key] is None and _VARIABLES[key] not in os.environ:
                arguments[key] = value
        if arguments["tags"] or _VARIABLES["tags"] not in os.environ:
            arguments["tags"] = list(dict.fromkeys([*(arguments["tags"] or []), *(tag[:_LONGEST_TAG] for tag in tags)]))


def _loss_name(loss: Mapping[str, Any] | type | str) -> str:
    name, arguments = _class_name(loss), _arguments(loss)
    if isinstance(arguments.get("loss"), Mapping):
        addition = arguments.get("miner") if name == "PairLoss" else name
        return _loss_name(arguments["loss"]) + (f" with {_class_name(addition)}" if addition else "")
    if name == "WeightedSum" and arguments.get("losses"):
        return "+".join(_loss_name(term) for term in arguments["losses"])
    return name


def _class_name(value: Mapping[str, Any] | type | str) -> str:
    """Of a class, of its path, or of a mapping that has one."""
    if isinstance(value, type):
        return value.__name__
    path = value["class_path"] if isinstance(value, Mapping) else value
    return str(path).rpartition(".")[2]


def _arguments(value: Mapping[str, Any] | type | str) -> Mapping[str, Any]:
    arguments = value.get("init_args") if isinstance(value, Mapping) else None
    return arguments or {}
