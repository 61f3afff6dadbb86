"""LearnWhitening: learned from the training images as evaluation sees them, with the best weights."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint

from dml.__main__ import main
from dml.callbacks import LearnWhitening, SaveLast
from dml.callbacks.whitening import _over_processes
from dml.data import RetrievalDataModule
from dml.data.datasets import Glyphs
from dml.losses import SmoothAPLoss
from dml.memory import CrossBatchMemory
from dml.models import TimmEmbedder, Whitening
from dml.module import RetrievalModule

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"


def module(whitening_dim=3, memory=None):
    torch.manual_seed(0)
    embedder = TimmEmbedder("test_resnet", 8, pretrained=False, channels=1, image_size=32, whitening_dim=whitening_dim)
    return RetrievalModule(embedder, SmoothAPLoss(0.1), memory=memory)


def glyphs(root, **changes):
    return RetrievalDataModule(Glyphs, str(root), 4, 2, image_size=32, channels=1, num_workers=0, **changes)


def training_embeddings(model, data):
    """Of each training image, transformed as for evaluation, by the weights of now and without whitening."""
    dataset = data.dataset(data.root, "train", transform=torch.nn.Sequential(*data.eval_transforms), channels=1)
    embedder = TimmEmbedder("test_resnet", 8, pretrained=False, channels=1, image_size=32).eval()
    weights = {name: value for name, value in model.embedder.state_dict().items() if not name.startswith("whitening")}
    embedder.load_state_dict(weights)
    with torch.no_grad():
        return embedder(torch.stack([dataset[position]["image"] for position in range(len(dataset))]))


def assert_whitened(model, data):
    embeddings = training_embeddings(model, data)
    assert len(embeddings) == 48
    expected = Whitening(8, 3)
    expected.learn(embeddings)
    learned = model.embedder.whitening
    assert learned.learned
    torch.testing.assert_close(learned.mean, expected.mean, atol=1e-4, rtol=1e-3)
    actual, sought = learned(embeddings), expected(embeddings)
    torch.testing.assert_close((actual * sought).sum(0).abs(), (sought**2).sum(0), atol=1e-2, rtol=1e-2)


class Worsen(Callback):
    """Validation says that the first epoch was the best."""

    def on_validation_end(self, trainer, pl_module):
        self.epoch_weights = getattr(self, "epoch_weights", {})
        self.epoch_weights[trainer.current_epoch] = pl_module.embedder.head.weight.detach().clone()

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/AP", -float(trainer.current_epoch))


def test_the_best_weights_are_whitened_and_saved(glyphs_root, make_trainer, tmp_path):
    best = ModelCheckpoint(tmp_path / "run" / "checkpoints", monitor="val/AP", mode="max", filename="best")
    watch = Worsen()
    trainer = make_trainer(
        LearnWhitening(), watch, best, max_epochs=2, enable_checkpointing=True, num_sanity_val_steps=0
    )
    model, data = module(), glyphs(glyphs_root)
    trainer.fit(model, datamodule=data)
    assert not torch.equal(watch.epoch_weights[0], watch.epoch_weights[1])
    assert torch.equal(model.embedder.head.weight, watch.epoch_weights[0])
    assert_whitened(model, data)
    path = tmp_path / "run" / "checkpoints" / "whitened.ckpt"
    saved = torch.load(path, weights_only=True)
    assert saved["epoch"] == torch.load(best.best_model_path, weights_only=True)["epoch"] == 0
    again = module()
    again.load_state_dict(saved["state_dict"])
    assert_whitened(again, data)


def test_the_last_weights_where_none_are_the_best(glyphs_root, make_trainer, tmp_path):
    model, data = module(), glyphs(glyphs_root)
    trainer = make_trainer(LearnWhitening(), max_epochs=1)
    trainer.fit(model, datamodule=data)
    assert_whitened(model, data)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "whitened.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"]["embedder.whitening.projection"], model.embedder.whitening.projection)
    seen = []

    class Dimension(Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, *_):
            seen.append(outputs["embeddings"].shape[1])

    # Trained on, what was learned of other weights is not used.
    make_trainer(LearnWhitening(), Dimension(), max_epochs=1).fit(model, datamodule=data)
    assert set(seen) == {8}
    assert_whitened(model, data)


def whitened(tmp_path, memory=None):
    """The model that a run has saved."""
    again = module(memory=memory)
    again.load_state_dict(
        torch.load(tmp_path / "run" / "checkpoints" / "whitened.ckpt", weights_only=True)["state_dict"]
    )
    return again


def test_with_a_memory(glyphs_root, make_trainer, tmp_path):
    model, data = module(memory=CrossBatchMemory(20)), glyphs(glyphs_root)
    make_trainer(LearnWhitening(), SaveLast(), max_epochs=1).fit(model, datamodule=data)
    assert model.memory.steps > 0
    assert_whitened(whitened(tmp_path, memory=CrossBatchMemory(20)), data)


def test_with_averaged_weights(glyphs_root, make_trainer, tmp_path):
    model, data = module(), glyphs(glyphs_root)
    make_trainer(LearnWhitening(), EMAWeightAveraging(decay=0.9), max_epochs=1).fit(model, datamodule=data)
    assert_whitened(whitened(tmp_path), data)


def test_a_run_that_died_while_it_was_learned_learns_it_when_it_goes_on(glyphs_root, make_trainer, tmp_path):
    make_trainer(SaveLast(), max_epochs=1).fit(module(), datamodule=glyphs(glyphs_root))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    model, data = module(), glyphs(glyphs_root)
    resumed = make_trainer(LearnWhitening(), SaveLast(), max_epochs=1)
    resumed.fit(model, datamodule=data, ckpt_path=last, weights_only=True)
    assert_whitened(model, data)
    assert_whitened(whitened(tmp_path), data)


@pytest.mark.parametrize(
    ("whitening_dim", "options"), [(None, {"max_epochs": 1}), (3, {"fast_dev_run": True})], ids=["none", "fast_dev_run"]
)
def test_nothing_is_done_without_a_dimension_or_in_a_trial(whitening_dim, options, glyphs_root, make_trainer, tmp_path):
    model = module(whitening_dim)
    make_trainer(LearnWhitening(), **options).fit(model, datamodule=glyphs(glyphs_root))
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert whitening_dim is None or not model.embedder.whitening.learned


def test_an_embedder_of_another_kind_is_left_alone(module):
    before = copy.deepcopy(module.state_dict())
    no_trainer_is_asked = None
    LearnWhitening().on_fit_start(no_trainer_is_asked, module)
    LearnWhitening().on_fit_end(no_trainer_is_asked, module)
    assert module.state_dict() == before


def test_too_few_images_are_told_before_training(glyphs_root, make_trainer):
    torch.manual_seed(0)
    embedder = TimmEmbedder("test_resnet", 64, pretrained=False, channels=1, image_size=32, whitening_dim=8)
    model = RetrievalModule(embedder, SmoothAPLoss(0.1))
    with pytest.raises(ValueError, match="learned from 48 images; embeddings of dimension 64 need more images"):
        make_trainer(LearnWhitening(), max_epochs=1).fit(model, datamodule=glyphs(glyphs_root))


def share(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    embeddings = torch.arange(15.0).reshape(5, 3)
    index = torch.tensor([[3, 0, 4], [1, 2, 3]][rank])[: 3 - rank]  # of 5 images; the last share is shorter
    torch.save(_over_processes(embeddings[index], index), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_gather_each_image_once(tmp_path):
    torch.multiprocessing.spawn(share, args=(tmp_path,), nprocs=2)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), torch.arange(15.0).reshape(5, 3))


def run_on(processes, root, folder):
    """What a run whose learning rate is 0 has learned of whitening."""
    small = {
        "data.root": root, "data.classes_per_batch": 4, "data.num_workers": 0, "trainer.max_epochs": 1,
        "model.embedder.name": "test_resnet", "model.embedder.embedding_dim": 8, "model.embedder.whitening_dim": 3,
        "model.embedder.freeze_batch_norm": "statistics", "model.optimizer.init_args.lr": 0.0, "report": "false",
        "trainer.enable_progress_bar": "false", "trainer.devices": processes, "trainer.accelerator": "cpu",
    }  # fmt: skip
    words = [f"--{key}={value}" for key, value in small.items()]
    strategy = ["--trainer.strategy=ddp"] if processes > 1 else []
    environment = {**os.environ, "WANDB_MODE": "disabled", "PYTHONPATH": str(QUICKSTART.parents[1])}
    command = [sys.executable, "-m", "dml", "fit", f"-c={QUICKSTART}", *words, *strategy]
    found = subprocess.run(
        command, cwd=folder, env=environment, check=False, timeout=300, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    (path,) = folder.glob("runs/quickstart/*/checkpoints/whitened.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


def test_two_processes_learn_what_one_does(glyphs_root, tmp_path):
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        found.append(run_on(processes, glyphs_root, folder))
    one, two = found
    assert two["embedder.whitening.learned"]
    torch.testing.assert_close(two["embedder.whitening.mean"], one["embedder.whitening.mean"], atol=1e-6, rtol=1e-4)
    axes = [weights["embedder.whitening.projection"] for weights in found]
    torch.testing.assert_close(axes[1] * (axes[0] * axes[1]).sum(0).sign(), axes[0], atol=1e-3, rtol=1e-2)


def test_a_run_ends_with_whitened_embeddings_that_are_tested(glyphs_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    small = {
        "data.root": glyphs_root, "data.classes_per_batch": 4, "data.num_workers": 0, "trainer.max_epochs": 1,
        "model.embedder.name": "test_resnet", "model.embedder.embedding_dim": 8, "model.embedder.whitening_dim": 3,
        "trainer.enable_progress_bar": "false", "report": "false",
    }  # fmt: skip
    main(["fit", f"-c={QUICKSTART}", *(f"--{key}={value}" for key, value in small.items())])
    (path,) = tmp_path.glob("runs/quickstart/*/checkpoints/whitened.ckpt")
    main(["predict", f"--ckpt_path={path}", f"--embeddings.path={tmp_path / 'e.parquet'}"])
    assert "24 embeddings of dimension 3" in capsys.readouterr().out
