"""Verification and identification of templates: sets of images and video frames of one subject."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics.utilities import rank_zero_warn

from dml.metrics.evaluation import EvaluatedDataset
from dml.metrics.retrieval import RetrievalMetrics
from dml.ranking import score_blocks

_FARS = ("1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "1e-1")
_FPIRS = {"0.01": 100, "0.1": 10}  # one false alarm in so many searches
_PAIRS_PER_BLOCK = 2**14


@runtime_checkable
class TemplateDataset(EvaluatedDataset, Protocol):
    """A dataset of templates; its index has the columns template, media and gallery (1 or 2, or 0 for a probe)."""

    def read_pairs(self, root: Path, /) -> pd.DataFrame:
        """The comparisons of 1:1: columns template_a, template_b and same (whether they show one subject)."""


class TemplateMetrics(RetrievalMetrics):
    """1:1 verification and 1:N identification of templates, the protocols of IJB-B and IJB-C.

    Maze et al., "IARPA Janus Benchmark - C: Face Dataset and Protocol", ICB 2018. The feature of a template is the mean
    over the images of each medium, summed over its media, and scaled to unit norm; scores are cosines. This, 1:1 and
    top-k are those of https://github.com/deepinsight/insightface (recognition/_evaluation_/ijb), given images of unit
    norm. A template of which no image was embedded scores 0 with every other. Ties count against.

    **1:1**, over the list of pairs: ``TAR@FAR=1e-6`` to ``TAR@FAR=1e-1``, the share of genuine pairs that are accepted
    where that share of impostor pairs is. As in ``sklearn.metrics.roc_curve``, a pair is accepted if its score is at
    least the threshold, and the thresholds are the scores that occur. Of the false accept rates they have, the nearest
    is taken, the larger of two as near, and of the thresholds that have it the lowest. (The script lets ``roc_curve``
    leave out points in line with their neighbours, so the nearest of what is left may be another.)

    **1:N**: ``top-1``, ``top-5`` and ``top-10``, the share of probes whose subject is among the first k of both
    galleries put together. ``TPIR@FPIR=0.01`` and ``TPIR@FPIR=0.1`` are of an open set: all probes search each gallery
    alone, where some have no mate. The threshold is the lowest that at most this share of those exceed by their best
    score; the value is the share of the others whose mate, at whatever rank, exceeds it, averaged over the galleries.
    What the script gives for these rates is another value: it searches the union, where each probe has a mate, and
    counts every impostor score of a probe as a false alarm. Whether the benchmark's authors also bound the rank of the
    mate is not known to us.

    Args:
        detector_weighted: Whether the column ``score`` of the index, the detector's, weighs each image, as the script
            does by default.
        level: Which level of the labels is the subject, 0 for the finest.
        block_size: Probes scored at a time.
    """

    def __init__(self, detector_weighted: bool = False, level: int = 0, block_size: int | None = None) -> None:
        super().__init__(level=level, block_size=block_size)
        self.detector_weighted = detector_weighted
        self._templates: _Templates | None = None
        self._read_pairs: Callable[[], pd.DataFrame] | None = None

    def begin(self, dataset: EvaluatedDataset | None) -> None:
        """Take the dataset's templates; its pairs are read when the evaluation ends.

        Raises:
            ValueError: If there is no dataset, it is not one of templates, or a template or gallery is ambiguous.
        """
        if not isinstance(dataset, TemplateDataset):
            what = None if dataset is None else type(dataset).__name__
            raise ValueError(f"dataset is {what}; TemplateMetrics needs one with read_pairs(root), such as IJBC")
        columns = ["template", "media", "gallery"] + ["score"] * self.detector_weighted
        missing = [column for column in columns if column not in dataset.index]
        if missing:
            raise ValueError(f"index of the dataset lacks columns {missing}; TemplateMetrics needs {columns}")
        galleries = np.unique(dataset.index["gallery"]).tolist()
        if galleries != [0, 1, 2]:
            raise ValueError(f"gallery of the dataset's index is one of {galleries}; it must be 1, 2, or 0 for probes")
        self._templates = _templates(dataset.index, dataset.levels[self.level], self.detector_weighted)
        self._read_pairs = functools.partial(dataset.read_pairs, dataset.root)

    def compute(self) -> dict[str, Tensor]:
        """Each value; 0, with a warning, for those of 1:N that no probe has."""
        templates, features = self._features()
        values = {**self._verification(templates, features), **self._identification(templates, features)}
        undefined = [name for name, value in values.items() if value.isnan()]
        if undefined:
            rank_zero_warn(f"{undefined} are 0: they need probes with a mate, and TPIR others without")
        return {name: value.nan_to_num() for name, value in values.items()}

    def per_query(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Template of each probe with a mate in either gallery, and its ``top-k``: 1 if found, else 0; all ``[Q]``."""
        templates, features = self._features()
        mate, rank, _ = self._search(templates, features, templates.gallery > 0)
        mated = mate > -torch.inf
        hits = {f"top-{k}": (rank[mated] <= k).float() for k in (1, 5, 10)}
        return templates.number[templates.gallery == 0][mated], hits

    def _features(self) -> tuple["_Templates", Tensor]:
        """The templates, and their features ``[T, D]``."""
        if self._templates is None:
            raise ValueError("TemplateMetrics was told of no dataset; call begin(dataset) before compute()")
        index, embeddings, *_ = self.images()
        templates = _Templates(*(column.to(index.device) for column in self._templates))
        template, medium, weight = templates.template[index], templates.medium[index], templates.weight[index]
        # A mean over a medium, added up over media: each image adds its share of the mean.
        share = embeddings * (weight / medium.bincount()[medium])[:, None]
        features = embeddings.new_zeros(len(templates.number), embeddings.shape[1]).index_add(0, template, share)
        return templates, normalize(features, dim=1)

    def _verification(self, templates: "_Templates", features: Tensor) -> dict[str, Tensor]:
        assert self._read_pairs is not None
        pairs, numbers = self._read_pairs(), pd.Index(templates.number.cpu().numpy())
        sides = [torch.from_numpy(numbers.get_indexer(pd.Index(pairs[side]))) for side in ("template_a", "template_b")]
        unknown = int((torch.minimum(*sides) < 0).sum())
        if unknown:
            raise ValueError(f"{unknown} of {len(pairs)} pairs name a template that the dataset's index lacks")
        scores = features.new_empty(len(pairs))
        for start in range(0, len(pairs), _PAIRS_PER_BLOCK):
            rows = slice(start, start + _PAIRS_PER_BLOCK)
            first, second = (features[side[rows].to(features.device)] for side in sides)
            scores[rows] = (first * second).sum(dim=1)
        rates = true_accept_rates(
            scores.cpu().numpy(), pairs["same"].to_numpy(dtype=bool), [float(far) for far in _FARS]
        )
        return {f"TAR@FAR={far}": features.new_tensor(rate) for far, rate in zip(_FARS, rates, strict=True)}

    def _identification(self, templates: "_Templates", features: Tensor) -> dict[str, Tensor]:
        values = {name: hits.mean() for name, hits in self.per_query()[1].items()}
        searches = [self._search(templates, features, templates.gallery == gallery) for gallery in (1, 2)]
        for fpir, one_in in _FPIRS.items():
            rates = [_true_identification_rate(mate, best, one_in) for mate, _, best in searches]
            values[f"TPIR@FPIR={fpir}"] = torch.stack(rates).nanmean()
        return values

    def _search(self, templates: "_Templates", features: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score of each probe's best mate, minus infinity if it has none, rank of that mate, and best score of all."""
        probes = (templates.gallery == 0).nonzero().squeeze(1)
        found = []
        for rows, scores in score_blocks(features[probes], [features[gallery]], block_size=self.block_size):
            same = templates.subject[probes[rows], None] == templates.subject[gallery]
            mate = scores.masked_fill(~same, -torch.inf).amax(dim=1)
            rank = 1 + ((scores >= mate[:, None]) & ~same).sum(dim=1)
            found.append((mate, rank, scores.amax(dim=1)))
        mate, rank, best = (torch.cat(column) for column in zip(*found, strict=True))
        return mate, rank, best


class _Templates(NamedTuple):
    template: Tensor  # [N] which of the T templates each image is of
    medium: Tensor  # [N] which medium of its template
    weight: Tensor  # [N]
    number: Tensor  # [T] what the dataset calls the template
    subject: Tensor  # [T]
    gallery: Tensor  # [T] 0 for a probe


def _templates(index: pd.DataFrame, subject: str, detector_weighted: bool) -> _Templates:
    of_template = index.groupby("template")
    properties = of_template[[subject, "gallery"]].first()
    ambiguous = (of_template[[subject, "gallery"]].nunique() != 1).any(axis=1)
    if ambiguous.any():
        raise ValueError(f"template {ambiguous.idxmax()} has images of several values of {subject!r} or 'gallery'")
    enrolled = properties[properties["gallery"] > 0]
    twice = enrolled[enrolled.duplicated()]
    if len(twice) > 0:
        gallery, name = twice["gallery"].iloc[0], twice[subject].iloc[0]
        raise ValueError(f"gallery {gallery} has several templates of {subject} {name}; it must have one of each")
    columns = [
        of_template.ngroup(),
        index.groupby(["template", "media"]).ngroup(),
        index["score"].astype(np.float32) if detector_weighted else np.ones(len(index), np.float32),
        properties.index,
        properties[subject],
        properties["gallery"],
    ]
    return _Templates(*(torch.from_numpy(np.array(column)) for column in columns))


def true_accept_rates(
    scores: npt.NDArray[np.float32], same: npt.NDArray[np.bool_], false_accept_rates: Sequence[float]
) -> list[float]:
    """Share of the genuine pairs that is accepted at each false accept rate, as :class:`TemplateMetrics` defines it.

    Args:
        scores: ``[P]``.
        same: ``[P]``, whether a pair is genuine.
        false_accept_rates: Rates to come as near as scores allow.

    Raises:
        ValueError: If all pairs are genuine, or none is.
    """
    genuine, impostor = scores[same], np.sort(scores[~same])[::-1]
    if len(genuine) == 0 or len(impostor) == 0:
        raise ValueError(f"same is true of {len(genuine)} of {len(scores)} pairs; rates need pairs of either kind")
    # Impostors of one score are accepted together. From all to none, as the first of equally near rates is taken.
    steps = np.flatnonzero(np.diff(impostor)) + 1
    accepted = np.concatenate([[len(impostor)], steps[::-1], [0]])
    lowest = np.append(impostor, -np.inf)  # the score that a threshold with so many accepted is just above
    nearest = [accepted[np.abs(accepted / len(impostor) - rate).argmin()] for rate in false_accept_rates]
    return [float((genuine > lowest[count]).mean()) for count in nearest]


def _true_identification_rate(mate: Tensor, best: Tensor, one_in: int) -> Tensor:
    mated = mate > -torch.inf
    alarms = best[~mated].sort(descending=True)[0]
    if len(alarms) == 0:
        return best.new_tensor(torch.nan)
    return (mate[mated] > alarms[len(alarms) // one_in]).float().mean()
