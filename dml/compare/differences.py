"""In what configurations differ."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dml.compare.protocol import flat, hyperparameters


def settings(values: Mapping[str, Any]) -> dict[str, str]:
    """A nested mapping as one text for each dotted name, such as ``loss.temperature``."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in flat(values).items()}


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """The settings that models depend on and that are not the same everywhere.

    Args:
        configs: As resolved.

    Returns:
        For each dotted name its text in each configuration; None where there is no such setting.
    """
    found = [settings(hyperparameters(config)) for config in configs]
    names = dict.fromkeys(name for each in found for name in each)
    values = {name: [each.get(name) for each in found] for name in names}
    return {name: each for name, each in values.items() if len(set(each)) > 1}
