"""What the steps of each epoch were like: loss, gradients, similarities, waiting and memory."""

import sys
import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from dml.callbacks.metrics import LogRetrievalMetrics
from dml.data import ClassBalancedSampler, RetrievalDataModule
from dml.metrics import RetrievalMetrics
from dml.ranking import Step, average_precision, exact_ranks

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

GAP = "decomposability_gap"
"""Of the metrics of a validation, the one where less is better."""

# Pairs whose slope is computed at a time: 16 MiB of float32.
_PAIRS_AT_A_TIME = 2**22

# What each process measures of itself; all else is of the global batch, and the same on all of them.
_OF_A_PROCESS = ("embedding_norm", "images_per_second", "data_wait")


class LogDiagnostics(Callback):
    """Log at each training epoch's end what its steps were like, and after each validation how far batches mislead.

    Of the epoch, over all processes, as ``epoch/*``:

    - ``loss`` and each term of it;
    - ``grad_norm`` and ``grad_norm_max``, mean and maximum over the steps of the gradient's norm, before clipping, and
      ``grad_norm_backbone``, ``grad_norm_head`` and ``grad_norm_loss``, the means of its parts. Steps whose gradient is
      not finite, which a gradient scaler skips, do not count;
    - ``embedding_norm``, the mean before normalisation;
    - ``positive_similarity`` and ``negative_similarity``, means over pairs of images of a batch;
    - ``linear_range``, the share of pairs of a relevant and an irrelevant item of a query that the loss can still move:
      the slope of its step at their difference of score is at least a tenth of that at 0. It is that of the first
      loss that has a ``step``, and left out if none has;
    - ``batch_AP``, the mean AP of queries in their batch, which do not retrieve themselves;
    - ``queries_without_positives``, the share of queries with no other image of their class in the batch;
    - ``images_per_second``, and ``data_wait``, the share of the time in which a process waited for its next batch, both
      without validation;
    - ``peak_memory_gib``, of the process that needs most: what PyTorch allocated on the GPU, validation of the epoch
      included, or on a CPU the largest resident set so far.

    After each validation, ``val/decomposability_gap``: the mean AP of batches less that of the whole split, for the
    same weights (Ramzi et al., "Robust and Decomposable Average Precision for Image Retrieval", NeurIPS 2021,
    https://arxiv.org/abs/2110.01445). The batches are of as many classes and images of each as those of training. It
    needs :class:`LogRetrievalMetrics` to measure AP, and every image to be both query and item; else it is left out.

    Classes are those of the finest level, for the gap those of the metric's. An epoch that is resumed has the means of
    what was seen since: nothing is kept in checkpoints.

    Args:
        num_queries: How many queries of a batch, evenly spaced, are compared with all of it for similarities,
            ``linear_range`` and ``batch_AP``.
        every_n_steps: On which batches they are; always on the first of an epoch.

    Raises:
        ValueError: If one of them is below 1.
    """

    def __init__(self, num_queries: int = 128, every_n_steps: int = 10) -> None:
        for name, value in (("num_queries", num_queries), ("every_n_steps", every_n_steps)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.num_queries, self.every_n_steps = num_queries, every_n_steps
        self._roles: dict[str, list[nn.Parameter]] = {}
        self._restart()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # An epoch that is resumed in its middle has no start.
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._roles = _roles(pl_module)
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._restart()

    def on_train_batch_start(self, *_: Any) -> None:
        self._waiting += self._lap()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        norms = {}
        for role, parameters in self._roles.items():
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if gradients:
                norms[role] = get_total_norm(gradients).float()
        if not norms:
            return
        total = torch.stack(list(norms.values())).norm()
        finite = total.isfinite()
        for name, norm in {"": total, **norms}.items():
            self._means.add(f"grad_norm_{name}".rstrip("_"), norm.where(finite, 0), finite)
        self._means.take_largest("grad_norm_max", total.where(finite, 0))

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module: Any = pl_module
        embeddings, classes = outputs["embeddings"], outputs["labels"][:, 0]
        # Lightning has divided it by the number of batches whose gradients are accumulated.
        self._means.add("loss", outputs["loss"] * trainer.accumulate_grad_batches)
        for name, value in getattr(module.loss, "logged", {}).items():
            self._terms[name] = self._terms.get(name, 0.0) + value
        norms = getattr(module.embedder, "last_norms", None)
        if norms is not None:
            self._means.add("embedding_norm", norms.sum(), len(norms))
        self._means.add("queries_without_positives", _num_alone(classes), len(classes))
        if self._batches % self.every_n_steps == 0:
            self._compare(embeddings, classes, _step(module.loss))
        self._batches += 1
        self._images += len(embeddings)
        self._working += self._lap()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lap()  # a validation within the epoch is neither work nor waiting

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._batches == 0:  # resumed at the end of an epoch
            return
        seconds = self._waiting + self._working
        values = {
            **self._means.read(),
            "images_per_second": self._images / seconds,
            "data_wait": self._waiting / seconds,
        }
        # A loss may report a term only where there is something to report.
        values |= {name: float(total) / self._batches for name, total in self._terms.items()}
        for name, value in values.items():
            pl_module.log(f"epoch/{name}", value, sync_dist=name in _OF_A_PROCESS)
        peak = _peak_memory(pl_module.device)
        if peak is not None:
            pl_module.log("epoch/peak_memory_gib", peak / 2**30, sync_dist=True, reduce_fx="max")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # untyped in Lightning
        data = trainer.datamodule  # type: ignore[attr-defined]  # untyped in Lightning
        found = [callback.metrics for callback in callbacks if isinstance(callback, LogRetrievalMetrics)]
        if trainer.sanity_checking or not found or not isinstance(data, RetrievalDataModule):
            return
        whole = found[0].compute()  # kept by the metric: it is computed once, whichever callback comes first
        if "AP" not in whole:
            return
        # After compute the states of a process are its own again: without this, batches would be of its share.
        with found[0].sync_context(dist_sync_fn=found[0].dist_sync_fn):
            of_batches = _mean_over_batches(found[0], data.classes_per_batch, data.samples_per_class)
        if of_batches is not None:
            pl_module.log(f"val/{GAP}", of_batches - whole["AP"])

    def _restart(self) -> None:
        self._means = _Means()
        self._terms: dict[str, Tensor | float] = {}
        self._batches = self._images = 0
        self._waiting = self._working = 0.0
        self._since = time.perf_counter()

    def _lap(self) -> float:
        """Seconds since it was last called."""
        before, self._since = self._since, time.perf_counter()
        return self._since - before

    def _compare(self, embeddings: Tensor, classes: Tensor, step: Step | None) -> None:
        number = min(self.num_queries, len(embeddings))
        queries = torch.arange(number, device=embeddings.device) * len(embeddings) // number
        scores, relevant, others = _compared(embeddings, classes, queries)
        irrelevant = others & ~relevant
        self._means.add("positive_similarity", (scores * relevant).sum(), relevant.sum())
        self._means.add("negative_similarity", (scores * irrelevant).sum(), irrelevant.sum())
        self._means.add("batch_AP", *_sum_of_average_precision(scores, relevant, others))
        if step is not None:
            self._means.add("linear_range", *_num_in_linear_range(step, scores, relevant, irrelevant))


class _Means:
    """Means of what is added under each name. Sums stay on their device until read: to look at one waits for it."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor | int]] = {}
        self._largest: dict[str, Tensor] = {}

    def add(self, name: str, total: Tensor, count: Tensor | int = 1) -> None:
        total_before, count_before = self._sums.get(name, (0.0, 0))
        self._sums[name] = total_before + total, count_before + count

    def take_largest(self, name: str, value: Tensor) -> None:
        """Keep the maximum rather than the mean."""
        self._largest[name] = torch.maximum(self._largest.get(name, value), value)

    def read(self) -> dict[str, float]:
        """The mean of each name that something was counted of, and each maximum."""
        sums = {name: (float(total), int(count)) for name, (total, count) in self._sums.items()}
        means = {name: total / count for name, (total, count) in sums.items() if count > 0}
        return {**means, **{name: float(value) for name, value in self._largest.items()}}


def _roles(pl_module: LightningModule) -> dict[str, list[nn.Parameter]]:
    """The parameters of the backbone, of the rest of the embedder, of the loss, and of whatever else there is."""
    prefixes = {"backbone": "embedder.backbone.", "head": "embedder.", "loss": "loss.", "rest": ""}
    roles: dict[str, list[nn.Parameter]] = {role: [] for role in prefixes}
    for name, parameter in pl_module.named_parameters():
        roles[next(role for role, prefix in prefixes.items() if name.startswith(prefix))].append(parameter)
    return roles


def _step(loss: nn.Module) -> Step | None:
    steps = (getattr(module, "step", None) for module in loss.modules())
    return next((step for step in steps if hasattr(step, "slope")), None)


def _num_alone(classes: Tensor) -> Tensor:
    """How many of ``[B]`` are of a class of their own."""
    changes = classes.sort().values.diff() != 0
    return (nn.functional.pad(changes, (1, 0), value=True) & nn.functional.pad(changes, (0, 1), value=True)).sum()


def _compared(embeddings: Tensor, classes: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``scores``, ``relevant`` and ``others`` ``[Q, B]`` of some rows of a batch: which items are not the query."""
    scores = embeddings[queries].float() @ embeddings.float().T
    others = queries.unsqueeze(1) != torch.arange(len(embeddings), device=embeddings.device)
    return scores, (classes[queries].unsqueeze(1) == classes) & others, others


def _sum_of_average_precision(scores: Tensor, relevant: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Over the queries that have something to retrieve, and how many there are."""
    return average_precision(exact_ranks(scores, relevant, others)).sum(), relevant.any(dim=1).sum()


def _num_in_linear_range(step: Step, scores: Tensor, relevant: Tensor, irrelevant: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of a relevant and an irrelevant item at whose difference the step is not flat, and all pairs."""
    least = step.slope(scores.new_zeros(())) / 10
    query, item = relevant.nonzero(as_tuple=True)
    number = relevant.new_zeros((), dtype=torch.long)
    size = max(1, _PAIRS_AT_A_TIME // scores.shape[1])
    for rows, items in zip(torch.split(query, size), torch.split(item, size), strict=True):
        difference = scores[rows] - scores[rows, items].unsqueeze(1)
        number += ((step.slope(difference) >= least) & irrelevant[rows]).sum()
    return number, (relevant.sum(dim=1) * irrelevant.sum(dim=1)).sum()


def _mean_over_batches(metrics: RetrievalMetrics, classes_per_batch: int, samples_per_class: int) -> float | None:
    """Mean AP of class-balanced batches of the images of a metric; None if not each is both query and item."""
    _, embeddings, labels, is_query, is_gallery = metrics.images()
    classes = labels[:, metrics.level]
    if not (is_query & is_gallery).all():
        return None
    classes_per_batch = min(classes_per_batch, len(torch.unique(classes)))
    sampler = ClassBalancedSampler(classes.cpu(), classes_per_batch, samples_per_class)  # draws the same each time
    means = _Means()
    for drawn in torch.split(torch.tensor(list(sampler), device=classes.device), sampler.batch_size):
        rows = torch.unique(drawn)  # an image that fills up its class must not find itself
        compared = _compared(embeddings[rows], classes[rows], torch.arange(len(rows), device=rows.device))
        total, count = _sum_of_average_precision(*compared)
        means.add("AP", total / count.clamp(min=1), count > 0)
    return means.read().get("AP")


def _peak_memory(device: torch.device) -> int | None:
    """Bytes; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
