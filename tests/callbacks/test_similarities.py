import numpy as np
import pytest
import torch
import wandb
from pytorch_lightning.loggers import WandbLogger

from dml.callbacks import similarities as similarities_module
from dml.callbacks.metrics import LogRetrievalMetrics
from dml.callbacks.similarities import LogSimilarities, similarities
from dml.metrics import LandmarkMetrics, RetrievalMetrics, Search
from tests.callbacks.test_metrics import Landmarks

from .offline import told_by
from .test_picture import CLASSES, GALLERY, QUERIES, cosines


def scores_of(queries):
    """Scores of the relevant and of the irrelevant pairs, by definition."""
    pairs = [(query, item) for query in queries for item in GALLERY if item != query]
    right = [cosines()[pair] for pair in pairs if CLASSES[pair[0]] == CLASSES[pair[1]]]
    return right, [cosines()[pair] for pair in pairs if CLASSES[pair[0]] != CLASSES[pair[1]]]


def evaluated(make_trainer, module, datamodule, **options):
    log = LogRetrievalMetrics(RetrievalMetrics(recall_at=[1], **options))
    make_trainer(log).validate(module, datamodule, verbose=False)
    return log.metrics


def test_every_pair_is_counted_once(make_trainer, module, datamodule):
    counted = similarities(evaluated(make_trainer, module, datamodule), 100)
    for count, scores in zip(counted[:2], scores_of(QUERIES), strict=True):
        expected, _ = np.histogram(scores, bins=counted.edges)
        np.testing.assert_array_equal(count, expected)
    assert counted.positive.sum() > 0
    assert counted.edges[[0, -1]].tolist() == [-1, 1]


def test_a_sample_of_queries_is_the_same_each_time(make_trainer, module, datamodule):
    metrics = evaluated(make_trainer, module, datamodule)
    first, second, other = (similarities(metrics, 3, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.negative, second.negative)
    pairs = first.positive.sum() + first.negative.sum()
    assert 3 * (len(GALLERY) - 1) <= pairs <= 3 * len(GALLERY)
    assert (first.negative != other.negative).any() or (first.positive != other.positive).any()


def test_scores_at_and_beyond_the_ends_are_in_the_last_bins():
    metrics = RetrievalMetrics(recall_at=[1])
    metrics.update(torch.tensor([[2.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1]), torch.arange(3))
    counted = similarities(metrics, 3)
    assert counted.positive.tolist() == [0] * 127 + [2]
    assert counted.negative.tolist() == [4] + [0] * 127


def test_distractors_are_not_counted(make_trainer, module, datamodule, tmp_path):
    np.save(tmp_path / "distractors.npy", np.eye(3, dtype=np.float32))
    alone = similarities(evaluated(make_trainer, module, datamodule), 100)
    search = Search(distractors=str(tmp_path / "distractors.npy"))
    beside = similarities(evaluated(make_trainer, module, datamodule, search=search), 100)
    np.testing.assert_array_equal(alone.negative, beside.negative)


def test_histograms_are_logged_after_each_evaluation(make_trainer, module, datamodule, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    metrics = LogRetrievalMetrics(RetrievalMetrics(recall_at=[1]))
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    try:
        trainer = make_trainer(metrics, LogSimilarities(), logger=logger)
        trainer.validate(module, datamodule, verbose=False)
        trainer.test(module, datamodule, verbose=False)
    finally:
        told = told_by(tmp_path)
    right, wrong = scores_of(QUERIES)
    for stage in ("val", "test"):
        for name, scores in (("positive", right), ("negative", wrong)):
            (histogram,) = told.logged(f"{stage}/similarity_{name}")
            assert histogram["_type"] == "histogram"
            assert histogram["values"] == np.histogram(scores, bins=histogram["bins"])[0].tolist()


@pytest.mark.parametrize("dataset", ["labels", "judgements"])
def test_nothing_is_computed_that_nobody_is_shown(make_trainer, module, datamodule, tmp_path, monkeypatch, dataset):
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(similarities_module, "similarities", None)  # which cannot be called
    metrics, logger = RetrievalMetrics(recall_at=[1]), False
    if dataset == "judgements":
        datamodule.dataset, metrics = Landmarks, LandmarkMetrics()
        logger = WandbLogger(offline=True, save_dir=tmp_path)
    log = LogRetrievalMetrics(metrics)
    make_trainer(log, LogSimilarities(), logger=logger).validate(module, datamodule, verbose=False)
    wandb.finish()
    assert log.per_query is not None
    make_trainer(LogSimilarities(), logger=logger).validate(module, datamodule, verbose=False)


def test_rejects_a_sample_of_nothing():
    with pytest.raises(ValueError, match="num_queries is 0; it must be at least 1"):
        LogSimilarities(num_queries=0)
