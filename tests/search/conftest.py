"""A small data set with every role, a checkpoint that has not been trained, and an index of both."""

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning
import torch
import yaml
from PIL import Image

from dml import __version__
from dml.__main__ import main
from dml.callbacks.run import CONFIG_KEY, VERSION_KEY
from dml.losses import SmoothAPLoss
from dml.models import TimmEmbedder
from dml.module import RetrievalModule
from dml.search import SearchIndex

CLASSES = ["cup", "hat", "shoe", "spoon"]
COLOURS = {"cup": (200, 40, 40), "hat": (40, 200, 40), "shoe": (40, 40, 200), "spoon": (200, 200, 40)}


def draw(name, number):
    """A colour with noise: images of a class are alike."""
    noise = np.random.default_rng(number).integers(-40, 40, (40, 48, 3))
    return Image.fromarray((np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """Root of 4 classes of 6 images: of each, one is a query only, and one of the gallery only."""
    root = tmp_path_factory.mktemp("shop")
    rows = []
    for place, name in enumerate(CLASSES):
        (root / name).mkdir()
        for number in range(6):
            path = f"{name}/{number}.png"
            draw(name, 10 * place + number).save(root / path)
            role = {0: "query", 1: "gallery"}.get(number, "both")
            worn = "worn" if name in ("hat", "shoe") else "used"
            rows.append({"path": path, "split": "test", "role": role, "product": name, "kind": worn})
    pd.DataFrame(rows).to_csv(root / "index.csv", index=False)
    return root


def save_checkpoint(path, root, *, seed=0, transforms=()):
    torch.manual_seed(seed)
    arguments = {"name": "test_resnet", "embedding_dim": 16, "image_size": 32}
    embedder = TimmEmbedder(**arguments, pretrained=False)
    for layer in embedder.modules():  # statistics of a trained model, and not those of none
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
    config = {
        # Of a run from downloaded weights, which must not be asked for again.
        "model": {
            "embedder": {"class_path": "dml.models.TimmEmbedder", "init_args": {**arguments, "pretrained": True}},
            "loss": {"class_path": "dml.losses.SmoothAPLoss"},
        },
        "data": {
            "dataset": "dml.data.datasets.DataFrameDataset",
            "root": str(root),
            "num_workers": 0,
            "eval_batch_size": 5,
            **({"eval_transforms": list(transforms)} if transforms else {}),
        },
        "trainer": {"max_epochs": 3},
    }
    state = RetrievalModule(embedder, SmoothAPLoss()).state_dict()
    of_lightning = {"pytorch-lightning_version": pytorch_lightning.__version__, "epoch": 0, "global_step": 0}
    of_dml = {CONFIG_KEY: yaml.safe_dump(config), VERSION_KEY: __version__}
    torch.save({"state_dict": state, **of_lightning, **of_dml}, path)
    return path


@pytest.fixture(scope="session")
def checkpoint(shop, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("run") / "best.ckpt", shop)


def run(*words):
    """A command, which must succeed."""
    with pytest.raises(SystemExit) as exit_:
        main([*map(str, words)])
    assert exit_.value.code == 0


def error_of(capsys, *words):
    """The one line that a command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main([*map(str, words)])
    assert exit_.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dml: error")]
    return line


@pytest.fixture(scope="session")
def built(shop, checkpoint, tmp_path_factory):
    """Folder of a flat index."""
    folder = tmp_path_factory.mktemp("index") / "shop.index"
    run("index", "--ckpt_path", checkpoint, "--out", folder)
    return folder


@pytest.fixture
def index(built):
    return SearchIndex(built)
