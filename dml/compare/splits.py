"""Which runs may be compared, and what tells those apart that may not."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from dml.compare.protocol import flat


class Split(NamedTuple):
    """Runs of one protocol."""

    protocol: dict[str, Any]
    runs: pd.DataFrame
    name: str
    notes: tuple[str, ...]


def split(runs: pd.DataFrame) -> list[Split]:
    """Runs by their protocol, in the order of their first; each has a name that none of the others has."""
    groups = [pair for data in runs["data"].unique() for pair in _of_data(runs[runs["data"] == data])]
    found = []
    for protocol, members in groups:
        data = members["data"].iloc[0]
        others = [(p, r) for p, r in groups if r["data"].iloc[0] == data and p is not protocol]
        name = _name(data, protocol, [other for other, _ in others])
        notes = tuple(_note(protocol, other, len(r)) for other, r in others)
        found.append(Split(protocol, members, name, notes))
    return found


def _of_data(runs: pd.DataFrame) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Groups of equal protocols. A run that does not know the size of its gallery is of the group of all others."""
    protocols = [json.loads(protocol) for protocol in runs["protocol"]]
    sizes = pd.Series([protocol.pop("num_gallery") for protocol in protocols], index=runs.index, dtype="Int64")
    rest = pd.Series([json.dumps(protocol, sort_keys=True) for protocol in protocols], index=runs.index)
    groups = []
    for key in rest.unique():
        of_key = sizes[rest == key]
        known = of_key.dropna().unique().tolist()
        of_key = of_key.fillna(known[0]) if len(known) == 1 else of_key
        for size, members in of_key.groupby(of_key, dropna=False, sort=False):
            num_gallery = None if pd.isna(size) else int(size)
            groups.append(({**json.loads(key), "num_gallery": num_gallery}, runs.loc[members.index]))
    return [({name: protocol[name] for name in _ordered(protocol)}, members) for protocol, members in groups]


def _ordered(protocol: dict[str, Any]) -> list[str]:
    """What a reader asks first, first."""
    first = [name for name in ("dataset", "root", "test_split", "image_size", "num_gallery") if name in protocol]
    return [*first, *(name for name in protocol if name not in first)]


def _name(data: str, protocol: dict[str, Any], others: Sequence[dict[str, Any]]) -> str:
    """The data set, and as few values as tell the protocol from others."""
    values, left, parts = flat(protocol), [flat(other) for other in others], [data]
    for key, value in values.items():
        apart = [other for other in left if other.get(key) != value]
        if apart:
            parts.append(f"{key} {_text(value)}")
            left = [other for other in left if other.get(key) == value]
    if left:  # they have all of this one's values, and more
        parts.append(", ".join(f"no {key}" for key in left[0] if key not in values))
    return ", ".join(parts)


def _note(protocol: dict[str, Any], other: dict[str, Any], num_runs: int) -> str:
    here, there = flat(protocol), flat(other)
    differences = [
        f"{key} is {_text(here.get(key))} here and {_text(there.get(key))} there"
        for key in dict.fromkeys([*here, *there])
        if here.get(key) != there.get(key)
    ]
    runs = "1 run is" if num_runs == 1 else f"{num_runs} runs are"
    return f"{runs} in another table, of another protocol: {'; '.join(differences)}"


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value)
