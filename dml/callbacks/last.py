"""The checkpoint to go on from."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info


class SaveLast(Callback):
    """Keep ``checkpoints/last.ckpt`` of the run up to date: every few steps, each epoch, and on Ctrl-C.

    ``dml fit --ckpt_path last`` goes on from it. A checkpoint is taken between two steps, never within one: on Ctrl-C
    the step under way is finished first; a second Ctrl-C stops at once.

    Args:
        every_n_steps: Optimizer steps between two checkpoints, 0 for none within an epoch.
    """

    def __init__(self, every_n_steps: int = 200) -> None:
        if every_n_steps < 0:
            raise ValueError(f"every_n_steps is {every_n_steps}; it is a number of steps, or 0 for each epoch only")
        self.every_n_steps = every_n_steps
        self.interrupted = False
        self._previous_handler: Any = None

    @staticmethod
    def path(trainer: Trainer) -> Path:
        """Where the checkpoint of a run is."""
        return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "last.ckpt"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.interrupted = False
        self._previous_handler = signal.signal(signal.SIGINT, self._interrupt)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.interrupted:
            self._save(trainer)
            rank_zero_info(f"Saved {self.path(trainer)}; go on with the same command and --ckpt_path last")
            raise KeyboardInterrupt
        # The end of the epoch has a checkpoint of its own, after validation.
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0 and not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore_handler()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handler()

    def _restore_handler(self) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None

    def _save(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # a property the stubs do not show
            trainer.save_checkpoint(self.path(trainer))

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self.interrupted:
            signal.default_int_handler(signum, frame)
        self.interrupted = True
        rank_zero_info("\nCtrl-C: stopping after this step. Once more to stop at once.")
