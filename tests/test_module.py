"""RetrievalModule: schedules, and what stops a run."""

import functools
import itertools

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import nn

from dml.data import RetrievalDataModule
from dml.data.datasets import Glyphs
from dml.losses import BlackboxAPLoss, NormSoftmaxLoss, SiMix, SmoothAPLoss, SupAPLoss, WeightedSum
from dml.models import TimmEmbedder
from dml.module import NonFiniteError, RetrievalModule
from dml.optimization import Group, ParameterGroups
from dml.schedules import Constant, Cosine, MultiStep


def module(loss=None, kind=RetrievalModule, **changes):
    torch.manual_seed(0)
    embedder = TimmEmbedder("test_resnet", 8, pretrained=False, channels=1, image_size=32)
    return kind(embedder, loss or SmoothAPLoss(0.1), functools.partial(torch.optim.SGD, lr=0.1), **changes)


def data(root):
    return RetrievalDataModule(
        Glyphs, str(root), 4, 2, image_size=32, channels=1, num_workers=0, train_transforms=[], eval_transforms=[]
    )


def trainer(tmp_path, **changes):
    arguments = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "default_root_dir": tmp_path,
        "use_distributed_sampler": False,
    }
    return Trainer(**{**arguments, **changes})


def test_the_schedule_spans_the_run(glyphs_root, tmp_path):
    rates = []

    class Rates(RetrievalModule):
        def on_train_batch_start(self, batch, batch_idx):
            rates.append(self.optimizers().param_groups[0]["lr"])

    trainer(tmp_path, max_epochs=2).fit(module(kind=Rates, schedule=Cosine()), datamodule=data(glyphs_root))
    assert rates == pytest.approx([0.1 * Cosine()(step / 12) for step in range(12)])


class Always(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, embeddings, labels):
        return embeddings.sum() * 0 + self.value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_step(value, glyphs_root, tmp_path):
    with pytest.raises(NonFiniteError, match="the loss is not finite at step 0"):
        trainer(tmp_path).fit(module(Always(value)), datamodule=data(glyphs_root))


def test_an_embedding_that_is_not_finite_names_the_step(glyphs_root, tmp_path):
    broken = module()
    nn.init.constant_(broken.embedder.head.bias, torch.nan)
    with pytest.raises(NonFiniteError, match="an embedding is not finite at step 0"):
        trainer(tmp_path).fit(broken, datamodule=data(glyphs_root))


def test_queries_left_out_are_counted(glyphs_root, tmp_path):
    alone = RetrievalDataModule(
        Glyphs, str(glyphs_root), 8, 1, image_size=32, channels=1, num_workers=0, train_transforms=[]
    )
    fitted = trainer(tmp_path)
    fitted.fit(module(), datamodule=alone)
    assert fitted.callback_metrics["train/queries_left_out"] == 8
    assert fitted.callback_metrics["train/loss"] == 0


def happier():
    return WeightedSum([SupAPLoss(), NormSoftmaxLoss(12, 8)], [0.9, 0.1])


def test_each_term_of_a_sum_is_logged(glyphs_root, tmp_path):
    fitted = trainer(tmp_path)
    fitted.fit(module(happier()), datamodule=data(glyphs_root))
    logged = {name: value.item() for name, value in fitted.callback_metrics.items()}
    total = 0.9 * logged["train/SupAPLoss"] + 0.1 * logged["train/NormSoftmaxLoss"]
    assert logged["train/loss"] == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize(
    "loss",
    [happier, lambda: SiMix(SmoothAPLoss(0.1)), lambda: BlackboxAPLoss(seed=3)],
    ids=["proxies", "mixtures", "noise"],
)
def test_what_a_loss_learns_and_draws_is_resumed(loss, glyphs_root, tmp_path):
    def fresh():
        torch.manual_seed(0)
        return module(loss())

    whole, half, resumed = fresh(), fresh(), fresh()
    trainer(tmp_path, max_epochs=2).fit(whole, datamodule=data(glyphs_root))
    first = trainer(tmp_path)
    first.fit(half, datamodule=data(glyphs_root))
    first.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
    trainer(tmp_path, max_epochs=2).fit(
        resumed, datamodule=data(glyphs_root), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    for (name, expected), actual in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(actual, expected), name


def test_a_schedule_may_change_with_the_epochs_only(glyphs_root, tmp_path):
    rates = []

    class Rates(RetrievalModule):
        def on_train_batch_start(self, batch, batch_idx):
            rates.append(self.optimizers().param_groups[0]["lr"])

    stepped = module(kind=Rates, schedule=Cosine(), schedule_every="epoch")
    trainer(tmp_path, max_epochs=4).fit(stepped, datamodule=data(glyphs_root))
    assert rates == pytest.approx([0.1 * Cosine()(epoch / 4) for epoch in range(4) for _ in range(6)])


def test_a_schedule_by_epochs_counts_steps_of_several_batches_as_one(glyphs_root, tmp_path):
    rates = []

    class Rates(RetrievalModule):
        def on_train_batch_start(self, batch, batch_idx):
            rates.append(self.optimizers().param_groups[0]["lr"])

    stepped = module(kind=Rates, schedule=MultiStep([1], 0.5, length=2), schedule_every="epoch")
    trainer(tmp_path, max_epochs=2, accumulate_grad_batches=4).fit(stepped, datamodule=data(glyphs_root))
    assert rates == pytest.approx([0.1] * 6 + [0.05] * 6)


@pytest.mark.parametrize(
    "changes",
    [{"schedule": Cosine(warmup=0.2)}, {"groups": ParameterGroups(loss=Group(schedule=MultiStep([0.5], warmup=0.1)))}],
)
def test_a_schedule_by_epochs_may_not_start_at_nothing(changes):
    with pytest.raises(ValueError, match=r"schedule_every is 'epoch', and .*warmup=0\.\d.* starts at a rate of 0"):
        module(schedule_every="epoch", **changes)
    module(schedule_every="step", **changes)


def first(model):
    return next(model.parameters()).detach().clone()


def test_roles_have_their_own_rates_and_schedules_and_may_start_late(glyphs_root, tmp_path):
    seen = []

    class Seen(RetrievalModule):
        def on_train_batch_start(self, batch, batch_idx):
            rates = {group["role"]: group["lr"] for group in self.optimizers().param_groups}
            seen.append((rates, first(self.embedder.backbone), first(self.loss)))

    groups = ParameterGroups(
        backbone=Group(learning_rate=0.01, frozen=0.5),
        head=Group(schedule=Constant()),
        loss=Group(learning_rate=3.0, schedule=MultiStep([0.5], 0.1)),
    )
    trained = module(happier(), kind=Seen, schedule=Cosine(), groups=groups)
    trainer(tmp_path, max_epochs=2).fit(trained, datamodule=data(glyphs_root))
    assert len(seen) == 12
    for step, (rates, *_) in enumerate(seen):
        backbone, proxies = 0.01 * Cosine()(step / 12), 3.0 if step < 6 else 0.3
        assert rates == pytest.approx({"backbone": backbone, "head": 0.1, "loss": proxies})
    for step, (earlier, later) in enumerate(itertools.pairwise(seen)):
        assert torch.equal(earlier[1], later[1]) == (step < 6)
        assert not torch.equal(earlier[2], later[2])


class StopAt(Callback):
    """Save a checkpoint after a step, and stop as a crash would."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/stopped.ckpt")
            raise KeyError("stopped")


@pytest.mark.parametrize(
    "average",
    [
        lambda: EMAWeightAveraging(decay=0.5),
        lambda: StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1),
    ],
    ids=["EMA", "SWA"],
)
def test_averaged_weights_are_those_of_a_run_that_was_not_stopped(average, glyphs_root, tmp_path):
    def run(*callbacks, **changes):
        fitted = module()
        trainer(tmp_path, max_epochs=3, callbacks=list(callbacks)).fit(fitted, datamodule=data(glyphs_root), **changes)
        return fitted.state_dict()

    plain, averaged = run(), run(average())
    assert not torch.equal(plain["embedder.head.weight"], averaged["embedder.head.weight"])
    with pytest.raises(KeyError, match="stopped"):
        run(average(), StopAt(8))
    resumed = run(average(), ckpt_path=tmp_path / "stopped.ckpt", weights_only=True)
    for name, expected in averaged.items():
        assert torch.equal(resumed[name], expected), name
