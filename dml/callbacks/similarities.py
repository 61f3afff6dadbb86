"""How similar relevant and irrelevant pairs are."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from dml.callbacks.metrics import LogRetrievalMetrics
from dml.metrics import HierarchicalMetrics, RetrievalMetrics
from dml.metrics.relevant import SameLabel

_NUM_BINS = 128


class Similarities(NamedTuple):
    """How many pairs have which score, ``[128]`` bins of one width from -1 to 1; scores beyond are in the last bins."""

    positive: npt.NDArray[np.int64]
    negative: npt.NDArray[np.int64]
    edges: npt.NDArray[np.float64]  # [129]


class LogSimilarities(Callback):
    """Log histograms of the scores of relevant and of irrelevant pairs after each evaluation to Weights & Biases.

    They are ``val/similarity_positive`` and ``val/similarity_negative``, and of a test ``test/*``. Pairs are those of a
    few random queries, the same ones each time, with the whole gallery; relevant is what has the label of the query, at
    the level of the metric. Nothing is done without a ``WandbLogger``, without :class:`LogRetrievalMetrics` among the
    trainer's callbacks, or for a metric with another notion of relevance, such as one of judged landmarks.

    It searches once more for these queries, a block of scores at a time.

    Args:
        num_queries: How many queries.
        seed: Which ones they are.

    Raises:
        ValueError: If ``num_queries`` is less than 1.
    """

    def __init__(self, num_queries: int = 512, seed: int = 0) -> None:
        if num_queries < 1:
            raise ValueError(f"num_queries is {num_queries}; it must be at least 1")
        self.num_queries = num_queries
        self.seed = seed

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._log(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, "test")

    def _log(self, trainer: Trainer, stage: str) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        metrics = _metrics(trainer)
        if not loggers or metrics is None:
            return
        # After compute the states of a process are its own again: without this, its share would be the gallery.
        with metrics.sync_context(dist_sync_fn=metrics.dist_sync_fn):
            if not trainer.is_global_zero:
                return
            counted = similarities(metrics, self.num_queries, self.seed)
        import wandb  # takes a second, which runs without it should not pay

        histograms: dict[str, Any] = {
            f"{stage}/similarity_{name}": wandb.Histogram(np_histogram=(count, counted.edges))
            for name, count in (("positive", counted.positive), ("negative", counted.negative))
        }
        for logger in loggers:
            logger.log_metrics(histograms, step=trainer.global_step)


def similarities(metrics: RetrievalMetrics, num_queries: int, seed: int = 0) -> Similarities:
    """Count pairs by their score, with the gallery but not with distractors.

    Args:
        metrics: Holds the evaluation.
        num_queries: At most so many random queries.
        seed: Which ones they are.
    """
    evaluation = metrics.images().split()
    chosen = torch.randperm(len(evaluation.query_index), generator=torch.Generator().manual_seed(seed))[:num_queries]
    rows = chosen.sort().values.to(evaluation.own.device)
    labels, own = evaluation.query_labels[rows, metrics.level], evaluation.own[rows]
    blocks = metrics.search.blocks(
        evaluation.queries[rows.to(evaluation.queries.device)], evaluation.gallery, own, device=metrics.device
    )
    same = SameLabel(evaluation.gallery_labels[:, metrics.level])
    positive = torch.zeros(_NUM_BINS, dtype=torch.long, device=metrics.device)
    every = positive.clone()
    for block, scores in blocks:
        scores = scores[:, : len(evaluation.gallery_index)]
        positive += _counts(scores[same.pairs(labels[block], own[block])])
        for row in scores:  # which stays in the cache
            every += _counts(row[row > -torch.inf])  # all but the query itself
    edges = np.linspace(-1, 1, _NUM_BINS + 1)
    return Similarities(positive.cpu().numpy(), (every - positive).cpu().numpy(), edges)


def _counts(scores: Tensor) -> Tensor:
    # Not torch.histc, which has no deterministic implementation on GPUs.
    place = ((scores.float() + 1) * (_NUM_BINS / 2)).floor().clamp(0, _NUM_BINS - 1).long()
    return torch.bincount(place, minlength=_NUM_BINS)


def _metrics(trainer: Trainer) -> RetrievalMetrics | None:
    """What holds the last evaluation, if labels say all there is to know about it."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # untyped in Lightning
    for callback in callbacks:
        if isinstance(callback, LogRetrievalMetrics) and callback.per_query is not None:
            by_label = RetrievalMetrics.measured_blocks, HierarchicalMetrics.measured_blocks
            return callback.metrics if type(callback.metrics).measured_blocks in by_label else None
    return None
