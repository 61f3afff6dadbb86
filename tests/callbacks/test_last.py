"""Stopping a run by a signal, at any moment, and going on."""

import logging
import os
import signal

import pytest
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn

from dml.callbacks import SaveLast
from dml.module import RetrievalModule


class Embedder(nn.Module):
    """With dropout, which draws random numbers that a resumed run must draw again."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Dropout(), nn.Linear(3, 4))

    def forward(self, images):
        return nn.functional.normalize(self.backbone(images.float().mean(dim=(2, 3)) / 255))


class Sum(nn.Module):
    def forward(self, embeddings, labels):
        return embeddings.sum()


class Record(Callback):
    """The loss of each step, and how many batches each validation had."""

    def __init__(self):
        self.events = []
        self.batches = 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.events.append((trainer.global_step, outputs["loss"].item(), batch["index"].tolist()))

    def on_validation_start(self, trainer, module):
        self.batches = 0

    def on_validation_batch_end(self, trainer, module, *_):
        self.batches += 1

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.events.append((trainer.global_step, "validation", self.batches))


class SendAt(Callback):
    """Send this process a signal at a hook, once a step is reached."""

    def __init__(self, hook, step, signum):
        self.sent = False
        setattr(self, hook, lambda trainer, *_: self.send(trainer, step, signum))

    def send(self, trainer, step, signum):
        if not self.sent and trainer.global_step == step:
            self.sent = True
            os.kill(os.getpid(), signum)


class Saves(Callback):
    """The step of each checkpoint."""

    def __init__(self):
        self.steps = []

    def on_save_checkpoint(self, trainer, *_):
        self.steps.append(trainer.global_step)


class Nth(Callback):
    """Do something the nth time that a hook is called."""

    def __init__(self, hook, count, action):
        self.left = count
        setattr(self, hook, lambda *_: self.count(action))

    def count(self, action):
        self.left -= 1
        if self.left == 0:
            action()


def die():
    raise MemoryError


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def fit(make_trainer, datamodule):
    def fit(*callbacks, ckpt_path=None, every_n_steps=2, **options):
        options = {"max_epochs": 3, "log_every_n_steps": 1, "num_sanity_val_steps": 0, **options}
        record = Record()
        trainer = make_trainer(record, SaveLast(every_n_steps), *callbacks, **options)
        torch.manual_seed(0)
        module = RetrievalModule(Embedder(), Sum())
        trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        return record.events

    return fit


@pytest.fixture
def last(tmp_path):
    return tmp_path / "run" / "checkpoints" / "last.ckpt"


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """SLURM as a process sees it; what is asked of it is in the file."""
    for name, value in {"NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_ID": 77, "JOB_NAME": "train"}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    said = tmp_path / "said"
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "scontrol"
    command.write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    return said


MOMENTS = {
    "within a step": ("on_before_zero_grad", 1),
    "last step of an epoch": ("on_before_optimizer_step", 5),
    "validation": ("on_validation_batch_start", 3),
    "end of validation": ("on_validation_epoch_end", 3),
    "end of an epoch": ("on_train_epoch_end", 3),
}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda signum: signum.name)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(signum, moment, fit, last):
    expected = fit()
    last.unlink()
    hook, step = MOMENTS[moment]
    with pytest.raises(SystemExit) as stopped:
        fit(SendAt(hook, step, signum), every_n_steps=0)
    assert stopped.value.code == (1 if signum == signal.SIGINT else 128 + signal.SIGTERM)
    at = torch.load(last, weights_only=True)["global_step"]
    assert at - step in (0, 1)  # within a step and a batch of validation of the signal
    resumed = fit(ckpt_path=last)
    assert resumed == expected[-len(resumed) :]
    assert [event[0] for event in resumed if event[1] != "validation"] == list(range(at + 1, 10))
    assert sum(event[1] == "validation" for event in resumed) == (2 if at == 3 and "end" in moment else 3 - (at > 3))


@pytest.mark.parametrize("hook", ["on_validation_epoch_end", "on_train_epoch_end"])
def test_an_epoch_that_a_run_is_stopped_after_can_be_the_best(hook, fit, last):
    def best():
        return ModelCheckpoint(monitor="step_reached", mode="max", filename="best", enable_version_counter=False)

    score = Nth("unused", 0, None)
    score.on_validation_epoch_end = lambda trainer, module: module.log("step_reached", float(trainer.global_step))
    with pytest.raises(SystemExit):
        fit(score, SendAt(hook, 6, signal.SIGTERM), best(), enable_checkpointing=True)
    assert torch.load(last.with_name("best.ckpt"), weights_only=True)["global_step"] == 6
    saved = torch.load(last, weights_only=True)["callbacks"]
    (state,) = (state for name, state in saved.items() if name.startswith("ModelCheckpoint"))
    assert state["best_model_score"] == 6


def test_validations_within_an_epoch_are_not_lost(fit, last):
    """Every step is followed by a validation, and a checkpoint between the two."""
    options = {"val_check_interval": 1, "every_n_steps": 1}
    expected = fit(**options)
    with pytest.raises(SystemExit):
        fit(SendAt("on_validation_batch_start", 4, signal.SIGTERM), **options)
    resumed = fit(ckpt_path=last, **options)
    assert resumed == expected[-len(resumed) :]
    assert resumed[0][:2] == (4, "validation")


def test_a_run_that_dies_in_a_validation_within_an_epoch_repeats_it(fit, last):
    class DieAt(Callback):
        def on_validation_batch_start(self, trainer, *_):
            if trainer.global_step == 4:
                raise MemoryError

    options = {"val_check_interval": 1, "every_n_steps": 1}
    expected = fit(**options)
    with pytest.raises(MemoryError):
        fit(DieAt(), **options)
    resumed = fit(ckpt_path=last, **options)
    assert resumed == expected[-len(resumed) :]
    assert resumed[0][:2] == (4, "validation")


# Three batches an epoch, after the second and the last of which the optimizer steps
ACCUMULATE = {"accumulate_grad_batches": 2}


def test_a_run_is_not_stopped_among_the_batches_of_a_step(fit, last):
    expected = fit(**ACCUMULATE)
    last.unlink()
    with pytest.raises(SystemExit):
        fit(Nth("on_train_batch_start", 4, terminate), every_n_steps=0, **ACCUMULATE)
    assert torch.load(last, weights_only=True)["global_step"] == 3
    resumed = fit(ckpt_path=last, **ACCUMULATE)
    assert resumed == expected[-len(resumed) :]
    assert resumed[0][0] == 4


def test_a_checkpoint_follows_each_step_not_each_batch(fit, last):
    options = {"every_n_steps": 1, "limit_val_batches": 0, **ACCUMULATE}
    saves = Saves()
    expected = fit(saves, **options)
    assert saves.steps == [1, 2, 3, 4, 5, 6]
    with pytest.raises(MemoryError):
        fit(Nth("on_train_batch_start", 5, die), **options)
    resumed = fit(ckpt_path=last, **options)
    assert resumed == expected[-len(resumed) :]
    assert [event[0] for event in resumed] == [2, 3, 4, 4, 5, 6][-len(resumed) :]


def test_a_validation_among_the_batches_of_a_step_has_no_checkpoint(fit, last):
    """Every batch is followed by a validation; of the second epoch, that after the first batch is interrupted."""
    options = {"val_check_interval": 1, "every_n_steps": 0, **ACCUMULATE}
    saves = Saves()
    expected = fit(saves, **options)
    assert saves.steps == [1, 2, 2, 3, 4, 4, 5, 6, 6]  # before two of three validations, and at the end of the epoch
    with pytest.raises(SystemExit):
        fit(Nth("on_validation_start", 4, terminate), **options)
    resumed = fit(ckpt_path=last, **options)
    assert resumed == expected[-len(resumed) :]
    assert len(resumed) == 12


@pytest.mark.parametrize("hook", ["on_validation_start", "on_validation_batch_start", "on_validation_end"])
def test_the_average_of_the_weights_does_not_become_the_model(hook, fit, last):
    def average():
        return EMAWeightAveraging(decay=0.5)

    expected = fit(average())
    weights = torch.load(last, weights_only=True)["state_dict"]
    with pytest.raises(SystemExit):
        fit(average(), SendAt(hook, 3, signal.SIGTERM), every_n_steps=0)
    resumed = fit(average(), ckpt_path=last)
    assert resumed == expected[-len(resumed) :]
    assert resumed[0][0] in (3, 4)
    for name, of_resumed in torch.load(last, weights_only=True)["state_dict"].items():
        assert torch.equal(of_resumed, weights[name]), name


def test_a_stop_says_how_to_go_on_only_if_there_is_a_checkpoint(fit, last, caplog):
    for logger in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(logger).propagate = True
    caplog.set_level("INFO")
    with pytest.raises(SystemExit):
        fit(Nth("on_validation_start", 1, terminate), val_check_interval=1, every_n_steps=0, **ACCUMULATE)
    assert not last.exists()
    assert "--ckpt_path" not in caplog.text
    with pytest.raises(SystemExit):
        fit(Nth("on_validation_batch_start", 1, terminate), every_n_steps=0)
    assert f"Go on from {last} with the same command and --ckpt_path last" in caplog.text


def test_under_slurm_the_job_is_put_back_into_the_queue(slurm, fit, last):
    expected = fit(plugins=[SLURMEnvironment()])
    send = SendAt("on_before_zero_grad", 4, signal.SIGUSR1)
    with pytest.raises(SystemExit) as stopped:
        fit(send, plugins=[SLURMEnvironment()])
    assert stopped.value.code == 128 + signal.SIGUSR1
    assert slurm.read_text() == "requeue 77\n"
    assert not list(last.parents[1].glob("hpc*"))  # Lightning's, from within a step
    resumed = fit(ckpt_path=last, plugins=[SLURMEnvironment()])
    assert resumed == expected[-len(resumed) :]
    assert resumed[0][0] == 6


def test_a_job_of_an_array_is_requeued_by_itself(slurm, fit, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with pytest.raises(SystemExit):
        fit(SendAt("on_train_start", 0, signal.SIGUSR1), plugins=[SLURMEnvironment()])
    assert slurm.read_text() == "requeue 70_3\n"


def test_a_requeue_that_fails_still_leaves_a_checkpoint(slurm, fit, last, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit):
        fit(SendAt("on_before_zero_grad", 1, signal.SIGUSR1), plugins=[SLURMEnvironment()])
    assert torch.load(last, weights_only=True)["global_step"] == 2


def test_before_the_first_step_there_is_nothing_to_save(slurm, fit, last):
    send = SendAt("on_sanity_check_start", 0, signal.SIGUSR1)
    with pytest.raises(SystemExit):
        fit(send, num_sanity_val_steps=1, plugins=[SLURMEnvironment()])
    assert slurm.read_text() == "requeue 77\n"
    assert not last.exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], ids=lambda signum: signum.name)
def test_after_the_fit_a_signal_does_what_it_did_before(signum, slurm, fit):
    received = []
    before = signal.signal(signum, lambda *arguments: received.append(arguments[0]))
    try:
        fit(max_epochs=1, plugins=[SLURMEnvironment()])
        os.kill(os.getpid(), signum)
        os.kill(os.getpid(), signum)
    finally:
        signal.signal(signum, before)
    assert received == [signum, signum]


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], ids=lambda signum: signum.name)
def test_ctrl_c_while_the_run_is_being_stopped_stops_at_once(first, slurm, fit, last):
    class Impatient(Callback):
        def on_before_zero_grad(self, *_):
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as stopped:
        fit(Impatient(), every_n_steps=0, plugins=[SLURMEnvironment()])
    assert stopped.value.code == 1
    assert not last.exists()


def test_steps_between_checkpoints_are_not_negative():
    with pytest.raises(ValueError, match="every_n_steps is -1"):
        SaveLast(-1)
