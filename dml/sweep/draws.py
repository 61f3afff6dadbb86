"""Draws of a parameter, by the distributions of W&B's sweep files."""

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

_NUMBERS = ("min", "max", "mu", "sigma", "q")


def draw(file: Path, name: str, spec: Any, generator: np.random.Generator) -> Any:
    """A value of a parameter.

    Args:
        file: Named in errors.
        name: Of the parameter.
        spec: What the file says of it: ``value``, ``values`` with or without ``probabilities``, or a ``distribution``.
        generator: Where chance comes from.

    Raises:
        ValueError: If nothing can be drawn by it.
    """
    if not isinstance(spec, Mapping):
        raise ValueError(f"{file}: parameter {name!r} is {spec}; it has 'value', 'values', or 'min' and 'max'")
    if "value" in spec:
        return spec["value"]
    try:
        if "values" in spec:
            if not isinstance(spec["values"], list) or not spec["values"]:
                raise ValueError("'values' is a list of one or more")
            return spec["values"][generator.choice(len(spec["values"]), p=spec.get("probabilities"))]
        distribution = spec.get("distribution") or _implied(spec)
        if distribution not in _DISTRIBUTIONS:
            raise ValueError(f"distribution is {distribution!r}; known are {', '.join(_DISTRIBUTIONS)}")
        numbers = {key: _number(key, spec[key]) for key in _NUMBERS if key in spec}
        quantum = numbers.get("q", 1 if distribution.startswith("q_") else None)
        return _rounded(_DISTRIBUTIONS[distribution](numbers, generator), quantum)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{file}: parameter {name!r} is {spec}: {reason}") from error


def _implied(spec: Mapping[str, Any]) -> str:
    """Of ``min`` and ``max`` alone, as W&B has it: by whether they are integers."""
    return "int_uniform" if isinstance(spec["min"], int) and isinstance(spec["max"], int) else "uniform"


def _number(key: str, value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    hint = ""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        # To YAML 1.1, a number with an exponent has a point, and the exponent a sign.
        mantissa, exponent = value.lower().split("e")
        point, sign = "" if "." in mantissa else ".0", "" if exponent[0] in "-+" else "+"
        hint = f", which is text to YAML: write {mantissa}{point}e{sign}{exponent}"
    raise ValueError(f"{key} is {value!r}; it is a number{hint}")


def _rounded(value: float, quantum: float | None) -> float:
    """To a multiple of a quantum, which is what one would write: 0.3, not three times 0.1 in binary."""
    if quantum is None:
        return value
    if not quantum > 0:
        raise ValueError(f"q is {quantum}; it is what draws are multiples of, more than 0")
    number = round(value / quantum)
    return number * quantum if isinstance(quantum, int) else float(number * Decimal(str(quantum)))


def _uniform(spec: Mapping[str, Any], generator: np.random.Generator) -> float:
    return float(generator.uniform(spec["min"], spec["max"]))


def _int_uniform(spec: Mapping[str, Any], generator: np.random.Generator) -> int:
    return int(generator.integers(spec["min"], spec["max"], endpoint=True))


def _log_uniform(spec: Mapping[str, Any], generator: np.random.Generator) -> float:
    """The bounds are exponents of e."""
    return math.exp(generator.uniform(spec["min"], spec["max"]))


def _log_uniform_values(spec: Mapping[str, Any], generator: np.random.Generator) -> float:
    return math.exp(generator.uniform(math.log(spec["min"]), math.log(spec["max"])))


def _normal(spec: Mapping[str, Any], generator: np.random.Generator) -> float:
    return float(generator.normal(spec.get("mu", 0.0), spec.get("sigma", 1.0)))


def _log_normal(spec: Mapping[str, Any], generator: np.random.Generator) -> float:
    return math.exp(_normal(spec, generator))


_DISTRIBUTIONS: dict[str, Callable[[Mapping[str, Any], np.random.Generator], float]] = {
    "uniform": _uniform,
    "int_uniform": _int_uniform,
    "q_uniform": _uniform,
    "log_uniform": _log_uniform,
    "log_uniform_values": _log_uniform_values,
    "q_log_uniform_values": _log_uniform_values,
    "normal": _normal,
    "q_normal": _normal,
    "log_normal": _log_normal,
}
