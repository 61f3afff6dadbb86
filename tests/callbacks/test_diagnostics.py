"""LogDiagnostics: its numbers against definitions in loops, in a real trainer."""

import functools
import math
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, seed_everything
from sklearn.metrics import average_precision_score
from torch import nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

import dml.callbacks.diagnostics
from dml.callbacks import LogDiagnostics, LogRetrievalMetrics
from dml.data import ClassBalancedSampler, RetrievalDataModule
from dml.data.datasets import Glyphs
from dml.losses import CalibrationLoss, NormSoftmaxLoss, SiMix, SmoothAPLoss, SupAPLoss, WeightedSum
from dml.metrics import ReidentificationMetrics, RetrievalMetrics
from dml.models import TimmEmbedder
from dml.module import RetrievalModule

ROOT = Path(__file__).parents[2]
LABELS = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 0, 4])


class Points(nn.Module):
    """Embeds points by two linear maps."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(3, 4, bias=False)
        self.head = nn.Linear(4, 3)
        self.last_norms = None

    def forward(self, points):
        embeddings = self.head(self.backbone(points))
        self.last_norms = embeddings.detach().norm(dim=1)
        return normalize(embeddings, dim=1)


class OnPoints(LightningModule):
    """Trains on batches of points, and keeps what its steps returned."""

    def __init__(self, loss):
        super().__init__()
        torch.manual_seed(0)
        self.embedder, self.loss = Points(), loss
        self.trained = []

    def training_step(self, batch, batch_idx):
        points, labels = batch
        embeddings = self.embedder(points)
        loss = self.loss(embeddings, labels)
        self.trained.append((embeddings.detach(), labels[:, 0], loss.detach(), self.embedder.last_norms))
        return {"loss": loss, "embeddings": embeddings.detach(), "labels": labels}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def points(num_batches, labels=LABELS):
    generator = torch.Generator().manual_seed(1)
    batches = torch.randn(num_batches, len(labels), 3, generator=generator)
    stacked = torch.stack([labels, labels // 2], dim=1).expand(num_batches, -1, -1)
    return DataLoader(torch.utils.data.TensorDataset(batches, stacked), batch_size=None)


def fit(make_trainer, module, callback, loader, **options):
    trainer = make_trainer(callback, **{"max_epochs": 1, **options})
    trainer.fit(module, loader)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    return {name.removeprefix("epoch/"): value for name, value in logged.items() if name.startswith("epoch/")}


def compared(batches, queries=range(10), steep=lambda difference: False):
    """The values of a batch by their definitions."""
    positive, negative, moved, precision = [], [], [], []
    for embeddings, labels, *_ in batches:
        scores = embeddings.double() @ embeddings.double().T
        for query in queries:
            others = [item for item in range(len(labels)) if item != query]
            relevant = [item for item in others if labels[item] == labels[query]]
            irrelevant = [item for item in others if labels[item] != labels[query]]
            positive += [scores[query, item] for item in relevant]
            negative += [scores[query, item] for item in irrelevant]
            moved += [steep(float(scores[query, j] - scores[query, i])) for i in relevant for j in irrelevant]
            if relevant:
                precision.append(average_precision_score(labels[others] == labels[query], scores[query, others]))
    names = ("positive_similarity", "negative_similarity", "linear_range", "batch_AP")
    return {name: np.mean(values) for name, values in zip(names, (positive, negative, moved, precision), strict=True)}


def sigmoid_is_steep(temperature):
    # s (1 - s) = 1 / 40, a tenth of 1 / 4, where s = (1 + sqrt(0.9)) / 2.
    root = math.sqrt(0.9)
    limit = temperature * math.log((1 + root) / (1 - root))
    return lambda difference: abs(difference) <= limit


def upper_bound_is_steep(temperature, margin):
    near = sigmoid_is_steep(temperature)
    return lambda difference: difference > margin or near(difference)


@pytest.mark.parametrize(
    ("loss", "steep"),
    [
        (SmoothAPLoss(0.1), sigmoid_is_steep(0.1)),
        (SiMix(SmoothAPLoss(0.02)), sigmoid_is_steep(0.02)),
        (WeightedSum([CalibrationLoss(), SupAPLoss(0.05, 100.0, 0.3)]), upper_bound_is_steep(0.05, 0.3)),
        # A slope beyond the margin of 1, less than a tenth of 1 / (4 * 0.02).
        (SupAPLoss(0.02, 1.0, 0.01), lambda difference: difference <= 0.01 and sigmoid_is_steep(0.02)(difference)),
    ],
)
def test_similarities_and_ranks_are_those_of_the_batches(loss, steep, make_trainer):
    module = OnPoints(loss)
    logged = fit(make_trainer, module, LogDiagnostics(every_n_steps=1), points(3))
    expected = compared(module.trained, steep=steep)
    assert 0 < expected["linear_range"] < 1
    assert {name: logged[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert logged["queries_without_positives"] == pytest.approx(2 / 10)


def test_few_queries_are_spaced_evenly_and_compared_every_few_steps(make_trainer):
    module = OnPoints(SmoothAPLoss(0.1))
    logged = fit(make_trainer, module, LogDiagnostics(num_queries=4, every_n_steps=3), points(5))
    expected = compared([module.trained[0], module.trained[3]], [0, 2, 5, 7], sigmoid_is_steep(0.1))
    assert {name: logged[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert logged["queries_without_positives"] == pytest.approx(2 / 10)  # of all


def test_many_pairs_are_taken_in_parts(make_trainer, monkeypatch):
    def measured():
        return fit(make_trainer, OnPoints(SmoothAPLoss(0.1)), LogDiagnostics(), points(1))["linear_range"]

    at_once = measured()
    monkeypatch.setattr(dml.callbacks.diagnostics, "_PAIRS_AT_A_TIME", 25)
    assert measured() == at_once


def test_what_a_batch_lacks_is_left_out(make_trainer):
    alone = fit(make_trainer, OnPoints(CalibrationLoss()), LogDiagnostics(), points(1, labels=torch.arange(4)))
    assert not {"positive_similarity", "batch_AP", "linear_range", "grad_norm_loss"} & alone.keys()
    assert alone["queries_without_positives"] == 1
    alike = fit(make_trainer, OnPoints(SmoothAPLoss()), LogDiagnostics(), points(1, labels=torch.zeros(4).long()))
    assert not {"negative_similarity", "linear_range"} & alike.keys()
    assert (alike["batch_AP"], alike["queries_without_positives"]) == (1, 0)


def test_the_loss_its_terms_and_the_norms_are_means_over_the_epoch(make_trainer):
    module = OnPoints(WeightedSum([SmoothAPLoss(0.1), CalibrationLoss()], [1.0, 0.5]))
    logged = fit(make_trainer, module, LogDiagnostics(), points(4), max_epochs=2)
    _, _, losses, norms = zip(*module.trained[4:], strict=True)
    assert logged["loss"] == pytest.approx(torch.stack(losses).mean().item())
    assert logged["SmoothAPLoss"] + 0.5 * logged["CalibrationLoss"] == pytest.approx(logged["loss"])
    assert logged["embedding_norm"] == pytest.approx(torch.stack(norms).mean().item())


def test_a_term_that_is_not_reported_is_zero(make_trainer):
    class Sometimes(SmoothAPLoss):
        calls = 0

        @property
        def logged(self):
            return {"skipped": 6.0} if self.calls == 2 else {}

        def forward(self, *args, **kwargs):
            self.calls += 1
            return super().forward(*args, **kwargs)

    assert fit(make_trainer, OnPoints(Sometimes(0.1)), LogDiagnostics(), points(3))["skipped"] == 2


def gradients_by_role(module, batches):
    """Norms of the gradient of each step of gradient descent, in a copy of its own."""
    norms = []
    for batch in batches:
        module.zero_grad()
        module.training_step(batch, 0)["loss"].backward()
        parts = {role: _norm(part) for role, part in _parts(module).items()}
        norms.append({"grad_norm": math.hypot(*parts.values()), **parts})
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= 0.1 * parameter.grad
    return norms


def _parts(module):
    embedder = module.embedder
    parts = {"grad_norm_backbone": embedder.backbone, "grad_norm_head": embedder.head, "grad_norm_loss": module.loss}
    return {role: part for role, part in parts.items() if list(part.parameters())}


def _norm(part):
    return torch.cat([parameter.grad.flatten() for parameter in part.parameters()]).norm().item()


def proxied():
    torch.manual_seed(3)
    return WeightedSum([SmoothAPLoss(0.1), NormSoftmaxLoss(5, 3)])


def test_gradients_are_those_of_each_role(make_trainer):
    logged = fit(make_trainer, OnPoints(proxied()), LogDiagnostics(), points(4))
    steps = gradients_by_role(OnPoints(proxied()), points(4))
    expected = {name: np.mean([step[name] for step in steps]) for name in steps[0]}
    expected["grad_norm_max"] = max(step["grad_norm"] for step in steps)
    assert {name: logged[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert len(expected) == 5


def test_gradients_are_measured_before_they_are_clipped(make_trainer):
    module, loader = OnPoints(SmoothAPLoss(0.1)), points(1)
    logged = fit(make_trainer, module, LogDiagnostics(), loader, gradient_clip_val=1e-3)
    (step,) = gradients_by_role(OnPoints(SmoothAPLoss(0.1)), loader)
    assert logged["grad_norm"] == pytest.approx(step["grad_norm"], rel=1e-5)
    assert step["grad_norm"] > 1e-2


def test_accumulated_gradients_are_one_step(make_trainer):
    module = OnPoints(SmoothAPLoss(0.1))
    logged = fit(make_trainer, module, LogDiagnostics(), points(2), accumulate_grad_batches=2)
    assert logged["loss"] == pytest.approx(np.mean([loss.item() for _, _, loss, _ in module.trained]))
    manual = OnPoints(SmoothAPLoss(0.1))
    for batch in points(2):
        (manual.training_step(batch, 0)["loss"] / 2).backward()
    assert logged["grad_norm"] == logged["grad_norm_max"] == pytest.approx(_norm(manual.embedder), rel=1e-5)


def test_steps_that_a_gradient_scaler_skips_do_not_count(make_trainer):
    class Overflowing(OnPoints):
        def on_after_backward(self):
            if len(self.trained) == 2:
                self.embedder.head.bias.grad.fill_(torch.inf)

        def on_before_optimizer_step(self, optimizer):
            for parameter in self.parameters():
                parameter.grad.nan_to_num_(posinf=0.0)

    logged = fit(make_trainer, Overflowing(SmoothAPLoss(0.1)), LogDiagnostics(), points(2))
    first = fit(make_trainer, OnPoints(SmoothAPLoss(0.1)), LogDiagnostics(), points(2), limit_train_batches=1)
    assert logged["grad_norm"] == logged["grad_norm_max"] == first["grad_norm"]


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.mark.parametrize("val_check_interval", [1, 2, 4])
def test_waiting_is_for_batches_and_not_for_validation(val_check_interval, make_trainer, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(dml.callbacks.diagnostics, "time", clock)

    class Slow(OnPoints):
        def training_step(self, batch, batch_idx):
            clock.now += 3
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            clock.now += 100

    class Fetched(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            clock.now += 1
            return points(4).dataset[index]

    module, callback = Slow(SmoothAPLoss(0.1)), LogDiagnostics()
    trainer = make_trainer(callback, max_epochs=1, val_check_interval=val_check_interval)
    trainer.fit(module, DataLoader(Fetched(), batch_size=None), DataLoader(range(2), batch_size=None))
    assert clock.now == 4 * (1 + 3) + 200 * (1 + 4 // val_check_interval)  # the sanity check as well
    assert trainer.callback_metrics["epoch/data_wait"] == 1 / 4
    assert trainer.callback_metrics["epoch/images_per_second"] == 4 * len(LABELS) / 16


def test_memory_on_a_cpu_is_that_of_the_process(make_trainer):
    ballast = bytearray(2**26)
    logged = fit(make_trainer, OnPoints(SmoothAPLoss()), LogDiagnostics(), points(1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert len(ballast) / 2**30 < logged["peak_memory_gib"] <= peak == pytest.approx(logged["peak_memory_gib"], rel=0.1)


@pytest.mark.parametrize("name", ["num_queries", "every_n_steps"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        LogDiagnostics(**{name: 0})


def glyphs(root, classes_per_batch=4, samples_per_class=2):
    return RetrievalDataModule(
        Glyphs,
        str(root),
        classes_per_batch,
        samples_per_class,
        image_size=32,
        channels=1,
        num_workers=0,
        train_transforms=[],
        eval_transforms=[],
    )


def on_glyphs():
    torch.manual_seed(0)
    embedder = TimmEmbedder(
        "test_resnet", 8, pretrained=False, channels=1, image_size=32, drop_path_rate=0.2, dropout=0.1
    )
    loss = WeightedSum([SupAPLoss(), NormSoftmaxLoss(12, 8)])
    return RetrievalModule(embedder, loss, functools.partial(torch.optim.SGD, lr=0.1))


NAMES = {
    "loss", "SupAPLoss", "NormSoftmaxLoss", "grad_norm", "grad_norm_max", "grad_norm_backbone", "grad_norm_head",
    "grad_norm_loss", "embedding_norm", "positive_similarity", "negative_similarity", "linear_range", "batch_AP",
    "queries_without_positives", "images_per_second", "data_wait", "peak_memory_gib",
}  # fmt: skip


def test_a_run_is_described_and_not_disturbed(glyphs_root, make_trainer):
    def trained(*callbacks):
        metrics = LogRetrievalMetrics(RetrievalMetrics(recall_at=[1]))
        module, trainer = on_glyphs(), make_trainer(metrics, *callbacks, max_epochs=1)
        seed_everything(0)
        trainer.fit(module, datamodule=glyphs(glyphs_root))
        draws = random.random(), np.random.get_state()[1].tolist(), torch.rand(3).tolist()  # noqa: NPY002
        return trainer.callback_metrics, module.state_dict(), draws

    start = time.perf_counter()
    metrics, state, draws = trained(LogDiagnostics(every_n_steps=1))
    seconds = time.perf_counter() - start
    _, expected_state, expected_draws = trained()
    for name, expected in expected_state.items():
        assert torch.equal(state[name], expected), name
    assert draws == expected_draws

    logged = {name.removeprefix("epoch/"): value.item() for name, value in metrics.items() if name.startswith("epoch/")}
    assert logged.keys() == NAMES
    assert logged["SupAPLoss"] + logged["NormSoftmaxLoss"] == pytest.approx(logged["loss"], rel=1e-5)
    assert logged["queries_without_positives"] == 0
    assert logged["images_per_second"] > 6 * 8 / seconds
    assert 0 < logged["data_wait"] < 1


class Recorded(Callback):
    """The loss of each step; stops after some of them, with a checkpoint."""

    def __init__(self, path=None, after=None):
        self.path, self.after, self.losses = path, after, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        if len(self.losses) == self.after:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True
            raise KeyboardInterrupt


def test_a_resumed_epoch_has_the_means_of_what_was_seen_since(glyphs_root, make_trainer, tmp_path):
    path = tmp_path / "half.ckpt"
    with pytest.raises(SystemExit):
        make_trainer(Recorded(path, after=4), LogDiagnostics(), max_epochs=1).fit(
            on_glyphs(), datamodule=glyphs(glyphs_root)
        )
    recorded = Recorded()
    trainer = make_trainer(recorded, LogDiagnostics(), max_epochs=1)
    trainer.fit(on_glyphs(), datamodule=glyphs(glyphs_root), ckpt_path=path, weights_only=True)
    assert len(recorded.losses) == 2
    assert trainer.callback_metrics["epoch/loss"].item() == pytest.approx(np.mean(recorded.losses), rel=1e-5)
    assert "epoch/batch_AP" in trainer.callback_metrics  # measured on the first batch that is seen


def mean_precision(embeddings, labels):
    """AP of each image among the others, where it has something to retrieve."""
    values = []
    for query in range(len(labels)):
        others = [item for item in range(len(labels)) if item != query]
        relevant = labels[others] == labels[query]
        if relevant.any():
            values.append(average_precision_score(relevant, embeddings[others] @ embeddings[query]))
    return np.mean(values)


class Seen(Callback):
    def __init__(self):
        self.outputs = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, *_):
        self.outputs.append(outputs)


@pytest.mark.parametrize(("classes", "samples"), [(2, 2), (4, 3), (64, 5)])
@pytest.mark.parametrize("metrics_first", [True, False])
def test_the_gap_is_between_batches_and_the_whole(classes, samples, metrics_first, glyphs_root, make_trainer):
    seen, callbacks = Seen(), [LogRetrievalMetrics(RetrievalMetrics(recall_at=[1])), LogDiagnostics()]
    trainer = make_trainer(seen, *(callbacks if metrics_first else callbacks[::-1]))
    trainer.validate(on_glyphs(), datamodule=glyphs(glyphs_root, classes, samples), verbose=False)
    embeddings = torch.cat([outputs["embeddings"] for outputs in seen.outputs]).double()
    labels = torch.cat([outputs["labels"] for outputs in seen.outputs])[:, 0]
    assert len(labels) == 6 * 4
    sampler = ClassBalancedSampler(labels, min(classes, 6), samples)
    batches = torch.tensor(list(sampler)).reshape(-1, sampler.batch_size)
    whole = mean_precision(embeddings, labels)
    expected = np.mean([mean_precision(embeddings[rows], labels[rows]) for rows in map(torch.unique, batches)]) - whole
    assert trainer.callback_metrics["val/AP"].item() == pytest.approx(whole, abs=1e-6)
    assert trainer.callback_metrics["val/decomposability_gap"].item() == pytest.approx(expected, abs=1e-6)
    if classes == 64:  # every class in the one batch, and more samples than images: the batch is the whole
        assert expected == pytest.approx(0, abs=1e-12)
    else:
        assert expected > 0.05


def test_no_gap_without_ap_of_the_whole(glyphs_root, make_trainer):
    reidentification = LogRetrievalMetrics(ReidentificationMetrics(recall_at=[1]))
    for callbacks in ([LogDiagnostics()], [LogDiagnostics(), reidentification]):
        trainer = make_trainer(*callbacks)
        trainer.validate(on_glyphs(), datamodule=glyphs(glyphs_root), verbose=False)
        assert "val/decomposability_gap" not in trainer.callback_metrics


def test_no_gap_where_queries_are_not_the_gallery(datamodule, module, make_trainer):
    trainer = make_trainer(LogRetrievalMetrics(RetrievalMetrics(recall_at=[1])), LogDiagnostics())
    trainer.validate(module, datamodule=datamodule, verbose=False)
    assert "val/AP" in trainer.callback_metrics
    assert "val/decomposability_gap" not in trainer.callback_metrics


def gap(processes, rank):
    """Of 31 images, which two processes share; the sampler repeats one."""
    embeddings = normalize(torch.randn(31, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    metrics = RetrievalMetrics(recall_at=[1])
    rows = torch.tensor(list(torch.utils.data.DistributedSampler(range(31), processes, rank, shuffle=False)))
    metrics.update(embeddings[rows], rows[:, None] // 4, rows)
    trainer = SimpleNamespace(
        callbacks=[LogRetrievalMetrics(metrics)],
        datamodule=RetrievalDataModule(Glyphs, "none", 3, 2),
        sanity_checking=False,
    )
    logged = {}
    LogDiagnostics().on_validation_epoch_end(trainer, SimpleNamespace(log=logged.__setitem__))
    return logged["val/decomposability_gap"].item()


def measure_gap(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(gap(2, rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_two_processes_have_the_gap_of_one(tmp_path):
    torch.multiprocessing.spawn(measure_gap, args=(tmp_path,), nprocs=2)
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == pytest.approx([gap(1, 0)] * 2, abs=1e-6)


def test_table_of_the_cost(glyphs_root):
    small = ["--root", str(glyphs_root), "--model", "test_resnet", "--batch", "4", "2", "--steps", "3", "--turns", "1"]
    command = [sys.executable, "-m", "benchmarks.diagnostics", *small, "--device", "cpu"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line[:1] == "|"]
    those_with, those_without, ratio = map(float, rows[2][:3])
    assert ratio == pytest.approx(those_with / those_without, rel=0.02)  # all are rounded
    assert {name: int(calls) for name, calls, *_ in rows[5:]} == {
        "on_train_epoch_start": 2,  # and once from the start of training
        "on_train_batch_start": 3,
        "on_before_optimizer_step": 3,
        "on_train_batch_end": 3,
        "on_train_epoch_end": 1,
    }
