"""The ``dml`` command: training, evaluation, data, export and search."""

import importlib
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.plugins import TorchCheckpointIO

from dml import (
    checkpoints,
    compare_command,
    data_command,
    explanation,
    export,
    names,
    runs,
    search_command,
    sweep_command,
    workspace_command,
)
from dml.callbacks.artifacts import LogArtifacts
from dml.callbacks.diagnostics import LogDiagnostics
from dml.callbacks.embeddings import WriteEmbeddings
from dml.callbacks.last import SaveLast
from dml.callbacks.metrics import LogRetrievalMetrics
from dml.callbacks.per_query import LogIntervals, WritePerQuery
from dml.callbacks.run import DescribeRun, LogConfig
from dml.callbacks.similarities import LogSimilarities
from dml.callbacks.table import MetricsTable
from dml.callbacks.whitening import LearnWhitening
from dml.data import RetrievalDataModule
from dml.metrics import Search
from dml.module import RetrievalModule
from dml.report import best_checkpoint, print_report

_PLAIN = {
    "compare": compare_command.run,
    "data": data_command.run,
    "export": export.run,
    "index": search_command.run_index,
    "search": search_command.run_search,
    "sweep": lambda words, parser_class: sweep_command.run(words, parser_class, main),
    "browse": search_command.run_browse,
    "workspace": workspace_command.run,
}


class OneLineErrors(LightningArgumentParser):
    """A parser whose errors are one line on stderr."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(message)


class UsageError(SystemExit):
    """What is wrong with the command line; an exit, which no parser takes for a value that another one might read."""


class DMLCommand(LightningCLI):
    """LightningCLI for the one module and the one data module of this project."""

    def __init__(self, args: ArgsType = None) -> None:
        self._words = list(args) if isinstance(args, list) else sys.argv[1:]
        whole_names = {"allow_abbrev": False}
        super().__init__(
            RetrievalModule,
            RetrievalDataModule,
            args=args,
            parser_class=OneLineErrors,
            # Or a misspelling that is a prefix would pass. Older jsonargparse asks each parser, newer the first.
            parser_kwargs={
                **whole_names,
                **dict.fromkeys(self.subcommands(), whole_names),
                "epilog": "Data sets: dml data describe, verify, prepare or pack; see dml data --help. "
                "The model as one file: dml export; see dml export --help. "
                "Neighbours of any image: dml index, then dml search or dml browse; see dml index --help. "
                "Many runs: dml sweep, dml compare; pages of W&B: dml workspace.",
            },
            auto_configure_optimizers=False,
            save_config_callback=LogConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            # Lightning would wrap the sampler under DDP, and break up the classes of a batch; ours shards itself.
            trainer_defaults={
                "use_distributed_sampler": False,
                "callbacks": [
                    MetricsTable(),
                    DescribeRun(),
                    LogDiagnostics(),
                    LearnWhitening(),
                    LogIntervals(),
                    WritePerQuery(),
                    LogSimilarities(),
                ],
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(SaveLast, "last")
        parser.add_lightning_class_args(WriteEmbeddings, "embeddings")
        parser.add_lightning_class_args(LogArtifacts, "artifacts")
        parser.add_argument(
            "--report", type=bool, default=False, help="After fit, compare the untrained and the best model."
        )
        parser.add_argument(
            "--test", type=bool, default=False, help="After fit, test the best model: the last one if none is the best."
        )
        parser.add_argument(
            "--folder",
            type=str | None,
            default=None,
            help="The run's folder, in place of the next version_N; with --ckpt_path last, a run there goes on.",
        )
        parser.add_class_arguments(Search, "search")
        # One value each: what the backbone takes is what the loaders deliver, and one seed is the seed of everything.
        parser.link_arguments("model.embedder.image_size", "data.image_size", apply_on="instantiate")
        parser.link_arguments("model.embedder.channels", "data.channels", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: :func:`checkpoints.with_config` has put the checkpoint's own under it."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        loggers = _loggers(config)
        local = [logger.init_args for logger in loggers if logger.class_path.endswith("CSVLogger")]
        watched = [logger.init_args for logger in loggers if logger.class_path.endswith("WandbLogger")]
        self._as_given = [(logger, logger.clone()) for logger in (*local, *watched)]
        if watched:
            _stay_offline_unless_logged_in()
            names.label(watched, config.as_dict())
        if config.folder is not None:
            runs.place(Path(config.folder), local)
            if self.subcommand == "fit":
                config.ckpt_path = runs.checkpoint_in(Path(config.folder), config.ckpt_path)
        self._choose_folders(config, local)
        if self.subcommand == "fit" and config.ckpt_path and local and local[0].version:
            runs.watch_again(runs.of_run(local[0]), Path(config.ckpt_path), watched)

    def _choose_folders(self, config: Any, local: list[Any]) -> None:
        """Settle where the CSV loggers log, and which checkpoint a fit goes on from."""
        fitting, job = self.subcommand == "fit", runs.slurm_job()
        numbered = [logger for logger in local if logger.version is None]
        if fitting and job is not None:  # it may have been here before, and goes on in the same folder
            config.ckpt_path = runs.checkpoint_of_job(job, self._words, local) or config.ckpt_path
        if fitting and config.ckpt_path:
            config.ckpt_path = str(runs.checkpoint_to_resume(Path(config.ckpt_path), numbered))
            checkpoints.read(config.ckpt_path)
        for logger in local:
            logger.version = logger.version or runs.reserve(runs.of_logger(logger), job if fitting else None)
            runs.set_aside(runs.of_run(logger) / "metrics.csv")
            if fitting and job is not None:
                runs.remember_job(runs.of_run(logger), job, self._words)
        self._moves_root = job is not None and bool(local) and config.trainer.default_root_dir is None
        if self._moves_root:  # from the working directory, where Lightning would look for checkpoints of any job
            name = local[0].version or f"job_{job}"  # only the first process knows the version
            config.trainer.default_root_dir = str(runs.of_logger(local[0]) / name)

    def after_instantiate_classes(self) -> None:
        search = self.config_init[self.subcommand].search
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # untyped in Lightning
            if isinstance(callback, LogRetrievalMetrics) and search != Search():  # what is set for the metric stays
                callback.metrics.search = search
        # The configuration is that of the experiment: started from it, another run gets a folder of its own.
        for logger, as_given in self._as_given:
            logger.update(as_given)
        self.config[self.subcommand].folder = None
        if self._moves_root:
            self.config[self.subcommand].trainer.default_root_dir = None
        # Not one of several plugins: those would replace it. Who brings another keeps it.
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = checkpoints.AtomicCheckpointIO()
        # With these, RetrievalModule.load_from_checkpoint(path) rebuilds embedder and loss.
        self._dump_config()
        hparams = {**self.config_dump["model"], "_instantiator": "pytorch_lightning.cli.instantiate_module"}
        self.model.save_hyperparameters(hparams, logger=False)

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            if not checkpoints.is_of_restoring(error):
                raise
            path = str(self.config[subcommand].ckpt_path)
            raise checkpoints.misfit(path, error, fitting=subcommand == "fit") from error

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        # Nothing from a checkpoint is executed, and embeddings are written as they come rather than kept.
        safe = {"weights_only": True}
        fixed = {**safe, "return_predictions": False} if subcommand == "predict" else safe
        return {**super()._prepare_subcommand_kwargs(subcommand), **fixed}

    def after_fit(self) -> None:
        if self.config[self.subcommand].report and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._set_seed()
            untrained = self.parser.instantiate_classes(self.config)[self.subcommand].model
            print_report(self.trainer, self.datamodule, untrained=untrained, trained=self.model)
        elif self.config[self.subcommand].test and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            best = best_checkpoint(self.trainer)
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False, weights_only=True)


def main(args: ArgsType = None) -> None:
    """Run the command. What the user can put right is one line on stderr and exit code 2; the rest is a traceback."""
    words = sys.argv[1:] if args is None else args
    note = ""
    _silence()
    try:
        if isinstance(words, list):
            if words and words[0] in _PLAIN:
                sys.exit(_PLAIN[words[0]](words[1:], OneLineErrors))
            words, note = checkpoints.with_config(words)
        DMLCommand(words)
    except UsageError as error:
        _exit_with(f"{error}{note}")
    except Exception as error:
        explained = explanation.of(error, note)
        if explained is None:
            raise
        message, code = explained
        _exit_with(message, code)


def _silence() -> None:
    """Turn off what Lightning says about itself: advertisements, and deprecations that its users cannot act on."""
    warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended to run from within Python")
    warnings.filterwarnings("ignore", ".*does not have many workers")
    warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")  # frozen
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")
    warnings.filterwarnings("ignore", "(Experiment logs|Checkpoint) directory .* exists and is not empty")
    warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
    warnings.filterwarnings("ignore", "Precision .* is not supported by the model summary")
    # What is logged is of the global batch or of all queries, on each process alike.
    warnings.filterwarnings("ignore", "It is recommended to use .*sync_dist=True")
    spam = ("litlogger", "TPU available", "`weights_only` was not set")
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logger = logging.getLogger(f"pytorch_lightning.{name}")
        logger.addFilter(lambda record: not any(word in str(record.msg) for word in spam))


def _exit_with(message: str, code: int = 2) -> NoReturn:
    sys.stderr.write(f"dml: error: {' '.join(message.split())}\n")
    sys.exit(code)


def _loggers(config: Any) -> list[Any]:
    loggers = config.trainer.logger
    loggers = loggers if isinstance(loggers, list) else [loggers]
    return [logger for logger in loggers if hasattr(logger, "class_path")]


def _stay_offline_unless_logged_in() -> None:
    if "WANDB_MODE" not in os.environ:
        import wandb  # takes a second, which runs without it should not pay

        if not wandb.login(prompt=False):
            wandb.teardown()  # or the settings that it has read already would stay
            # What the run says of itself is one line, by DescribeRun.
            os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")


if __name__ == "__main__":
    # Under the name that processes of a sweep import the command by.
    importlib.import_module("dml.__main__").main()
