"""The value of each query: in a Parquet file, and as intervals of their means."""

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import pad
from torchmetrics.utilities.distributed import gather_all_tensors

from dml import __version__
from dml.callbacks.metrics import LogRetrievalMetrics
from dml.data import RetrievalDataModule, RetrievalDataset
from dml.metrics import HierarchicalMetrics, RetrievalMetrics
from dml.metrics.evaluation import Evaluation
from dml.metrics.relevant import SameLabel
from dml.metrics.uncertainty import Interval, bootstrap_all

_STAGES = ("val", "test")
ENDS = ("_low", "_high")
"""What the names of the ends of an interval end in."""


class WritePerQuery(Callback):
    """Write what each query got to a Parquet file after a test: who fails, and on what.

    A row for each query that has something to retrieve: ``index`` and ``path`` of its image, the label of each level as
    an integer code, each measure by its name, and of the first wrong and the first right item of its ranking
    ``first_wrong_path``, ``first_wrong_score`` and ``first_wrong_rank``, and so on; null where there is none. Right is
    an item of the query's class at the level of the metric, the finest of :class:`~dml.metrics.HierarchicalMetrics`.
    Ties count against: of equal scores, the wrong item comes first. A distractor has a score and a rank, but no path. A
    metric with another ``measured_blocks``, such as one of judged landmarks, has its own notion of right, and leaves
    these columns null; one that keeps no value of each query, as :class:`~dml.metrics.ReidentificationMetrics` does,
    gets no file.

    The classes that do worst, and what they are taken for::

        frame = pd.read_parquet("per_query/test.parquet")
        frame.groupby(frame.attrs["level"])["AP"].agg(["mean", "size"]).sort_values("mean")
        frame[frame["R@1"] == 0].sort_values("first_wrong_score")[["path", "first_wrong_path"]]

    ``frame.attrs`` holds what the evaluation was: ``protocol``, ``level``, ``num_gallery``, ``measures``,
    ``dml_version`` and others. :func:`~dml.metrics.uncertainty.paired_test` compares two such files.

    It searches once more, which costs what the evaluation of the metric did. Nothing is written without
    :class:`LogRetrievalMetrics` among the trainer's callbacks, or without a :class:`~dml.data.RetrievalDataModule`,
    which knows the paths.

    Args:
        folder: Where the files go, ``test.parquet`` and, one for each validation, ``val-epoch003-step000123.parquet``;
            by default ``per_query`` in the log folder.
        stages: After which evaluations: ``test``, ``val`` or both.

    Raises:
        ValueError: If ``stages`` are others, or none.
    """

    def __init__(self, folder: str | None = None, stages: Sequence[str] = ("test",)) -> None:
        if not stages or not set(stages) <= set(_STAGES):
            raise ValueError(f"stages is {list(stages)}; it is one or both of {list(_STAGES)}")
        self.folder = folder
        self.stages = tuple(stages)
        self.last_path: Path | None = None
        """The last file written."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out before the evaluation whether files can be written.

        Raises:
            ValueError: If ``folder`` is a file.
        """
        if self.folder is not None and Path(self.folder).expanduser().is_file():
            raise ValueError(f"folder is {self.folder!r}, a file; it must be the name of a folder")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and "val" in self.stages:
            name = f"val-epoch{trainer.current_epoch:03d}-step{trainer.global_step:06d}"
            self._write(trainer, pl_module, "val", name)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if "test" in self.stages:
            self._write(trainer, pl_module, "test", "test")

    def _write(self, trainer: Trainer, pl_module: LightningModule, stage: str, name: str) -> None:
        evaluation = _evaluation(trainer)
        data = trainer.datamodule  # type: ignore[attr-defined]  # untyped in Lightning
        if evaluation is None or evaluation.per_query is None or not isinstance(data, RetrievalDataModule):
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "per_query"  # a broadcast: on every process
        folder = folder if self.folder is None else Path(self.folder).expanduser()
        metrics, (index, measures) = evaluation.metrics, evaluation.per_query
        index, order = index.sort()
        measures = {measure: value[order] for measure, value in measures.items()}
        # After compute the states of a process are its own again: without this, its share would be the gallery.
        with metrics.sync_context(dist_sync_fn=metrics.dist_sync_fn):
            queries_and_gallery = metrics.images().split()
            firsts = _firsts(metrics, queries_and_gallery, index)
        if not trainer.is_global_zero:
            return
        dataset = data.datasets[stage]
        table = _table(dataset, index, measures, firsts)
        facts = {
            "protocol": type(metrics).__name__,
            "level": dataset.levels[metrics.level],
            "num_gallery": len(queries_and_gallery.gallery_index),
            "distractors": metrics.search.distractors,
            "ties": metrics.search.ties,
            "precision": metrics.search.precision,
            "stages": [type(stage).__name__ for stage in (*metrics.search.stages, metrics.search.reranker) if stage],
            "measures": list(measures),
            "dataset": type(dataset).__name__,
            "split": dataset.split,
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "dml_version": __version__,
        }
        self.last_path = folder / f"{name}.parquet"
        # Under this key, pandas finds them again as the attributes of the frame.
        metadata = {**(table.schema.metadata or {}), "PANDAS_ATTRS": json.dumps(facts)}
        write_whole(table.replace_schema_metadata(metadata), self.last_path)
        pl_module.print(f"{self.last_path}: {len(index):,} queries")


class LogIntervals(Callback):
    """Log an interval of each headline measure after a test, and print it: ``AP 0.601 [0.588, 0.614]``.

    What is logged is ``test/AP_low`` and ``test/AP_high``; :func:`~dml.metrics.uncertainty.bootstrap_all` says what
    they are. Nothing is, if the metric keeps no such measure of each query, or the queries are of one class.

    Args:
        measures: Which; those that the metric does not have are left out.
        confidence: How often the interval should hold the mean over all classes there could be.
        seed: Of the draws.

    Raises:
        ValueError: If ``confidence`` is not in (0, 1).
    """

    def __init__(self, measures: Sequence[str] = ("AP", "R@1"), confidence: float = 0.95, seed: int = 0) -> None:
        if not 0 < confidence < 1:
            raise ValueError(f"confidence is {confidence}; it must be between 0 and 1, such as 0.95")
        self.measures = tuple(measures)
        self.confidence = confidence
        self.seed = seed
        self.intervals: dict[str, Interval] = {}
        """Of the last test."""

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.intervals = {}
        evaluation = _evaluation(trainer)
        if evaluation is None:
            return
        metrics = evaluation.metrics
        metrics.compute()  # which is kept: it costs nothing if that callback came first, and not again if it comes next
        if metrics.last_per_query is None:
            return
        index, values = metrics.last_per_query
        with metrics.sync_context(dist_sync_fn=metrics.dist_sync_fn):
            images = metrics.images()
        classes = images.labels[torch.searchsorted(images.index, index), metrics.level]
        wanted = {name: values[name] for name in self.measures if name in values}
        wanted = {name: value for name, value in wanted.items() if len(torch.unique(classes[~value.isnan()])) > 1}
        self.intervals = bootstrap_all(wanted, classes, confidence=self.confidence, seed=self.seed)
        for name, interval in self.intervals.items():
            pl_module.log_dict(
                dict(zip((f"test/{name}{end}" for end in ENDS), (interval.low, interval.high), strict=True))
            )

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, (low, high, mean, _, num_classes) in self.intervals.items():
            certainty = f"({100 * self.confidence:g} %, {num_classes:,} classes)"
            pl_module.print(f"{name} {mean:.3f} [{low:.3f}, {high:.3f}] {certainty}")


class _Firsts(NamedTuple):
    """The first wrong and the first right item of each query, ``[Q, 2]``."""

    item: Tensor  # index of its image; -1 if there is none, or it is a distractor
    rank: Tensor  # -1 if there is none
    score: Tensor  # NaN if there is none


def _firsts(metrics: RetrievalMetrics, evaluation: Evaluation, queries: Tensor) -> _Firsts:
    """Of queries ``[Q]``, by the scores that the metric ranks by. Processes share them, and all get those of all."""
    item = evaluation.query_index.new_full((len(evaluation.query_index), 2), -1)
    rank, score = item.clone(), torch.full(item.shape, -torch.inf, device=item.device)
    # Where a metric measures its queries in another way, what is right does not follow from the labels.
    if type(metrics).measured_blocks in (RetrievalMetrics.measured_blocks, HierarchicalMetrics.measured_blocks):
        same = SameLabel(evaluation.gallery_labels[:, metrics.level])
        for rows, scores in metrics.scored_blocks(evaluation):
            right = same.pairs(evaluation.query_labels[rows, metrics.level], evaluation.own[rows])
            item[rows], rank[rows], score[rows] = _of_block(scores, *right, evaluation.gallery_index)
    place = torch.searchsorted(evaluation.query_index, queries)
    item, rank, score = (_of_all_processes(column, metrics.process_group)[place] for column in (item, rank, score))
    return _Firsts(item, rank, score.masked_fill(rank < 0, torch.nan))


def _of_block(scores: Tensor, query: Tensor, right: Tensor, gallery: Tensor) -> _Firsts:
    """Of a block of queries, whose scores ``[b, N]`` are minus infinity at the query itself and are used up.

    Args:
        scores: With the gallery, then with distractors.
        query: ``[M]``, of each right item.
        right: ``[M]``, which item it is.
        gallery: Index of each item.
    """
    own = scores[query, right]
    best_right = scores.new_full((len(scores),), -torch.inf).scatter_reduce(0, query, own, "amax")
    is_best = own == best_right[query]
    nearest = query.new_full((len(scores),), scores.shape[1] - 1)
    nearest = nearest.scatter_reduce(0, query[is_best], right[is_best], "amin")  # of equal ones, the first
    scores[query, right] = -torch.inf
    best_wrong, wrong = scores.max(dim=1)
    # Ties count against: a wrong item is before the right ones of its score.
    wrong_rank = 1 + torch.bincount(query[own > best_wrong[query]], minlength=len(scores))
    # On a CPU, summing floats is ten times as fast as summing booleans.
    right_rank = 1 + scores.ge_(best_right[:, None]).sum(dim=1).long()
    score, rank = torch.stack([best_wrong, best_right], dim=1), torch.stack([wrong_rank, right_rank], dim=1)
    there = score > -torch.inf
    item = pad(gallery, (0, scores.shape[1] - len(gallery)), value=-1)[torch.stack([wrong, nearest], dim=1)]
    return _Firsts(item.where(there, -1), rank.where(there, -1), score.float())


def _of_all_processes(values: Tensor, group: Any) -> Tensor:
    """The largest of all processes: those that a query is not of have what is below all values."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.stack(gather_all_tensors(values, group)).amax(dim=0)
    return values


def _table(dataset: RetrievalDataset, index: Tensor, measures: dict[str, Tensor], firsts: _Firsts) -> pa.Table:
    rows = index.cpu().numpy()
    paths = pa.array(dataset.index["path"].astype(str), pa.string())
    columns = {"index": pa.array(rows, pa.int64()), "path": paths.take(pa.array(rows))}
    columns |= {level: pa.array(dataset.index[level].to_numpy()[rows], pa.int64()) for level in dataset.levels}
    columns |= {name: pa.array(value.cpu().numpy()) for name, value in measures.items()}
    item, rank, score = (column.cpu().numpy() for column in firsts)
    for side, name in enumerate(("wrong", "right")):
        columns[f"first_{name}_path"] = paths.take(pa.array(item[:, side], mask=item[:, side] < 0))
        columns[f"first_{name}_score"] = pa.array(score[:, side], pa.float32(), from_pandas=True)
        columns[f"first_{name}_rank"] = pa.array(rank[:, side], pa.int64(), mask=rank[:, side] < 0)
    return pa.table(columns)


def write_whole(table: pa.Table, path: Path) -> None:
    """Leave no half of a file, and what was there before until the new one is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, so that the rename stays on one file system, where it is atomic.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        pq.write_table(table, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _evaluation(trainer: Trainer) -> LogRetrievalMetrics | None:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # untyped in Lightning
    return next((callback for callback in callbacks if isinstance(callback, LogRetrievalMetrics)), None)
