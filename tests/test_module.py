"""RetrievalModule: schedules, and what stops a run."""

import functools

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn

from dml.data import RetrievalDataModule
from dml.data.datasets import Glyphs
from dml.losses import BlackboxAPLoss, NormSoftmaxLoss, SiMix, SmoothAPLoss, SupAPLoss, WeightedSum
from dml.models import TimmEmbedder
from dml.module import NonFiniteError, RetrievalModule
from dml.schedules import Cosine


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


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, embeddings, labels):
        return embeddings.sum() * 0 + self.value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_step(value, glyphs_root, tmp_path):
    with pytest.raises(NonFiniteError, match="the loss is not finite at step 0"):
        trainer(tmp_path).fit(module(Constant(value)), datamodule=data(glyphs_root))


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


def test_proxies_have_their_own_learning_rate(glyphs_root, tmp_path):
    groups = []

    class Groups(RetrievalModule):
        def on_train_batch_start(self, batch, batch_idx):
            groups.append([dict(group) for group in self.optimizers().param_groups])

    embedder = TimmEmbedder("test_resnet", 8, pretrained=False, channels=1, image_size=32)
    optimizer = functools.partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5)
    trained = Groups(embedder, happier(), optimizer, schedule=Cosine(), loss_learning_rate=3.0)
    before = trained.loss.losses[1].proxies.weight.detach().clone()
    trainer(tmp_path).fit(trained, datamodule=data(glyphs_root))
    for step, (backbone, proxies) in enumerate(groups):
        assert backbone["lr"] == pytest.approx(0.1 * Cosine()(step / 6))
        assert proxies["lr"] == pytest.approx(3.0 * Cosine()(step / 6))
        assert (backbone["weight_decay"], proxies["weight_decay"]) == (0.5, 0)
        assert [parameter.shape for parameter in proxies["params"]] == [(12, 8)]
    assert not torch.equal(before, trained.loss.losses[1].proxies.weight)


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
