"""Checkpoints: written whole or not at all, read without executing anything, and of which version they are."""

import contextlib
import importlib.util
import os
import pickle
import pkgutil
import re
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric.plugins import ClusterEnvironment
from pytorch_lightning import accelerators, callbacks, loggers, plugins, profilers, strategies
from pytorch_lightning.plugins import TorchCheckpointIO
from torch import nn, optim
from torch.utils.data import Sampler

from dml import __version__
from dml.callbacks.run import CONFIG_KEY, CONFIGURED, VERSION_KEY

TRUSTED = ("dml", "torch", "torchvision", "torchmetrics", "timm", "pytorch_lightning", "pytorch_metric_learning")
"""Packages whose classes the configuration in a checkpoint may name."""

# What a run is made of. Calling a function, or making an object of any other class, may execute what it is given.
_PARTS: tuple[type[Any], ...] = (
    *(nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler, Sampler, callbacks.Callback, loggers.Logger),
    *(plugins.CheckpointIO, ClusterEnvironment, plugins.LayerSync, plugins.Precision),
    *(profilers.Profiler, accelerators.Accelerator, strategies.Strategy),
)
_IMPORTED = ("class_path", "data.dataset", "data.sampler", "model.optimizer", "model.schedule")
_NO_WEIGHTS = {"pretrained": False, "weights": None}
_LONGEST_CONFIG = 2**20  # bytes: a file of more, such as weights, is none
_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")


class UnwrittenError(OSError):
    """A checkpoint could not be written; its file name is where."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, whenever the process or the machine dies.

    Lightning's own writer makes the file in memory first, and then where temporary files are: often another file
    system, from which it is copied to its place, and a copy can be cut off. Nor does it wait until the data are on the
    disk, so that after a power cut the new name may hold nothing. Here the temporary file lies in the same folder,
    and its data are on the disk before it takes the name. What a killed run has left is removed by the next save.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            UnwrittenError: If it cannot be written; the one that was there before stays.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        temporary = target.with_name(f"{uuid.uuid4().hex[:8]}.ckpt.partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for stale in target.parent.glob("*.ckpt.partial"):
                stale.unlink(missing_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            # When a write fails, torch closes its archive, and complains of that with a RuntimeError.
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(error, (OSError, RuntimeError)) or not isinstance(reason, OSError):
                raise
            raise UnwrittenError(reason.errno, reason.strerror or str(reason), str(target)) from error
        _sync(target.parent)


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    with contextlib.suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path: str) -> dict[str, Any]:
    """A checkpoint, of which only what is looked at is read from the disk. Nothing in it is executed.

    Raises:
        ValueError: If it is not there, not whole, or holds more than tensors and plain values.
    """
    if not Path(path).is_file():
        raise ValueError(f"ckpt_path is {path!r}; there is no such file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f", such as {found[1]}" if found else ""
        raise ValueError(
            f"ckpt_path is {path!r}, which holds more than tensors and plain values{what}: it is not loaded, and "
            "nothing in it was executed"
        ) from error
    except (RuntimeError, EOFError, LookupError, ValueError) as error:
        reason = str(error).splitlines()[:1]
        raise ValueError(f"ckpt_path is {path!r}, which is not a checkpoint, or a damaged one: {reason}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"ckpt_path is {path!r}, which is not a checkpoint of a run: it has no 'state_dict'")
    return checkpoint


def with_config(words: list[str]) -> tuple[list[str], str]:
    """Put the configuration in the checkpoint of ``--ckpt_path`` under that of the command line.

    ``dml test --ckpt_path best.ckpt`` then needs no other argument, and any other argument changes it. A run that goes
    on keeps to the configuration it is given.

    Returns:
        The words of the command, and what to add to an error in them: that the configuration is of another version.

    Raises:
        ValueError: If there is no configuration, or it names code that is neither trusted nor named by the user.
    """
    path = _value_of("--ckpt_path", words)
    configs = [value for option in ("-c", "--config") for value in _values_of(option, words)]
    if path is None or (configs and words[0] == "fit") or path in ("last", "best"):
        return words, ""
    checkpoint = read(path)
    if not isinstance(checkpoint.get(CONFIG_KEY), str):
        raise ValueError(f"ckpt_path is {path!r}, a checkpoint without a configuration; give one by -c")
    config = yaml.safe_load(checkpoint[CONFIG_KEY])
    if not isinstance(config, dict) or not all(isinstance(config.get(key), dict) for key in ("model", "data")):
        raise ValueError(f"ckpt_path is {path!r}, whose configuration is not one of dml: it has no 'model' and 'data'")
    version = version_of(checkpoint)
    note = "" if version == __version__ else f"; {_made_by(version)}"
    _check_names(path, config, _named(words, path, configs), note)
    config = _brought_up_to_date({key: value for key, value in config.items() if key in CONFIGURED}, version)
    if words[0] != "fit" or _value_of("--report", words) is None:  # which compares with the model before training
        config["model"] = _without_weights(path, config["model"])
    return [words[0], "--config", yaml.safe_dump(config), *words[1:]], note


def version_of(checkpoint: dict[str, Any]) -> str:
    """The version of ``dml`` that made a checkpoint; the first one did not say so."""
    return str(checkpoint.get(VERSION_KEY, "0.1.0"))


def is_of_restoring(error: BaseException) -> bool:
    """Whether a checkpoint was read, and then did not fit the run."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(
        Path(frame.filename).name == "checkpoint_connector.py" and frame.name.lstrip("_").startswith("restore")
        for frame in frames
    )


def misfit(path: str, error: BaseException, *, fitting: bool) -> ValueError:
    """What to tell the user whose checkpoint does not fit the run."""
    version = version_of(read(path))
    reason = " ".join(str(error).split())
    reason = reason if len(reason) < 200 else f"{reason[:200]} ..."
    if version == __version__:
        advice = "is the configuration that of its run, which is in its folder as config.yaml?"
    else:
        advice = _made_by(version)
        if fitting and not _is_newer(version):
            advice += f"; its weights still serve dml test and dml predict, and dml {version} can train it on"
    return ValueError(f"ckpt_path is {path!r}, which does not fit this run ({reason}); {advice}")


def _made_by(version: str) -> str:
    if _is_newer(version):
        return f"the checkpoint was made by dml {version}, newer than this one, {__version__}: install that version"
    return f"the checkpoint was made by dml {version}, and this is {__version__}"


def _is_newer(version: str) -> bool:
    return _numbers(version) > _numbers(__version__)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def _brought_up_to_date(config: dict[str, Any], version: str) -> dict[str, Any]:
    """The configuration of an older version, in the words of this one."""
    if _numbers(version) >= [0, 2]:
        return config
    model = dict(config["model"])
    rate = model.pop("loss_learning_rate", None)
    if rate is not None:
        model["groups"] = {"loss": {"learning_rate": rate}}
    return {**config, "model": model}


def _without_weights(path: str, model: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a model whose embedder neither downloads nor reads weights: the checkpoint has them."""
    embedder = model.get("embedder", {})
    arguments = embedder.get("init_args", embedder) if isinstance(embedder, dict) else None
    if not isinstance(arguments, dict):
        raise ValueError(f"ckpt_path is {path!r}, whose model.embedder is {embedder!r}, not a class and its init_args")
    known = str(embedder.get("class_path", "TimmEmbedder")).endswith("TimmEmbedder")
    none = {key: value for key, value in _NO_WEIGHTS.items() if known or key in arguments}
    changed = {"init_args": {**arguments, **none}} if "init_args" in embedder else none
    return {**model, "embedder": {**embedder, **changed}} if embedder else model


def _check_names(path: str, config: dict[str, Any], named: set[str], note: str) -> None:
    """Refuse, with a ValueError, names of code that the user may not know of: to import or call it executes it."""
    for key, text in _texts(config):
        if not _DOTTED.fullmatch(text) or text in named or not _is_foreign(key, text):
            continue
        key = key.removesuffix(".class_path")
        raise ValueError(
            f"ckpt_path is {path!r}, whose configuration names {text!r} as {key}: it is none of the "
            f"classes for a run in {', '.join(TRUSTED)}. If you trust it, name it on the command line "
            f"(--{key} {text}) or in a -c file{note}"
        )


def _is_foreign(key: str, name: str) -> bool:
    first = name.partition(".")[0]
    if first in TRUSTED:
        return "__" in name or not _is_part(name)
    # Elsewhere a text may be taken for a class as well, if there is such a module; else it is the name of a file.
    return key.endswith(_IMPORTED) or _can_be_imported(first)


def _is_part(name: str) -> bool:
    """Whether a name is of a class for a run, and that of a trusted package: ``torch.os`` is an attribute as well."""
    try:
        found = pkgutil.resolve_name(name)
    except Exception:  # whatever a module of another package raises when it is imported
        return False
    if not isinstance(found, type) or issubclass(found, callbacks.LambdaCallback):
        return False
    package = found.__module__.partition(".")[0]
    if package == "dml":
        return "__" not in found.__module__  # the command itself, to which words could be given
    return package in (*TRUSTED, "lightning_fabric") and issubclass(found, _PARTS)


def _can_be_imported(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it is there, and does not say where it is from
        return True


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts in a configuration with their keys, also those in texts and files that are read as YAML in turn."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)
    elif isinstance(value, str):
        yield key, value.strip()
        with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError):
            parsed = yaml.safe_load(_content(value))
            if isinstance(parsed, (dict, list)):
                yield from _texts(parsed, key)


def _content(text: str) -> str:
    """What is in the file of that name, if there is one; the text itself if not."""
    with contextlib.suppress(OSError, ValueError):  # too long for a name, or with a zero in it
        if Path(text).is_file() and Path(text).stat().st_size < _LONGEST_CONFIG:
            return Path(text).read_text(encoding="utf-8")
    return text


def _named(words: list[str], path: str, configs: list[str]) -> set[str]:
    """The dotted names that the user has written, here or in a configuration file."""
    written = [word for word in words if word.removeprefix("--ckpt_path=") != path]
    return {name for text in [*written, *map(_content, configs)] for name in _DOTTED.findall(text)}


def _value_of(option: str, words: list[str]) -> str | None:
    return next(_values_of(option, words), None)


def _values_of(option: str, words: list[str]) -> Iterator[str]:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == option and following:
            yield following
        if word.startswith(f"{option}="):
            yield word.partition("=")[2]
