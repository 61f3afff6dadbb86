"""From a sweep file, in the format of Weights & Biases, to the runs it asks for."""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from dml.sweep.draws import draw

_UNNAMED = re.compile(r"[^\w.=+]+")
_LONGEST_NAME = 80
_GOALS = ("minimize", "maximize")  # the first is W&B's default
_SET_BY_THE_RUNNER = ("folder", "ckpt_path")
_PLACES = {"${env}": (), "${interpreter}": (), "${program}": ()}


class Planned(NamedTuple):
    """One run."""

    name: str
    """Of its folder: what is varied, and a hash of the whole command, so that another command is another run."""
    words: list[str]
    """Of the command line, after ``dml``."""


class Plan(NamedTuple):
    """What a sweep file asks for."""

    name: str
    metric: str
    is_minimised: bool
    runs: list[Planned]


def planned(words: list[str], varied: Mapping[str, Any]) -> Planned:
    """A run, named by what is varied.

    Args:
        words: Of the command line, after ``dml``, with what is varied.
        varied: Argument and value.
    """
    digest = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:8]
    parts = [_UNNAMED.sub("_", _part(argument, value)) for argument, value in varied.items()]
    name = "-".join(parts)[:_LONGEST_NAME].strip("-_.")
    return Planned(f"{name}-{digest}" if name else digest, words)


def read_plan(path: str | Path, *, count: int | None = None, seed: int = 0) -> Plan:
    """Read a sweep file and enumerate its grid, or draw from it.

    Args:
        path: YAML, as ``wandb sweep`` takes it. Its command is of ``dml fit``, such as
            ``[dml, fit, -c, experiments/sop.yaml, "${args}"]``.
        count: At most so many runs; for ``method: random``, how many are drawn, by default its ``run_cap``. Points and
            draws that are the same are one run.
        seed: Of the draws.

    Raises:
        ValueError: If the file is not there or not a sweep, or cannot be run without a server.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"the sweep is {str(path)!r}; there is no such file")
    if count is not None and count < 1:
        raise ValueError(f"count is {count}; it is a number of runs, at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it is an integer, at least 0")
    content = _content(file)
    count = content.get("run_cap") if count is None else count
    runs = [
        planned(_words(file, content, values), _varied(content, values))
        for values in _draws(file, content, count, seed)
    ]
    metric = content.get("metric") or {}
    return Plan(
        name=str(content.get("name") or file.stem),
        metric=str(metric.get("name", "val/AP")).removeprefix("best/"),
        is_minimised=bool(metric) and metric.get("goal", _GOALS[0]) == _GOALS[0],
        runs=list({run.name: run for run in runs}.values()),
    )


def _content(file: Path) -> dict[str, Any]:
    """What the file says, once it is known to be a sweep."""
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict):
        raise ValueError(f"{file} is not a sweep: it has no 'parameters'")
    metric, cap = content.get("metric") or {}, content.get("run_cap")
    if not isinstance(metric, dict) or metric.get("goal", _GOALS[0]) not in _GOALS:
        raise ValueError(
            f"{file}: metric is {metric!r}; it is a name and a goal, minimize or maximize, such as "
            "{name: val/AP, goal: maximize}"
        )
    if cap is not None and (type(cap) is not int or cap < 1):
        raise ValueError(f"{file}: run_cap is {cap!r}; it is a number of runs, at least 1")
    for name, spec in content["parameters"].items():
        _check_parameter(file, name, spec)
    return content


def _check_parameter(file: Path, name: Any, spec: Any) -> None:
    if not isinstance(name, str):
        raise ValueError(
            f"{file}: parameter {name!r} is {type(name).__name__} to YAML; its name is that of an argument of dml fit, "
            "as text, such as seed_everything"
        )
    if name in _SET_BY_THE_RUNNER:
        raise ValueError(f"{file}: parameter {name!r} is set for each run by dml sweep; leave it out, and see --out")
    if isinstance(spec, dict) and "parameters" in spec:
        raise ValueError(f"{file}: parameter {name!r} is nested; write its dotted name, such as {name}.lr")


def _draws(file: Path, content: dict[str, Any], count: int | None, seed: int) -> list[dict[str, Any]]:
    parameters, method = content["parameters"], content.get("method")
    if method == "grid":
        values = [_values(file, name, spec) for name, spec in parameters.items()]
        grid = (dict(zip(parameters, point, strict=True)) for point in itertools.product(*values))
        return list(itertools.islice(grid, count))
    if method == "random":
        if count is None:
            raise ValueError(f"{file}: method is 'random', which has no end; say how many runs by --count, or run_cap")
        generator = np.random.default_rng(seed)
        return [{name: draw(file, name, spec, generator) for name, spec in parameters.items()} for _ in range(count)]
    if method == "bayes":
        raise ValueError(
            f"{file}: method is 'bayes', whose next run the server of W&B chooses: wandb sweep {file}, then "
            "wandb agent. Without an account, write method: random"
        )
    raise ValueError(f"{file}: method is {method!r}; it is grid or random, or bayes for wandb sweep")


def _values(file: Path, name: str, spec: Any) -> list[Any]:
    """Of a parameter of a grid."""
    if isinstance(spec, dict) and "value" in spec:
        return [spec["value"]]
    if isinstance(spec, dict) and isinstance(spec.get("values"), list) and spec["values"]:
        return list(spec["values"])
    raise ValueError(f"{file}: parameter {name!r} is {spec}; in a grid it has 'value', or 'values' with one or more")


def _varied(content: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if "value" not in content["parameters"][name]}


def _words(file: Path, content: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """The words after ``dml``, with ``${args}`` filled in as W&B's agent does."""
    command = content.get("command")
    if not isinstance(command, list) or "${args}" not in command:
        raise ValueError(f'{file}: command is {command}; it is a list such as [dml, fit, -c, a.yaml, "${{args}}"]')
    arguments = [f"--{name}={_text(value)}" for name, value in values.items()]
    words: list[str] = []
    for word in map(str, command):
        words.extend(arguments if word == "${args}" else _PLACES.get(word, (word,)))
    unknown = [word for word in words if word.startswith("${")]
    if unknown:
        raise ValueError(f"{file}: command has {unknown[0]}; known are ${{args}} and {', '.join(_PLACES)}")
    start = words.index("fit") if "fit" in words else 0
    if words[start : start + 1] != ["fit"] or not set(words[:start]) <= {"dml", "python", "python3", "-m"}:
        raise ValueError(f"{file}: command is {command}; it must be of dml fit, which is what can be run here")
    return words[start:]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _part(argument: str, value: Any) -> str:
    """What stands for an argument in the name of a run: of a file, its name says enough."""
    text = _text(value)
    if argument in ("c", "config"):
        return Path(text).stem
    return f"{argument.rpartition('.')[2]}={text}"
