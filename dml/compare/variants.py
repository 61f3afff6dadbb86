"""Ways to train: which runs repeat each other, what tells others apart, and which of them validation prefers."""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dml.compare.protocol import hyperparameters

_LONGEST = 4
"""Settings that are named in a text; of more there is only the number of the rest."""

_VALIDATED_AS = (
    "data.val_split",
    "data.val_classes",
    "data.val_seed",
    "trainer.limit_val_batches",
    "trainer.overfit_batches",
)

_CLASS = re.compile(r"([A-Za-z_]\w*\.)+(?P<name>[A-Z]\w*)")


class Variant(NamedTuple):
    """Runs that differ in nothing but the seed."""

    loss: str
    backbone: str
    settings: dict[str, Any]
    runs: pd.DataFrame
    text: str = ""
    """The settings that other variants of this loss and backbone have otherwise."""

    @property
    def name(self) -> str:
        """For notes."""
        return f"{self.loss} ({self.text})" if self.text else self.loss


def variants(runs: pd.DataFrame) -> tuple[list[Variant], list[str]]:
    """Runs of one protocol by what was trained, and notes of seeds that were run again: the last one counts."""
    keys = runs["config"].map(lambda config: json.dumps(hyperparameters(json.loads(config)), sort_keys=True))
    found: list[Variant] = []
    notes: list[str] = []
    for (loss, backbone), members in runs.groupby(["loss", "backbone"], sort=False):
        of_pair = []
        for key, repeated in members.groupby(keys[members.index], sort=False):
            notes += [
                f"seed {seed} of {loss} was run {len(same)} times: {same.index[-1]} counts, the latest, and not "
                f"{listed(same.index[:-1])}"
                for seed, same in repeated.groupby("seed")
                if len(same) > 1
            ]
            counting = repeated[~repeated["seed"].duplicated(keep="last")].sort_values("seed")
            of_pair.append(Variant(str(loss), str(backbone), json.loads(str(key)), counting))
        texts = settings_apart([variant.settings for variant in of_pair])
        found += [variant._replace(text=text) for variant, text in zip(of_pair, texts, strict=True)]
    return found, notes


def validated_as(variant: Variant) -> dict[str, Any]:
    """What validation values depend on besides the model, where the test is the same."""
    return {name: variant.settings[name] for name in _VALIDATED_AS if name in variant.settings}


def by_validation(found: Sequence[Variant]) -> list[list[Variant]]:
    """Those whose validation values are of one scale together, the most first."""
    groups: dict[str, list[Variant]] = {}
    for variant in found:
        groups.setdefault(json.dumps(validated_as(variant), sort_keys=True), []).append(variant)
    return sorted(groups.values(), key=len, reverse=True)


def best_by_validation(found: Sequence[Variant], more_is_better: bool = True) -> tuple[list[Variant], list[str]]:
    """Of each loss and backbone the variant with the best ``val``, and notes of what it was chosen from.

    Values of different validations are not of one scale, so one is chosen for each way to validate. Means are over the
    seeds that all variants have, or over all if there is none: a setting that was tried with one seed and then repeated
    with others is not compared by other seeds than those that were tried.
    """
    groups: dict[tuple[str, str], list[Variant]] = {}
    for variant in found:
        groups.setdefault((variant.loss, variant.backbone), []).append(variant)
    chosen, notes = [], []
    for (loss, _), variants_of_loss in groups.items():
        for group in by_validation(variants_of_loss):
            shared = set.intersection(*(set(variant.runs["seed"]) for variant in group))
            values = [_validated(variant.runs, shared) for variant in group]
            if np.isnan(values).all():
                raise ValueError(
                    f"best_of_variants is set, but no run of {loss} has validated: there is nothing to choose by"
                )
            best = group[int(np.nanargmax(values) if more_is_better else np.nanargmin(values))]
            chosen.append(best)
            if len(group) > 1:
                notes.append(f"of {len(group)} variants of {loss}, validation chose {best.text}")
    return chosen, notes


def settings_apart(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Of each the settings that are not those of all, such as ``temperature=0.02, lr=0.001``."""
    names = dict.fromkeys(name for each in settings for name in each)
    apart = [name for name in names if len({json.dumps(each.get(name)) for each in settings}) > 1]
    short = _short(apart)
    texts = []
    for each in settings:
        parts = [f"{short[name]}={_text(each.get(name))}" for name in apart]
        more = f", {len(parts) - _LONGEST} more" if len(parts) > _LONGEST else ""
        texts.append(", ".join(parts[:_LONGEST]) + more)
    repeated = {text for text in texts if texts.count(text) > 1}
    return [f"{text} (#{number})" if text in repeated else text for number, text in enumerate(texts, start=1)]


def listed(runs: Sequence[str] | pd.Index, most: int = 3) -> str:
    """Names of runs, those beyond a few as a number."""
    more = f" and {len(runs) - most} more" if len(runs) > most else ""
    return ", ".join(runs[:most]) + more


def _validated(runs: pd.DataFrame, seeds: set[int]) -> float:
    values = runs[runs["seed"].isin(seeds)]["val"] if seeds else runs["val"]
    return float(values.mean())


def _short(names: Sequence[str]) -> dict[str, str]:
    """Each dotted name without as much of its beginning as leaves it different from the others."""
    found = {}
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        clear = (end for end in ends if not any(f".{other}".endswith(f".{end}") for other in names if other != name))
        found[name] = next(clear, name)
    return found


def _text(value: Any) -> str:
    if isinstance(value, str):
        found = _CLASS.fullmatch(value)
        return found["name"] if found else value
    return "none" if value is None else json.dumps(value)
