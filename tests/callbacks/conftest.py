import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from dml.data import RetrievalDataModule
from dml.data.dataset import RetrievalDataset
from dml.module import RetrievalModule


class Colours(RetrievalDataset):
    """Plain images ``<class>-<number>-<role>.png`` in the split ``test``, which is also ``val``."""

    levels = ("colour", "half")

    @staticmethod
    def read_index(root):
        names = sorted(path.name for path in root.glob("*.png"))
        colour, _, role = zip(*(name.removesuffix(".png").split("-") for name in names), strict=True)
        test = pd.DataFrame({"path": names, "split": "test", "role": role, "colour": colour})
        test["half"] = test["colour"] > "b"
        return pd.concat([test.assign(split=split) for split in ("test", "val", "train")])


class MeanColour(nn.Module):
    """The colour of an image as its embedding, ``[B, 3]``; the parameter is there to be trained."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return nn.functional.normalize(self.scale * (images.float().mean(dim=(2, 3)) + 1), dim=1)


class Spread(nn.Module):
    def forward(self, embeddings, labels):
        return embeddings.sum()


# Class a is tight. Of b, number 2 looks like a and is found late. Class c mixes with the others.
COLOURS = {
    "a-0-both": (250, 10, 10), "a-1-both": (240, 20, 15), "a-2-both": (245, 5, 25), "a-3-gallery": (235, 15, 5),
    "b-0-both": (10, 250, 10), "b-1-both": (25, 240, 12), "b-2-both": (251, 30, 12), "b-3-gallery": (40, 245, 30),
    "c-0-both": (10, 10, 250), "c-1-both": (120, 90, 200), "c-2-both": (60, 200, 120), "c-3-query": (20, 5, 240),
}  # fmt: skip
SIZES = [(32, 32), (20, 60), (90, 30), (200, 150)]


def paint(root, name, colour, size):
    width, height = size
    Image.fromarray(np.full((height, width, 3), colour, np.uint8)).save(root / f"{name}.png")


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for position, (name, colour) in enumerate(COLOURS.items()):
        paint(root, name, colour, SIZES[position % len(SIZES)])
    return root


@pytest.fixture
def datamodule(root):
    return RetrievalDataModule(
        Colours,
        str(root),
        classes_per_batch=2,
        samples_per_class=2,
        train_transforms=[v2.Resize((8, 8))],
        eval_transforms=[v2.Resize((8, 8))],
        eval_batch_size=5,
        num_workers=0,
    )


@pytest.fixture
def module():
    return RetrievalModule(MeanColour(), Spread())


@pytest.fixture
def make_trainer(tmp_path):
    def make(*callbacks, **options):
        settings = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "use_distributed_sampler": False,
            "default_root_dir": tmp_path / "run",
        }
        return pl.Trainer(callbacks=list(callbacks), **(settings | options))

    return make
