"""Measures by the names that they are reported under."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dml.ranking import (
    Ranks,
    average_precision_at_k,
    found_at_k,
    ndcg,
    precision_at_k,
    recall_at_k,
    reciprocal_rank,
)

Measure = Callable[[Ranks], Tensor]

_MEASURES: dict[str, Measure] = {"MRR": reciprocal_rank, "nDCG": ndcg}
_MEASURES_AT_K: dict[str, Callable[[Ranks, int], Tensor]] = {
    "R": recall_at_k,
    "P": precision_at_k,
    "found": found_at_k,
    "mAP": average_precision_at_k,
    "nDCG": ndcg,
}


def named_measure(name: str) -> Measure:
    """The measure of a name, such as ``MRR`` or ``P@10``.

    Raises:
        ValueError: If there is none.
    """
    kind, _, k = name.partition("@")
    if not k and name in _MEASURES:
        return _MEASURES[name]
    if re.fullmatch("[1-9][0-9]*", k) and kind in _MEASURES_AT_K:
        return _AtK(_MEASURES_AT_K[kind], int(k))
    known = [*_MEASURES, *(f"{at}@k" for at in _MEASURES_AT_K)]
    raise ValueError(f"also has {name!r}; a measure is one of {known}, with k at least 1")


@dataclass(frozen=True)
class _AtK:
    measure: Callable[[Ranks, int], Tensor]
    k: int

    def __call__(self, ranks: Ranks) -> Tensor:
        return self.measure(ranks, self.k)
