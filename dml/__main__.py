"""The ``dml`` command: ``fit``, ``validate``, ``test``, ``predict``, and ``data``."""

import atexit
import contextlib
import difflib
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_only

from dml import data_command
from dml.callbacks.embeddings import WriteEmbeddings
from dml.callbacks.last import SaveLast
from dml.callbacks.run import CONFIG_KEY, DescribeRun, LogConfig
from dml.callbacks.table import MetricsTable
from dml.data import RetrievalDataModule
from dml.module import NonFiniteError, RetrievalModule
from dml.report import print_report


class OneLineErrors(LightningArgumentParser):
    """A parser whose errors are one line on stderr."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        _exit_with(message)


class DMLCommand(LightningCLI):
    """LightningCLI for the one module and the one data module of this project."""

    def __init__(self, args: ArgsType = None) -> None:
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
                "epilog": "Data sets: dml data describe, verify, prepare or pack; see dml data --help.",
            },
            auto_configure_optimizers=False,
            save_config_callback=LogConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            # Lightning would wrap the sampler under DDP, and break up the classes of a batch; ours shards itself.
            trainer_defaults={"use_distributed_sampler": False, "callbacks": [MetricsTable(), DescribeRun()]},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(SaveLast, "last")
        parser.add_lightning_class_args(WriteEmbeddings, "embeddings")
        parser.add_argument(
            "--report", type=bool, default=False, help="After fit, compare the untrained and the best model."
        )
        # One value each: what the backbone takes is what the loaders deliver, and one seed is the seed of everything.
        parser.link_arguments("model.embedder.image_size", "data.image_size", apply_on="instantiate")
        parser.link_arguments("model.embedder.channels", "data.channels", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: :func:`_with_config_of_checkpoint` has put the checkpoint's own under it."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        loggers = _loggers(config)
        if any(logger.class_path.endswith("WandbLogger") for logger in loggers):
            _stay_offline_unless_logged_in()
        local = [logger.init_args for logger in loggers if logger.class_path.endswith("CSVLogger")]
        self._numbered = [logger for logger in local if logger.version is None]
        if config.get("ckpt_path") and self.subcommand == "fit":
            config.ckpt_path = str(_resume(Path(config.ckpt_path), self._numbered))
        for logger in local:
            logger.version = logger.version or _reserve(_runs(logger))
            _set_aside(_runs(logger) / str(logger.version) / "metrics.csv")

    def after_instantiate_classes(self) -> None:
        # The configuration is that of the experiment: started from it, another run gets a folder of its own.
        for logger in self._numbered:
            logger.version = None
        # With these, RetrievalModule.load_from_checkpoint(path) rebuilds embedder and loss.
        self._dump_config()
        hparams = {**self.config_dump["model"], "_instantiator": "pytorch_lightning.cli.instantiate_module"}
        self.model.save_hyperparameters(hparams, logger=False)

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


def main(args: ArgsType = None) -> None:
    """Run the command. What the user can put right is one line on stderr and exit code 2; the rest is a traceback."""
    words = sys.argv[1:] if args is None else args
    _silence()
    try:
        if isinstance(words, list) and words[:1] == ["data"]:
            sys.exit(data_command.run(words[1:], OneLineErrors))
        DMLCommand(_with_config_of_checkpoint(words) if isinstance(words, list) else words)
    except NonFiniteError as error:
        _exit_with(str(error), code=1)
    except (ValueError, OSError) as error:
        if not _is_ours(error):
            raise
        _exit_with(str(error))
    except AttributeError as error:  # a class that is named and not there: jsonargparse lets that through
        if not isinstance(error.obj, ModuleType):
            raise
        close = difflib.get_close_matches(str(error.name), dir(error.obj), n=1)
        _exit_with(f"{error}{f'; did you mean {close[0]!r}?' if close else ''}")


def _silence() -> None:
    """Turn off what Lightning says about itself: advertisements, and deprecations that its users cannot act on."""
    warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended to run from within Python")
    warnings.filterwarnings("ignore", ".*does not have many workers")
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")
    warnings.filterwarnings("ignore", "Experiment logs directory .* exists and is not empty")
    warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
    warnings.filterwarnings("ignore", "Precision .* is not supported by the model summary")
    # What is logged is of the global batch or of all queries, on each process alike.
    warnings.filterwarnings("ignore", "It is recommended to use .*sync_dist=True")
    spam = ("litlogger", "TPU available", "`weights_only` was not set")
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logger = logging.getLogger(f"pytorch_lightning.{name}")
        logger.addFilter(lambda record: not any(word in str(record.msg) for word in spam))


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised the error: then its message is meant for the user."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)


def _exit_with(message: str, code: int = 2) -> NoReturn:
    sys.stderr.write(f"dml: error: {' '.join(message.split())}\n")
    sys.exit(code)


def _with_config_of_checkpoint(words: list[str]) -> list[str]:
    """Put the configuration in the checkpoint of ``--ckpt_path`` under that of the command line.

    ``dml test --ckpt_path best.ckpt`` then needs no other argument, and any other argument changes it. A run that goes
    on keeps to the configuration it is given.
    """
    path = _value_of("--ckpt_path", words)
    configured = any(word in ("-c", "--config") or word.startswith(("-c=", "--config=")) for word in words)
    if path is None or (configured and words[0] == "fit") or path in ("last", "best"):
        return words
    if not Path(path).is_file():
        raise ValueError(f"ckpt_path is {path!r}; there is no such file")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if CONFIG_KEY not in checkpoint:
        raise ValueError(f"ckpt_path is {path!r}, a checkpoint without a configuration; give one by -c")
    return [words[0], "--config", checkpoint[CONFIG_KEY], *words[1:]]


def _value_of(option: str, words: list[str]) -> str | None:
    for position, word in enumerate(words):
        if word == option and position + 1 < len(words):
            return words[position + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def _loggers(config: Any) -> list[Any]:
    loggers = config.trainer.logger
    loggers = loggers if isinstance(loggers, list) else [loggers]
    return [logger for logger in loggers if hasattr(logger, "class_path")]


def _runs(logger: Any) -> Path:
    """Where a CSV logger keeps the folders of its runs."""
    return Path(logger.save_dir) / (logger.name or "")


def _resume(path: Path, loggers: list[Any]) -> Path:
    """The checkpoint to go on from, once the CSV loggers are set to go on with its run."""
    if str(path) == "last":
        found = [run for logger in loggers for run in _runs(logger).glob("*/checkpoints/last.ckpt")]
        if not found:
            where = [str(_runs(logger)) for logger in loggers]
            raise ValueError(f"ckpt_path is 'last', but no run in {where} has checkpoints/last.ckpt; start without it")
        path = max(found, key=lambda candidate: candidate.stat().st_mtime)
    if not path.is_file():
        raise ValueError(f"ckpt_path is {str(path)!r}; there is no such file")
    run = path.resolve().parent.parent
    for logger in loggers:
        if run.parent == _runs(logger).resolve():
            logger.version = run.name
    return path


@rank_zero_only
def _reserve(runs: Path) -> str:
    """Make the folder of a new run: two runs started at once would otherwise both take the next free number."""
    number = 0
    while True:
        folder = runs / f"version_{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
            continue
        atexit.register(_remove_if_empty, folder)
        return folder.name


def _remove_if_empty(folder: Path) -> None:
    """Leave nothing behind of a run that ended before it began."""
    with contextlib.suppress(OSError):
        folder.rmdir()


@rank_zero_only
def _set_aside(metrics: Path) -> None:
    """Rename the metrics of the run so far, which the CSV logger would delete, to ``metrics.1.csv`` and so on."""
    if metrics.exists():
        number = 1 + len(list(metrics.parent.glob("metrics.*.csv")))
        metrics.rename(metrics.with_suffix(f".{number}.csv"))


def _stay_offline_unless_logged_in() -> None:
    if "WANDB_MODE" not in os.environ:
        import wandb  # takes a second, which runs without it should not pay

        if not wandb.login(prompt=False):
            wandb.teardown()  # or the settings that it has read already would stay
            # What the run says of itself is one line, by DescribeRun.
            os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")


if __name__ == "__main__":
    main()
