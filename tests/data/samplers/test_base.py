"""GlobalBatchSampler: a sampler of one's own is one method."""

import numpy as np
import pytest

from dml.data import GlobalBatchSampler
from tests.data.samplers.problems import labels_of


class Shuffled(GlobalBatchSampler):
    """Every image once, in random order."""

    def draw(self, generator):
        return generator.permutation(len(self.classes)).reshape(-1, self.batch_size)


def test_a_sampler_is_one_method():
    arguments = (labels_of([4, 8]), 2, 3)
    whole = Shuffled(*arguments, seed=5)
    whole.set_epoch(7)
    expected = np.random.default_rng([5, 7]).permutation(12)
    assert list(whole) == expected.tolist()
    assert len(whole) == 12
    part = Shuffled(*arguments, seed=5, num_replicas=3, rank=1)
    part.set_epoch(7)
    part.first_batch = 1
    assert list(part) == expected.tolist()[7::3]
    assert (len(part), part.batch_size, part.local_batch_size) == (4, 6, 2)


def test_without_a_draw_it_is_no_sampler():
    with pytest.raises(TypeError, match="draw"):
        GlobalBatchSampler(labels_of([4, 8]), 2, 3)


def test_an_epoch_is_drawn_once(monkeypatch):
    """Lightning asks for the length many times."""
    sampler = Shuffled(labels_of([4, 8]), 2, 3)
    for _ in range(3):
        assert len(sampler) == 12
    monkeypatch.setattr(sampler, "draw", None)
    assert len(list(sampler)) == 12
    sampler.set_epoch(1)
    with pytest.raises(TypeError):
        len(sampler)
