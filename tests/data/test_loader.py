"""TrainLoader: what a worker hands over is not overwritten before it is taken."""

import time

import pandas as pd
import pytest
import torch

from dml.data import ClassBalancedSampler, RetrievalDataset
from dml.data.loader import TrainLoader


class Numbered(RetrievalDataset):
    """Images whose pixels say which row they are of; the odd rows take longer."""

    levels = ("label",)

    @staticmethod
    def read_index(root):
        rows = pd.Series(range(2400))
        return pd.DataFrame({"path": rows.astype(str), "split": "train", "role": "both", "label": rows // 4})

    def load(self, index):
        if index % 7 == 1:
            time.sleep(0.001)
        return torch.tensor([index // 256, index % 256], dtype=torch.uint8).repeat(8).reshape(1, 4, 4)


def rows_of(images):
    return images[:, 0, 0, 0].long() * 256 + images[:, 0, 0, 1].long()


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("samples", [1, 4])
def test_pixels_are_those_of_the_index(tmp_path, num_workers, samples):
    dataset = Numbered(tmp_path)
    sampler = ClassBalancedSampler(dataset.labels, 75, samples)  # one part and a bit, and five parts
    loader = TrainLoader(dataset, sampler, num_workers=num_workers, pin_memory=False)
    kept = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for number, batch in enumerate(loader):
            if number % 3 == 0:
                time.sleep(0.02)  # the workers run ahead as far as they may
            kept.append(batch)
        assert number + 1 == len(loader)
    # A batch is the caller's: it does not change when others are loaded after it.
    for batch in kept:
        assert len(batch["images"]) == 75 * samples
        assert torch.equal(rows_of(batch["images"]), batch["index"])
        assert torch.equal(batch["labels"][:, 0], batch["index"] // 4)


def test_an_epoch_that_was_left_does_not_disturb_the_next(tmp_path):
    dataset = Numbered(tmp_path)
    sampler = ClassBalancedSampler(dataset.labels, 75, 4)
    loader = TrainLoader(dataset, sampler, num_workers=2, pin_memory=False)
    for _ in range(3):
        for number, batch in enumerate(loader):
            assert torch.equal(rows_of(batch["images"]), batch["index"])
            if number == 2:
                break
    assert sum(len(batch["index"]) for batch in loader) == len(sampler)
