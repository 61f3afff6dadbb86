import json
from pathlib import Path

import pytest
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from dml.callbacks import LogArtifacts, LogRetrievalMetrics, SaveLast, WriteEmbeddings, WritePerQuery
from dml.compare.per_query import read_classes
from dml.metrics import RetrievalMetrics

from .offline import told_by


@pytest.fixture
def fitted(make_trainer, module, datamodule, tmp_path, monkeypatch):
    """Fit two epochs under W&B; what it was told, and the log folder."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))

    def fit(*callbacks, **options):
        loggers = [CSVLogger(tmp_path, name="runs"), WandbLogger(save_dir=tmp_path, **options)]
        best = ModelCheckpoint(monitor="val/AP", mode="max", filename="best")
        callbacks = [*callbacks, LogRetrievalMetrics(RetrievalMetrics(recall_at=[1])), best]
        settings = {"max_epochs": 2, "limit_train_batches": 1, "log_every_n_steps": 1, "enable_checkpointing": True}
        trainer = make_trainer(*callbacks, logger=loggers, **settings)
        try:
            trainer.fit(module, datamodule)
        finally:
            told = told_by(tmp_path)
        return told, Path(trainer.log_dir)

    return fit


def test_best_and_last_are_versions_of_one_artifact(fitted, tmp_path):
    told, folder = fitted(LogArtifacts(), SaveLast())
    best, last = told.artifacts_of("model")
    assert best.name == last.name == f"model-{told.run.run_id}"
    assert set(best.aliases) == {"best", "latest"}
    assert set(last.aliases) == {"last", "latest"}
    for name, artifact in (("best", best), ("last", last)):
        (entry,) = artifact.manifest.contents
        path = folder / "checkpoints" / f"{name}.ckpt"
        assert entry.path == "model.ckpt"
        assert Path(entry.local_path) == path.resolve()  # not a copy of it
        assert entry.size == path.stat().st_size
    facts = json.loads(best.metadata)
    assert facts["monitor"] == "val/AP"
    assert facts["score"] == pytest.approx(max(told.logged("val/AP")))
    assert not [path for path in (tmp_path / "staged").rglob("*") if path.is_file()]


def test_references_hold_no_files(fitted):
    told, folder = fitted(LogArtifacts("references"), SaveLast())
    best, _ = told.artifacts_of("model")
    (entry,) = best.manifest.contents
    assert entry.ref == (folder / "checkpoints" / "best.ckpt").resolve().as_uri()
    assert not entry.local_path


def test_nothing_is_uploaded_on_demand(fitted):
    assert fitted(LogArtifacts("nothing"), SaveLast())[0].artifacts_of("model") == []


def test_checkpoints_that_lightning_logs_are_logged_once(fitted):
    told, _ = fitted(LogArtifacts(), SaveLast(), log_model=True)
    assert [set(each.aliases) for each in told.artifacts_of("model")] == [{"latest", "best"}]


def test_only_what_there_is_is_logged(fitted):
    told, _ = fitted(LogArtifacts())
    assert [set(each.aliases) for each in told.artifacts_of("model")] == [{"latest", "best"}]


def test_embeddings_have_the_alias_of_their_checkpoint(make_trainer, module, datamodule, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    trainer = make_trainer(enable_checkpointing=True, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(module, datamodule)
    trainer.save_checkpoint(tmp_path / "best.ckpt")
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    callbacks = LogArtifacts(), WriteEmbeddings(str(tmp_path / "embeddings.npy"))
    try:
        make_trainer(*callbacks, logger=logger).predict(
            module, datamodule, ckpt_path=tmp_path / "best.ckpt", return_predictions=False, weights_only=True
        )
    finally:
        told = told_by(tmp_path)
    (artifact,) = told.artifacts_of("embeddings")
    assert artifact.name == f"embeddings-{told.run.run_id}"
    assert set(artifact.aliases) == {"best", "latest"}
    (entry,) = artifact.manifest.contents
    assert (entry.path, Path(entry.local_path)) == ("embeddings.npy", tmp_path / "embeddings.npy")
    assert told.artifacts_of("model") == []


def test_values_of_queries_are_an_artifact_that_a_comparison_reads(make_trainer, module, datamodule, tmp_path):
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    metrics = LogRetrievalMetrics(RetrievalMetrics(recall_at=[1]))
    per_query = WritePerQuery(str(tmp_path / "per_query"))
    try:
        make_trainer(LogArtifacts(), metrics, per_query, logger=logger).test(module, datamodule)
    finally:
        told = told_by(tmp_path)
    (artifact,) = told.artifacts_of("per_query")
    (entry,) = artifact.manifest.contents
    assert (entry.path, Path(entry.local_path)) == ("test.parquet", tmp_path / "per_query" / "test.parquet")
    _, attributes = read_classes("run", Path(entry.local_path))
    assert attributes["protocol"] == "RetrievalMetrics"


def test_rejects_another_policy():
    with pytest.raises(ValueError, match=r"upload is 'all'; it must be one of \['files', 'references', 'nothing'\]"):
        LogArtifacts("all")
