"""Checkpoints, embeddings and values of queries as artifacts of Weights & Biases."""

from pathlib import Path
from typing import Any, Literal, get_args

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger

from dml.callbacks.embeddings import WriteEmbeddings
from dml.callbacks.last import SaveLast
from dml.callbacks.per_query import WritePerQuery

Upload = Literal["files", "references", "nothing"]


class LogArtifacts(Callback):
    """Give what a run has written to Weights & Biases as artifacts: checkpoints, embeddings, values of queries.

    The best and the last checkpoint are versions of one artifact ``model-<run id>`` of type ``model``, with the aliases
    ``best`` and ``last``. Embeddings of ``dml predict`` are ``embeddings-<run id>`` of
    type ``embeddings``, with the alias of the checkpoint that they are of. The file of :class:`WritePerQuery` is
    ``per_query-<run id>`` of type ``per_query``, from which ``dml compare --wandb`` has its intervals.

    Files are not copied on this machine: an offline run notes where they are, and ``wandb sync`` uploads them from
    there. A ``WandbLogger`` with ``log_model`` keeps checkpoints in its own way, and gets none of these.

    Args:
        upload: ``"files"``; ``"references"``, paths and checksums only; or ``"nothing"``.

    Raises:
        ValueError: If ``upload`` is none of these.
    """

    def __init__(self, upload: Upload = "files") -> None:
        if upload not in get_args(Upload):
            raise ValueError(f"upload is {upload!r}; it must be one of {list(get_args(Upload))}")
        self.upload = upload

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """When all other callbacks have written what they write."""
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        if not loggers or self.upload == "nothing" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        checkpoints = _checkpoints(trainer) if stage == "fit" else {}  # a broadcast: on every process
        written = {"predict": ("embeddings", WriteEmbeddings), "test": ("per_query", WritePerQuery)}.get(stage)
        if not trainer.is_global_zero:
            return
        for logger in loggers:
            if not logger._log_model:
                for alias, checkpoint in checkpoints.items():
                    self._log(logger, "model", "model.ckpt", checkpoint, alias, _facts(trainer, alias))
            if written is not None and (path := _last_path(trainer, written[1])) is not None:
                stem = Path(trainer.ckpt_path or "").stem
                of = stem if stem in ("best", "last") else None
                self._log(logger, written[0], path.name, path, of, {"checkpoint": trainer.ckpt_path})

    def _log(
        self, logger: WandbLogger, kind: str, name: str, path: Path, alias: str | None, facts: dict[str, Any]
    ) -> None:
        import wandb  # takes a second, which runs without it should not pay

        run = logger.experiment
        artifact = wandb.Artifact(f"{kind}-{run.id}", type=kind, metadata={**facts, "path": str(path)})
        if self.upload == "references":
            artifact.add_reference(path.resolve().as_uri(), name=name)
        else:
            artifact.add_file(str(path.resolve()), name=name, policy="immutable")  # else it would be copied first
        run.log_artifact(artifact, aliases=[] if alias is None else [alias])


def _checkpoints(trainer: Trainer) -> dict[str, Path]:
    """Those there are, by alias; the last comes last, as what is logged last is also the latest."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # untyped in Lightning
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    found = {"best": Path(best)} if best else {}
    if any(isinstance(callback, SaveLast) for callback in callbacks):
        found["last"] = SaveLast.path(trainer)
    return {alias: path for alias, path in found.items() if path.is_file()}


def _last_path(trainer: Trainer, kind: type[WriteEmbeddings | WritePerQuery]) -> Path | None:
    """Of the file that the callback of a kind has written."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # untyped in Lightning
    written = [callback.last_path for callback in callbacks if isinstance(callback, kind)]
    return next((path for path in written if path is not None), None)


def _facts(trainer: Trainer, alias: str) -> dict[str, Any]:
    checkpoint = trainer.checkpoint_callback
    if alias != "best" or not isinstance(checkpoint, ModelCheckpoint) or checkpoint.best_model_score is None:
        return {"epoch": trainer.current_epoch, "step": trainer.global_step}
    return {"monitor": checkpoint.monitor, "score": float(checkpoint.best_model_score)}
