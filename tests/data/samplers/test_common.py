"""What every sampler promises: what a batch holds, what an epoch shows, and that every process agrees."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning import Trainer
from pytorch_lightning.demos.boring_classes import BoringModel
from torch.utils.data import DataLoader

from dml.data import BalancedSampler, ClassBalancedSampler, HierarchicalSampler
from tests.data.samplers.problems import SAMPLERS, Problem, batches, labels_of, like_sop, problems, repeated

every_sampler = pytest.mark.parametrize("kind", SAMPLERS)
EASY = Problem(labels_of([4, 9, 4, 7, 5, 8, 6, 5, 12, 4]), 4, 4)


@every_sampler
@given(data=st.data(), epoch=st.integers(0, 3))
@settings(deadline=None, max_examples=100)
def test_batches_are_whole_and_repeat_images_only_of_small_classes(kind, data, epoch):
    problem = data.draw(problems(kind))
    sampler = problem.sampler(kind, epoch)
    drawn = batches(sampler)
    assert drawn.numel() == len(sampler) > 0
    assert drawn.shape[1] == problem.classes_per_batch * problem.samples_per_class
    for batch in drawn:
        classes, counts = problem.labels[batch, 0].unique(return_counts=True)
        if kind is not BalancedSampler:
            assert len(classes) == problem.classes_per_batch
            assert (counts == problem.samples_per_class).all()
        assert (problem.sizes[problem.labels[repeated(batch), 0]] < problem.samples_per_class).all()
        if kind is BalancedSampler:
            assert not len(repeated(batch))


@every_sampler
@given(data=st.data(), epoch=st.integers(0, 3))
@settings(deadline=None, max_examples=100)
def test_classes_that_an_epoch_misses(kind, data, epoch):
    problem = data.draw(problems(kind))
    drawn = batches(problem.sampler(kind, epoch))
    seen = torch.zeros(len(problem.sizes), dtype=torch.bool)
    seen[problem.labels[drawn.flatten(), 0]] = True
    if kind in (ClassBalancedSampler, BalancedSampler):
        assert seen.all()
    elif kind is HierarchicalSampler:
        given_by = problem.labels[drawn.flatten(), 1].bincount() // problem.samples_per_class
        sizes = problem.super_classes.bincount()
        assert torch.equal(problem.super_classes[seen].bincount(minlength=len(sizes)), given_by.minimum(sizes))
    else:
        assert not seen[problem.sizes < problem.samples_per_class].any()
        assert (~seen[problem.sizes >= problem.samples_per_class]).sum() < problem.classes_per_batch


@every_sampler
@pytest.mark.parametrize("num_replicas", [2, 4])
def test_processes_share_the_global_batches(kind, num_replicas):
    whole = batches(EASY.sampler(kind, epoch=2, seed=3))
    parts = [
        batches(EASY.sampler(kind, epoch=2, seed=3, num_replicas=num_replicas, rank=rank))
        for rank in range(num_replicas)
    ]
    assert torch.equal(torch.stack(parts, dim=2).flatten(1), whole)


@every_sampler
def test_epochs_and_seeds_differ_and_repeat(kind):
    def draw(seed, epoch):
        return tuple(EASY.sampler(kind, epoch, seed=seed))

    assert draw(0, 0) == draw(0, 0)
    assert len({draw(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6
    sampler = EASY.sampler(kind)
    assert tuple(sampler) == draw(0, 0)
    sampler.set_epoch(2)
    assert tuple(sampler) == draw(0, 2)
    sampler.set_epoch(0)
    assert tuple(sampler) == draw(0, 0)


@every_sampler
def test_an_epoch_goes_on_at_any_batch(kind):
    whole = batches(EASY.sampler(kind, epoch=1))
    resumed = EASY.sampler(kind, epoch=1)
    for first in range(len(whole)):
        resumed.first_batch = first
        assert torch.equal(batches(resumed), whole[first:])
        assert len(resumed) == whole.numel()


@every_sampler
def test_labels_of_one_level_are_enough_unless_there_must_be_more(kind):
    flat = EASY._replace(labels=EASY.labels[:, 0])
    if kind is HierarchicalSampler:
        with pytest.raises(ValueError, match=r"labels have shape \(64,\); super-classes need \[n, L\]"):
            flat.sampler(kind)
    else:
        assert list(flat.sampler(kind)) == list(EASY.sampler(kind))


@every_sampler
def test_names_of_classes_do_not_matter(kind):
    renamed = EASY._replace(labels=EASY.labels * 7 - 3)
    assert list(renamed.sampler(kind)) == list(EASY.sampler(kind))


class Recorder(BoringModel):
    """Records the batches of each epoch as Lightning serves them, and after which epochs it validates."""

    def __init__(self):
        super().__init__()
        self.seen, self.validated = {}, []

    def training_step(self, batch, batch_idx):
        self.seen.setdefault(self.current_epoch, []).append(batch.tolist())
        return self.layer(torch.zeros(1, 32)).sum()

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.current_epoch)


@every_sampler
def test_lightning_loses_no_batch_and_no_validation(kind, tmp_path):
    # A long tail: as published, the order of Smooth-AP has 8 to 10 batches here.
    problem = Problem(labels_of([40, 30, 20, *[9, 4] * 6, 2]), 4, 4)
    sampler = problem.sampler(kind)
    rows = range(len(problem.labels))
    model = Recorder()
    Trainer(
        max_epochs=6,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
    ).fit(model, DataLoader(rows, batch_size=sampler.local_batch_size, sampler=sampler), DataLoader([0]))
    expected = {epoch: batches(problem.sampler(kind, epoch)).tolist() for epoch in range(6)}
    assert model.seen == expected
    assert model.validated == list(range(6))


@every_sampler
def test_a_large_dataset_is_drawn_quickly_enough_to_matter(kind):
    problem = like_sop()
    if kind is HierarchicalSampler:
        problem = problem._replace(classes_per_batch=512, samples_per_class=8)
    start = time.perf_counter()
    count = len(list(problem.sampler(kind)))
    assert count > len(problem.labels) * 0.6
    assert time.perf_counter() - start < 5  # two orders of magnitude of slack: a quadratic loop would not pass


@every_sampler
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes_per_batch": 11}, "classes_per_batch is 11; the split has 10 classes"),
        ({"classes_per_batch": 0}, "classes_per_batch is 0; the split has 10 classes"),
        ({"samples_per_class": 0}, "samples_per_class is 0; it must be at least 1"),
        ({"classes_per_batch": 3, "samples_per_class": 3, "num_replicas": 2}, "9, which 2 processes cannot share"),
        ({"num_replicas": 2, "rank": 2}, "rank is 2; with num_replicas=2 it must be from 0 to 1"),
        ({"rank": -1}, "rank is -1"),
    ],
)
def test_errors_name_the_argument(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**{**EASY._asdict(), **arguments})
