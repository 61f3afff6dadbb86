"""The checkpoint to go on from."""

import os
import signal
import subprocess
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_info


class SaveLast(Callback):
    """Keep ``checkpoints/last.ckpt`` of the run up to date.

    It is saved every few steps, before each validation, at the end of each epoch, and before the run is stopped;
    ``dml fit --ckpt_path last`` goes on from it. A checkpoint is taken between two steps of the optimizer, never among
    the batches whose gradients one step accumulates. On Ctrl-C, on SIGTERM, and under SLURM on the signal that
    announces the end of the time (SIGUSR1 unless Lightning's ``SLURMEnvironment`` is set otherwise), the step under
    way is finished first, or the batch of a validation, which is then repeated as a whole when the run goes on; from a
    validation among the batches of one step, it goes on from the checkpoint before. Ctrl-C stops at once if the run
    is being stopped already. Under SLURM the job is put back into the queue, and goes on by itself.

    Args:
        every_n_steps: Optimizer steps between two checkpoints, 0 for those at validations and ends of epochs only.
    """

    def __init__(self, every_n_steps: int = 200) -> None:
        if every_n_steps < 0:
            raise ValueError(
                f"every_n_steps is {every_n_steps}; it is a number of steps, or 0 for validations and epochs only"
            )
        self.every_n_steps = every_n_steps
        self._stop_by = 0  # the signal by which the run is to stop; 0 for none
        self._requeue_by: int | None = None
        self._saved_at = -1  # the step of the latest checkpoint
        self._fitting = self._speaks = self._validation_is_due = False
        self._previous_handlers: dict[int, Any] = {}

    @staticmethod
    def path(trainer: Trainer) -> Path:
        """Where the checkpoint of a run is."""
        return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "last.ckpt"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_by, self._saved_at = 0, -1
        self._fitting, self._speaks = True, trainer.is_global_zero
        self._requeue_by = _requeue_signal(trainer)
        signals = [signal.SIGINT, signal.SIGTERM, *([] if self._requeue_by is None else [self._requeue_by])]
        self._previous_handlers = {each: signal.getsignal(each) for each in signals}
        # Lightning leaves a handler of the requeue signal alone if there is one; its own saves within a step.
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # By now Lightning has put a handler of SIGTERM before ours, which talks to the other processes within a step.
        self._listen()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        # The end of the epoch has a checkpoint of its own, after validation; from one here, that would be left out.
        if trainer.is_last_batch or _has_gradients(trainer):
            return
        is_to_stop = self._is_to_stop(trainer)
        if is_to_stop or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            self._save(trainer, validation_is_due=True)
        if is_to_stop:
            self._exit(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._fitting:
            return
        # Not once it is under way, when callbacks that average weights have put the average in the model's place.
        if not (trainer.sanity_checking or _has_gradients(trainer) or self._saved_at == trainer.global_step):
            self._save(trainer, validation_is_due=True)
        if self._is_to_stop(trainer):
            self._exit(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._fitting and self._is_to_stop(trainer):
            self._exit(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning calls those that keep the best epoch after all others; this epoch, which does not come again once
        # the checkpoint below says that it is over, would never be among theirs. Called twice, they save once.
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback.on_train_epoch_end(trainer, pl_module)
        self._save(trainer, validation_is_due=False)
        if self._is_to_stop(trainer):
            self._exit(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Have a validation that is under way, or follows this step, run from its start when the run goes on.

        Lightning would leave it out, unless the checkpoint is from within a step of it.
        """
        if self._validation_is_due:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress.update(total=begun, current=dict(begun), is_last_batch=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop_listening()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_listening()

    def _listen(self) -> None:
        for each in self._previous_handlers:
            signal.signal(each, self._receive)

    def _stop_listening(self) -> None:
        if self._fitting:
            self._fitting = False
            for each, handler in self._previous_handlers.items():
                signal.signal(each, handler)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if not self._fitting:  # Lightning has put this handler back, after its own
            signal.signal(signum, self._previous_handlers[signum])
            signal.raise_signal(signum)
        elif self._stop_by and signum == signal.SIGINT:
            signal.default_int_handler(signum, frame)
        elif not self._stop_by:
            self._stop_by = signum
            name = "\nCtrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
            again = " Once more to stop at once." if signum == signal.SIGINT else ""
            if self._speaks:  # not by print, which this may have interrupted
                os.write(2, f"{name}: stopping after this step.{again}\n".encode())

    def _is_to_stop(self, trainer: Trainer) -> bool:
        """Whether a process has been told to stop: all do so after the same step, or they would wait for each other."""
        if trainer.world_size > 1:
            told = torch.tensor(self._stop_by, device=trainer.strategy.root_device)
            self._stop_by = int(trainer.strategy.reduce(told, reduce_op="max"))
        return self._stop_by != 0

    def _exit(self, trainer: Trainer) -> NoReturn:
        path = self.path(trainer)
        if path.is_file() and self._stop_by != self._requeue_by:
            rank_zero_info(f"Go on from {path} with the same command and --ckpt_path last")
        if self._stop_by == signal.SIGINT:
            raise KeyboardInterrupt
        if self._stop_by == self._requeue_by and trainer.is_global_zero:
            _requeue()
        # Lightning kills the main process as soon as another one fails.
        raise SystemExit(128 + self._stop_by if trainer.is_global_zero else 0)

    def _save(self, trainer: Trainer, *, validation_is_due: bool) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # a property the stubs do not show
            return
        self._validation_is_due = validation_is_due
        try:
            trainer.save_checkpoint(self.path(trainer))
            self._saved_at = trainer.global_step
        finally:
            self._validation_is_due = False


def _has_gradients(trainer: Trainer) -> bool:
    """Whether gradients are being accumulated: a checkpoint does not hold them."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def _requeue_signal(trainer: Trainer) -> int | None:
    """The signal on which the job is to be put back into the queue of SLURM; None outside of it."""
    environment = trainer._accelerator_connector.cluster_environment  # strategies of one device do not show it
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment.requeue_signal
    return None


def _requeue() -> None:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        rank_zero_info(f"scontrol requeue {job} failed: {said}; submit it again, with --ckpt_path last")
